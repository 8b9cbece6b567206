"""kopt: optimizers and parameter-efficient fine-tuning for Keras 3."""

from kopt import start as start  # isort: skip  # before anything that loads Keras
from kopt import board as board
from kopt import checkpoint as checkpoint
from kopt import declare as declare
from kopt import distribution as distribution
from kopt import peft as peft
from kopt import schedules as schedules
from kopt import tensorboard as tensorboard
from kopt.advice import Advice as Advice
from kopt.advice import recommend as recommend
from kopt.declare import Count as Count
from kopt.declare import Fraction as Fraction
from kopt.declare import NonNegative as NonNegative
from kopt.declare import OpenFraction as OpenFraction
from kopt.declare import Positive as Positive
from kopt.declare import Range as Range
from kopt.declare import Share as Share
from kopt.declare.registry import get as get
from kopt.declare.registry import registry as registry
from kopt.optimizers import ADOPT as ADOPT
from kopt.optimizers import APOLLO as APOLLO
from kopt.optimizers import ASGD as ASGD
from kopt.optimizers import BGD as BGD
from kopt.optimizers import CAME as CAME
from kopt.optimizers import COCOB as COCOB
from kopt.optimizers import FTRL as FTRL
from kopt.optimizers import KLSOAP as KLSOAP
from kopt.optimizers import LAMB as LAMB
from kopt.optimizers import LARS as LARS
from kopt.optimizers import LBFGS as LBFGS
from kopt.optimizers import MADGRAD as MADGRAD
from kopt.optimizers import MARS as MARS
from kopt.optimizers import NAG as NAG
from kopt.optimizers import SGD as SGD
from kopt.optimizers import SGDP as SGDP
from kopt.optimizers import SGDW as SGDW
from kopt.optimizers import SM3 as SM3
from kopt.optimizers import SOAP as SOAP
from kopt.optimizers import AdaBelief as AdaBelief
from kopt.optimizers import AdaBound as AdaBound
from kopt.optimizers import AdaBoundW as AdaBoundW
from kopt.optimizers import AdaDelta as AdaDelta
from kopt.optimizers import Adafactor as Adafactor
from kopt.optimizers import AdaGrad as AdaGrad
from kopt.optimizers import AdaHessian as AdaHessian
from kopt.optimizers import Adam as Adam
from kopt.optimizers import AdamAtan2 as AdamAtan2
from kopt.optimizers import AdaMax as AdaMax
from kopt.optimizers import AdamMini as AdamMini
from kopt.optimizers import AdamP as AdamP
from kopt.optimizers import AdamW as AdamW
from kopt.optimizers import Adan as Adan
from kopt.optimizers import AdaptiveClip as AdaptiveClip
from kopt.optimizers import AdEMAMix as AdEMAMix
from kopt.optimizers import Cautious as Cautious
from kopt.optimizers import CautiousDecay as CautiousDecay
from kopt.optimizers import ConditionalGradient as ConditionalGradient
from kopt.optimizers import DAdaptAdaGrad as DAdaptAdaGrad
from kopt.optimizers import DAdaptAdam as DAdaptAdam
from kopt.optimizers import DAdaptSGD as DAdaptSGD
from kopt.optimizers import DiffGrad as DiffGrad
from kopt.optimizers import DoG as DoG
from kopt.optimizers import DoWG as DoWG
from kopt.optimizers import EMANesterov as EMANesterov
from kopt.optimizers import GaLore as GaLore
from kopt.optimizers import GradientCentralization as GradientCentralization
from kopt.optimizers import GradientNoise as GradientNoise
from kopt.optimizers import Grams as Grams
from kopt.optimizers import Hyperball as Hyperball
from kopt.optimizers import LaProp as LaProp
from kopt.optimizers import LazyAdam as LazyAdam
from kopt.optimizers import LDoG as LDoG
from kopt.optimizers import Lion as Lion
from kopt.optimizers import Lookahead as Lookahead
from kopt.optimizers import LossScaleOptimizer as LossScaleOptimizer
from kopt.optimizers import Mechanic as Mechanic
from kopt.optimizers import Momentum as Momentum
from kopt.optimizers import Muon as Muon
from kopt.optimizers import Nadam as Nadam
from kopt.optimizers import NadamW as NadamW
from kopt.optimizers import NorMuon as NorMuon
from kopt.optimizers import NovoGrad as NovoGrad
from kopt.optimizers import Optimizer as Optimizer
from kopt.optimizers import Orthogonalized as Orthogonalized
from kopt.optimizers import Prodigy as Prodigy
from kopt.optimizers import ProximalAdaGrad as ProximalAdaGrad
from kopt.optimizers import PSGDKron as PSGDKron
from kopt.optimizers import QHAdam as QHAdam
from kopt.optimizers import RAdam as RAdam
from kopt.optimizers import RMSprop as RMSprop
from kopt.optimizers import Route as Route
from kopt.optimizers import RowwiseAdaGrad as RowwiseAdaGrad
from kopt.optimizers import Rprop as Rprop
from kopt.optimizers import ScheduleFree as ScheduleFree
from kopt.optimizers import ScheduleFreeAdamW as ScheduleFreeAdamW
from kopt.optimizers import ScheduleFreeRAdam as ScheduleFreeRAdam
from kopt.optimizers import ScheduleFreeSGD as ScheduleFreeSGD
from kopt.optimizers import Scion as Scion
from kopt.optimizers import Shampoo as Shampoo
from kopt.optimizers import SignSGD as SignSGD
from kopt.optimizers import Slot as Slot
from kopt.optimizers import SophiaG as SophiaG
from kopt.optimizers import SophiaH as SophiaH
from kopt.optimizers import StableAdamW as StableAdamW
from kopt.optimizers import Switch as Switch
from kopt.optimizers import Tiger as Tiger
from kopt.optimizers import UpdateFloor as UpdateFloor
from kopt.optimizers import Yogi as Yogi
from kopt.optimizers import state_bytes as state_bytes
from kopt.optimizers.full_batch import LBFGSB as LBFGSB
from kopt.optimizers.full_batch import LevenbergMarquardt as LevenbergMarquardt
from kopt.optimizers.full_batch import Result as Result
from kopt.optimizers.full_batch import minimize as minimize
from kopt.optimizers.layerwise_decay import layerwise_decay as layerwise_decay
from kopt.training import EMA as EMA
from kopt.training import SWA as SWA
from kopt.training import AveragedWeights as AveragedWeights
from kopt.training import TailAverage as TailAverage
from kopt.training.curvature import Curvature as Curvature
from kopt.training.memory_report import MemoryReport as MemoryReport
from kopt.training.memory_report import memory_report as memory_report
from kopt.training.rate_finder import LearningRateFinder as LearningRateFinder
from kopt.training.remat import remat as remat
from kopt.training.sam import ASAM as ASAM
from kopt.training.sam import SAM as SAM
from kopt.training.sam import LookSAM as LookSAM

__version__ = "0.1.0"

__all__ = [
    "ADOPT",
    "APOLLO",
    "ASAM",
    "ASGD",
    "BGD",
    "CAME",
    "COCOB",
    "EMA",
    "FTRL",
    "KLSOAP",
    "LAMB",
    "LARS",
    "LBFGS",
    "LBFGSB",
    "MADGRAD",
    "MARS",
    "NAG",
    "SAM",
    "SGD",
    "SGDP",
    "SGDW",
    "SM3",
    "SOAP",
    "SWA",
    "AdEMAMix",
    "AdaBelief",
    "AdaBound",
    "AdaBoundW",
    "AdaDelta",
    "AdaGrad",
    "AdaHessian",
    "AdaMax",
    "Adafactor",
    "Adam",
    "AdamAtan2",
    "AdamMini",
    "AdamP",
    "AdamW",
    "Adan",
    "AdaptiveClip",
    "Advice",
    "AveragedWeights",
    "Cautious",
    "CautiousDecay",
    "ConditionalGradient",
    "Count",
    "Curvature",
    "DAdaptAdaGrad",
    "DAdaptAdam",
    "DAdaptSGD",
    "DiffGrad",
    "DoG",
    "DoWG",
    "EMANesterov",
    "Fraction",
    "GaLore",
    "GradientCentralization",
    "GradientNoise",
    "Grams",
    "Hyperball",
    "LDoG",
    "LaProp",
    "LazyAdam",
    "LearningRateFinder",
    "LevenbergMarquardt",
    "Lion",
    "LookSAM",
    "Lookahead",
    "LossScaleOptimizer",
    "Mechanic",
    "MemoryReport",
    "Momentum",
    "Muon",
    "Nadam",
    "NadamW",
    "NonNegative",
    "NorMuon",
    "NovoGrad",
    "OpenFraction",
    "Optimizer",
    "Orthogonalized",
    "PSGDKron",
    "Positive",
    "Prodigy",
    "ProximalAdaGrad",
    "QHAdam",
    "RAdam",
    "RMSprop",
    "Range",
    "Result",
    "Route",
    "RowwiseAdaGrad",
    "Rprop",
    "ScheduleFree",
    "ScheduleFreeAdamW",
    "ScheduleFreeRAdam",
    "ScheduleFreeSGD",
    "Scion",
    "Shampoo",
    "Share",
    "SignSGD",
    "Slot",
    "SophiaG",
    "SophiaH",
    "StableAdamW",
    "Switch",
    "TailAverage",
    "Tiger",
    "UpdateFloor",
    "Yogi",
    "board",
    "checkpoint",
    "declare",
    "distribution",
    "get",
    "layerwise_decay",
    "memory_report",
    "minimize",
    "peft",
    "recommend",
    "registry",
    "remat",
    "schedules",
    "state_bytes",
    "tensorboard",
]

"""Optimizers that change the rule of another one."""

from kopt.optimizers.wrappers.apollo import APOLLO as APOLLO
from kopt.optimizers.wrappers.cautious import Cautious as Cautious
from kopt.optimizers.wrappers.cautious import CautiousDecay as CautiousDecay
from kopt.optimizers.wrappers.ema_nesterov import EMANesterov as EMANesterov
from kopt.optimizers.wrappers.galore import GaLore as GaLore
from kopt.optimizers.wrappers.gradient_changes import AdaptiveClip as AdaptiveClip
from kopt.optimizers.wrappers.gradient_changes import GradientCentralization as GradientCentralization
from kopt.optimizers.wrappers.gradient_changes import GradientNoise as GradientNoise
from kopt.optimizers.wrappers.lengths import Hyperball as Hyperball
from kopt.optimizers.wrappers.lengths import UpdateFloor as UpdateFloor
from kopt.optimizers.wrappers.lookahead import Lookahead as Lookahead
from kopt.optimizers.wrappers.loss_scale import LossScaleOptimizer as LossScaleOptimizer
from kopt.optimizers.wrappers.mechanic import Mechanic as Mechanic
from kopt.optimizers.wrappers.orthogonalized import Orthogonalized as Orthogonalized
from kopt.optimizers.wrappers.schedule_free import ScheduleFree as ScheduleFree
from kopt.optimizers.wrappers.schedule_free import ScheduleFreeAdamW as ScheduleFreeAdamW
from kopt.optimizers.wrappers.schedule_free import ScheduleFreeRAdam as ScheduleFreeRAdam
from kopt.optimizers.wrappers.schedule_free import ScheduleFreeSGD as ScheduleFreeSGD
from kopt.optimizers.wrappers.wrapper import Wrapper as Wrapper

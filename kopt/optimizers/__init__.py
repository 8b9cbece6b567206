"""Optimizers: one rule, or one tight family, a file."""

from kopt.optimizers._base import LearningRate as LearningRate
from kopt.optimizers._base import Optimizer as Optimizer
from kopt.optimizers._slots import Slot as Slot
from kopt.optimizers.adabound import AdaBound as AdaBound
from kopt.optimizers.adabound import AdaBoundW as AdaBoundW
from kopt.optimizers.adagrad import AdaGrad as AdaGrad
from kopt.optimizers.adam import Adam as Adam
from kopt.optimizers.adam import AdamW as AdamW
from kopt.optimizers.adam import Nadam as Nadam
from kopt.optimizers.adamax import AdaMax as AdaMax
from kopt.optimizers.lion import Lion as Lion
from kopt.optimizers.rmsprop import RMSprop as RMSprop
from kopt.optimizers.sgd import NAG as NAG
from kopt.optimizers.sgd import SGD as SGD
from kopt.optimizers.sgd import Momentum as Momentum

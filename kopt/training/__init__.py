"""What sees a whole training: averages of its weights."""

from kopt.training.averages import EMA as EMA
from kopt.training.averages import SWA as SWA
from kopt.training.averages import AveragedWeights as AveragedWeights
from kopt.training.averages import TailAverage as TailAverage

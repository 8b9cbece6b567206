"""Learning-rate schedules that Keras lacks. For a kopt optimizer a step is an update, for one of Keras a batch."""

from kopt.schedules.cycles import Cyclical as Cyclical
from kopt.schedules.cycles import OneCycle as OneCycle
from kopt.schedules.joined import join as join
from kopt.schedules.warmup import REX as REX
from kopt.schedules.warmup import PowerCooldown as PowerCooldown
from kopt.schedules.warmup import WarmupCosine as WarmupCosine
from kopt.schedules.warmup import WarmupLinear as WarmupLinear
from kopt.schedules.warmup import WarmupPolynomial as WarmupPolynomial
from kopt.schedules.warmup import WarmupStableDecay as WarmupStableDecay

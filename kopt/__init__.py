"""kopt: optimizers and parameter-efficient fine-tuning for Keras 3."""

from kopt import peft as peft
from kopt._hyper import hyper as hyper
from kopt._registry import get as get
from kopt._registry import registry as registry
from kopt.optimizers import NAG as NAG
from kopt.optimizers import SGD as SGD
from kopt.optimizers import AdaBound as AdaBound
from kopt.optimizers import AdaBoundW as AdaBoundW
from kopt.optimizers import AdaGrad as AdaGrad
from kopt.optimizers import Adam as Adam
from kopt.optimizers import AdaMax as AdaMax
from kopt.optimizers import AdamW as AdamW
from kopt.optimizers import Lion as Lion
from kopt.optimizers import Momentum as Momentum
from kopt.optimizers import Nadam as Nadam
from kopt.optimizers import Optimizer as Optimizer
from kopt.optimizers import RMSprop as RMSprop
from kopt.optimizers import Slot as Slot

__version__ = "0.1.0"

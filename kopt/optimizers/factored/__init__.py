"""Rules that keep less than a number a weight for its squares."""

from kopt.optimizers.factored.adafactor import Adafactor as Adafactor
from kopt.optimizers.factored.adam_mini import AdamMini as AdamMini
from kopt.optimizers.factored.came import CAME as CAME
from kopt.optimizers.factored.sm3 import SM3 as SM3

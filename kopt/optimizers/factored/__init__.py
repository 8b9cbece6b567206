"""Rules that keep less than a number a weight for its squares."""

from kopt.optimizers.factored.adafactor import Adafactor as Adafactor

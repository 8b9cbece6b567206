"""Optimizers made of several."""

from kopt.optimizers.composites.composite import Composite as Composite
from kopt.optimizers.composites.route import Route as Route
from kopt.optimizers.composites.switch import Switch as Switch

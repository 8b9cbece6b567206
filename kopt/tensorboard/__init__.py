"""Callbacks that show in TensorBoard what the optimizer and the adapters did."""

from kopt.tensorboard._adapters import AdapterStats as AdapterStats
from kopt.tensorboard._optimizer import OptimizerStats as OptimizerStats

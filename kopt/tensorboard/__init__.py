"""Callbacks that show in TensorBoard what the optimizer and the adapters did."""

from kopt.tensorboard.adapter_stats import AdapterStats as AdapterStats
from kopt.tensorboard.event_file import EventFile as EventFile
from kopt.tensorboard.optimizer_stats import OptimizerStats as OptimizerStats

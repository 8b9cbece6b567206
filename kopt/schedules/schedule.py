"""What the schedules share: checked arguments, a configuration, and registration with Keras."""

import dataclasses
from typing import Any

from keras import ops

from kopt.declare import Configurable, Count, Positive
from kopt.declare.keras_bases import KerasSchedule
from kopt.declare.registry import SCHEDULES

Tensor = Any


class Schedule(Configurable, KerasSchedule):
    """Base of all schedules: the peak times a factor of the step.

    Args:
        peak_learning_rate: > 0, the largest rate.
        steps: ≥ 1, updates of the whole training. Afterwards the last rate stays.

    Raises:
        ValueError: an argument is missing, unknown or out of range.
    """

    peak_learning_rate: Positive = dataclasses.field(default=1e-3, kw_only=False)
    steps: Count

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        SCHEDULES.register(cls)

    def __call__(self, step: Any) -> Tensor:
        """Returns the rate of the update after `step` updates, a float32 scalar."""
        return self.peak_learning_rate * self.factor(ops.cast(step, "float32"))

    def factor(self, t: Tensor) -> Tensor:
        """Returns the share of the peak after t updates."""
        raise NotImplementedError(f"{type(self).__name__} must define factor(self, t).")

"""What the schedules share: checked arguments, a configuration, and registration with Keras."""

import dataclasses
import os
from typing import Any

from keras import ops

from kopt.declare import Configurable, Count, Positive
from kopt.declare.fields import as_code
from kopt.declare.keras_bases import KerasSchedule
from kopt.declare.registry import SCHEDULES
from kopt.schedules.curve import draw_curve

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

    def _changed(self, *left_out: str) -> list[str]:
        """Returns the code of the arguments; the peak is shown though it be the default: it is what one looks for."""
        peak = f"peak_learning_rate={as_code(self.peak_learning_rate)}"
        return [peak, *super()._changed("peak_learning_rate", *left_out)]

    def factor(self, t: Tensor) -> Tensor:
        """Returns the share of the peak after t updates."""
        raise NotImplementedError(f"{type(self).__name__} must define factor(self, t).")

    def plot(self, path: str | os.PathLike[str], steps: int | None = None) -> None:
        """Writes the learning rate over the updates as a PNG file.

        Args:
            path: of the file.
            steps: ≥ 1, updates that are shown; None shows the whole schedule, of `Cyclical` two cycles.

        Raises:
            ValueError: `steps` is below 1.
            ImportError: matplotlib is missing.
        """
        draw_curve(self, path, self.length() if steps is None else steps)

    def length(self) -> int:
        """Returns the updates after which nothing new comes."""
        return self.steps

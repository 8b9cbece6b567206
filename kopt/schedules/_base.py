"""What the schedules share: checked arguments, a configuration, and registration with Keras."""

from typing import Any

import keras
from keras import ops

from kopt._hyper import Configurable, hyper

Tensor = Any


class Schedule(Configurable, keras.optimizers.schedules.LearningRateSchedule):
    """Base of all schedules: the peak times a factor of the step.

    Args:
        peak_learning_rate: > 0, the largest rate.
        steps: ≥ 1, updates of the whole training. Afterwards the last rate stays.

    Raises:
        ValueError: an argument is missing, unknown or out of range.
    """

    leading = "peak_learning_rate"
    peak_learning_rate: float = hyper(1e-3, above=0)
    steps: int | None = hyper(None, 1, integer=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        keras.saving.register_keras_serializable("kopt")(cls)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__()
        if len(args) > 1:
            raise TypeError(f"{type(self).__name__} takes one argument by position, {self.leading}. Received: {args}")
        for name, value in self._checked(options | dict(zip([self.leading], args, strict=False))).items():
            setattr(self, name, value)
        if self.steps is None:
            raise ValueError(f"{type(self).__name__} needs steps, the number of updates of the whole training.")

    def __call__(self, step: Any) -> Tensor:
        """Returns the rate of the update after `step` updates, a float32 scalar."""
        return self.peak_learning_rate * self.factor(ops.cast(step, "float32"))

    def factor(self, t: Tensor) -> Tensor:
        """Returns the share of the peak after t updates."""
        raise NotImplementedError(f"{type(self).__name__} must define factor(self, t).")

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {name: getattr(self, name) for name in self.hypers}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.get_config().items())})"

"""The one learning-rate schedule that Keras lacks."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("recipes")
class WarmupLinear(keras.optimizers.schedules.LearningRateSchedule):
    """A linear rise from 0 to the peak, then a linear fall to 0 at the last step."""

    def __init__(self, peak_learning_rate: float, steps: int, warmup_steps: int = 0) -> None:
        super().__init__()
        self.peak_learning_rate, self.steps, self.warmup_steps = peak_learning_rate, steps, warmup_steps

    def __call__(self, step: Any) -> Any:
        """Returns the rate at `step`, counted from 0."""
        step = ops.cast(step, "float32")
        rise = step / max(self.warmup_steps, 1)
        fall = (self.steps - step) / max(self.steps - self.warmup_steps, 1)
        return self.peak_learning_rate * ops.clip(ops.where(step < self.warmup_steps, rise, fall), 0.0, 1.0)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {
            "peak_learning_rate": self.peak_learning_rate,
            "steps": self.steps,
            "warmup_steps": self.warmup_steps,
        }

"""The learning rate: a number that can be set, a schedule over updates, or a callable."""

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from kopt._hyper import Hyper
from kopt.optimizers._math import Tensor
from kopt.optimizers._records import OptimizerParts

Schedule = keras.optimizers.schedules.LearningRateSchedule
LearningRate = float | Schedule | Callable[..., Any]


class Rate(OptimizerParts):
    """Checks, reads and sets the learning rate of an optimizer."""

    def _check_rate(self, value: Any) -> Any:
        if callable(value) or ops.is_tensor(value):
            return value
        return Hyper(0.0, 0).check(type(self).__name__, "learning_rate", value)

    @property
    def learning_rate(self) -> Any:
        """The rate of the next update."""
        return self._get_current_learning_rate()

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        value = self._check_rate(value)
        if callable(value) or not isinstance(self._learning_rate, keras.Variable):
            raise TypeError(
                f"{type(self).__name__}.learning_rate can be set to a number if it was created with one. Received: "
                f"{value!r} for {self._learning_rate!r}. Create a new optimizer to change the schedule."
            )
        self._learning_rate.assign(value)

    def _get_current_learning_rate(self) -> Any:
        rate = self._learning_rate
        return rate if isinstance(rate, keras.Variable) else self._rate_after(self._updates())

    def _rate_after(self, updates: Tensor) -> Any:
        """Returns the rate of the update that follows so many."""
        rate = self._learning_rate
        if isinstance(rate, keras.Variable):
            return self._value(rate)
        if isinstance(rate, Schedule):
            return rate(updates)
        needed = [p for p in inspect.signature(rate).parameters.values() if p.default is p.empty]
        return rate(updates) if needed else rate()

    def _updates(self) -> Tensor:
        """Number of updates done, where Keras' schedules see the number of batches."""
        return self._value(self._iterations) // (self.gradient_accumulation_steps or 1)

    def _given_rate(self) -> Any:
        """The schedule or callable, or the number in its shortest form: 0.001, not 0.0010000000474974513."""
        rate = self._learning_rate
        return float(str(np.asarray(rate.numpy())[()])) if isinstance(rate, keras.Variable) else rate

"""The learning rate: a number that can be set, a schedule over updates, or a callable; λ likewise."""

import inspect
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import keras
import numpy as np
from keras import ops

from kopt.declare import Convert, NonNegative, accept
from kopt.optimizers.engine.parameter import OptimizerParts
from kopt.optimizers.engine.tensor_math import Tensor

if TYPE_CHECKING:
    from keras.optimizers.schedules import LearningRateSchedule as Schedule
else:
    Schedule = keras.optimizers.schedules.LearningRateSchedule


def check_rate(value: Any) -> Any:
    """Returns a schedule or callable as it is, a number ≥ 0 as a float."""
    if callable(value):
        return value
    if ops.is_tensor(value):
        value = float(ops.convert_to_numpy(value))
    return accept(NonNegative, value)


def check_decay(value: Any) -> Any:
    """Returns what `check_rate` does, or None."""
    return value if callable(value) else accept(NonNegative | None, value)


LearningRate = Annotated[float | Schedule | Callable[..., Any], Convert(check_rate)]
WeightDecay = Annotated[float | Schedule | Callable[..., Any] | None, Convert(check_decay)]


class Rate(OptimizerParts):
    """Reads and sets the learning rate of an optimizer."""

    @property
    def learning_rate(self) -> Any:
        """The rate of the next update."""
        return self._get_current_learning_rate()

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        number = isinstance(self._learning_rate, keras.Variable)
        if not ops.is_tensor(value):
            value = self.fields["learning_rate"].check(type(self).__name__, value)
        if not callable(value) and not number:
            raise TypeError(
                f"{type(self).__name__}.learning_rate can be set to a number if it was created with one. Received: "
                f"{value!r} for {self._learning_rate!r}. Create a new optimizer to change the schedule."
            )
        if not callable(value):
            self._learning_rate.assign(value)
            return
        if self._traced:
            warnings.warn(
                f"{type(self).__name__} has a new schedule, but a train step was compiled with the old rate and keeps "
                "it. Call model.compile(optimizer=model.optimizer, ...) before the next fit.",
                stacklevel=2,
            )
        if number:
            self._untrack_variable(self._learning_rate)
        self._learning_rate = value

    def _get_current_learning_rate(self) -> Any:
        rate = self._learning_rate
        return rate if isinstance(rate, keras.Variable) else self._rate_after(self._updates())

    def _rate_after(self, updates: Tensor) -> Tensor:
        """Returns the rate of the update that follows so many."""
        return self._following(self._learning_rate, updates)

    def _decay_after(self, updates: Tensor) -> Any:
        """Returns λ of the update that follows so many: a Python number, or a tensor where it follows a schedule."""
        return self._following(self.weight_decay or 0.0, updates)

    def _following(self, rate: Any, updates: Tensor) -> Any:
        if isinstance(rate, keras.Variable):
            return self._value(rate)
        if isinstance(rate, float):
            return rate
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


def serialized(owner: str, name: str, rate: Any) -> Any:
    """Returns a rate fit for JSON; warns of a lambda, which cannot be loaded again without further ado."""
    if rate is None or isinstance(rate, float):
        return rate
    if getattr(rate, "__name__", "") == "<lambda>":
        warnings.warn(
            f"{owner}: {name} is a lambda, which Keras loads with safe_mode=False alone, and without the variables "
            "that it reads. Use a LearningRateSchedule, or a named function that is registered with "
            "keras.saving.register_keras_serializable.",
            stacklevel=3,
        )
    return keras.saving.serialize_keras_object(rate)


def deserialized(value: Any, custom_objects: Any = None) -> Any:
    """Returns what `serialized` was made from."""
    return keras.saving.deserialize_keras_object(value, custom_objects) if isinstance(value, dict) else value

"""The learning rate: a number that can be set, a schedule over updates, or a callable; λ likewise."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import keras
import numpy as np
from keras import ops

from kopt.declare import Convert, NonNegative, accept
from kopt.optimizers.engine.backends.backend import backend
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


def following(rate: Any, updates: Tensor) -> Any:
    """Returns a rate after so many updates: of a number a Python number or the variable's value, else a tensor."""
    if isinstance(rate, keras.Variable):
        return backend.value(rate)
    if isinstance(rate, float):
        return rate
    if isinstance(rate, Schedule):
        return rate(updates)
    needed = [p for p in inspect.signature(rate).parameters.values() if p.default is p.empty]
    return rate(updates) if needed else rate()


def check_new(owner: str, old: Any, new: Any, traced: bool) -> None:
    """Warns if a new schedule comes too late, for a train step was compiled (`traced`) with the old rate.

    Raises:
        TypeError: a number in place of a schedule.
    """
    if not callable(new) and not isinstance(old, keras.Variable):
        raise TypeError(
            f"{owner}.learning_rate can be set to a number if it was created with one. Received: {new!r} for {old!r}. "
            "Create a new optimizer to change the schedule."
        )
    if callable(new) and traced:
        warnings.warn(
            f"{owner} has a new schedule, but a train step was compiled with the old rate and keeps it. Call "
            "model.compile(optimizer=model.optimizer, ...) before the next fit.",
            stacklevel=3,
        )


def given(rate: Any) -> Any:
    """Returns a schedule or callable as it is, a number in its shortest form: 0.001, not 0.0010000000474974513."""
    if not isinstance(rate, keras.Variable):
        return rate
    with backend.outside_graph():
        return float(str(np.asarray(rate.numpy())[()]))


def serialized(owner: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns η and λ fit for JSON; warns of a lambda, which cannot be loaded again without further ado."""
    result = {}
    for name in ("learning_rate", "weight_decay"):
        rate = config[name]
        if getattr(rate, "__name__", "") == "<lambda>":
            warnings.warn(
                f"{owner}: {name} is a lambda, which Keras loads with safe_mode=False alone, and without the variables "
                "that it reads. Use a LearningRateSchedule, or a named function that is registered with "
                "keras.saving.register_keras_serializable.",
                stacklevel=3,
            )
        plain = rate is None or isinstance(rate, float)
        result[name] = rate if plain else keras.saving.serialize_keras_object(rate)
    return result


def deserialized(config: Mapping[str, Any], custom_objects: Any = None) -> dict[str, Any]:
    """Returns a configuration with the schedules and callables that `serialized` has made fit for JSON."""
    rates = {k: config[k] for k in ("learning_rate", "weight_decay") if isinstance(config.get(k), dict)}
    made = {k: keras.saving.deserialize_keras_object(x, custom_objects) for k, x in rates.items()}
    return {**config, **made}

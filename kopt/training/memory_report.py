"""What a training takes of memory, and what it would take with every other rule."""

import contextlib
import ctypes
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from kopt.declare.fields import REQUIRED
from kopt.declare.registry import registry
from kopt.optimizers import Optimizer, state_bytes
from kopt.optimizers.memory import update_bytes


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """Bytes that a training takes; `print` shows them in megabytes (10⁶ bytes).

    Attributes:
        optimizer: name of the class of the optimizer that was measured.
        weights: all variables of the model.
        gradients: one for each trained weight.
        state: what the optimizer keeps, see `state_bytes`.
        update: what an update needs for a while, such as new slots before they take the place of the old ones.
        activations: all else that the measured step needed: what the forward pass keeps for the backward pass, and what
            was compiled.
        peak: the sum: what the process grows by from the start of building the model to the end of training.
        peaks: the same for every rule of the registry with its defaults, the smallest first.
    """

    optimizer: str
    weights: int
    gradients: int
    state: int
    update: int
    activations: int
    peak: int
    peaks: Mapping[str, int]

    def __str__(self) -> str:
        parts = ("weights", "gradients", "state", "update", "activations", "peak")
        lines = [f"A training step with {self.optimizer}, in MB:"]
        lines += [f"  {part:<12} {getattr(self, part) / 1e6:>10,.1f}" for part in parts]
        lines += ["", "Predicted peak with the defaults of each rule, in MB:"]
        return "\n".join([*lines, *(f"  {name:<24} {size / 1e6:>10,.1f}" for name, size in self.peaks.items())])


def memory_report(model: keras.Model, optimizer: Optimizer, batch: Any) -> MemoryReport:
    """Measures one training step, and predicts from it the memory that training takes with every rule.

        print(kopt.memory_report(model, kopt.AdamW(), next(iter(dataset))))

    The step is one of `model.train_on_batch` with a copy of the optimizer; weights, metrics and random generators of
    the model are put back afterwards. What is measured is the resident memory of the process. Memory that the process
    has to spare, as after a training, hides a part of what the step needs: ask before the first training.

    Args:
        model: built, and compiled with its loss. The optimizer that it is compiled with is not asked.
        optimizer: one of kopt.
        batch: what a data set of `fit` would give: (inputs, targets), or (inputs, targets, weights).

    Raises:
        ValueError: the optimizer is none of kopt, or the model is not built and compiled.
        NotImplementedError: the process does not run on Linux, or the model not on CPUs.
    """
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"memory_report takes an optimizer of kopt. Received: {optimizer!r}")
    if not (model.built and getattr(model, "compiled", False)):
        raise ValueError(f"memory_report takes a model that is built and compiled with its loss. Received: {model!r}")
    if not os.path.exists("/proc/self/clear_refs") or not _is_on_cpu():
        raise NotImplementedError("memory_report reads the memory of a process on Linux, for a model on CPUs.")
    grown = _growth_of_a_step(model, optimizer, batch)
    weights, trained = (_size(v) for v in (_variables(model), model.trainable_variables))
    state, update = state_bytes(optimizer, model), update_bytes(optimizer, model)
    activations = max(0, grown - trained - state - update)
    peaks = {}
    for cls in registry().values():
        if issubclass(cls, Optimizer) and all(field.default is not REQUIRED for field in cls.fields.values()):
            rule = cls()
            peaks[cls.__name__] = weights + trained + activations + state_bytes(rule, model) + update_bytes(rule, model)
    return MemoryReport(
        optimizer=type(optimizer).__name__,
        weights=weights,
        gradients=trained,
        state=state,
        update=update,
        activations=activations,
        peak=weights + trained + state + update + activations,
        peaks=dict(sorted(peaks.items(), key=lambda item: (item[1], item[0]))),
    )


def _growth_of_a_step(model: keras.Model, optimizer: Optimizer, batch: Any) -> int:
    """Returns by how many bytes the resident memory grows in a step of training, at its peak."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    with _as_it_was(model):
        model.optimizer = type(optimizer).from_config(optimizer.get_config())
        model.train_function = None
        _give_back()
        before = _resident("VmRSS")
        model.train_on_batch(x, y, sample_weight=sample_weight)
        return max(0, _resident("VmHWM") - before)


@contextlib.contextmanager
def _as_it_was(model: keras.Model) -> Iterator[None]:
    """Puts everything back that a training step changes."""
    variables = _variables(model)
    values = [np.array(keras.ops.convert_to_numpy(v)) for v in variables]
    optimizer, function = model.optimizer, model.train_function
    try:
        yield
    finally:
        model.optimizer, model.train_function = optimizer, function
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def _variables(model: keras.Model) -> list[Any]:
    """Returns all variables of a model, those of its metrics included, once each."""
    return list({id(v): v for v in [*model.variables, *model.metrics_variables]}.values())


def _size(variables: Any) -> int:
    return sum(math.prod(v.shape) * np.dtype(_stored(v)).itemsize for v in variables)


def _stored(variable: Any) -> str:
    dtype = keras.backend.standardize_dtype(variable.dtype)
    return "float16" if dtype == "bfloat16" else dtype


def _is_on_cpu() -> bool:
    return all(device.startswith("cpu") for device in keras.distribution.list_devices())


def _give_back() -> None:
    """Gives memory that nobody uses back to the system, and lets the peak begin anew."""
    with contextlib.suppress(AttributeError, OSError):  # only the C library of GNU has it
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def _resident(what: str) -> int:
    """Returns resident memory in bytes: "VmRSS" now, "VmHWM" at its peak."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(what)) * 1024

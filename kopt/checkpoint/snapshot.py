"""All that a training needs to go on, taken from its objects and put back into them."""

import copy
import dataclasses
import inspect
import random
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kopt.checkpoint.plain_values import Array, NotPlainError, decoded, encoded, like
from kopt.training.keras_internals import (
    begin_global_seed,
    get_backend_generators,
    global_seed,
    set_backend_generators,
    sync_variables,
    unwrapped,
)

METRICS = "metrics"
"""The group of variables that every epoch begins anew."""
PASSING = ("_model", "params", "validation_data")
"""Attributes of a callback that `fit` sets."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The state of a training between two batches.

    Attributes:
        epoch: the epoch that goes on, from 0.
        batch: how many of its batches are done.
        paths: of the variables, by group: see `groups`.
        arrays: values of the variables as "group.0", "group.1", ..., and the arrays of `others`.
        others: what is no variable, as JSON: the last logs, the callbacks with their states, the random generators.
    """

    epoch: int
    batch: int
    paths: dict[str, list[str]]
    arrays: dict[str, Array]
    others: dict[str, Any]


def groups(model: Any) -> dict[str, list[Any]]:
    """Returns the variables of a model, of its train step, its optimizers, and of the metrics of `compile`."""
    metrics = list(model.metrics_variables)
    passing = {id(v) for v in metrics}
    seed = global_seed()
    return {
        "model": [v for v in model.variables if id(v) not in passing],
        "seed": [] if seed is None else [seed],
        "step": model.step_variables() if hasattr(model, "step_variables") else [],
        **{name: list(optimizer.variables) for name, optimizer in optimizers(model).items()},
        METRICS: metrics,
    }


def optimizers(model: Any) -> dict[str, Any]:
    """Returns the optimizer that `compile` was given, and those that a model of one's own holds beside it."""
    held = {name: x for name, x in vars(model).items() if isinstance(x, keras.optimizers.Optimizer)}
    others = {f"optimizer {name!r}": x for name, x in held.items() if x is not model.optimizer}
    return ({} if model.optimizer is None else {"optimizer": model.optimizer}) | others


def take(
    model: Any,
    callbacks: Sequence["Kept"],
    epoch: int,
    batch: int,
    logs: Mapping[str, Any],
    drawn: Any,
    ended: bool = False,
) -> Snapshot:
    """Returns the state of a training as it is now.

    Args:
        model: a compiled model.
        callbacks: those whose state is kept.
        epoch: the epoch that goes on, from 0.
        batch: how many of its batches are done.
        logs: what the last of them gave.
        drawn: what `generators` returned when the epoch began.
        ended: whether a callback has ended the training after a whole epoch.
    """
    sync_variables(model)
    arrays, paths = dict[str, Array](), dict[str, list[str]]()
    for group, variables in groups(model).items():
        paths[group] = [v.path for v in variables]
        arrays |= {f"{group}.{i}": np.asarray(ops.convert_to_numpy(v)) for i, v in enumerate(variables)}
    others = {
        "logs": {name: encoded(_log(value), arrays, "logs") for name, value in logs.items()},
        "callbacks": [[kept.name, kept.encoded(arrays, f"callback.{i}")] for i, kept in enumerate(callbacks)],
        "random": encoded(generators(), arrays, "random"),
        "random_before": encoded(drawn, arrays, "random"),
        "ended": ended,
    }
    return Snapshot(epoch, batch, paths, arrays, others)


def last_logs(snapshot: Snapshot) -> dict[str, Any]:
    """Returns what the last batch gave."""
    return {name: decoded(value, snapshot.arrays) for name, value in snapshot.others["logs"].items()}


def put_back(snapshot: Snapshot, model: Any, owner: str, metrics: bool = False) -> None:
    """Gives variables the values that they had.

    Args:
        snapshot: what to put back.
        model: built, and compiled with a built optimizer.
        owner: who asks, for the message.
        metrics: whether those of `compile` go on, too: in the middle of an epoch.

    Raises:
        ValueError: the model or its optimizer has other variables than the one that the snapshot is of.
    """
    if snapshot.paths["seed"]:
        begin_global_seed()
    present = groups(model)
    left_out = {METRICS} if not metrics else set[str]()
    kinds = [g for g in {**present, **snapshot.paths} if g not in left_out and (g != "seed" or snapshot.paths[g])]
    for group in kinds:
        saved, variables = snapshot.paths.get(group, []), present.get(group, [])
        for i in range(max(len(saved), len(variables))):
            old = None if i >= len(saved) else snapshot.arrays[f"{group}.{i}"]
            new = None if i >= len(variables) else variables[i]
            if old is None or new is None or _form(old) != _form(new):
                raise ValueError(
                    f"{owner}: the {group} is another one than that of the checkpoint. Variable {i} was "
                    f"{_described(saved, i, old)} and is {_described([v.path for v in variables], i, new)}. Build and "
                    "compile the model as it was, or begin anew in another folder."
                )
    for group in kinds:
        for i, variable in enumerate(present[group]):
            variable.assign(snapshot.arrays[f"{group}.{i}"])
    for optimizer in map(unwrapped, optimizers(model).values()):
        if optimizer.built and hasattr(optimizer, "setup"):
            optimizer.setup.note_debts()


def put_back_others(snapshot: Snapshot, callbacks: Sequence["Kept"], owner: str) -> None:
    """Gives callbacks and the random generators of Python and NumPy their states.

    Raises:
        ValueError: the callbacks are others than those of the snapshot.
    """
    saved = [name for name, _ in snapshot.others["callbacks"]]
    if saved != [kept.name for kept in callbacks]:
        raise ValueError(
            f"{owner}: the checkpoint has the states of the callbacks {', '.join(saved) or 'none'}. Received: "
            f"{', '.join(kept.name for kept in callbacks) or 'none'}. Give the same in the same order."
        )
    for kept, (_, state) in zip(callbacks, snapshot.others["callbacks"], strict=True):
        kept.set_state(decoded(state, snapshot.arrays))
    put_back_generators(snapshot, "random")


def generators() -> list[Any]:
    """Returns the states of the generators of Python, NumPy and torch."""
    return [random.getstate(), np.random.get_state(legacy=False), get_backend_generators()]


def put_back_generators(snapshot: Snapshot, when: str) -> None:
    """Gives the generators the states that they had, at the snapshot ("random") or before its epoch."""
    of_python, of_numpy, of_backend = decoded(snapshot.others[when], snapshot.arrays)
    random.setstate(of_python)
    np.random.set_state(of_numpy)
    set_backend_generators(of_backend)


class Kept:
    """A callback whose state is kept: what `get_state` returns, or else its plain attributes that have changed.

    Args:
        callback: as it is before `fit`.
    """

    def __init__(self, callback: Any) -> None:
        self.callback, self.name = callback, type(callback).__name__
        # Keras changes arguments at the first epoch, as the sign of `min_delta`, and would do so again.
        of_keras = [c for c in type(callback).__mro__ if c.__module__.startswith("keras.") and "__init__" in vars(c)]
        self._passing = {*PASSING, *(name for c in of_keras for name in inspect.signature(c).parameters)}
        self._own = hasattr(callback, "get_state") and hasattr(callback, "set_state")
        self._before = {} if self._own else self._attributes()

    def _attributes(self) -> dict[str, Any]:
        found = dict[str, Any]()
        for name, value in vars(self.callback).items():
            if name not in self._passing:
                try:
                    encoded(value, {}, "")
                except NotPlainError:
                    continue
                found[name] = copy.deepcopy(value)
        return found

    def state(self) -> dict[str, Any]:
        """Returns it as plain values."""
        if self._own:
            return dict(self.callback.get_state())
        return {
            name: value
            for name, value in self._attributes().items()
            if name not in self._before or not _same(value, self._before[name])
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Puts it back."""
        if self._own:
            self.callback.set_state(state)
        else:
            for name, value in state.items():
                setattr(self.callback, name, like(getattr(self.callback, name, None), value))

    def encoded(self, arrays: dict[str, Array], name: str) -> Any:
        """Returns it as JSON; its arrays are added to `arrays`.

        Raises:
            TypeError: what `get_state` returns has something of another kind.
        """
        try:
            return encoded(self.state(), arrays, name)
        except NotPlainError as error:
            raise NotPlainError(
                f"{self.name}.get_state: expected numbers, texts, arrays and collections of these. Received: {error}"
            ) from error


def _same(a: Any, b: Any) -> bool:
    """Whether two plain values are equal; NaN is equal to itself."""
    ours, theirs = dict[str, Array](), dict[str, Array]()
    return repr(encoded(a, ours, "")) == repr(encoded(b, theirs, "")) and all(
        x.dtype == y.dtype and x.tobytes() == y.tobytes() and x.shape == y.shape
        for x, y in zip(ours.values(), theirs.values(), strict=True)
    )


def _log(value: Any) -> Any:
    """Returns a number, or an array where a metric has several."""
    array = np.asarray(ops.convert_to_numpy(value))
    return array if array.ndim else float(array)


def _form(x: Any) -> tuple[str, tuple[int, ...]]:
    return keras.backend.standardize_dtype(x.dtype), tuple(x.shape)


def _described(paths: Sequence[str], i: int, x: Any) -> str:
    return "missing" if x is None else f"{paths[i]!r}, {_form(x)[0]} {list(x.shape)}"

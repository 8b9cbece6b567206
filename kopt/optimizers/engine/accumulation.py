"""Gradient accumulation: a stage in front of the step, which then sees a mean gradient like any other.

A table has a mark on each row that a batch has read since the last update, so that its mean has these rows alone.
"""

from collections.abc import Sequence
from typing import Any

from keras import ops

from kopt.optimizers.engine.backends.backend import backend
from kopt.optimizers.engine.backends.records import Gradient, Write
from kopt.optimizers.engine.parameter import Parameter, read, write
from kopt.optimizers.engine.setup import Setup
from kopt.optimizers.engine.step import step
from kopt.optimizers.engine.tensor_math import Tensor


def accumulate(
    setup: Setup, gradients: Sequence[Any], rate: Tensor, loss: Tensor | None = None, careful: Any = True
) -> Tensor | None:
    """Adds a batch and, if it is the last one, makes the step; returns what `step` does.

    For places where a step cannot stand inside of a condition: its writes choose between new and old values.
    """
    due, loss = add(setup, gradients, loss)
    flags = step(setup, means(setup, gradients), rate, loss, due, careful=careful)
    emptied = begin_anew(setup, gradients)
    backend.commit_if(due, lambda: (emptied, None))
    return flags


def add(setup: Setup, gradients: Sequence[Any], loss: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Adds a batch to the sums; returns whether an update is due, and the mean loss so far."""
    count, steps = backend.value(setup.iterations), setup.options.batches
    share = setup.optimizer.share(count % steps)
    backend.commit([w for p, g in setup.given(gradients) for w in _added(setup, p, g, share)])
    if loss is not None:
        total = backend.value(setup.shared["loss"]) + ops.cast(share, loss.dtype) * loss
        backend.commit([Write(setup.shared["loss"], total)])
        loss = total / steps
    return ops.equal((count + 1) % steps, 0), loss


def _added(setup: Setup, p: Parameter, g: Any, share: Tensor) -> list[Write]:
    gradient = p.gradient(g, setup.owner)
    marked = gradient.rows is not None
    if p.marked not in (None, marked):
        raise ValueError(
            f"{setup.owner}: {p.path!r} gets gradients of rows from some batches and of the whole from others, which "
            "cannot be accumulated together. Use sparse='exact'."
        )
    p.marked = marked
    total = read(p.accumulator, gradient.rows) + ops.cast(share, p.dtype) * gradient.value
    marks = [write(p.read, ops.ones(ops.shape(gradient.rows), "bool"), gradient)] if marked else []
    return [write(p.accumulator, total, gradient), *marks]


def means(setup: Setup, gradients: Sequence[Any]) -> list[Any]:
    """Returns the mean gradients of the batches so far; None where this batch has none."""
    found: list[Any] = [None] * len(gradients)
    for p, _ in setup.given(gradients):
        rows = backend.marked_rows(p.read) if p.marked else None
        mean = read(p.accumulator, rows) / setup.options.batches
        if rows is not None:
            mean = backend.sparse(mean, rows)
        elif p.marked:
            mean = Gradient(mean, touched=backend.value(p.read))
        found[p.index] = mean
    return found


def begin_anew(setup: Setup, gradients: Sequence[Any]) -> list[Write]:
    """Returns the writes that empty the sums."""
    writes = [Write(v, ops.zeros_like(backend.value(v))) for k, v in setup.shared.items() if k == "loss"]
    for p, _ in setup.given(gradients):
        rows = backend.marked_rows(p.read) if p.marked else None
        for variable in (p.accumulator, p.read) if p.marked else (p.accumulator,):
            writes.append(Write(variable, ops.zeros_like(read(variable, rows)), rows))
    return writes

"""Gradient accumulation: a stage in front of the step, which then sees a mean gradient like any other.

A table has a mark on each row that a batch has read since the last update, so that its mean has these rows alone.
"""

from collections.abc import Sequence
from typing import Any

from keras import ops

from kopt.optimizers.engine.parameter import Gradient, OptimizerParts, Parameter, Write
from kopt.optimizers.engine.tensor_math import Tensor


class Accumulation(OptimizerParts):
    """Adds up the gradients of `gradient_accumulation_steps` batches."""

    def _accumulate(
        self, grads: Sequence[Any], rate: Tensor, loss: Tensor | None = None, careful: Any = True
    ) -> Tensor | None:
        """Adds a batch and, if it is the last one, makes the step; returns which gradients were finite, if asked for.

        For places where a step cannot stand inside a condition: its writes choose between new and old values.
        """
        due, loss = self._add(grads, loss)
        flags = self._step(self._means(grads), rate, loss, due, False, careful)
        emptied = self._begin_anew(grads)
        self._commit_if(due, lambda: (emptied, None))
        return flags

    def _add(self, grads: Sequence[Any], loss: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Adds a batch to the sums; returns whether an update is due, and the mean loss so far."""
        count, steps = self._value(self._iterations), self.gradient_accumulation_steps or 1
        share = self.share(count % steps)
        self._commit([write for p, g in self._present(grads) for write in self._added(p, g, share)])
        if loss is not None:
            total = self._value(self._shared["loss"]) + ops.cast(share, loss.dtype) * loss
            self._commit([Write(self._shared["loss"], total)])
            loss = total / steps
        return ops.equal((count + 1) % steps, 0), loss

    def _added(self, p: Parameter, g: Any, share: Tensor) -> list[Write]:
        self._check_shape(p, g)
        gradient = self._read_gradient(g, p)
        marked = gradient.rows is not None
        if p.marked not in (None, marked):
            raise ValueError(
                f"{type(self).__name__}: {p.path!r} gets gradients of rows from some batches and of the whole from "
                "others, which cannot be accumulated together. Use sparse='exact'."
            )
        p.marked = marked
        total = self._read(p.accumulator, gradient.rows) + ops.cast(share, p.dtype) * gradient.value
        marks = [self._write(p.read, ops.ones(ops.shape(gradient.rows), "bool"), gradient)] if marked else []
        return [self._write(p.accumulator, total, gradient), *marks]

    def _means(self, grads: Sequence[Any]) -> list[Any]:
        means: list[Any] = [None] * len(grads)
        for p, _ in self._present(grads):
            rows = self._marked_rows(p) if p.marked else None
            mean = self._read(p.accumulator, rows) / self.gradient_accumulation_steps
            if rows is not None:
                mean = self._sparse(mean, rows)
            elif p.marked:
                mean = Gradient(mean, touched=self._value(p.read))
            means[p.index] = mean
        return means

    def _begin_anew(self, grads: Sequence[Any]) -> list[Write]:
        """Returns the writes that empty the sums."""
        writes = [Write(v, ops.zeros_like(self._value(v))) for k, v in self._shared.items() if k == "loss"]
        for p, _ in self._present(grads):
            rows = self._marked_rows(p) if p.marked else None
            for variable in (p.accumulator, p.read) if p.marked else (p.accumulator,):
                writes.append(Write(variable, ops.zeros_like(self._read(variable, rows)), rows))
        return writes

    def _present(self, grads: Sequence[Any]) -> list[tuple[Parameter, Any]]:
        return [(p, g) for p, g in zip(self._parameters, grads, strict=True) if g is not None]

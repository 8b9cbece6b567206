"""An average of the weights whose cost follows the rows that an update moves.

    a ← w + μ (a - w)        at every update; the first one makes a the weight

Rows that have stayed for n updates are owed a ← w + μⁿ (a - w). They are paid when they move again, or when somebody
looks: `averaged_at` keeps, for each row, the number of the update up to which its average is right.
"""

from collections.abc import Sequence
from typing import Any

from keras import ops

from kopt.optimizers.engine.parameter import Gradient, OptimizerParts, Parameter, Write
from kopt.optimizers.engine.tensor_math import Tensor, beside


class Average(OptimizerParts):
    """Keeps the averages of `use_ema`."""

    @property
    def _model_variables_moving_average(self) -> list[Any]:
        """The averages, every row paid. Keras and its callbacks know them by this name."""
        if not self.use_ema:
            raise AttributeError("There are averages with use_ema=True only.")  # callbacks of Keras look for them
        averaged = [p for p in getattr(self, "_parameters", ()) if p.average is not None]
        if averaged:
            for p, (average, at) in zip(averaged, self._in_graph(self._paid)(), strict=True):
                p.average.assign(average)
                p.averaged_at.assign(at)
        return vars(self).get("_averages", [])

    @_model_variables_moving_average.setter
    def _model_variables_moving_average(self, averages: list[Any]) -> None:
        vars(self)["_averages"] = averages

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Leaves the average in the weights, and what slots remember of the weights with it; `fit` ends with it."""
        if self.use_ema and self.built:
            for write in self._overwritten(self._updates()):
                write.variable.assign(ops.cast(write.value, write.variable.dtype))
            self.anchor()

    def _paid(self) -> list[tuple[Tensor, Tensor]]:
        return [self._pay(p, self._updates()) for p in self._parameters if p.average is not None]

    def _pay(self, p: Parameter, now: Tensor) -> tuple[Tensor, Tensor]:
        """Returns a whole average at update `now`, and that number for each row."""
        average = self._caught_up(p, self._read_weight(p, None), None, now)
        return average, _filled(self._value(p.averaged_at), now)

    def _caught_up(self, p: Parameter, w: Tensor, rows: Tensor, now: Tensor) -> Tensor:
        """Returns the average at update `now` of rows, or of all, that stayed at w since they were averaged."""
        return self._decayed(self._read(p.average, rows), w, self._read(p.averaged_at, rows), now)

    def _decayed(self, a: Tensor, w: Tensor, since: Tensor, now: Tensor) -> Tensor:
        updates = ops.cast(now, "int32") - ops.cast(since, "int32")
        kept = ops.power(ops.convert_to_tensor(self.ema_momentum, w.dtype), ops.cast(updates, w.dtype))
        kept = ops.where(ops.equal(since, 0), ops.zeros_like(kept), kept)
        return ops.where(beside(ops.equal(updates, 0), a), a, w + beside(kept, a) * (a - w))

    def _average(self, p: Parameter, g: Gradient, old: Tensor, new: Tensor, update: Tensor) -> list[Write]:
        """Returns the average of what an update has moved from `old` to `new`, and the number of the update."""
        a = self._decayed(self._caught_up(p, old, g.rows, update - 1), new, update - 1, update)
        at = self._read(p.averaged_at, g.rows)
        return [self._write(p.average, a, g), self._write(p.averaged_at, _filled(at, update), g)]

    def _overwritten(self, update: Tensor) -> list[Write]:
        """Returns the writes that make every weight its average, at the end of an update."""
        writes = []
        for p in self._parameters:
            if p.average is not None:
                a, at = self._pay(p, update)
                kept = [(p.average, a), (p.averaged_at, at), *self._stored(p, a, update, salt=2 * p.index)]
                writes += [Write(variable, value) for variable, value in kept]
        return writes


def _filled(like: Tensor, number: Tensor) -> Tensor:
    return ops.zeros_like(like) + ops.cast(number, like.dtype)

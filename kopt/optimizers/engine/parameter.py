"""A weight, and what an optimizer keeps for it: only here are they read, and their new values made ready to write.

The cost of an average of the weights follows the rows that an update moves:

    a ← w + μ (a - w)        at every update; the first one makes a the weight

Rows that have stayed for n updates are owed a ← w + μⁿ (a - w). They are paid when they move again, or when somebody
looks: beside the average stands, for each row, the number of the update up to which it is right. An update of the whole
weight notes one number for all rows, in a vector that all weights share; of the two numbers the later one counts.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from kopt.optimizers.engine.backends.backend import backend
from kopt.optimizers.engine.backends.records import Gradient, Write
from kopt.optimizers.engine.contract import Options, Rule
from kopt.optimizers.engine.noise import uniform
from kopt.optimizers.engine.state.codecs import Codec, codec
from kopt.optimizers.engine.state.layout import Layout
from kopt.optimizers.engine.tensor_math import Tensor, beside, round_stochastically


@dataclasses.dataclass
class Parameter:
    """A weight and what the optimizer keeps for it.

    Attributes:
        variable: the weight.
        path: of the weight.
        label: the path, told apart from that of another weight.
        layout: the shape, and how the layer uses its axes.
        dtype: of the arithmetic: float32, or float64 beside float64 weights.
        index: place in the order of `build`.
        key: of the rule among those of the optimizer; it begins the names of the shared values.
        rule: what moves it.
        options: what surrounds the rule.
        multiplier: factor of η.
        decay: factor of λ.
        slots: the stored parts of each slot.
        residual: what rounding took from the weight, with "kahan".
        average: with `use_ema`.
        averaged_at: the update up to which each row of the average is right, if rows of it were updated.
        averages_at: the same for all rows at once: a vector with one number a weight, in the order of `index`.
        owes_rows: whether `averaged_at` may be later than `averages_at`.
        pays_whole: whether there is a compiled step that does not read `averaged_at`; then no step may write it.
        accumulator: sum of the gradients of the batches so far.
        read: which rows the batches so far have read.
        marked: whether `read` says so; None before a gradient was seen.
    """

    variable: Any
    path: str
    label: str
    layout: Layout
    dtype: str
    index: int
    key: str
    rule: Rule
    options: Options
    multiplier: float = 1.0
    decay: float = 1.0
    slots: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    residual: Any = None
    average: Any = None
    averaged_at: Any = None
    averages_at: Any = None
    owes_rows: bool = False
    pays_whole: bool = False
    accumulator: Any = None
    read: Any = None
    marked: bool | None = None

    # ------------------------------------------------------------------------------------------------- reading

    @property
    def size(self) -> int:
        """Bytes of the weight in the precision of the arithmetic."""
        return math.prod(self.variable.shape) * np.dtype(self.dtype).itemsize

    @property
    def splits(self) -> bool:
        """Whether it is worth its while, and right, to move some rows after the others: slots have to be decoded."""
        coded = any(set(parts) != {"value"} for parts in self.slots.values())
        whole = self.average is not None or getattr(self.variable, "constraint", None)
        return coded and self.row_wise and not whole

    @property
    def lazy(self) -> bool:
        """Whether a sparse gradient moves only the rows it names."""
        return self.options.sparse == "lazy" and self.row_wise

    @property
    def row_wise(self) -> bool:
        """Whether the rule on some rows of this weight gives some rows of the rule."""
        return self.rule.is_row_wise(self.layout)

    @property
    def kind(self) -> Any:
        """What weights have in common that a rule may move together."""
        layout = self.layout
        axes = (tuple(layout), layout.inputs, layout.outputs, layout.stacks, layout.has_heads)
        return self.key, axes, self.dtype, self.multiplier, self.decay

    def gradient(self, g: Any, owner: str) -> Gradient:
        """Returns a gradient in the precision of the arithmetic.

        Raises:
            ValueError: it is of another shape than the weight.
        """
        self._check_shape(g, owner)
        if backend.is_of_rows(g) and self.options.sparse == "lazy" and not self.row_wise:
            warnings.warn(
                f"{type(self.rule).__name__} is not row-wise: the sparse gradient of {self.path!r} is made dense and "
                "every row is updated. Say so with sparse='exact', or give the table a row-wise optimizer.",
                stacklevel=2,
            )
        return backend.read_gradient(g, self.variable, self.dtype, self.lazy)

    def _check_shape(self, g: Any, owner: str) -> None:
        shape, expected = backend.static_shape(g), tuple(self.variable.shape)
        if shape is not None and (
            len(shape) != len(expected) or any(a not in (None, b) for a, b in zip(shape, expected, strict=True))
        ):
            raise ValueError(
                f"{owner}: gradient of shape {shape} for {self.path!r} of shape {expected}. "
                "Give gradients and variables in the same order."
            )

    def weight(self, rows: Tensor = None) -> Tensor:
        """Returns the weight, or rows of it, with what rounding took from it."""
        w = ops.cast(read(self.variable, rows), self.dtype)
        return w if self.residual is None else w + ops.cast(read(self.residual, rows), self.dtype)

    def remembered(self, rows: Tensor = None) -> dict[str, Tensor]:
        """Returns the slots, or rows of them, as a rule sees them."""
        return {
            name: self.storage(name).decode({k: read(v, rows) for k, v in parts.items()}, self.dtype)
            for name, parts in self.slots.items()
        }

    def reached(self) -> Tensor | None:
        """Returns which elements have had a gradient other than zero, as slots of their own tell; None without such."""
        slots, shape, seen = self.remembered(), tuple(self.variable.shape), None
        for name, slot in self.rule.slots.items():
            if name not in slots or slot.from_weight or slot.shape is not None:
                continue
            start: Tensor = 0.0
            if slot.init:  # as it is stored
                storage = self.storage(name)
                whole = ops.full(shape, slot.init, self.dtype)
                start = storage.decode(storage.encode(whole, ops.zeros_like), self.dtype)
            moved = slots[name] != start
            seen = moved if seen is None else ops.logical_or(seen, moved)
        return seen

    def storage(self, slot: str) -> Codec:
        """Returns how a slot is stored."""
        return codec(self.rule.slots[slot], self.options.state_dtype, self.layout)

    # ------------------------------------------------------------------------------------------------- writing

    def moved(self, g: Gradient, old: Tensor, new: Tensor, update: Tensor, seed: Tensor, salt: int) -> list[Write]:
        """Returns the writes of a weight that an update moves from `old` to `new`: constrained, averaged, rounded.

        Args:
            g: the gradient, which says the rows.
            old: the weight, or these rows of it, before the step.
            new: the same after the step.
            update: the number of this update.
            seed: what the random numbers of stochastic rounding go by.
            salt: tells them apart from those of other weights and slots.
        """
        constraint = getattr(self.variable, "constraint", None)
        if self.average is not None and not self.owes_rows:
            self.pays_whole |= self.moves_whole(g)
            self.owes_rows = not self.pays_whole
        if self.moves_whole(g):
            if g.rows is not None:
                old = self.weight()
                new = ops.scatter_update(old, g.rows[:, None], ops.take(new, g.keep, axis=0))
            elif g.touched is not None:
                new = ops.where(beside(g.touched, new), new, old)
            g, new = Gradient(g.value), constraint(new) if constraint else new
        averages = [] if self.average is None else self._averaged(g, old, new, update)
        return [*averages, *(write(v, x, g) for v, x in self.rounded(new, seed, salt))]

    def rounded(self, w: Tensor, seed: Tensor, salt: int) -> list[tuple[Any, Tensor]]:
        """Returns what keeps a weight: the variable and perhaps the residual, with their values."""
        dtype = keras.backend.standardize_dtype(self.variable.dtype)
        if self.options.rounding == "stochastic" and is_short(self.variable):
            stored = round_stochastically(w, dtype, _noise(seed, salt)(w))
        else:
            stored = ops.cast(w, dtype)
        residual = [] if self.residual is None else [(self.residual, ops.cast(w - ops.cast(stored, self.dtype), dtype))]
        return [*residual, (self.variable, stored)]

    def encoded(self, g: Gradient, new: Mapping[str, Tensor], seed: Tensor, salt: int) -> list[Write]:
        """Returns the writes of new slots; arguments as for `moved`."""
        noise = _noise(seed, salt)
        return [
            write(self.slots[name][k], x, g)
            for name, value in new.items()
            for k, x in self.storage(name).encode(value, noise).items()
        ]

    # ------------------------------------------------------------------------------------------------- average

    def moves_whole(self, g: Gradient) -> bool:
        """Whether an update writes all rows of the weight: a constraint sees all of them, and so may its average."""
        alone = g.rows is not None or g.touched is not None
        return not alone or bool(getattr(self.variable, "constraint", None)) or self.pays_whole

    def note_debts(self) -> None:
        """Looks whether a state that was restored owes its average something for some rows."""
        if self.average is not None and not self.pays_whole:
            self.owes_rows = bool(np.any(ops.convert_to_numpy(self.averaged_at)))

    def paid(self, now: Tensor) -> Tensor:
        """Returns the whole average at update `now`."""
        return self._caught_up(self.weight(), None, now, by_rows=True)

    def overwritten(self, update: Tensor) -> list[Write]:
        """Returns the writes that make the weight its average, at the end of an update."""
        a = self.paid(update)
        kept = [(self.average, a), *self.rounded(a, update, salt=2 * self.index)]
        return [Write(variable, value) for variable, value in kept]

    def _averaged(self, g: Gradient, old: Tensor, new: Tensor, update: Tensor) -> list[Write]:
        caught_up = self._caught_up(old, g.rows, update - 1, self.owes_rows)
        writes = [write(self.average, _decayed(caught_up, new, update - 1, update, self.options.ema_momentum), g)]
        if not self.moves_whole(g):
            writes.append(write(self.averaged_at, _filled(read(self.averaged_at, g.rows), update), g))
        return writes

    def _caught_up(self, w: Tensor, rows: Tensor, now: Tensor, by_rows: bool) -> Tensor:
        """Returns the average at update `now` of rows, or of all, that stayed at w since they were averaged."""
        since = backend.value(self.averages_at)[self.index]
        if by_rows:
            since = ops.maximum(since, ops.cast(read(self.averaged_at, rows), since.dtype))
        return _decayed(read(self.average, rows), w, since, now, self.options.ema_momentum)


def read(variable: Any, rows: Tensor = None) -> Tensor:
    """Returns the value of a variable, or rows of it; a number has none."""
    return backend.take(variable, rows) if rows is not None and len(variable.shape) else backend.value(variable)


def write(variable: Any, value: Tensor, g: Gradient) -> Write:
    """Returns the assignment of what a gradient moves: of its rows, but for a number, which has none."""
    if not len(variable.shape):
        return Write(variable, value)
    if g.rows is not None:
        return Write(variable, value if g.keep is None else ops.take(value, g.keep, axis=0), g.rows)
    if g.touched is not None:
        old = backend.value(variable)
        value = ops.where(beside(g.touched, old), ops.cast(value, old.dtype), old)
    return Write(variable, value)


def is_short(variable: Any) -> bool:
    """Whether a weight is stored in 16 bits."""
    return keras.backend.standardize_dtype(variable.dtype) in ("bfloat16", "float16")


def _noise(update: Tensor, salt: int) -> Callable[[Tensor], Tensor]:
    return lambda x: uniform(x, update, salt)


def _decayed(a: Tensor, w: Tensor, since: Tensor, now: Tensor, momentum: float) -> Tensor:
    """Returns the average at update `now` of rows, or of all, that stayed at w since update `since`."""
    updates = ops.cast(now, "int32") - ops.cast(since, "int32")
    kept = ops.power(ops.convert_to_tensor(momentum, w.dtype), ops.cast(updates, w.dtype))
    kept = ops.where(ops.equal(since, 0), ops.zeros_like(kept), kept)
    return ops.where(beside(ops.equal(updates, 0), a), a, w + beside(kept, a) * (a - w))


def _filled(like: Tensor, number: Tensor) -> Tensor:
    """Returns a tensor of this shape and type, full of a number."""
    return ops.zeros_like(like) + ops.cast(number, like.dtype)

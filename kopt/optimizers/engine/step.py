"""One step as a pure computation: from gradients to the writes that end it.

Order: accumulate, read the gradients and sum repeated rows, unscale, look for non-finite values, clip, settle the
shared scalars, run the rule and the decay on each weight, constrain, average, round.
"""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import keras
from keras import ops

from kopt.optimizers.engine.accumulation import Accumulation
from kopt.optimizers.engine.average import Average
from kopt.optimizers.engine.parameter import Gradient, Parameter, Write
from kopt.optimizers.engine.slots import Codec, codec
from kopt.optimizers.engine.tensor_math import Tensor, beside, moderate, round_stochastically, sum_of_squares


class Step(Accumulation, Average):
    """Computes the steps of an optimizer; the engine of the backend runs them."""

    def _step(
        self,
        grads: Sequence[Any],
        rate: Tensor,
        loss: Tensor | None = None,
        due: Tensor | None = None,
        judged: bool = False,
        careful: Any = True,
    ) -> Tensor | None:
        """Makes a step, or counts the batch if none is `due`.

        Args:
            grads: gradients, one a parameter, or None.
            rate: η.
            loss: the loss, for rules that look at it.
            due: whether this batch completes an update; None is always.
            judged: whether the gradients are known not to be huge.
            careful: whether to look at the new weights and slots, too; a boolean, or a tensor of one.

        Returns:
            For each gradient whether it and the weight it makes are finite; None if `on_nonfinite` is "ignore".
        """
        active = [(p, self._gradient(p, g)) for p, g in zip(self._parameters, grads, strict=True) if g is not None]
        update, fine = self._updates() + 1, None
        if self.on_nonfinite != "ignore" and active:
            fine = ops.ones([len(active)], "bool") if judged else moderate([g.value for _, g in active])
        looks = fine is not None and not (judged and careful is False)
        flags = self._commit_if(due, lambda: self._update(active, rate, loss, fine if looks else None, careful))
        finite = None if flags is None else ops.all(flags)
        if self.ema_overwrite_frequency:
            conditions = [ops.equal(update % self.ema_overwrite_frequency, 0), due, finite]
            self._commit_if(_all([c for c in conditions if c is not None]), lambda: (self._overwritten(update), None))
        self._commit(self._counters(finite))
        return fine if flags is None else flags

    def _counters(self, finite: Tensor | None) -> list[Write]:
        """Returns the writes of the counters, after a step or one that was skipped as not `finite`."""
        count = self._value(self._iterations)
        if finite is None:
            return [Write(self._iterations, count + 1)]
        # A skipped update takes back the batches that led to it, so that `iterations` counts real updates.
        skipped = count + 1 - (self.gradient_accumulation_steps or 1)
        failed = ops.cast(ops.logical_not(finite), self.nonfinite_steps.dtype)
        return [
            Write(self._iterations, ops.where(finite, count + 1, skipped)),
            Write(self.nonfinite_steps, self._value(self.nonfinite_steps) + failed),
        ]

    def _gradient(self, p: Parameter, g: Any) -> Gradient:
        if isinstance(g, Gradient):
            gradient = g
        else:
            self._check_shape(p, g)
            gradient = self._read_gradient(g, p)
        if self.loss_scale_factor:
            gradient.value = gradient.value / self.loss_scale_factor
        return gradient

    def _check_shape(self, p: Parameter, g: Any) -> None:
        shape, expected = self._static_shape(g), tuple(p.variable.shape)
        if shape is not None and (
            len(shape) != len(expected) or any(a not in (None, b) for a, b in zip(shape, expected, strict=True))
        ):
            raise ValueError(
                f"{type(self).__name__}: gradient of shape {shape} for {p.path!r} of shape {expected}. "
                "Give gradients and variables in the same order."
            )

    def _update(
        self,
        active: list[tuple[Parameter, Gradient]],
        rate: Tensor,
        loss: Tensor | None,
        fine: Tensor | None,
        careful: Any,
    ) -> tuple[list[Write], Tensor | None]:
        """Computes one update; assigns nothing.

        Args:
            active: the weights that have a gradient.
            rate: η.
            loss: the loss, for rules that look at it.
            fine: which gradients may be used; None does not look at anything.
            careful: whether to look at what is new, too.

        Returns:
            The writes, and for each weight whether both it and its gradient are fine. If one is not, the writes leave
            everything as it was.
        """
        writes, made = self._clip(active), []
        update = self._updates() + 1
        slots = [self._read_slots(p, g.rows) for p, g in active]
        old = [self._read_weight(p, g.rows) for p, g in active]
        shared = self._read_shared() if loss is None else self._read_shared() | {"loss": loss}
        times = {dtype: ops.cast(update, dtype) for dtype in ("float32", self._scalar_dtype)}
        settled = self._settle(active, old, slots, shared, rate, update, times) if shared else {}
        shared |= settled
        writes += [Write(self._shared[k], x) for k, x in settled.items()]
        for i, ((p, g), w, s) in enumerate(zip(active, old, slots, strict=True)):
            seen = self._seen(p, s, shared, rate, update)
            moved, new = self.owners()[p.owner].stepped(g.value, w, seen, times[p.dtype])
            weight = self._write_weight(p, g, w, moved, update, salt=2 * i)
            writes += [*weight, *self._write_slots(p, g, new, update, salt=2 * i + 1)]
            made.append([*(write.value for write in weight), *new.values()])
        if fine is None:
            return writes, None
        alone = [] if self.needs_loss else list(settled.values())  # a search may remember an infinite loss
        if careful is True:
            fine = ops.logical_and(fine, _are_finite(made, alone))
        elif careful is not False:
            fine = ops.logical_and(fine, ops.cond(careful, lambda: _are_finite(made, alone), lambda: fine))
        return [self._kept_unless(ops.all(fine), write) for write in writes], fine

    def _kept_unless(self, fine: Tensor, write: Write) -> Write:
        """Returns a write that leaves the variable as it is unless all is `fine`."""
        old = self._read(write.variable, write.rows)
        return Write(write.variable, ops.where(fine, ops.cast(write.value, old.dtype), old), write.rows)

    def _settle(
        self,
        active: list[tuple[Parameter, Gradient]],
        weights: Sequence[Tensor],
        slots: Sequence[Mapping[str, Tensor]],
        shared: Mapping[str, Tensor],
        rate: Tensor,
        update: Tensor,
        times: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Returns the new shared values: every weight contributes to sums, and each rule settles its own."""
        t, sums, settled = times[self._scalar_dtype], dict[str, Tensor](), dict[str, Tensor]()
        for (p, g), w, s in zip(active, weights, slots, strict=True):
            seen = self._seen(p, s, shared, rate, update)
            for k, x in self.owners()[p.owner].contribute(g.value, w, seen, times[p.dtype]).items():
                sums[p.owner + k] = sums.get(p.owner + k, 0.0) + ops.cast(x, self._scalar_dtype)
        for owner, rule in self.owners().items():
            seen = SimpleNamespace(**part(shared, owner), learning_rate=self._rate_of(rule, rate, update))
            settled |= {owner + k: x for k, x in rule.settled(part(sums, owner), seen, t).items()}
        return settled

    def _read_shared(self) -> dict[str, Tensor]:
        return {k: self._value(v) for k, v in self._shared.items()}

    def _rate_of(self, rule: Any, rate: Tensor, update: Tensor) -> Tensor:
        """Returns η of a rule: that of this optimizer, or a multiple of it."""
        return rate if rule is self else rate * ops.cast(rule._rate_after(update - 1), self._scalar_dtype)

    def _seen(
        self, p: Parameter, slots: Mapping[str, Tensor], shared: Mapping[str, Tensor], rate: Tensor, update: Tensor
    ) -> Any:
        """Returns the namespace that a rule sees."""
        rule = self.owners()[p.owner]
        common = {k: ops.cast(x, p.dtype) for k, x in part(shared, p.owner).items()}
        return SimpleNamespace(
            **slots,
            **common,
            learning_rate=ops.cast(self._rate_of(rule, rate, update), p.dtype) * p.multiplier,
            multiplier=p.multiplier,
            weight_decay=rule.decay(update - 1) * p.decay if p.decay else 0.0,
            index=p.index,
        )

    def _clip(self, active: list[tuple[Parameter, Gradient]]) -> list[Write]:
        """Clips the gradients in place of their records; returns the writes of norm and counter."""

        def norm() -> Tensor:
            return ops.sqrt(sum(ops.cast(sum_of_squares(g.value), "float32") for _, g in active))

        if self.global_clipnorm:
            total = norm()
            factors = [self.global_clipnorm / ops.maximum(total, self.global_clipnorm)] * len(active)
        else:
            old = self._value(self.gradient_norm)
            total = ops.cond(self._value(self._watched), norm, lambda: old)
            factors = []
        writes = [Write(self.gradient_norm, total)]
        if self.clipnorm:
            norms = [ops.sqrt(sum_of_squares(g.value)) for _, g in active]
            factors = [self.clipnorm / ops.maximum(n, self.clipnorm) for n in norms]
        clipped = [factor < 1 for factor in factors]
        for (_, g), factor in zip(active, factors, strict=False):
            g.value = g.value * ops.cast(factor, g.value.dtype)
        if self.clipvalue:
            clipped = [ops.any(ops.abs(g.value) > self.clipvalue) for _, g in active]
            for _, g in active:
                g.value = ops.clip(g.value, -self.clipvalue, self.clipvalue)
        if clipped:
            hit = ops.cast(ops.any(ops.stack(clipped)), self.clipped_steps.dtype)
            writes.append(Write(self.clipped_steps, self.clipped_steps + hit))
        return writes

    def _lazy(self, p: Parameter) -> bool:
        """Returns whether a sparse gradient of this weight moves only the rows it names."""
        return self.sparse == "lazy" and self.owners()[p.owner].row_wise

    def _read(self, variable: Any, rows: Tensor) -> Tensor:
        return self._value(variable) if rows is None else self._rows(variable, rows)

    def _read_weight(self, p: Parameter, rows: Tensor) -> Tensor:
        w = ops.cast(self._read(p.variable, rows), p.dtype)
        return w if p.residual is None else w + ops.cast(self._read(p.residual, rows), p.dtype)

    def _read_slots(self, p: Parameter, rows: Tensor = None) -> dict[str, Tensor]:
        return {
            name: self._storage(p, name).decode({k: self._read(v, rows) for k, v in parts.items()}, p.dtype)
            for name, parts in p.slots.items()
        }

    def _storage(self, p: Parameter, slot: str) -> Codec:
        return codec(self.owners()[p.owner].slots[slot], self.state_dtype, tuple(p.variable.shape))

    def _write_slots(
        self, p: Parameter, g: Gradient, new: Mapping[str, Tensor], update: Tensor, salt: int
    ) -> list[Write]:
        noise = self._noise(update, salt)
        return [
            self._write(p.slots[name][k], x, g)
            for name, value in new.items()
            for k, x in self._storage(p, name).encode(value, noise).items()
        ]

    def _write_weight(self, p: Parameter, g: Gradient, old: Tensor, new: Tensor, update: Tensor, salt: int) -> Any:
        constraint = getattr(p.variable, "constraint", None)
        if constraint:  # it sees the whole weight
            if g.rows is not None:
                old = self._read_weight(p, None)
                new = ops.scatter_update(old, g.rows[:, None], ops.take(new, g.keep, axis=0))
            elif g.touched is not None:
                new = ops.where(beside(g.touched, new), new, old)
            g, new = Gradient(g.value), constraint(new)
        averages = [] if p.average is None else self._average(p, g, old, new, update)
        return [*averages, *(self._write(v, x, g) for v, x in self._stored(p, new, update, salt))]

    def _write(self, variable: Any, value: Tensor, g: Gradient) -> Write:
        """Returns the assignment of what a gradient moves."""
        if g.rows is not None:
            return Write(variable, ops.take(value, g.keep, axis=0), g.rows)
        if g.touched is not None:
            old = self._value(variable)
            value = ops.where(beside(g.touched, old), ops.cast(value, old.dtype), old)
        return Write(variable, value)

    def _stored(self, p: Parameter, w: Tensor, update: Tensor, salt: int) -> list[tuple[Any, Tensor]]:
        """Returns what keeps a new weight: the variable and perhaps the residual, with their values."""
        dtype = keras.backend.standardize_dtype(p.variable.dtype)
        if self.rounding == "stochastic" and is_short(p.variable):
            stored = round_stochastically(w, dtype, self._noise(update, salt)(w))
        else:
            stored = ops.cast(w, dtype)
        residual = [] if p.residual is None else [(p.residual, ops.cast(w - ops.cast(stored, p.dtype), dtype))]
        return [*residual, (p.variable, stored)]

    def _noise(self, update: Tensor, salt: int) -> Callable[[Tensor], Tensor]:
        return lambda x: self._uniform(x, update, salt)


def part(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Returns the values whose names begin with a prefix, without it."""
    return {k.removeprefix(prefix): x for k, x in values.items() if k.startswith(prefix)}


def is_short(variable: Any) -> bool:
    """Whether a weight is stored in 16 bits."""
    return keras.backend.standardize_dtype(variable.dtype) in ("bfloat16", "float16")


def _are_finite(made: Sequence[Sequence[Tensor]], shared: Sequence[Tensor]) -> Tensor:
    """Returns for each weight whether all that was made for it is finite; none is if a shared value is not."""
    flags = [ops.all(ops.stack([ops.all(ops.isfinite(x)) for x in each if _is_float(x)])) for each in made]
    alone = [ops.all(ops.isfinite(x)) for x in shared if _is_float(x)]
    return ops.logical_and(ops.stack(flags), ops.all(ops.stack(alone))) if alone else ops.stack(flags)


def _is_float(x: Tensor) -> bool:
    return keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype))


def _all(conditions: Sequence[Tensor]) -> Tensor | None:
    return ops.all(ops.stack(conditions)) if conditions else None

"""One step as a pure computation: from gradients to the writes that end it.

Order: read the gradients and sum repeated rows, unscale, accumulate, look for non-finite values, clip, settle the
shared scalars, run the rule and the decay on each weight, constrain, average, round.
"""

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import keras
from keras import ops

from kopt.optimizers._math import Tensor, round_stochastically, sum_of_squares
from kopt.optimizers._records import Gradient, OptimizerParts, Parameter, Write
from kopt.optimizers._slots import Codec, codec


class Step(OptimizerParts):
    """Computes the steps of an optimizer; the engine of the backend runs them."""

    def _step(self, grads: Sequence[Any], rate: Tensor, loss: Tensor | None = None) -> Tensor:
        """Carries out one call of `apply`; returns which gradients were finite, or None if nobody asked."""
        active = [(p, self._gradient(p, g)) for p, g in zip(self._parameters, grads, strict=True) if g is not None]
        count, steps = self._value(self._iterations), self.gradient_accumulation_steps or 1
        after = [Write(self._iterations, count + 1)]
        due = finite = None
        if steps > 1:
            due = ops.equal((count + 1) % steps, 0)
            share = self.share(count % steps)
            active, cleared = self._accumulate(active, share, due, steps)
            after += cleared
            if loss is not None:
                total = self._value(self._shared["loss"]) + ops.cast(share, loss.dtype) * loss
                loss = total / steps
                after.append(Write(self._shared["loss"], ops.where(due, 0.0, total)))
        flags = None
        if self.on_nonfinite != "ignore":
            flags = ops.stack([ops.all(ops.isfinite(g.value)) for _, g in active])
            finite = ops.all(flags) if due is None else ops.logical_or(ops.all(flags), ops.logical_not(due))
            # A skipped update takes back the batches that led to it, so that `iterations` counts real updates.
            after[0] = Write(self._iterations, ops.where(finite, count + 1, count + 1 - steps))
            skipped = ops.cast(ops.logical_not(finite), self.nonfinite_steps.dtype)
            after.append(Write(self.nonfinite_steps, self.nonfinite_steps + skipped))
        conditions = [c for c in (due, finite) if c is not None]
        go = None if not conditions else ops.all(ops.stack(conditions))
        self._commit_if(go, lambda: self._update(active, rate, loss))
        self._commit(after)
        return flags

    def _gradient(self, p: Parameter, g: Any) -> Gradient:
        shape, expected = self._static_shape(g), tuple(p.variable.shape)
        if shape is not None and (
            len(shape) != len(expected) or any(a not in (None, b) for a, b in zip(shape, expected, strict=True))
        ):
            raise ValueError(
                f"{type(self).__name__}: gradient of shape {shape} for {p.path!r} of shape {expected}. "
                "Give gradients and variables in the same order."
            )
        gradient = self._read_gradient(g, p)
        if self.loss_scale_factor:
            gradient.value = gradient.value / self.loss_scale_factor
        return gradient

    def _accumulate(self, active: Any, share: Any, due: Tensor, steps: int) -> tuple[Any, list[Write]]:
        means, writes = [], []
        for p, g in active:
            total = self._value(p.accumulator) + ops.cast(share, p.dtype) * g.value
            touched = g.touched
            if touched is not None:  # of a row that was read some accumulated gradient is not zero
                touched = ops.any(total != 0, axis=tuple(range(1, len(p.variable.shape))), keepdims=True)
            means.append((p, Gradient(total / steps, touched=touched)))
            writes.append(Write(p.accumulator, ops.where(due, ops.zeros_like(total), total)))
        return means, writes

    def _update(self, active: list[tuple[Parameter, Gradient]], rate: Tensor, loss: Tensor | None) -> list[Write]:
        """Computes one update; assigns nothing."""
        writes = self._clip(active)
        update = self._updates() + 1
        slots = [self._read_slots(p, g.rows) for p, g in active]
        weights = [self._read_weight(p, g.rows) for p, g in active]
        shared = self._read_shared() if loss is None else self._read_shared() | {"loss": loss}
        times = {dtype: ops.cast(update, dtype) for dtype in ("float32", self._scalar_dtype)}
        if shared:
            t, sums = times[self._scalar_dtype], dict[str, Tensor]()
            for (p, g), w, s in zip(active, weights, slots, strict=True):
                seen = self._seen(p, s, shared, rate, update)
                for k, x in self.owners()[p.owner].contribute(g.value, w, seen, times[p.dtype]).items():
                    sums[p.owner + k] = sums.get(p.owner + k, 0.0) + ops.cast(x, self._scalar_dtype)
            for owner, rule in self.owners().items():
                seen = SimpleNamespace(**part(shared, owner), learning_rate=self._rate_of(rule, rate, update))
                settled = {owner + k: x for k, x in rule.settle(part(sums, owner), seen, t).items()}
                writes += [Write(self._shared[k], x) for k, x in settled.items()]
                shared |= settled
        for i, ((p, g), w, s) in enumerate(zip(active, weights, slots, strict=True)):
            seen = self._seen(p, s, shared, rate, update)
            moved, new = self.owners()[p.owner].advance(g.value, w, seen, times[p.dtype])
            if g.touched is not None:
                moved = ops.where(g.touched, moved, w)
                new = {k: ops.where(g.touched, x, s[k]) for k, x in new.items()}
            writes += self._write_weight(p, g, moved, update, salt=2 * i)
            writes += self._write_slots(p, g, new, update, salt=2 * i + 1)
        moving = {id(p) for p, _ in active}
        for p in self._parameters:  # weights without a gradient are averaged all the same
            if p.average is not None and id(p) not in moving:
                writes.append(Write(p.average, self._average(p, self._read_weight(p, None), update)))
        return writes

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
            weight_decay=rule.decay * p.decay,
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

    def _read(self, variable: Any, rows: Tensor) -> Tensor:
        value = self._value(variable)
        return value if rows is None else ops.take(value, rows, axis=0)

    def _read_weight(self, p: Parameter, rows: Tensor) -> Tensor:
        w = ops.cast(self._read(p.variable, rows), p.dtype)
        return w if p.residual is None else w + ops.cast(self._read(p.residual, rows), p.dtype)

    def _read_slots(self, p: Parameter, rows: Tensor = None) -> dict[str, Tensor]:
        return {
            name: self._storage(p, name).decode({k: self._read(v, rows) for k, v in parts.items()}, p.dtype)
            for name, parts in p.slots.items()
        }

    def _storage(self, p: Parameter, slot: str) -> Codec:
        return codec(self.owners()[p.owner].slots[slot], self.state_dtype)

    def _write_slots(self, p: Parameter, g: Gradient, new: dict[str, Tensor], update: Tensor, salt: int) -> list[Write]:
        noise = self._noise(update, salt)
        return [
            _to_rows(p.slots[name][k], x, g)
            for name, value in new.items()
            for k, x in self._storage(p, name).encode(value, noise).items()
        ]

    def _write_weight(self, p: Parameter, g: Gradient, w: Tensor, update: Tensor, salt: int) -> list[Write]:
        writes, constraint = [], getattr(p.variable, "constraint", None)
        if g.rows is not None and (constraint or p.average is not None):  # these see the whole weight
            w = ops.scatter_update(self._read_weight(p, None), g.rows[:, None], ops.take(w, g.keep, axis=0))
            g = Gradient(g.value)
        if constraint:
            w = constraint(w)
        if p.average is not None:
            average = self._average(p, w, update)
            writes.append(Write(p.average, average))
            if self.ema_overwrite_frequency:
                w = ops.where(ops.equal(update % self.ema_overwrite_frequency, 0), average, w)
        return [*writes, *(_to_rows(v, x, g) for v, x in self._stored(p, w, update, salt))]

    def _stored(self, p: Parameter, w: Tensor, update: Tensor, salt: int) -> list[tuple[Any, Tensor]]:
        """Returns what keeps a new weight: the variable and perhaps the residual, with their values."""
        dtype = keras.backend.standardize_dtype(p.variable.dtype)
        if self.rounding == "stochastic" and is_short(p.variable):
            stored = round_stochastically(w, dtype, self._noise(update, salt)(w))
        else:
            stored = ops.cast(w, dtype)
        residual = [] if p.residual is None else [(p.residual, ops.cast(w - ops.cast(stored, p.dtype), dtype))]
        return [*residual, (p.variable, stored)]

    def _average(self, p: Parameter, w: Tensor, update: Tensor) -> Tensor:
        kept = ops.where(ops.equal(update, 1), 0.0, self.ema_momentum)
        return w + ops.cast(kept, p.dtype) * (self._value(p.average) - w)

    def _noise(self, update: Tensor, salt: int) -> Callable[[Tensor], Tensor]:
        return lambda x: ops.cast(self._uniform(x.shape, update, salt), x.dtype)


def part(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Returns the values whose names begin with a prefix, without it."""
    return {k.removeprefix(prefix): x for k, x in values.items() if k.startswith(prefix)}


def is_short(variable: Any) -> bool:
    return keras.backend.standardize_dtype(variable.dtype) in ("bfloat16", "float16")


def _to_rows(variable: Any, value: Tensor, g: Gradient) -> Write:
    return Write(variable, value if g.rows is None else ops.take(value, g.keep, axis=0), g.rows)

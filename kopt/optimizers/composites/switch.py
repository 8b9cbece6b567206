"""Switch."""

import dataclasses
from typing import Annotated

from keras import ops

from kopt.declare import Convert
from kopt.optimizers.composites.composite import Composite
from kopt.optimizers.engine.rule_checks import settled, stepped
from kopt.optimizers.engine.setup import with_prefix
from kopt.optimizers.inner import inner
from kopt.optimizers.optimizer import Any, Count, Layout, Optimizer, Slots, Step, Tensor, override


class Switch(Composite):
    r"""Switch: one rule at first, another one from then on, as Adam to begin and SGD to end.

        t ≤ n:   w ← step t of the first optimizer, with η times its own rate
        t > n:   w ← step t-n of the second, which begins anew, its schedule too

    Slots: those of both.  Row-wise if both are.

    Args:
        first: optimizer, or its name.
        second: the other one.
        after: n ≥ 1, updates of the first.

    Reference: Keskar and Socher, 2017, arXiv:1712.07628, who find n and the second rate while training.
    """

    first: Annotated[Any, Convert(inner)] = dataclasses.field(default="adam", kw_only=False)
    second: Annotated[Any, Convert(inner)] = "sgd"
    after: Count = 100

    bounded = False  # the rates of both are within

    @property
    def row_wise(self) -> bool:
        """Whether both are."""
        return all(rule.row_wise for rule in self.rules().values())

    @override
    def is_row_wise(self, layout: Layout) -> bool:
        return all(rule.is_row_wise(layout) for rule in self.rules().values())

    @property
    def precise(self) -> bool:
        """Whether one of them is."""
        return any(rule.precise for rule in self.rules().values())

    @override
    def rules(self) -> dict[str, Optimizer]:
        return {"first_": self.first, "second_": self.second}

    @override
    def contribute(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> dict[str, Tensor]:
        return {
            k + name: x
            for k, rule in self.rules().items()
            for name, x in rule.contribute(g, w, *self._seen_by(k, s, t, w)).items()
        }

    @override
    def settle(self, sums: dict[str, Tensor], s: Slots, t: Tensor) -> dict[str, Tensor]:
        turns = {"first_": t <= self.after, "second_": t > self.after}
        return {
            k + name: ops.where(turns[k], x, getattr(s, k + name))
            for k, rule in self.rules().items()
            for name, x in settled(rule, with_prefix(sums, k), *self._seen_by(k, s, t)).items()
        }

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:

        def step(key: str) -> Step:
            rule, (seen, its) = self.rules()[key], self._seen_by(key, s, t, w)
            moved, new = stepped(rule, g, w, seen, its)
            own = {key + name: new.get(name, getattr(seen, name)) for name in rule.slots}
            return moved, {name: getattr(s, name) for name in self.slots} | own

        return ops.cond(t <= self.after, lambda: step("first_"), lambda: step("second_"))

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        rates = []
        for key, rule in self.rules().items():
            seen, its = self._seen_by(key, s, t)
            rates.append(rule.rate(seen, its) * ops.cast(rule.rate_after(its - 1), t.dtype))
        return ops.where(t <= self.after, *rates)

    def _seen_by(self, key: str, s: Slots, t: Tensor, w: Tensor = None) -> tuple[Any, Tensor]:
        return _seen(self.rules()[key], key, self.after if key == "second_" else 0, s, t, w)

    def __repr__(self) -> str:
        own = self._changed("first", "second", "after")
        parts = [repr(self.first), f"second={self.second!r}", f"after={self.after}", *own]
        return f"Switch({', '.join(parts)})"


def _seen(rule: Optimizer, key: str, after: int, s: Slots, t: Tensor, w: Tensor = None) -> tuple[Any, Tensor]:
    """Returns the namespace and the t of one of the rules, whose turn comes after so many updates."""
    its, seen = ops.maximum(t - after, 1.0), {**vars(s), **with_prefix(vars(s), key)}
    seen["learning_rate"] = s.learning_rate * ops.cast(rule.rate_after(its - 1), t.dtype)
    factor = getattr(s, "weight_decay", 0.0)
    seen["weight_decay"] = rule.decay(its - 1) * factor if factor else 0.0
    if w is not None:  # what begins as the weight does so when the turn comes
        for name, slot in ((name, slot) for name, slot in rule.slots.items() if slot.from_weight):
            seen[name] = ops.where(its <= 1, slot.first(w, s.layout), seen[name])
    return Slots(**seen), its

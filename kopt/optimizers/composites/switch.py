"""Switch."""

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Annotated, Any

from keras import ops

from kopt.declare import Convert, Count
from kopt.optimizers.engine.rule_checks import settled, stepped
from kopt.optimizers.engine.setup import with_prefix
from kopt.optimizers.engine.tensor_math import Tensor
from kopt.optimizers.optimizer import Optimizer
from kopt.optimizers.wrappers.wrapper import Composite, inner


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
        return self.first.row_wise and self.second.row_wise

    @property
    def precise(self) -> bool:
        """Whether one of them is."""
        return self.first.precise or self.second.precise

    def rules(self) -> Mapping[str, Optimizer]:
        """Both."""
        return {"first_": self.first, "second_": self.second}

    def contribute(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> dict[str, Tensor]:
        """What both sum."""
        return {
            k + name: x
            for k, rule in self.rules().items()
            for name, x in rule.contribute(g, w, *self._seen_by(k, s, t, w)).items()
        }

    def settle(self, sums: dict[str, Tensor], s: Any, t: Tensor) -> dict[str, Tensor]:
        """What the one whose turn it is makes of its sums."""
        turns = {"first_": t <= self.after, "second_": t > self.after}
        return {
            k + name: ops.where(turns[k], x, getattr(s, k + name))
            for k, rule in self.rules().items()
            for name, x in settled(rule, with_prefix(sums, k), *self._seen_by(k, s, t)).items()
        }

    def advance(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The step of the one whose turn it is."""

        def step(key: str) -> tuple[Tensor, dict[str, Tensor]]:
            moved, new = stepped(self.rules()[key], g, w, *self._seen_by(key, s, t, w))
            return moved, {name: new.get(name.removeprefix(key), getattr(s, name)) for name in self.slots}

        return ops.cond(t <= self.after, lambda: step("first_"), lambda: step("second_"))

    def rate(self, s: Any, t: Tensor) -> Tensor:
        """Its rate, in units of η."""
        rates = []
        for key, rule in self.rules().items():
            seen, its = self._seen_by(key, s, t)
            rates.append(rule.rate(seen, its) * ops.cast(rule.rate_after(its - 1), t.dtype))
        return ops.where(t <= self.after, *rates)

    def _seen_by(self, key: str, s: Any, t: Tensor, w: Tensor = None) -> tuple[Any, Tensor]:
        return _seen(self.rules()[key], key, self.after if key == "second_" else 0, s, t, w)

    def __repr__(self) -> str:
        own = self._changed("first", "second", "after")
        parts = [repr(self.first), f"second={self.second!r}", f"after={self.after}", *own]
        return f"Switch({', '.join(parts)})"


def _seen(rule: Optimizer, key: str, after: int, s: Any, t: Tensor, w: Tensor = None) -> tuple[Any, Tensor]:
    """Returns the namespace and the t of one of the rules, whose turn comes after so many updates."""
    its, seen = ops.maximum(t - after, 1.0), {**vars(s), **with_prefix(vars(s), key)}
    seen["learning_rate"] = s.learning_rate * ops.cast(rule.rate_after(its - 1), t.dtype)
    factor = getattr(s, "weight_decay", 0.0)
    seen["weight_decay"] = rule.decay(its - 1) * factor if factor else 0.0
    if w is not None:  # what begins as the weight does so when the turn comes
        for name in (name for name, slot in rule.slots.items() if slot.init == "weight"):
            seen[name] = ops.where(its <= 1, w, seen[name])
    return SimpleNamespace(**seen), its

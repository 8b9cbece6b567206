"""Switch."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import keras
from keras import ops

from kopt._hyper import hyper
from kopt.optimizers._base import LearningRate, Optimizer
from kopt.optimizers._math import Tensor
from kopt.optimizers._slots import Slot
from kopt.optimizers._step import part
from kopt.optimizers._wrapper import inner, refuse_surroundings


class Switch(Optimizer):
    r"""Switch: one rule at first, another one from then on, as Adam to begin and SGD to end.

        t ≤ n:   w ← step t of the first optimizer, with η times its own rate
        t > n:   w ← step t-n of the second, which begins anew, its schedule too

    Learning rate and decay are each optimizer's own; what else surrounds the rule is given here.

    Slots: those of both.  Row-wise if both are.

    Args:
        first: optimizer, or its name.
        second: the other one.
        after: n ≥ 1, updates of the first.
        learning_rate: η ≥ 0, a factor of both rates; 1 leaves them as they are.
        weight_decay: if given, instead of that of each optimizer.

    Reference: Keskar and Socher, 2017, arXiv:1712.07628, who find n and the second rate while training.
    """

    leading = "first"
    learning_rate: LearningRate = hyper(1.0)
    first: Any = hyper("adam", convert=inner)
    second: Any = hyper("sgd", convert=inner)
    after: int = hyper(100, 1)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for rule in self._rules.values():
            refuse_surroundings("Switch", rule)
            if self.weight_decay is not None:
                rule.weight_decay = self.weight_decay
        both = self._rules.values()
        self.__dict__ |= {"row_wise": all(r.row_wise for r in both), "precise": any(r.precise for r in both)}

    @property
    def _rules(self) -> dict[str, Optimizer]:
        return {"first_": self.first, "second_": self.second}

    @property
    def slots(self) -> Mapping[str, Slot]:
        """Those of both."""
        return {k + name: slot for k, rule in self._rules.items() for name, slot in rule.slots.items()}

    @property
    def shared(self) -> Mapping[str, Any]:
        """What both share."""
        return {k + name: value for k, rule in self._rules.items() for name, value in rule.shared.items()}

    @property
    def decay(self) -> float:
        """1: each rule has its own."""
        return 1.0

    def contribute(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> dict[str, Tensor]:
        """What both sum."""
        sums = {k: rule.contribute(g, w, *self._seen_by(k, s, t, w)) for k, rule in self._rules.items()}
        return {k + name: x for k, values in sums.items() for name, x in values.items()}

    def settle(self, sums: dict[str, Tensor], s: Any, t: Tensor) -> dict[str, Tensor]:
        """What the one whose turn it is makes of its sums."""
        turns = {"first_": t <= self.after, "second_": t > self.after}
        return {
            k + name: ops.where(turns[k], x, getattr(s, k + name))
            for k, rule in self._rules.items()
            for name, x in rule.settle(part(sums, k), *self._seen_by(k, s, t)).items()
        }

    def advance(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The step of the one whose turn it is."""

        def step(key: str) -> tuple[Tensor, dict[str, Tensor]]:
            moved, new = self._rules[key].advance(g, w, *self._seen_by(key, s, t, w))
            return moved, {name: new.get(name.removeprefix(key), getattr(s, name)) for name in self.slots}

        return ops.cond(t <= self.after, lambda: step("first_"), lambda: step("second_"))

    def rate(self, s: Any, t: Tensor) -> Tensor:
        """Its rate, in units of η."""

        def rate(key: str) -> Tensor:
            seen, its = self._seen_by(key, s, t)
            return self._rules[key].rate(seen, its) * ops.cast(self._rules[key]._rate_after(its - 1), t.dtype)

        return ops.where(t <= self.after, rate("first_"), rate("second_"))

    def _seen_by(self, key: str, s: Any, t: Tensor, w: Tensor = None) -> tuple[Any, Tensor]:
        """Returns the namespace and the t of one of the rules."""
        rule, its = self._rules[key], t if key == "first_" else ops.maximum(t - self.after, 1.0)
        seen = {**vars(s), **part(vars(s), key)}
        seen["learning_rate"] = s.learning_rate * ops.cast(rule._rate_after(its - 1), t.dtype)
        seen["weight_decay"] = rule.decay * getattr(s, "weight_decay", 0.0)
        if w is not None:  # what begins as the weight does so when the turn comes
            for name in (name for name, slot in rule.slots.items() if slot.init == "weight"):
                seen[name] = ops.where(its <= 1, w, seen[name])
        return SimpleNamespace(**seen), its

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, fit for JSON."""
        rules = {"first": self.first, "second": self.second}
        return super().get_config() | {k: keras.optimizers.serialize(rule) for k, rule in rules.items()}

    def __repr__(self) -> str:
        return f"Switch({self.first!r}, second={self.second!r}, after={self.after})"

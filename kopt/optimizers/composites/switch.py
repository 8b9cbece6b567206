"""Switch."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated

from keras import ops

from kopt.declare import Convert
from kopt.optimizers.composites.composite import Composite
from kopt.optimizers.engine.backends.backend import backend
from kopt.optimizers.engine.rule_checks import settled, stepped
from kopt.optimizers.engine.setup import with_prefix
from kopt.optimizers.full_batch.full_batch import FullBatch, put_back
from kopt.optimizers.inner import in_turn
from kopt.optimizers.optimizer import Any, Count, Layout, Optimizer, Slots, Step, Tensor, override


class Switch(Composite):
    r"""Switch: one rule at first, another one from then on, as Adam to begin and SGD to end.

        t ≤ n:   w ← step t of the first optimizer, with η times its own rate
        t > n:   w ← step t-n of the second, which begins anew, its schedule too

    Rules that look at the loss can have their turn, too: Adam with mini-batches, and `LBFGS` to finish, in a second
    `fit` with batch_size=len(x). Until its turn a rule computes nothing for all weights together.

    Slots: those of both.  Row-wise if both are.

    Args:
        first: optimizer, or its name.
        second: the other one.
        after: n ≥ 1, updates of the first.

    Reference: Keskar and Socher, 2017, arXiv:1712.07628, who find n and the second rate while training.
    """

    first: Annotated[Any, Convert(in_turn)] = dataclasses.field(default="adam", kw_only=False)
    second: Annotated[Any, Convert(in_turn)] = "sgd"
    after: Count = 100

    bounded = False  # the rates of both are within

    @property
    def row_wise(self) -> bool:
        """Whether both are."""
        return all(rule.row_wise for rule in self.rules().values())

    @override
    def is_row_wise(self, layout: Layout) -> bool:
        return all(rule.is_row_wise(layout) for rule in self.rules().values())

    @override
    def check_weights(self, paths: Sequence[str]) -> None:
        for rule in self.rules().values():
            rule.check_weights(paths)

    @property
    def precise(self) -> bool:
        """Whether one of them is."""
        return any(rule.precise for rule in self.rules().values())

    @override
    def rules(self) -> dict[str, Optimizer]:
        return {"first_": self.first, "second_": self.second}

    @override
    def contribute(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> dict[str, Tensor]:
        found = dict[str, Tensor]()
        for k, rule in self.rules().items():
            part = functools.partial(rule.contribute, g, w, *self._seen_by(k, s, t, w))
            turn = t <= self.after if k == "first_" else t > self.after
            # The compiler leaves out what only tells the shapes of zeros.
            own = ops.cond(turn, part, lambda part=part: {name: ops.zeros_like(x) for name, x in part().items()})
            found |= {k + name: x for name, x in own.items()}
        return found

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

    @property
    def stalls(self) -> int:
        """Number of line searches in a row that found no lower point."""
        counts = [self.setup.shared.get(k + "stalls") for k in self.rules()] if self.built else []
        return max((int(backend.value(x)) for x in counts if x is not None), default=0)

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Puts back the last accepted point if the weights are at a trial; `fit` calls it at its end.

        It warns if the epoch had mini-batches, and the turn is that of a rule that compares whole losses.
        """
        if self.built and backend.holds(self._iterations):
            late = int(ops.convert_to_numpy(self.setup.updates())) > self.after
            for (key, rule), turn in zip(self.rules().items(), (not late, late), strict=True):
                put_back(self.setup, key)
                if turn and isinstance(rule, FullBatch):
                    rule.check_batches(self.gradient_accumulation_steps or 1)
        super().finalize_variable_values(var_list)

    def _seen_by(self, key: str, s: Slots, t: Tensor, w: Tensor = None) -> tuple[Any, Tensor]:
        return _seen(self, key, s, t, w)

    def __repr__(self) -> str:
        own = self._changed("first", "second", "after")
        parts = [repr(self.first), f"second={self.second!r}", f"after={self.after}", *own]
        return f"Switch({', '.join(parts)})"


def _seen(switch: Switch, key: str, s: Slots, t: Tensor, w: Tensor = None) -> tuple[Any, Tensor]:
    """Returns the namespace and the t of one of the rules."""
    rule, after = switch.rules()[key], switch.after if key == "second_" else 0
    its, seen = ops.maximum(t - after, 1.0), {**vars(s), **with_prefix(vars(s), key)}
    seen["learning_rate"] = s.learning_rate * ops.cast(rule.rate_after(its - 1), t.dtype)
    factor = getattr(s, "weight_decay", 0.0)
    seen["weight_decay"] = switch.decay_of(rule, its - 1) * factor if factor else 0.0
    if hasattr(s, "update"):
        seen["update"] = ops.maximum(s.update - after, 1)
    if w is not None:  # what begins as the weight does so when the turn comes
        for name, slot in ((name, slot) for name, slot in rule.slots.items() if slot.from_weight):
            seen[name] = ops.where(its <= 1, slot.first(w, s.layout), seen[name])
    return Slots(**seen), its

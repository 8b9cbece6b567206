"""The bases of the optimizers that change the rule of another one."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar

import keras

from kopt.declare import Convert
from kopt.declare.fields import as_code, plain
from kopt.optimizers.engine.rule_checks import direction, settled, stepped
from kopt.optimizers.inner import inner
from kopt.optimizers.matrix.choice import by_path
from kopt.optimizers.optimizer import Any, Layout, LearningRate, Mapping, Optimizer, Slot, Slots, Step, Tensor, override


class Wrapper(Optimizer, abstract=True):
    """Base of the wrappers: the same step with another rule.

    What surrounds the rule (learning rate, decay, clipping, masks, ...) is that of the optimizer within, unless it is
    given here.

    Args:
        optimizer: the optimizer within, which makes no steps of its own, or its name.
    """

    optimizer: Annotated[Any, Convert(inner)] = dataclasses.field(default="adamw", kw_only=False)
    learning_rate: LearningRate = 1e-3

    own_slots: ClassVar[Mapping[str, Slot]] = {}
    """What the wrapper adds to the slots."""
    own_shared: ClassVar[Mapping[str, Any]] = {}
    """What it adds to the shared values."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options = self._by_name(args, options)
        rule = self.fields["optimizer"].check(type(self).__name__, options.pop("optimizer", "adamw"))
        around = {k: rule._argument(k) for k in Optimizer.fields if k != "name"}
        super().__init__(**{**around, **options, "optimizer": rule})
        self._held.exclude(rule._held.excluded)

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        rule = self.optimizer
        for kind, own in (("slot", self.own_slots), ("shared value", self.own_shared)):
            for name in {*own} & {*rule.slots, *rule.shared}:
                raise ValueError(f"{type(self).__name__} and {rule!r} both have a {kind} {name!r}. Use one of them.")

    @property
    def row_wise(self) -> bool:
        """Whether the rule within is; a wrapper that mixes rows says False."""
        return self.optimizer.row_wise

    @property
    def precise(self) -> bool:
        """Whether the rule within is."""
        return self.optimizer.precise

    @property
    def bounded(self) -> bool:
        """Whether the rule within is; a wrapper whose own steps may grow says False."""
        return self.optimizer.bounded

    @property
    def by_layer(self) -> bool:
        """Whether the rule within looks at the layers."""
        return self.optimizer.by_layer

    @property
    def work(self) -> int:
        """What the rule within writes out for a while."""
        return self.optimizer.work

    @override
    def is_row_wise(self, layout: Layout) -> bool:
        own = type(self).row_wise
        return self.optimizer.is_row_wise(layout) if isinstance(own, property) else bool(own)

    @property
    @override
    def slots(self) -> Mapping[str, Slot]:
        return {**self.optimizer.slots, **self.own_slots}

    @property
    @override
    def shared(self) -> Mapping[str, Any]:
        return {**self.optimizer.shared, **self.own_shared}

    @override
    def check_weights(self, paths: Sequence[str]) -> None:
        self.optimizer.check_weights(paths)

    def destinations(self, model: keras.Model) -> dict[str, str]:
        """Returns by the path of each trainable weight what moves it: a rule for matrices, or another one."""
        return by_path(model, self.destination)

    def destination(self, layout: Layout) -> str:
        """Returns what moves a weight of this layout."""
        within = self.optimizer
        return within.destination(layout) if hasattr(within, "destination") else type(within).__name__

    @override
    def decay(self, weight_decay: Any, updates: Tensor) -> Any:
        return self.optimizer.decay(weight_decay, updates)

    def gradient(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Tensor:
        """Returns the gradient that the optimizer within sees."""
        return g

    @override
    def contribute(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> dict[str, Tensor]:
        return self.optimizer.contribute(self.gradient(g, w, s, t), w, s, t)

    @override
    def settle(self, sums: dict[str, Tensor], s: Slots, t: Tensor) -> dict[str, Tensor]:
        return settled(self.optimizer, sums, s, t)

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        return stepped(self.optimizer, self.gradient(g, w, s, t), w, s, t)

    @override
    def decayed(self, u: Tensor, w: Tensor, s: Slots) -> Tensor:
        return self.optimizer.decayed(u, w, s)

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return self.optimizer.rate(s, t)

    @override
    def measure(self, s: Slots, t: Tensor) -> dict[str, Tensor]:
        return self.optimizer.measure(s, t)

    def __repr__(self) -> str:
        rule, own = self.optimizer, self._changed(*Optimizer.fields, "optimizer")
        around = {k: self._argument(k) for k in Optimizer.fields if k != "name"}
        own += [f"{k}={as_code(v)}" for k, v in around.items() if plain(v) != plain(rule._argument(k))]
        return f"{type(self).__name__}({', '.join([repr(self.optimizer), *own])})"

    @override
    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"optimizer": keras.optimizers.serialize(self.optimizer)}


def takes_directions(wrapper: Wrapper) -> str:
    """Returns what is wrong with a wrapper whose optimizer within does not step along a direction."""
    name, rule = type(wrapper).__name__, wrapper.optimizer
    inverse = f" Put {name} within {type(rule).__name__}, not around it." if isinstance(rule, Wrapper) else ""
    return f"{name} takes an optimizer that steps along a direction.{inverse} Received: {rule!r}"


class AlongDirection(Wrapper, abstract=True):
    """Base of the wrappers of rules that step along a direction, w ← w - η (u + λ w), and do so themselves.

    They change the direction in `turned`, or the decay in `decayed`, so that one may stand inside of another.

    Raises:
        ValueError: the optimizer within does not step along a direction.
    """

    advance = Optimizer.advance

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.optimizer).advance is not Optimizer.advance:
            raise ValueError(takes_directions(self))

    def turned(self, u: Tensor, g: Tensor, w: Tensor, s: Slots) -> Tensor:
        """Returns the direction in place of u, that of the optimizer within."""
        return u

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        u, new = direction(self.optimizer, g, w, s, t)
        return self.turned(u, g, w, s), dict(new)

"""Optimizers that transform the rule of another one."""

import abc
import copy
import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import keras

from kopt.declare import Convert
from kopt.declare.fields import as_code, plain
from kopt.declare.registry import get
from kopt.optimizers.engine.learning_rate import LearningRate
from kopt.optimizers.engine.rule_checks import settled, stepped
from kopt.optimizers.engine.state.slots import Slot
from kopt.optimizers.engine.tensor_math import Tensor
from kopt.optimizers.optimizer import Optimizer


def inner(value: Any) -> Optimizer:
    """Returns the optimizer that `value` is or names, to be used inside of another one."""
    if isinstance(value, str):
        value = get(value)
    elif isinstance(value, dict):
        value = keras.optimizers.deserialize(copy.deepcopy(value))  # Keras changes it
    if not isinstance(value, Optimizer) or value.built:
        raise ValueError("a kopt optimizer that has made no step yet, or the name of one")
    if value.needs_loss or list(value.rules_by_key()) != [""]:
        raise ValueError("an optimizer that can stand inside of another one; this one moves all weights together")
    return value


class Composite(Optimizer, abstract=True):
    """Base of the optimizers made of several, each with its own learning rate and decay.

    What else surrounds the rule (clipping, averages, accumulation, masks, multipliers, precision) is given to the
    composite, for all weights.

    Args:
        learning_rate: η ≥ 0, a factor of all rates; 1 leaves them as they are.
        weight_decay: if given, instead of that of each optimizer.

    Raises:
        ValueError: one of the optimizers has options of its own for what surrounds the rule.
    """

    learning_rate: LearningRate = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        owner, own = type(self).__name__, {"name", "learning_rate", "weight_decay"}
        for rule in self.rules().values():
            if rule._held.excluded:
                raise ValueError(f"{owner}: call exclude_from_weight_decay of {owner} itself. Received: {rule!r}")
            for name, field in Optimizer.fields.items():
                if name not in own and getattr(rule, name) != field.default:
                    raise ValueError(f"{owner}: give {name} to {owner} itself, for all weights. Received: {rule!r}")
            if self.weight_decay is not None:
                rule.weight_decay = self.weight_decay

    @property
    def bounded(self) -> bool:
        """Whether all are."""
        return all(rule.bounded for rule in self.rules().values())

    @abc.abstractmethod
    def rules(self) -> Mapping[str, Optimizer]:
        """Returns the optimizers by the prefix of their slots."""

    @property
    def slots(self) -> Mapping[str, Slot]:
        """Those of all."""
        return {k + name: slot for k, rule in self.rules().items() for name, slot in rule.slots.items()}

    @property
    def shared(self) -> Mapping[str, Any]:
        """What all share."""
        return {k + name: value for k, rule in self.rules().items() for name, value in rule.shared.items()}

    def decay(self, updates: Tensor) -> float:
        """1: each rule has its own."""
        return 1.0

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, fit for JSON."""
        config = super().get_config()
        plain = {k: x for k, x in config.items() if isinstance(x, Optimizer)}
        return config | {k: keras.optimizers.serialize(rule) for k, rule in plain.items()}


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
        self._held.excluded.extend(rule._held.excluded)

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = self.optimizer
        rule.weight_decay = self.weight_decay
        for kind, own in (("slot", self.own_slots), ("shared value", self.own_shared)):
            for name in {*own} & {*rule.slots, *rule.shared}:
                raise ValueError(f"{type(self).__name__} and {rule!r} both have a {kind} {name!r}. Use one of them.")

    @property
    def row_wise(self) -> bool:
        """Whether the optimizer within is."""
        return self.optimizer.row_wise

    @property
    def precise(self) -> bool:
        """Whether the optimizer within is."""
        return self.optimizer.precise

    @property
    def bounded(self) -> bool:
        """Whether the optimizer within is."""
        return self.optimizer.bounded

    @property
    def slots(self) -> Mapping[str, Slot]:
        """Those of the optimizer within, and the wrapper's own."""
        return {**self.optimizer.slots, **self.own_slots}

    @property
    def shared(self) -> Mapping[str, Any]:
        """Those of the optimizer within, and the wrapper's own."""
        return {**self.optimizer.shared, **self.own_shared}

    def decay(self, updates: Tensor) -> Any:
        """λ of the optimizer within."""
        return self.optimizer.decay(updates)

    def gradient(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> Tensor:
        """Returns the gradient that the optimizer within sees."""
        return g

    def contribute(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> dict[str, Tensor]:
        """What the optimizer within sums."""
        return self.optimizer.contribute(self.gradient(g, w, s, t), w, s, t)

    def settle(self, sums: dict[str, Tensor], s: Any, t: Tensor) -> dict[str, Tensor]:
        """What it makes of the sums."""
        return settled(self.optimizer, sums, s, t)

    def advance(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Its step."""
        return stepped(self.optimizer, self.gradient(g, w, s, t), w, s, t)

    def rate(self, s: Any, t: Tensor) -> Tensor:
        """Its rate."""
        return self.optimizer.rate(s, t)

    def measure(self, s: Any, t: Tensor) -> dict[str, Tensor]:
        """What it measures."""
        return self.optimizer.measure(s, t)

    def __repr__(self) -> str:
        rule, own = self.optimizer, self._changed(*Optimizer.fields, "optimizer")
        around = {k: self._argument(k) for k in Optimizer.fields if k != "name"}
        own += [f"{k}={as_code(v)}" for k, v in around.items() if plain(v) != plain(rule._argument(k))]
        return f"{type(self).__name__}({', '.join([repr(self.optimizer), *own])})"

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, fit for JSON."""
        return super().get_config() | {"optimizer": keras.optimizers.serialize(self.optimizer)}

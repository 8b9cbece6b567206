"""The base of the optimizers made of several."""

import abc

import keras

from kopt.declare.fields import same
from kopt.optimizers.optimizer import Any, LearningRate, Mapping, Optimizer, Slot, Tensor, override


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

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        owner, own = type(self).__name__, {"name", "learning_rate", "weight_decay"}
        for rule in self.rules().values():
            if rule._held.excluded:
                raise ValueError(f"{owner}: call exclude_from_weight_decay of {owner} itself. Received: {rule!r}")
            for name, field in Optimizer.fields.items():
                if name not in own and getattr(rule, name) != field.default:
                    raise ValueError(f"{owner}: give {name} to {owner} itself, for all weights. Received: {rule!r}")

    @abc.abstractmethod
    def rules(self) -> Mapping[str, Optimizer]:
        """Returns the optimizers by the prefix of their slots and shared values."""

    @property
    def bounded(self) -> bool:
        """Whether all rules are."""
        return all(rule.bounded for rule in self.rules().values())

    @property
    @override
    def needs_loss(self) -> bool:
        """Whether one of the rules looks at the loss."""
        return any(rule.needs_loss for rule in self.rules().values())

    @property
    def by_layer(self) -> bool:
        """Whether one of the rules looks at the layers."""
        return any(rule.by_layer for rule in self.rules().values())

    @property
    def work(self) -> int:
        """What the rule that writes most writes out for a while."""
        return max(rule.work for rule in self.rules().values())

    @property
    @override
    def slots(self) -> Mapping[str, Slot]:
        return {k + name: slot for k, rule in self.rules().items() for name, slot in rule.slots.items()}

    @property
    @override
    def shared(self) -> Mapping[str, Any]:
        return {k + name: value for k, rule in self.rules().items() for name, value in rule.shared.items()}

    @override
    def decay(self, weight_decay: Any, updates: Tensor) -> float:
        if weight_decay is not None and not same(weight_decay, self.weight_decay):
            raise ValueError(
                f"Give weight_decay to {type(self).__name__} itself, and not to what is around it: {weight_decay!r}. "
                f"Received: {self!r}"
            )
        return 1.0  # each rule has its own λ, see `decay_of`

    def decay_of(self, rule: Optimizer, updates: Tensor) -> Any:
        """Returns λ of one of the rules after so many updates."""
        return rule.decay(rule.weight_decay if self.weight_decay is None else self.weight_decay, updates)

    @override
    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        rules = {k: x for k, x in config.items() if isinstance(x, Optimizer)}
        return config | {k: keras.optimizers.serialize(rule) for k, rule in rules.items()}

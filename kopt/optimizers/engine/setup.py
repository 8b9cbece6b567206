"""A built optimizer, as its steps see it."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from keras import ops

from kopt.optimizers.engine.backends.backend import backend
from kopt.optimizers.engine.contract import Options, Rule
from kopt.optimizers.engine.parameter import Parameter
from kopt.optimizers.engine.tensor_math import Tensor

PART = 2**26
"""Bytes of weights that a step moves together: what a rule computes on the way is needed for these at one time."""
BLOCK = 2**22
"""Bytes of a weight that is moved by some of its rows, because its slots are decoded for that."""


class Part(NamedTuple):
    """What a step moves together: the weights at these places, or of a single one so many `rows` from `first` on."""

    places: tuple[int, ...]
    first: int = 0
    rows: int | None = None


@dataclasses.dataclass
class Setup:
    """What a step works on.

    Attributes:
        owner: name of the optimizer's class, for messages.
        optimizer: the optimizer itself, as a rule.
        rules: what moves the weights, by a key that begins the names of their shared values; {"": optimizer}, or one
            rule a route.
        options: what surrounds the rules.
        needs_loss: whether a rule looks at the loss.
        scalar_dtype: of the shared values and of sums over all weights: float32 or float64.
        iterations: number of batches seen.
        nonfinite_steps: number of skipped updates.
        clipped_steps: number of updates whose gradient was clipped.
        gradient_norm: of the last update, before clipping.
        watched: whether `gradient_norm` is kept up to date.
        shared: the shared values.
        parameters: the weights.
        averages_at: for each weight, the update up to which every row of its average is right; None without averages.
        graphs: compiled functions, by name.
    """

    owner: str
    optimizer: Rule
    rules: Mapping[str, Rule]
    options: Options
    needs_loss: bool
    scalar_dtype: str
    iterations: Any
    nonfinite_steps: Any
    clipped_steps: Any
    gradient_norm: Any
    watched: Any
    shared: dict[str, Any]
    parameters: tuple[Parameter, ...]
    averages_at: Any = None
    graphs: dict[str, Any] = dataclasses.field(default_factory=dict)

    def updates(self) -> Tensor:
        """Returns the number of updates done."""
        return updates_done(self.iterations, self.options.batches)

    def parts(self) -> list[Part]:
        """Returns what a step moves one after the other: the last weights first, whose gradients are known first."""
        parts, room = list[Part](), -1  # the last part takes no more weights, not even empty ones
        for p in reversed(self.parameters):
            rows, size = (*tuple(p.variable.shape), 1)[0], p.size
            count = max(1, rows * BLOCK // size) if size and p.splits else rows
            if count < rows:
                parts += [Part((p.index,), i, min(count, rows - i)) for i in range(0, rows, count)]
                room = -1
            elif size <= room:
                parts[-1] = Part((*parts[-1].places, p.index))
                room -= size
            else:
                parts.append(Part((p.index,)))
                room = PART - size
        return parts

    def note_debts(self) -> None:
        """Looks at a state that was restored, for averages that are owed something; before the next step is traced."""
        for p in self.parameters:
            p.note_debts()

    def in_order(self, variables: Sequence[Any]) -> bool:
        """Whether these are the weights, one by one; saves the look-ups that an eager step would feel."""
        return len(variables) == len(self.parameters) and all(
            v is p.variable for v, p in zip(variables, self.parameters, strict=True)
        )

    def given(self, gradients: Sequence[Any]) -> list[tuple[Parameter, Any]]:
        """Returns the weights that have a gradient, with it."""
        return [(p, g) for p, g in zip(self.parameters, gradients, strict=True) if g is not None]

    def shared_values(self) -> dict[str, Tensor]:
        """Returns the shared values as they are."""
        return {k: backend.value(v) for k, v in self.shared.items()}

    def rate_of(self, key: str, rate: Tensor, update: Tensor) -> Tensor:
        """Returns η of a rule at an update: that of the optimizer, or a multiple of it."""
        return rate if key == "" else rate * ops.cast(self.rules[key].rate_after(update - 1), self.scalar_dtype)

    def decay_of(self, rule: Rule, updates: Tensor) -> Any:
        """Returns λ of a rule after so many updates: that of the optimizer, if it has one."""
        given = self.optimizer.weight_decay
        return rule.decay(rule.weight_decay if given is None else given, updates)

    def view(
        self, p: Parameter, slots: Mapping[str, Tensor], shared: Mapping[str, Tensor], rate: Tensor, update: Tensor
    ) -> SimpleNamespace:
        """Returns the namespace that a rule sees beside gradient and weight."""
        common = {k: ops.cast(x, p.dtype) for k, x in with_prefix(shared, p.key).items()}
        return SimpleNamespace(
            **slots,
            **common,
            learning_rate=ops.cast(self.rate_of(p.key, rate, update), p.dtype) * p.multiplier,
            multiplier=p.multiplier,
            weight_decay=self.decay_of(p.rule, update - 1) * p.decay if p.decay else 0.0,
            index=p.index,
            layout=p.layout,
            update=update,
        )

    def shared_view(self, key: str, shared: Mapping[str, Tensor], rate: Tensor, update: Tensor) -> SimpleNamespace:
        """Returns the namespace that a rule sees when it settles its shared values."""
        return SimpleNamespace(**with_prefix(shared, key), learning_rate=self.rate_of(key, rate, update))


def updates_done(iterations: Any, batches: int) -> Tensor:
    """Returns the number of updates done after so many batches: what Keras' schedules see, too."""
    return backend.value(iterations) // batches


def with_prefix(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Returns the values whose names begin with a prefix, without it."""
    return {k.removeprefix(prefix): x for k, x in values.items() if k.startswith(prefix)}

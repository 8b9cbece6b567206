"""What an optimizer holds beside the variables that Keras tracks and saves."""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import Any

from kopt.optimizers.engine import keras_loss_scale
from kopt.optimizers.engine.backends.backend import backend
from kopt.optimizers.engine.setup import Setup
from kopt.optimizers.engine.state.state_file import StateFile, name_variables

Starts = list[tuple[Any, Callable[..., Any]]]
"""Variables that do not begin at zero, with what makes their first value."""


@dataclasses.dataclass
class Held:
    """What Keras must not track, because it is no state.

    Attributes:
        owner: name of the optimizer's class, for messages.
        file: reads and writes the state.
        built: what the steps work on; None before `build`.
        excluded: weights that do not decay.
        undecayed: their places, once there is an order.
        starts: variables that do not begin at zero.
        averages: what Keras calls the moving averages of the variables.
        losses: the loss that each thread, and so each replica, has noted.
        observed: the threads that have given the curvature for their next step.
        keras_scale: the loss scale of Keras, if that is around the optimizer.
        traced: whether a step was compiled into a graph of the caller.
    """

    owner: str
    file: StateFile
    built: Setup | None = None
    excluded: list[Any] = dataclasses.field(default_factory=list)
    undecayed: list[int] = dataclasses.field(default_factory=list)
    starts: Starts = dataclasses.field(default_factory=list)
    averages: list[Any] = dataclasses.field(default_factory=list)
    losses: dict[int, Any] = dataclasses.field(default_factory=dict)
    observed: set[int] = dataclasses.field(default_factory=set)
    keras_scale: Any = None
    traced: bool = False

    @property
    def setup(self) -> Setup:
        """What the steps work on.

        Raises:
            ValueError: the optimizer is not built.
        """
        if self.built is None:
            raise ValueError(f"{self.owner} is not built. Pass the variables, or call build(variables) first.")
        return self.built

    def paths(self) -> list[str] | None:
        """Returns the paths of the weights; None before `build`."""
        return None if self.built is None else [p.path for p in self.built.parameters]

    def variables(self, optimizer: Any) -> dict[str, Any]:
        """Returns every variable of the optimizer worth saving, by name."""
        return name_variables(optimizer._iterations, optimizer._learning_rate, self.built)

    def exclude(self, variables: Sequence[Any]) -> None:
        """Takes note of weights that do not decay; raises `AttributeError` after `build`."""
        known = {id(v) for v in self.excluded}
        new = [v for v in variables if id(v) not in known]
        if new and self.built is not None:
            raise AttributeError(f"{self.owner}: weights cannot be excluded from decay after build.")
        self.excluded.extend(new)

    def noted(self, loss: Any) -> Any:
        """Remembers the loss of the step that follows; returns the loss to differentiate."""
        thread = threading.get_ident()
        return backend.noted(loss, lambda value: self.losses.update({thread: value}))

    def take_loss(self) -> Any:
        """Returns the loss of this step.

        Raises:
            ValueError: nobody has noted it.
        """
        loss = self.losses.pop(threading.get_ident(), None)
        if loss is None:
            raise ValueError(
                f"{self.owner} needs the loss of every step. Call optimizer.scale_loss(loss) before the gradients are "
                "taken, as fit does."
            )
        return loss

    def look_around(self) -> bool:
        """Looks for Keras' loss scaling among the callers; returns whether it is there."""
        self.keras_scale = keras_loss_scale.find_scale()
        return self.keras_scale is not None

    def check_scale(self, rule: Any) -> None:
        """Raises an error if a step inside of Keras' loss scaling would be wrong: see `keras_loss_scale.check`."""
        if self.keras_scale is not None:
            counts = getattr(rule, "examples", None) is not None
            keras_loss_scale.check(self.owner, self.keras_scale, self.setup.options, rule.needs_loss, counts)

    def check_scale_at_end(self) -> None:
        """Raises `FloatingPointError` if the loss scale of Keras has fallen to nothing."""
        if self.keras_scale is not None:
            keras_loss_scale.check_at_end(self.owner, self.keras_scale)

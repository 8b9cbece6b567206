"""Route."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import keras

from kopt.declare import Convert, path_rules
from kopt.optimizers.engine.state.start import path_of
from kopt.optimizers.optimizer import Optimizer
from kopt.optimizers.wrappers.wrapper import Composite, inner


def _routes(value: Any) -> tuple[tuple[str, Optimizer], ...]:
    try:
        pairs = [(re.compile(pattern).pattern, inner(optimizer)) for pattern, optimizer in value]
    except (TypeError, ValueError, re.error) as error:
        raise ValueError(f"pairs (pattern, optimizer or its name), as in [(r'bias$', 'sgd')] ({error})") from None
    if not pairs or len({id(optimizer) for _, optimizer in pairs}) < len(pairs):
        raise ValueError("at least one pair, each with an optimizer of its own")
    return tuple(pairs)


class Route(Composite):
    r"""Route: different rules for different weights.

        w ← step of the first optimizer whose pattern is found in the path of w, with η times its own rate

    What surrounds the rules sees all weights: the global norm is that of all gradients.

    Slots: of each weight, those of its optimizer.  Row-wise where its optimizer is.

    Args:
        routes: (regular expression, optimizer or its name) pairs, searched in the path of a weight; the first found
            counts. Every weight needs one: end with `("", "adamw")`.

    Raises:
        ValueError: at the first step, a weight that no pattern is found in, or a pattern that is found in no weight.

    Reference: `MultiOptimizer` of TensorFlow Addons, which chose by layer.
    """

    routes: Annotated[Any, Convert(_routes)] = dataclasses.field(default=(("", "adamw"),), kw_only=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for _, optimizer in self.routes:
            if hasattr(optimizer, "averages"):
                raise ValueError(f"Route: {optimizer!r} trains one point and evaluates another, for all weights.")

    def rules(self) -> Mapping[str, Optimizer]:
        """The optimizers by their place among the routes."""
        return {f"{i}.": optimizer for i, (_, optimizer) in enumerate(self.routes)}

    def rules_by_key(self) -> Mapping[str, Optimizer]:
        """Each weight has one of the rules."""
        return self.rules()

    def key_of(self, path: str) -> str:
        """Returns the key of the first route that is found in the path."""
        return next(f"{i}." for i, (pattern, _) in enumerate(self.routes) if re.search(pattern, path))

    def build(self, variables: Sequence[Any]) -> None:
        """See `Optimizer.build`."""
        paths = [path_of(v) for v in variables]
        numbered = [(pattern, float(i)) for i, (pattern, _) in enumerate(self.routes)]
        chosen = path_rules.resolve("Route.routes", numbered, paths, default=-1.0)
        if missed := [path for path, i in zip(paths, chosen, strict=True) if i < 0]:
            raise ValueError(
                f"Route: no pattern is found in {len(missed)} weights: {', '.join(missed[:5])}. "
                "End the routes with a pair for the rest, as ('', 'adamw')."
            )
        super().build(variables)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, fit for JSON."""
        routes = [[pattern, keras.optimizers.serialize(optimizer)] for pattern, optimizer in self.routes]
        return super().get_config() | {"routes": routes}

    def __repr__(self) -> str:
        routes = ", ".join(f"({pattern!r}, {optimizer!r})" for pattern, optimizer in self.routes)
        return f"Route({', '.join([f'[{routes}]', *self._changed('routes')])})"

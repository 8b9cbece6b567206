"""Route."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import keras

from kopt.declare import Convert, path_rules
from kopt.declare.patterns import check_pattern, is_found
from kopt.optimizers.composites.composite import Composite
from kopt.optimizers.engine.state.start import path_of
from kopt.optimizers.inner import inner
from kopt.optimizers.optimizer import Any, Optimizer, override


def _routes(value: Any) -> tuple[tuple[str, Optimizer], ...]:
    try:
        pairs = [(check_pattern(pattern), inner(optimizer)) for pattern, optimizer in value]
    except (TypeError, ValueError) as error:
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

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        for _, optimizer in self.routes:
            if hasattr(optimizer, "averages"):
                raise ValueError(
                    f"Route cannot use {optimizer!r}: it trains one point and evaluates another, which is for all "
                    "weights or none. Give it all weights, without Route."
                )

    @override
    def rules(self) -> dict[str, Optimizer]:
        return {f"{i}.": optimizer for i, (_, optimizer) in enumerate(self.routes)}

    @override
    def rules_by_key(self) -> dict[str, Optimizer]:
        return self.rules()

    @override
    def key_of(self, path: str) -> str:
        return next(f"{i}." for i, (pattern, _) in enumerate(self.routes) if is_found(pattern, path))

    @override
    def build(self, variables: Sequence[Any]) -> None:
        paths = [path_of(v) for v in variables]
        numbered = [(pattern, float(i)) for i, (pattern, _) in enumerate(self.routes)]
        chosen = path_rules.resolve("Route.routes", numbered, paths, default=-1.0)
        if missed := [path for path, i in zip(paths, chosen, strict=True) if i < 0]:
            raise ValueError(
                f"Route: no pattern is found in {len(missed)} weights: {', '.join(missed[:5])}. "
                "Add a last pair that matches every path, such as ('', 'adamw')."
            )
        super().build(variables)

    @override
    def get_config(self) -> dict[str, Any]:
        routes = [[pattern, keras.optimizers.serialize(optimizer)] for pattern, optimizer in self.routes]
        return super().get_config() | {"routes": routes}

    def __repr__(self) -> str:
        routes = ", ".join(f"({pattern!r}, {optimizer!r})" for pattern, optimizer in self.routes)
        return f"Route({', '.join([f'[{routes}]', *self._changed('routes')])})"

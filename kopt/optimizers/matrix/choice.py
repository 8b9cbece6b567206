"""Which weights of a model are its matrices: the kernels of its layers, whatever their axes, but for the last one."""

from collections.abc import Callable, Sequence
from typing import Annotated

import keras

from kopt.declare import Convert, path_rules
from kopt.declare.patterns import check_pattern, is_found
from kopt.optimizers.engine.state.layout import layouts
from kopt.optimizers.engine.state.start import path_of
from kopt.optimizers.optimizer import Any, Layout


def _patterns(value: Any) -> tuple[str, ...] | None:
    if value is None or isinstance(value, str):
        return None if value is None else (check_pattern(value),)
    try:
        return tuple(map(check_pattern, value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"None or regular expressions, as in ['lm_head/kernel$'] ({error})") from None


Others = Annotated[Any, Convert(_patterns)]
"""Regular expressions of the paths of matrices that are treated as the other weights; None is the last matrix."""


def is_chosen(others: Sequence[str] | None, layout: Layout) -> bool:
    """Returns whether a weight is a matrix, and not among the others; tables and vectors never are matrices."""
    if not layout.is_matrix or others is None:
        return layout.is_matrix and not layout.is_last
    return not any(is_found(pattern, layout.path) for pattern in others)


def check_others(owner: str, others: Sequence[str] | None, paths: Sequence[str]) -> None:
    """Raises `ValueError` if a pattern is found in no weight."""
    pairs = [(pattern, 1.0) for pattern in others or ()]
    path_rules.resolve(f"{owner}.others", pairs, paths)


def by_path(model: keras.Model, told: Callable[[Layout], str]) -> dict[str, str]:
    """Returns what is told of the layout of each trainable weight of a model, by its path."""
    variables = model.trainable_variables
    return {layout.path: told(layout) for layout in layouts(variables, [path_of(v) for v in variables])}


def on_matrix(owner: str, layout: Layout) -> str:
    """Returns the name of a rule with the matrix it sees."""
    return f"{owner} on {' × '.join(map(str, layout.matrices))}"

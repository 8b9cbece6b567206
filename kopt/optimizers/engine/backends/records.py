"""What passes between a step and the backend that carries it out."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kopt.optimizers.engine.tensor_math import Tensor


@dataclasses.dataclass(frozen=True)
class Gradient:
    """The gradient of one parameter, in the precision of the arithmetic.

    Of a table that was read sparsely, `value` holds one row for every entry of `rows`: the sum over its repeated ids.
    Entries past the number of distinct ids have zero gradient and repeat the first row; `keep` maps them onto it, so
    that a scatter writes equal values; it is None where rows are distinct. `touched`, [rows], marks those of a whole
    table that an update may move.
    """

    value: Tensor
    rows: Tensor = None
    keep: Tensor = None
    touched: Tensor = None

    def with_value(self, value: Tensor) -> "Gradient":
        """Returns another gradient of the same rows."""
        return dataclasses.replace(self, value=value)


@dataclasses.dataclass(frozen=True)
class Write:
    """An assignment that ends a step: to the whole variable, or to some rows of it."""

    variable: Any
    value: Tensor
    rows: Tensor = None


class Products(NamedTuple):
    """A vector-valued function of variables, r, and products with the matrix J of its derivatives.

    Attributes:
        value: returns r, of one axis; takes the arguments of the function.
        forward: returns J v; takes v, a tensor for each variable, before them.
        backward: returns Jᵀ u, a tensor for each variable; takes u, like r, before them.
    """

    value: Callable[..., Tensor]
    forward: Callable[..., Tensor]
    backward: Callable[..., list[Tensor]]


def check_depends(variables: Sequence[Any], gradients: Sequence[Any]) -> None:
    """Raises `ValueError` for a variable without a gradient."""
    for v, g in zip(variables, gradients, strict=True):
        if g is None:
            raise ValueError(f"The function does not depend on {getattr(v, 'path', v.name)!r}.")


def not_finite(owner: str, flags: Any, labels: Sequence[str]) -> str:
    """Returns the message about the weights whose flag is False."""
    bad = [label for label, fine in zip(labels, flags, strict=True) if not fine]
    return f"{NOT_FINITE.format(owner=owner)} {', '.join(bad[:10])}"


NOT_FINITE = "{owner}: a gradient or new weight is not finite; the update was skipped. Weights concerned:"

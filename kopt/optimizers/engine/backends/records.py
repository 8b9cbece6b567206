"""What passes between a step and the backend that carries it out."""

import dataclasses
from collections.abc import Sequence
from typing import Any

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


def not_finite(owner: str, flags: Any, labels: Sequence[str]) -> str:
    """Returns the message about the weights whose flag is False."""
    bad = [label for label, fine in zip(labels, flags, strict=True) if not fine]
    return f"{NOT_FINITE.format(owner=owner)} {', '.join(bad[:10])}"


NOT_FINITE = "{owner}: a gradient or new weight is not finite; the update was skipped. Weights concerned:"

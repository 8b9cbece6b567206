"""Slots: what an optimizer remembers of each weight, and how it is stored.

A rule sees every slot as a float32 tensor. A codec decodes the stored parts before the rule and encodes its result
afterwards, so that the storage format is no business of the rule.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

from keras import ops

from kopt.optimizers._math import Tensor, round_stochastically

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Slot:
    """One tensor that a rule keeps for each weight.

    Attributes:
        init: initial value, or "weight" for a copy of the weight.
        shape: maps the shape of the weight to that of the slot; `None` for the same shape. The slots of a row-wise
            rule keep the first axis of the weight.
        exact: stored in the precision of the arithmetic whatever `state_dtype` says: for what is subtracted from a
            weight, as the point where training began.
    """

    init: float | str = 0.0
    shape: Callable[[Shape], Shape] | None = None
    exact: bool = False

    def shape_for(self, weight: Shape) -> Shape:
        """Returns the shape of this slot beside a weight of the given shape."""
        return weight if self.shape is None else self.shape(weight)


class Codec(Protocol):
    """Storage format of a slot: named parts, each a variable whose first axis is that of the slot."""

    bytes_per_element: float

    def parts(self, shape: Shape, dtype: str) -> dict[str, tuple[Shape, str]]:
        """Returns shape and dtype of each stored part of a slot of this shape that the rule sees as `dtype`."""

    def decode(self, parts: dict[str, Tensor], dtype: str) -> Tensor:
        """Returns the slot as the rule sees it."""

    def encode(self, x: Tensor, uniform: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Returns the parts to store; `uniform(x)` draws noise in [0, 1) of the shape of x."""


class Float32:
    """Stored as the rule sees it: float32, or float64 beside a float64 weight."""

    bytes_per_element = 4.0

    def parts(self, shape: Shape, dtype: str) -> dict[str, tuple[Shape, str]]:
        """See `Codec`."""
        return {"value": (shape, dtype)}

    def decode(self, parts: dict[str, Tensor], dtype: str) -> Tensor:
        """See `Codec`."""
        return parts["value"]

    def encode(self, x: Tensor, uniform: Any) -> dict[str, Tensor]:
        """See `Codec`."""
        return {"value": x}


class BFloat16:
    """Stored in 2 bytes with 8 significant bits, rounded stochastically.

    Rounding to nearest would freeze an average: β v + (1-β) g² with β = 0.999 changes v by less than half a unit in
    the last place. The relative error of one store is below 2⁻⁷, its expectation zero.
    """

    bytes_per_element = 2.0

    def parts(self, shape: Shape, dtype: str) -> dict[str, tuple[Shape, str]]:
        """See `Codec`."""
        return {"value": (shape, "bfloat16")}

    def decode(self, parts: dict[str, Tensor], dtype: str) -> Tensor:
        """See `Codec`."""
        return ops.cast(parts["value"], dtype)

    def encode(self, x: Tensor, uniform: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """See `Codec`."""
        return {"value": round_stochastically(x, "bfloat16", uniform(x))}


def codec(slot: Slot, state_dtype: str) -> Codec:
    """Returns how a slot is stored."""
    return CODECS["float32" if slot.exact else state_dtype]


CODECS: dict[str, Codec] = {"float32": Float32(), "bfloat16": BFloat16()}

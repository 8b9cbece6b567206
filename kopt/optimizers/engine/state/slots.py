"""Slots: what an optimizer remembers of each weight."""

import dataclasses
from collections.abc import Callable

from kopt.optimizers.engine.state.layout import Layout
from kopt.optimizers.engine.tensor_math import Tensor

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Slot:
    """One tensor that a rule keeps for each weight.

    Attributes:
        init: initial value; "weight" for a copy of the weight, or a function of the weight and its `Layout`.
        shape: maps the shape of the weight, a `Layout`, to that of the slot; `None` for the same shape. The slots of a
            row-wise rule keep the first axis of the weight.
        exact: stored in the precision of the arithmetic whatever `state_dtype` says: for what is subtracted from a
            weight, as the point where training began.
        anchored: summed from the point that a slot which begins from the weight remembers, and so begun anew with it.
    """

    init: float | str | Callable[[Tensor, Layout], Tensor] = 0.0
    shape: Callable[[Layout], Shape] | None = None
    exact: bool = False
    anchored: bool = False

    @property
    def from_weight(self) -> bool:
        """Whether the initial value follows from the weight."""
        return not isinstance(self.init, int | float)

    def first(self, weight: Tensor, layout: Layout) -> Tensor:
        """Returns the initial value of a slot that begins from the weight."""
        return self.init(weight, layout) if callable(self.init) else weight

    def shape_for(self, weight: Shape) -> Shape:
        """Returns the shape of this slot beside a weight of the given shape."""
        layout = weight if isinstance(weight, Layout) else Layout(weight)
        return tuple(layout) if self.shape is None else self.shape(layout)

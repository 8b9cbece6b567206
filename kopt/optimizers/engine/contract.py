"""What the engine needs of an optimizer: its rule, and the options around it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

from kopt.optimizers.engine.state.layout import Layout
from kopt.optimizers.engine.state.slots import Slot
from kopt.optimizers.engine.tensor_math import Tensor


class Rule(Protocol):
    """What moves weights. `Optimizer` is one, and documents the members."""

    @property
    def slots(self) -> Mapping[str, Slot]: ...
    @property
    def shared(self) -> Mapping[str, Any]: ...
    @property
    def row_wise(self) -> bool: ...
    @property
    def precise(self) -> bool: ...
    @property
    def bounded(self) -> bool: ...
    @property
    def by_layer(self) -> bool: ...
    @property
    def work(self) -> int: ...
    @property
    def weight_decay(self) -> Any: ...
    def is_row_wise(self, layout: Layout) -> bool: ...
    def stacks(self, layout: Layout) -> bool: ...
    def check_weights(self, paths: Sequence[str]) -> None: ...
    def contribute(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> dict[str, Tensor]: ...
    def settle(self, sums: dict[str, Tensor], s: Any, t: Tensor) -> dict[str, Tensor]: ...
    def rule(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]: ...
    def advance(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]: ...
    def rate(self, s: Any, t: Tensor) -> Tensor: ...
    def measure(self, s: Any, t: Tensor) -> dict[str, Tensor]: ...
    def rate_after(self, updates: Tensor) -> Tensor: ...
    def decay(self, weight_decay: Any, updates: Tensor) -> Any: ...
    def share(self, batch: Tensor) -> Tensor: ...


@dataclasses.dataclass(frozen=True)
class Options:
    """What surrounds a rule, as the arguments of `Optimizer` say; constants of the compiled step."""

    clipnorm: float | None
    clipvalue: float | None
    global_clipnorm: float | None
    use_ema: bool
    ema_momentum: float
    ema_overwrite_frequency: int | None
    loss_scale_factor: float | None
    gradient_accumulation_steps: int | None
    on_nonfinite: str
    sparse: str
    rounding: str
    state_dtype: str

    @classmethod
    def of(cls, optimizer: object) -> Self:
        """Returns those of an optimizer."""
        return cls(**{field.name: getattr(optimizer, field.name) for field in dataclasses.fields(cls)})

    @property
    def batches(self) -> int:
        """Batches that make an update."""
        return self.gradient_accumulation_steps or 1


def checked_options(owner: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what follows from the arguments of `Optimizer`: a single batch an update needs no accumulation.

    Raises:
        ValueError: two of them contradict each other.
    """
    clips = {k: values[k] for k in ("clipnorm", "clipvalue", "global_clipnorm") if values[k] is not None}
    if len(clips) > 1:
        raise ValueError(f"{owner}: only one kind of clipping can be set. Received: {clips}")
    if values["ema_overwrite_frequency"] and not values["use_ema"]:
        raise ValueError(f"{owner}: ema_overwrite_frequency needs use_ema=True.")
    batches = values["gradient_accumulation_steps"]
    return {"gradient_accumulation_steps": None if batches == 1 else batches}

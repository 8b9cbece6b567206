"""Optimizers that transform the rule of another one."""

from collections.abc import Mapping
from typing import Any, ClassVar

import keras

from kopt._hyper import hyper
from kopt._registry import get
from kopt.optimizers._base import Optimizer
from kopt.optimizers._math import Tensor
from kopt.optimizers._slots import Slot


def _optimizer(value: Any) -> Optimizer:
    if isinstance(value, str):
        value = get(value)
    elif isinstance(value, dict):
        value = keras.optimizers.deserialize(value)
    if not isinstance(value, Optimizer) or value.built:
        raise ValueError("a kopt optimizer that has made no step yet, or the name of one")
    return value


class Wrapper(Optimizer, abstract=True):
    """Base of the wrappers: the same step with another rule.

    What surrounds the rule (learning rate, decay, clipping, masks, ...) is that of the optimizer within, unless it is
    given here.

    Args:
        optimizer: the optimizer within, which makes no steps of its own, or its name.
    """

    leading = "optimizer"
    optimizer: Any = hyper("adamw", convert=_optimizer)

    own_slots: ClassVar[Mapping[str, Slot]] = {}
    """What the wrapper adds to the slots."""
    own_shared: ClassVar[Mapping[str, Any]] = {}
    """What it adds to the shared values."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options |= dict(zip([self.leading], args, strict=False))
        inner = self.hypers["optimizer"].check(type(self).__name__, "optimizer", options.pop("optimizer", "adamw"))
        around = {k: getattr(inner, k) for k in Optimizer.hypers if k not in ("name", "learning_rate")}
        super().__init__(**{**around, "learning_rate": inner._given_rate(), **options, "optimizer": inner})
        inner.weight_decay = self.weight_decay
        for kind, own in (("slot", self.own_slots), ("shared value", self.own_shared)):
            for name in {*own} & {*inner.slots, *inner.shared}:
                raise ValueError(f"{type(self).__name__} and {inner!r} both have a {kind} {name!r}. Use one of them.")
        self.__dict__["row_wise"] = self.row_wise and inner.row_wise

    @property
    def slots(self) -> Mapping[str, Slot]:
        """Those of the optimizer within, and the wrapper's own."""
        return {**self.optimizer.slots, **self.own_slots}

    @property
    def shared(self) -> Mapping[str, Any]:
        """Those of the optimizer within, and the wrapper's own."""
        return {**self.optimizer.shared, **self.own_shared}

    @property
    def decay(self) -> float:
        """λ of the optimizer within."""
        return self.optimizer.decay

    def gradient(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> Tensor:
        """Returns the gradient that the optimizer within sees."""
        return g

    def contribute(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> dict[str, Tensor]:
        """What the optimizer within sums."""
        return self.optimizer.contribute(self.gradient(g, w, s, t), w, s, t)

    def settle(self, sums: dict[str, Tensor], s: Any, t: Tensor) -> dict[str, Tensor]:
        """What it makes of the sums."""
        return self.optimizer.settle(sums, s, t)

    def advance(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Its step."""
        return self.optimizer.advance(self.gradient(g, w, s, t), w, s, t)

    def rate(self, s: Any, t: Tensor) -> Tensor:
        """Its rate."""
        return self.optimizer.rate(s, t)

    def measure(self, s: Any, t: Tensor) -> dict[str, Tensor]:
        """What it measures."""
        return self.optimizer.measure(s, t)

    def __repr__(self) -> str:
        own = {k: getattr(self, k) for k in self.hypers if k not in Optimizer.hypers and k != "optimizer"}
        changed = [f"{k}={v!r}" for k, v in own.items() if v != self.hypers[k].default]
        return f"{type(self).__name__}({', '.join([repr(self.optimizer), *changed])})"

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, fit for JSON."""
        return super().get_config() | {"optimizer": keras.optimizers.serialize(self.optimizer)}

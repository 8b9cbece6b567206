"""Descent on the whole of the data, and what such rules share."""

import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
from keras import ops

from kopt.declare import Count
from kopt.optimizers.engine.backends.backend import backend
from kopt.optimizers.engine.state.slots import Slot
from kopt.optimizers.engine.tensor_math import Tensor, sum_of_squares
from kopt.optimizers.full_batch.line_search import BACKTRACKING, backtrack
from kopt.optimizers.optimizer import Optimizer


class FullBatch(Optimizer, abstract=True):
    r"""Base of the rules that want the gradient of all examples.

    `fit` with batch_size=len(x) gives it, and so do the batches of an epoch that are accumulated into one update,
    whose last one may be smaller: `examples` and `batch_size` tell how much each of them weighs.

    A penalty λ/2 ‖w‖², masked by `decay_mask`, takes the place of a decay: it belongs to the function that a line
    search looks at. `multipliers` scale the metric, in which the steps are sought, of the weights that they match.

    Args:
        examples: ≥ 1; examples of an epoch. With `batch_size`, every epoch makes one update.
        batch_size: ≥ 1; examples of a batch, but perhaps for the last.
        steps_per_update: ≥ 1; batches that make an update; the same as `gradient_accumulation_steps`.

    Raises:
        ValueError: `examples` without `batch_size`, or a contradiction between these numbers.
    """

    examples: Count | None = None
    batch_size: Count | None = None
    steps_per_update: Count | None = None
    precise = True
    row_wise = False

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if (self.examples is None) != (self.batch_size is None):
            raise ValueError(
                f"{name}: examples and batch_size belong together. Received: examples={self.examples}, "
                f"batch_size={self.batch_size}"
            )
        steps = {"steps_per_update": self.steps_per_update}
        steps["gradient_accumulation_steps"] = self.gradient_accumulation_steps
        if self.examples is not None and self.batch_size is not None:
            steps["examples / batch_size"] = math.ceil(self.examples / self.batch_size)
        given = {k: v for k, v in steps.items() if v is not None}
        if len(set(given.values())) > 1:
            raise ValueError(f"{name}: these numbers of batches for an update differ: {given}")
        if callable(self.weight_decay):
            raise ValueError(f"{name}: weight_decay must be a number: it is part of the function that is minimized.")
        self.steps_per_update = next(iter(given.values()), None)
        self.gradient_accumulation_steps = self.steps_per_update if (self.steps_per_update or 1) > 1 else None

    def scale_loss(self, loss: Any) -> Any:
        """Returns the loss to differentiate; warns if `fit` gives mini-batches."""
        steps, update = steps_of_fit(), self.gradient_accumulation_steps or 1
        if steps is not None and steps != update and not self.takes_minibatches:
            warnings.warn(
                f"{type(self).__name__} compares whole losses, but sees {update} of the {steps} batches of an epoch at "
                "each update. Give fit batch_size=len(x), or the optimizer examples=len(x) and batch_size.",
                stacklevel=2,
            )
        return super().scale_loss(loss)

    @property
    def takes_minibatches(self) -> bool:
        """Whether it goes on where each update sees other examples. Usually a class attribute."""
        return False

    def share(self, batch: Tensor) -> Tensor:
        """Every batch weighs as much as it has examples."""
        steps = self.gradient_accumulation_steps
        if self.examples is None or self.batch_size is None or steps is None:
            return 1.0
        sizes = [self.batch_size] * (steps - 1) + [self.examples - self.batch_size * (steps - 1)]
        return ops.where(batch < steps - 1, sizes[0] * steps / self.examples, sizes[-1] * steps / self.examples)

    @property
    def stalls(self) -> int:
        """Number of line searches in a row that found no lower point."""
        return int(backend.value(self.setup.shared["stalls"])) if self.built and "stalls" in self.setup.shared else 0

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Puts back the last accepted point if the weights are at a trial; `fit` calls it at its end."""
        if self.built and "searching" in self.setup.shared and bool(backend.value(self.setup.shared["searching"]) > 0):
            for p in self.setup.parameters:
                if "x" in p.slots:
                    for variable, value in p.rounded(p.remembered()["x"], self.setup.updates(), 0):
                        variable.assign(value)
            self.setup.shared["searching"].assign(0.0)
        super().finalize_variable_values(var_list)

    def _rounding_error(self, value: Tensor, moved: Tensor) -> Tensor:
        """Bounds the error of a loss: that of the number and that of the weights, `moved` = Σ (g w)²."""
        unit = 2.0**-23 if any(p.dtype == "float32" for p in self.setup.parameters) else 2.0**-52
        return 2 * unit * (ops.abs(value) + ops.sqrt(moved))


def steps_of_fit() -> int | None:
    """Returns the number of batches of an epoch of the `fit` that is calling; None outside, or where it is unknown."""
    frame = inspect.currentframe()
    while frame is not None:
        callbacks = frame.f_locals.get("callbacks")
        if frame.f_code.co_name == "fit" and isinstance(callbacks, keras.callbacks.CallbackList):
            return callbacks.params.get("steps")
        frame = frame.f_back
    return None


class BGD(FullBatch):
    r"""Batch gradient descent: steps along the gradient of all examples.

        w ← w - α g                        g with the penalty, g ← g + λ w
        fixed:            α = η
        armijo:           α ← α/2 until f(w - α g) ≤ f(w) - 10⁻⁴ α ‖g‖², then α ← 2 α; η is the first trial
        barzilai_borwein: α = Δwᵀ Δg / ‖Δg‖² where positive; η is the first step

    With "armijo" each update is one evaluation: it looks at a trial point, and either accepts it or shortens the step
    from the last accepted point, which `fit` puts back at its end. It needs the loss.

    Slots: the last point and its gradient (8 bytes/parameter), none with "fixed".  Not row-wise.

    Args:
        step: how the length of the step is found: "armijo", "barzilai_borwein" or "fixed".

    Reference: Cauchy, 1847; Armijo, 1966, doi:10.2140/pjm.1966.16.1; Barzilai and Borwein, 1988,
    doi:10.1093/imanum/8.1.141, equation 5.
    """

    learning_rate = 0.1
    step: Literal["armijo", "barzilai_borwein", "fixed"] = "armijo"

    @property
    def needs_loss(self) -> bool:
        """Only the line search compares losses."""
        return self.step == "armijo"

    @property
    def slots(self) -> Mapping[str, Slot]:
        """The last accepted point and its gradient."""
        return {} if self.step == "fixed" else {"x": Slot("weight", exact=True), "g": Slot(exact=True)}

    @property
    def shared(self) -> Mapping[str, Any]:
        """The length of the step, and the state of its search."""
        return dict.fromkeys({"fixed": (), "barzilai_borwein": ("length",), "armijo": BACKTRACKING}[self.step], 0.0)

    def contribute(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> dict[str, Tensor]:
        """The penalty and the inner products of the gradients and of the steps."""
        g, scale = g + s.weight_decay * w, s.multiplier
        y = g - s.g
        return {
            "penalty": s.weight_decay / 2 * sum_of_squares(w),
            "moved": sum_of_squares(g * w),
            "gg": scale * sum_of_squares(g),
            "gx": scale * ops.sum(g * s.g),
            "sy": ops.sum((w - s.x) * y),
            "yy": scale * sum_of_squares(y),
        }

    def settle(self, sums: dict[str, Tensor], s: Any, t: Tensor) -> dict[str, Tensor]:
        """Chooses the length of the next step."""
        length = ops.where(s.length > 0, s.length, s.learning_rate)
        if self.step == "barzilai_borwein":
            sound = ops.logical_and(sums["sy"] > 0, ops.isfinite(sums["yy"]))
            return {"length": ops.where(sound, sums["sy"] / ops.where(sound, sums["yy"], 1.0), length)}
        noise = self._rounding_error(s.value, sums["moved"])
        return backtrack(s, length, s.loss + sums["penalty"], sums, noise)

    def advance(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Steps from the last accepted point."""
        g = g + s.weight_decay * w
        if self.step == "fixed":
            return w - s.learning_rate * g, {}
        if self.step == "armijo":
            accepted = s.accepted > 0
            w, g = ops.where(accepted, w, s.x), ops.where(accepted, g, s.g)
        searching = s.searching > 0 if self.step == "armijo" else True
        return ops.where(searching, w - s.length * s.multiplier * g, w), {"x": w, "g": g}

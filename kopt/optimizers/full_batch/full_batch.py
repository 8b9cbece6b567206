"""What the rules share that want the gradient of all examples."""

import inspect
import math
import warnings
from collections.abc import Sequence

import keras
from keras import ops

from kopt.optimizers.engine.backends.backend import backend
from kopt.optimizers.engine.setup import Setup
from kopt.optimizers.optimizer import Any, Count, Mapping, Optimizer, Tensor, override


class FullBatch(Optimizer, abstract=True):
    r"""Base of the rules that want the gradient of all examples.

    `fit` with batch_size=len(x) gives it. Smaller batches give it too if all batches of an epoch are accumulated into
    one update. The last of them may be smaller: `examples` and `batch_size` tell how much each batch counts.

    `weight_decay` adds a penalty λ/2 ‖w‖², masked by `decay_mask`, because a line search must see the whole function.
    `multipliers` scale the metric in which the steps are chosen, for the weights that they match.

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

    @override
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
        self.check_batches(self.gradient_accumulation_steps or 1)
        return super().scale_loss(loss)

    def check_batches(self, update: int) -> None:
        """Warns if the data of the `fit` that is calling have more or fewer batches than make an update."""
        steps = steps_of_fit()
        if steps is not None and steps != update and not self.takes_minibatches:
            warnings.warn(
                f"{type(self).__name__} compares whole losses, but sees {update} of the {steps} batches of an epoch at "
                "each update. Give fit batch_size=len(x), or the optimizer examples=len(x) and batch_size.",
                stacklevel=3,
            )

    @property
    def takes_minibatches(self) -> bool:
        """Whether the rule works if each update sees other examples. Usually a class attribute."""
        return False

    @override
    def share(self, batch: Tensor) -> Tensor:
        """Returns how much an accumulated batch counts, in proportion to its examples; 1 is an equal share."""
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
        if self.built:
            put_back(self.setup)
        super().finalize_variable_values(var_list)

    def _coarse(self, g: Tensor) -> dict[str, Tensor]:
        """Returns what a weight contributes to `_rounding_error`: whether it is not in float64."""
        return {"coarse": ops.full((), float(keras.backend.standardize_dtype(g.dtype) == "float32"), g.dtype)}

    def _rounding_error(self, value: Tensor, sums: Mapping[str, Tensor]) -> Tensor:
        """Bounds the error of a loss: that of the number and that of the weights, "moved" = Σ (g w)²."""
        unit = ops.cast(ops.where(sums["coarse"] > 0, 2.0**-23, 2.0**-52), value.dtype)
        return 2 * unit * (ops.abs(value) + ops.sqrt(sums["moved"]))


def put_back(setup: Setup, prefix: str = "") -> None:
    """Puts back the last accepted point if the weights are at a trial of a search.

    Args:
        setup: of the optimizer.
        prefix: of the slots and shared values of the rule that searches.
    """
    searching = setup.shared.get(prefix + "searching")
    if searching is None or not backend.holds(searching) or not bool(backend.value(searching) > 0):
        return
    for p in setup.parameters:
        if prefix + "x" in p.slots:
            for variable, value in p.rounded(p.remembered()[prefix + "x"], setup.updates(), 0):
                variable.assign(ops.copy(value))  # on JAX no two variables may share an array
    searching.assign(0.0)


def steps_of_fit() -> int | None:
    """Returns the number of batches of the data of the `fit` that is calling; None outside, or where it is unknown.

    So it is with `steps_per_epoch`: a dataset that repeats one batch of all examples may have any number of steps.
    """
    frame = inspect.currentframe()
    while frame is not None:
        callbacks = frame.f_locals.get("callbacks")
        if frame.f_code.co_name == "fit" and isinstance(callbacks, keras.callbacks.CallbackList):
            return callbacks.params.get("steps") if frame.f_locals.get("steps_per_epoch") is None else None
        frame = frame.f_back
    return None

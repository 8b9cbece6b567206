"""What counts as not finite, and what becomes of it."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kopt.optimizers.engine.backends.backend import backend
from kopt.optimizers.engine.backends.records import Write
from kopt.optimizers.engine.parameter import read
from kopt.optimizers.engine.setup import Setup
from kopt.optimizers.engine.tensor_math import Tensor, sum_of_squares

UNUSUAL = 100.0
"""A learning rate above which new weights and slots are looked at, if `on_nonfinite` asks for finite ones."""


def moderate(gradients: Sequence[Tensor]) -> Tensor:
    """Returns which gradients have squares that stay clear of overflow; none if that of all together does not."""
    squares = [sum_of_squares(g) for g in gradients]
    flags = ops.stack([x < too_large(x.dtype) for x in squares])
    if any(keras.backend.standardize_dtype(x.dtype) == "float64" for x in squares):
        return flags
    return _judged_together(flags, sum(squares) < too_large("float32"))


def moderate_as_given(setup: Setup, gradients: Sequence[Any]) -> Tensor:
    """Returns what `moderate` does, of gradients before they are read."""
    active = setup.given(gradients)
    dtypes = [p.dtype for p, _ in active]
    dtype = "float64" if "float64" in dtypes else "float32"
    sums = backend.bounds_of_squares([g for _, g in active], dtypes, dtype)
    room = min((setup.options.loss_scale_factor or 1.0) ** 2, 2.0**9)
    flags = sums < ops.convert_to_tensor([too_large(x) * room for x in dtypes], dtype)
    return flags if dtype == "float64" else _judged_together(flags, ops.sum(sums) < too_large(dtype) * room)


def too_large(dtype: Any) -> float:
    """Returns the square of a norm that counts as not finite: a rule may multiply it by some hundreds."""
    return float(np.finfo(keras.backend.standardize_dtype(dtype)).max) / 2**10


def _judged_together(flags: Tensor, fine: Tensor) -> Tensor:
    """Returns the flags, all False unless all gradients together are `fine`.

    Where one is too large by itself, it alone is to blame.
    """
    return ops.logical_and(flags, ops.logical_or(fine, ops.logical_not(ops.all(flags))))


def needs_care(setup: Setup, rate: Tensor) -> Any:
    """Returns whether gradients that are not huge may make a weight or slot that is not finite.

    A boolean where that is known without the rate: of bounded rules it depends on the rate, and on the decay, which
    lets weights grow if there is too much of it.
    """
    variables = [p.variable for p in setup.parameters]
    if (
        not all(rule.bounded for rule in (setup.optimizer, *setup.rules.values()))
        or any(getattr(v, "constraint", None) for v in variables)
        or any(keras.backend.standardize_dtype(v.dtype) == "float16" for v in variables)
    ):
        return True
    update = setup.updates()
    fastest = max((p.multiplier for p in setup.parameters), default=1.0)
    usual = []
    for key, rule in setup.rules.items():
        top = ops.abs(setup.rate_of(key, rate, update + 1)) * fastest
        usual += [top <= UNUSUAL, top * ops.cast(setup.decay_of(rule, update), top.dtype) <= 1.0]
    return ops.logical_not(ops.all(ops.stack(usual)))


def are_finite(made: Sequence[Sequence[Tensor]], shared: Sequence[Tensor]) -> Tensor:
    """Returns for each weight whether all that was made for it is finite; none is if a shared value is not."""
    flags = [ops.all(ops.stack([ops.all(ops.isfinite(x)) for x in each if _is_float(x)])) for each in made]
    alone = [ops.all(ops.isfinite(x)) for x in shared if _is_float(x)]
    return ops.logical_and(ops.stack(flags), ops.all(ops.stack(alone))) if alone else ops.stack(flags)


def kept_unless(fine: Tensor, write: Write) -> Write:
    """Returns a write that leaves the variable as it is unless all is `fine`."""
    old = read(write.variable, write.rows)
    return Write(write.variable, ops.where(fine, ops.cast(write.value, old.dtype), old), write.rows)


def _is_float(x: Tensor) -> bool:
    return keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype))

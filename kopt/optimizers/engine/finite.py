"""What counts as not finite, and what becomes of it."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kopt.optimizers.engine.backends.backend import backend
from kopt.optimizers.engine.backends.records import Write
from kopt.optimizers.engine.parameter import read
from kopt.optimizers.engine.setup import Setup
from kopt.optimizers.engine.tensor_math import Tensor, too_large

UNUSUAL = 100.0
"""A learning rate above which new weights and slots are looked at, if `on_nonfinite` asks for finite ones."""


def moderate_as_given(setup: Setup, gradients: Sequence[Any]) -> Tensor:
    """Returns what `moderate` does, of gradients before they are read."""
    active = setup.given(gradients)
    dtypes = [p.dtype for p, _ in active]
    dtype = "float64" if "float64" in dtypes else "float32"
    sums = backend.bounds_of_squares([g for _, g in active], dtypes, dtype)
    room = min((setup.options.loss_scale_factor or 1.0) ** 2, 2.0**9)
    flags = sums < ops.convert_to_tensor([too_large(x) * room for x in dtypes], dtype)
    if dtype == "float64":
        return flags
    # Where one is too large by itself, it alone is to blame.
    return ops.logical_or(ops.logical_and(flags, ops.sum(sums) < too_large(dtype) * room), _blame(flags))


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
        usual += [top <= UNUSUAL, top * ops.cast(rule.decay(update), top.dtype) <= 1.0]
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


def _blame(flags: Tensor) -> Tensor:
    """Returns the flags if one is False, else none."""
    return ops.logical_and(flags, ops.logical_not(ops.all(flags)))


def _is_float(x: Tensor) -> bool:
    return keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype))

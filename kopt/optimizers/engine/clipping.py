"""Clipping of the gradient of a whole batch, and the counters that tell of it."""

from collections.abc import Sequence

from keras import ops

from kopt.optimizers.engine.backends.backend import backend
from kopt.optimizers.engine.backends.records import Gradient, Write
from kopt.optimizers.engine.parameter import Parameter
from kopt.optimizers.engine.setup import Setup
from kopt.optimizers.engine.tensor_math import Tensor, sum_of_squares

Active = list[tuple[Parameter, Gradient]]


def clip(setup: Setup, active: Active) -> tuple[Active, list[Write]]:
    """Returns the clipped gradients, and the writes of norm and counter."""
    factors, writes = measure(setup, active)
    return shorten(setup, active, factors), writes


def shorten(setup: Setup, active: Active, factors: Sequence[Tensor]) -> Active:
    """Returns the clipped gradients, with the factors that `measure` has found for them."""
    gradients = [g for _, g in active]
    if factors:
        gradients = [
            g.with_value(g.value * ops.cast(f, g.value.dtype)) for g, f in zip(gradients, factors, strict=True)
        ]
    if bound := setup.options.clipvalue:
        gradients = [g.with_value(ops.clip(g.value, -bound, bound)) for g in gradients]
    return [(p, g) for (p, _), g in zip(active, gradients, strict=True)]


def measure(setup: Setup, active: Active) -> tuple[list[Tensor], list[Write]]:
    """Returns a factor for each gradient, or none where none is shortened as a whole; and the writes."""
    options, gradients = setup.options, [g for _, g in active]
    norm, factors = setup.gradient_norm, list[Tensor]()
    if options.global_clipnorm:
        total = _norm(gradients)
        factors = [options.global_clipnorm / ops.maximum(total, options.global_clipnorm)] * len(active)
    else:
        old = backend.value(norm)
        total = ops.cond(backend.value(setup.watched), lambda: _norm(gradients), lambda: old)
    if options.clipnorm:
        norms = [ops.sqrt(sum_of_squares(g.value)) for g in gradients]
        factors = [options.clipnorm / ops.maximum(n, options.clipnorm) for n in norms]
    clipped = [factor < 1 for factor in factors]
    if bound := options.clipvalue:
        clipped = [ops.any(ops.abs(g.value) > bound) for g in gradients]
    writes = [Write(norm, total)]
    if clipped:
        hit = ops.cast(ops.any(ops.stack(clipped)), setup.clipped_steps.dtype)
        writes.append(Write(setup.clipped_steps, setup.clipped_steps + hit))
    return factors, writes


def _norm(gradients: list[Gradient]) -> Tensor:
    """Returns the norm of all gradients together."""
    return ops.sqrt(sum(ops.cast(sum_of_squares(g.value), "float32") for g in gradients))

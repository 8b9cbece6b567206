"""How a step runs on JAX: as plain operations, compiled by what compiles the train step.

See `Backend` for what the functions do; `on_jax_and_torch` has the others.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import keras
from jax import numpy as jnp
from keras import ops

from kopt.optimizers.engine.backends.records import Products, Write, check_depends, not_finite
from kopt.optimizers.engine.tensor_math import Tensor


def unconverted(function: Callable[..., Any]) -> Callable[..., Any]:
    """JAX sees operations alone."""
    return function


def is_traced() -> bool:
    """Inside of a trace constants are traced, too."""
    return isinstance(jnp.zeros(()), jax.core.Tracer)


def widest() -> str:
    """float32, unless `jax_enable_x64` is set."""
    return "float64" if jax.config.jax_enable_x64 else "float32"


def stop_unless(fine: Callable[[], Tensor], message: str) -> None:
    """Raises `FloatingPointError`; a compiled train step goes on."""
    if not is_traced() and not bool(fine()):
        raise FloatingPointError(message)


def raise_on(flags: Tensor, labels: Sequence[str], owner: str) -> None:
    """Raises `FloatingPointError`, in a compiled train step `ValueError` at once."""
    if isinstance(flags, jax.core.Tracer):
        raise ValueError(
            f"{owner}: on_nonfinite='raise' cannot stop a compiled train step. Use on_nonfinite='skip', or compile the "
            "model with run_eagerly=True."
        )
    if not bool(ops.all(flags)):
        raise FloatingPointError(not_finite(owner, flags, labels))


def noted(loss: Tensor, note: Callable[[Tensor], None]) -> Tensor:
    """Takes note again where the gradient is taken: what is seen of a loss inside of its function stays there."""

    @jax.custom_vjp
    def passed(loss: Tensor) -> Tensor:
        return loss

    def backward(loss: Tensor, slope: Tensor) -> tuple[Tensor]:
        note(loss)
        return (slope,)

    passed.defvjp(lambda loss: (loss, loss), backward)
    note(loss)
    return passed(loss)


def differentiated(
    function: Callable[..., Any], variables: Sequence[Any], state: Sequence[Any], compiled: bool
) -> Callable[..., Any]:
    """By `jax.value_and_grad` in a scope without state, compiled by `jax.jit` if asked for."""
    at = _stateless(function, variables, state)

    def scalar(*args: Any) -> tuple[Tensor, list[Tensor]]:
        result, after = at(*args)
        if result.ndim:
            raise ValueError(f"The function must return a scalar. Received: shape {tuple(result.shape)}")
        return result, after

    taken = jax.value_and_grad(scalar, has_aux=True)
    taken, known = (jax.jit(taken) if compiled else taken), list[bool]()

    def differentiate(*args: Any) -> tuple[Tensor, list[Tensor]]:
        values, others = [v.value for v in variables], [v.value for v in state]
        if not known:
            _check_depends(at, variables, values, others, *args)
            known.append(True)
        (result, after), gradients = taken(values, others, *args)
        for v, x in zip(state, after, strict=True):
            v.assign(x)
        return result, gradients

    return differentiate


def products(function: Callable[..., Any], variables: Sequence[Any], state: Sequence[Any], compiled: bool) -> Products:
    """By `jax.jvp` and `jax.vjp` in a scope without state, compiled by `jax.jit` if asked for."""
    at, known = _stateless(function, variables, state), list[bool]()

    def flat(values: Sequence[Tensor], others: Sequence[Tensor], *args: Any) -> Tensor:
        return at(values, others, *args)[0].reshape(-1)

    def pushed(tangents: list[Tensor], values: Sequence[Tensor], others: Sequence[Tensor], *args: Any) -> Tensor:
        return jax.jvp(lambda values: flat(values, others, *args), (values,), (tangents,))[1]

    def pulled(cotangent: Tensor, values: Sequence[Tensor], others: Sequence[Tensor], *args: Any) -> list[Tensor]:
        (gradients,) = jax.vjp(lambda values: flat(values, others, *args), values)[1](cotangent)
        return list(gradients)

    made = [jax.jit(f) if compiled else f for f in (flat, pushed, pulled)]

    def now() -> tuple[list[Tensor], list[Tensor]]:
        return [v.value for v in variables], [v.value for v in state]

    def value(*args: Any) -> Tensor:
        if not known:
            _check_depends(at, variables, *now(), *args)
            known.append(True)
        return made[0](*now(), *args)

    return Products(value, lambda v, *args: made[1](v, *now(), *args), lambda u, *args: made[2](u, *now(), *args))


def _stateless(function: Callable[..., Any], variables: Sequence[Any], state: Sequence[Any]) -> Callable[..., Any]:
    """Returns the function of the values of variables and state, which returns the new state, too."""

    def at(values: Sequence[Tensor], others: Sequence[Tensor], *args: Any) -> tuple[Tensor, list[Tensor]]:
        with keras.StatelessScope([*zip(variables, values, strict=True), *zip(state, others, strict=True)]) as scope:
            result = ops.convert_to_tensor(function(*args))
        return result, [scope.get_current_value(v) for v in state]

    return at


def _check_depends(at: Callable[..., Any], variables: Sequence[Any], *args: Any) -> None:
    """Looks at the operations: a gradient of zero does not tell."""
    graph = jax.make_jaxpr(at)(*args).jaxpr
    read = {id(x) for each in (*graph.eqns, graph) for x in getattr(each, "invars", ()) if each is not graph}
    read |= {id(x) for x in graph.outvars[:1]}
    check_depends(variables, [x if id(x) in read else None for x in graph.invars[: len(variables)]])


def holds(variable: Any) -> bool:
    """Keras has no public name for it: to read what is not there is an error."""
    try:
        return variable.value is not None
    except TypeError:
        return False


def commit(writes: Sequence[Write]) -> None:
    """Assigns whole variables, each an array of its own: a train step gives the arrays away, none of them twice."""
    for write in writes:
        write.variable.assign(ops.copy(write.value))

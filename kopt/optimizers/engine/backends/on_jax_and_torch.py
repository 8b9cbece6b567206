"""How a step runs on the other backends of Keras: as plain operations, compiled by whatever compiles the train step.

See `Backend` for what the functions do.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from kopt.optimizers.engine.backends.records import Gradient, Write
from kopt.optimizers.engine.tensor_math import Tensor, sum_of_squares


def unconverted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Nothing rewrites code here."""
    return function


def place() -> Any:
    """Whatever calls may compile the whole train step."""
    return "compiled"


def is_traced() -> bool:
    """JAX traces each train step once; the rate is among its inputs."""
    return False


def compiled(graphs: dict[str, Any], name: str, function: Callable[..., Any], xla: bool = False) -> Any:
    """Leaves the compiling to the train step."""
    return function


def cond(condition: Tensor, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
    """As `keras.ops.cond`."""
    return ops.cond(condition, then, otherwise)


def in_turn(calls: Sequence[Callable[[], Any]]) -> None:
    """One after the other."""
    for call in calls:
        call()


def replicas() -> int:
    """`keras.distribution` runs one program on all devices."""
    return 1


def sum_over_replicas(gradients: Sequence[Any]) -> list[Any]:
    """There is one program."""
    return list(gradients)


def stop_unless(fine: Tensor, message: str) -> None:
    """Goes on: what compiles the train step may not let it stop."""


def raise_on(flags: Tensor, labels: Sequence[str], owner: str) -> None:
    """Raises `FloatingPointError`, in a compiled train step `ValueError` at once."""
    try:
        fine = bool(ops.all(flags))
    except TypeError:  # JAX has no value yet
        raise ValueError(
            f"{owner}: on_nonfinite='raise' cannot stop a compiled train step. Use on_nonfinite='skip', or compile the "
            "model with jit_compile=False."
        ) from None
    if not fine:
        raise FloatingPointError(f"{owner}: a gradient or new weight is not finite; the update was skipped.")


def differentiated(function: Callable[..., Any], variables: Sequence[Any], compiled: bool) -> Any:
    """Raises `NotImplementedError`."""
    raise NotImplementedError("kopt.minimize needs the TensorFlow backend.")


def value(variable: Any) -> Tensor:
    """The tensor of a variable."""
    return ops.convert_to_tensor(variable)


def take(variable: Any, rows: Tensor) -> Tensor:
    """Rows of the tensor of a variable."""
    return ops.take(ops.convert_to_tensor(variable), rows, axis=0)


def commit(writes: Sequence[Write]) -> None:
    """Assigns whole variables: there are no gradients of rows here."""
    for write in writes:
        write.variable.assign(write.value)


def commit_if(condition: Tensor | None, compute: Callable[[], Any]) -> Tensor | None:
    """Chooses between old and new values."""
    writes, flags = compute()
    if condition is None:
        commit(writes)
        return flags
    commit([Write(w.variable, ops.where(condition, w.value, value(w.variable))) for w in writes])
    return None if flags is None else ops.logical_or(flags, ops.logical_not(condition))


def add_beside(optimizer: Any, like: Any, name: str, shape: Any, dtype: Any, initializer: Any) -> Any:
    """Adds a variable."""
    return optimizer.add_variable(shape, initializer, dtype, name=f"{like.path.replace('/', '_')}_{name}")


def outside_graph() -> Any:
    """Assignments always happen now."""
    return contextlib.nullcontext()


def where_slots_begin(owner: str, variables: Sequence[Any], copying: bool) -> Any:
    """Anywhere."""
    return contextlib.nullcontext()


def as_given(gradient: Any) -> Any:
    """It is a tensor."""
    return gradient


def is_of_rows(gradient: Any) -> bool:
    """Only TensorFlow has gradients of rows."""
    return False


def static_shape(gradient: Any) -> tuple[int | None, ...] | None:
    """The shape of a tensor."""
    return tuple(gradient.shape)


def read_gradient(gradient: Any, variable: Any, dtype: str, lazy: bool) -> Gradient:
    """Casts it."""
    return Gradient(ops.cast(gradient, dtype))


def bounds_of_squares(gradients: Sequence[Any], dtypes: Sequence[str], dtype: str) -> Tensor:
    """Their squared norms, as they are."""
    squares = [sum_of_squares(ops.cast(g, d)) for g, d in zip(gradients, dtypes, strict=True)]
    return ops.stack([ops.cast(x, dtype) for x in squares])


def marked_rows(marks: Any) -> Tensor:
    """None: no row is ever marked."""
    return None


def sparse(values: Tensor, rows: Tensor) -> Any:
    """Raises `NotImplementedError`."""
    raise NotImplementedError("Gradients of rows need the TensorFlow backend.")


def uniform(x: Tensor, update: Tensor, salt: int) -> Tensor:
    """Raises `ValueError`."""
    raise ValueError(
        "Stochastic rounding (rounding='stochastic', state_dtype='bfloat16', 'int8') needs the TensorFlow backend."
    )

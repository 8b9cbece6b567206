"""How a step runs on the other backends of Keras: as plain operations, compiled by whatever compiles the train step.

See `Backend` for what the functions do. What JAX and torch do in different ways is in `on_jax` and `on_torch`.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from kopt.optimizers.engine.backends.records import Gradient, Write
from kopt.optimizers.engine.tensor_math import Tensor, sum_of_squares

if keras.backend.backend() == "jax":
    from kopt.optimizers.engine.backends.on_jax import commit as commit
    from kopt.optimizers.engine.backends.on_jax import differentiated as differentiated
    from kopt.optimizers.engine.backends.on_jax import holds as holds
    from kopt.optimizers.engine.backends.on_jax import is_traced as is_traced
    from kopt.optimizers.engine.backends.on_jax import noted as noted
    from kopt.optimizers.engine.backends.on_jax import products as products
    from kopt.optimizers.engine.backends.on_jax import raise_on as raise_on
    from kopt.optimizers.engine.backends.on_jax import stop_unless as stop_unless
    from kopt.optimizers.engine.backends.on_jax import unconverted as unconverted
    from kopt.optimizers.engine.backends.on_jax import widest as widest
else:
    from kopt.optimizers.engine.backends.on_torch import commit as commit
    from kopt.optimizers.engine.backends.on_torch import differentiated as differentiated
    from kopt.optimizers.engine.backends.on_torch import holds as holds
    from kopt.optimizers.engine.backends.on_torch import is_traced as is_traced
    from kopt.optimizers.engine.backends.on_torch import noted as noted
    from kopt.optimizers.engine.backends.on_torch import products as products
    from kopt.optimizers.engine.backends.on_torch import raise_on as raise_on
    from kopt.optimizers.engine.backends.on_torch import stop_unless as stop_unless
    from kopt.optimizers.engine.backends.on_torch import unconverted as unconverted
    from kopt.optimizers.engine.backends.on_torch import widest as widest

has_rows = False


def place() -> Any:
    """Whatever calls may compile the whole train step."""
    return "compiled"


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


def on_host(owner: str, call: Callable[..., None], tensors: Sequence[Any], after: Sequence[Any]) -> None:
    """At once; JAX has no variables to move in a train step."""
    if keras.backend.backend() == "jax":
        raise RuntimeError(f"{owner} in fit does not run on the JAX backend. Use kopt.minimize, which does.")
    call(*tensors)


def replicas() -> int:
    """`keras.distribution` runs one program on all devices."""
    return 1


def sum_over_replicas(gradients: Sequence[Any]) -> list[Any]:
    """There is one program."""
    return list(gradients)


def value(variable: Any) -> Tensor:
    """The tensor of a variable; on torch its own memory, until something is assigned to it."""
    return ops.convert_to_tensor(variable)


def take(variable: Any, rows: Tensor) -> Tensor:
    """Rows of the tensor of a variable."""
    return ops.take(ops.convert_to_tensor(variable), rows, axis=0)


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


def check_place(owner: str) -> None:
    """`keras.distribution` is JAX's."""


def as_given(gradient: Any) -> Any:
    """It is a tensor.

    Raises:
        NotImplementedError: it is sparse.
    """
    if getattr(gradient, "is_sparse", False) or hasattr(gradient, "todense"):
        raise NotImplementedError("kopt takes sparse gradients on the TensorFlow backend only: give dense ones.")
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
    raise NotImplementedError("kopt takes sparse gradients on the TensorFlow backend only.")

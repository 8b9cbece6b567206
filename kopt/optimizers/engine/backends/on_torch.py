"""How a step runs on torch: operation by operation.

See `Backend` for what the functions do; `on_jax_and_torch` has the others.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from keras import ops

from kopt.optimizers.engine.backends.records import Write, not_finite
from kopt.optimizers.engine.tensor_math import Tensor


def unconverted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps autograd out of it."""
    return torch.no_grad()(function)


def is_traced() -> bool:
    """Each step reads everything anew."""
    return False


def widest() -> str:
    """Torch has float64."""
    return "float64"


def stop_unless(fine: Callable[[], Tensor], message: str) -> None:
    """Raises `FloatingPointError`."""
    if not bool(fine()):
        raise FloatingPointError(message)


def raise_on(flags: Tensor, labels: Sequence[str], owner: str) -> None:
    """Raises `FloatingPointError`."""
    if not bool(ops.all(flags)):
        raise FloatingPointError(not_finite(owner, flags, labels))


def noted(loss: Tensor, note: Callable[[Tensor], None]) -> Tensor:
    """Takes note of the number alone, without the graph behind it."""
    note(loss.detach())
    return loss


def differentiated(
    function: Callable[..., Any], variables: Sequence[Any], state: Sequence[Any], compiled: bool
) -> Callable[..., Any]:
    """By autograd, operation by operation."""

    def differentiate(*args: Any) -> tuple[Tensor, list[Tensor]]:
        sources = [v.value for v in variables]
        frozen = [x for x in sources if not x.requires_grad]
        try:
            for x in frozen:
                x.requires_grad_(True)
            with torch.enable_grad():
                result = ops.convert_to_tensor(function(*args))
            if result.ndim:
                raise ValueError(f"The function must return a scalar. Received: shape {tuple(result.shape)}")
            known = result.requires_grad
            gradients = torch.autograd.grad(result, sources, allow_unused=True) if known else [None] * len(sources)
        finally:
            for x in frozen:
                x.requires_grad_(False)
        for v, g in zip(variables, gradients, strict=True):
            if g is None:
                raise ValueError(f"The function does not depend on {v.path!r}.")
        return result.detach(), list(gradients)

    return differentiate


def holds(variable: Any) -> bool:
    """It always has."""
    return True


def commit(writes: Sequence[Write]) -> None:
    """Assigns whole variables in place; what lies in the memory of one of them is copied before."""
    owned = {_memory(w.variable.value) for w in writes}
    values = [x.clone() if _memory(x := ops.convert_to_tensor(w.value)) in owned else x for w in writes]
    for write, x in zip(writes, values, strict=True):
        write.variable.assign(x)


def _memory(x: torch.Tensor) -> int:
    return x.untyped_storage().data_ptr()

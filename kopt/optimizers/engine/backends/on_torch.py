"""How a step runs on torch: operation by operation.

See `Backend` for what the functions do; `on_jax_and_torch` has the others.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from keras import ops

from kopt.optimizers.engine.backends.records import Products, Write, check_depends, not_finite
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
        with _followed(variables) as sources:
            result = ops.convert_to_tensor(function(*args))
            if result.ndim:
                raise ValueError(f"The function must return a scalar. Received: shape {tuple(result.shape)}")
            gradients = _gradients(result, sources, None)
        check_depends(variables, gradients)
        return result.detach(), gradients

    return differentiate


def products(function: Callable[..., Any], variables: Sequence[Any], state: Sequence[Any], compiled: bool) -> Products:
    """By autograd; forward, as the derivative of what goes backward by what it is multiplied with."""

    def value(*args: Any) -> Tensor:
        return ops.reshape(function(*args), [-1])

    def forward(tangents: list[Tensor], *args: Any) -> Tensor:
        with _followed(variables) as sources:
            result = value(*args)
            cotangent = torch.zeros_like(result, requires_grad=True)
            known = torch.autograd.grad(result, sources, cotangent, create_graph=True, allow_unused=True)
            pairs = [(g, v) for g, v in zip(known, tangents, strict=True) if g is not None]
            return torch.autograd.grad([g for g, _ in pairs], cotangent, [v for _, v in pairs])[0]

    def backward(cotangent: Tensor, *args: Any) -> list[Tensor]:
        with _followed(variables) as sources:
            gradients = _gradients(value(*args), sources, cotangent)
        check_depends(variables, gradients)
        return gradients

    return Products(lambda *args: value(*args).detach(), forward, backward)


@contextlib.contextmanager
def _followed(variables: Sequence[Any]) -> Iterator[list[Tensor]]:
    """Records what is computed from the values of variables, which the block gets."""
    sources = [v.value for v in variables]
    frozen = [x for x in sources if not x.requires_grad]
    try:
        for x in frozen:
            x.requires_grad_(True)
        with torch.enable_grad():
            yield sources
    finally:
        for x in frozen:
            x.requires_grad_(False)


def _gradients(result: Tensor, sources: list[Tensor], cotangent: Tensor) -> list[Tensor]:
    if not result.requires_grad:
        return [None] * len(sources)
    return list(torch.autograd.grad(result, sources, cotangent, allow_unused=True))


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

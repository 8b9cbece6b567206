"""What the running calls of hosts compute with, apart in each thread: kernels, and the adapters of the rows."""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from keras import ops

from kopt.peft.adapter import Base
from kopt.peft.layers import Site, Tensor


class _Calls(threading.local):
    """The running calls of this thread: they begin and end within a forward pass, which leaves nothing behind."""

    def __init__(self) -> None:
        self.kernels: list[tuple[Any, Tensor | None]] = []  # (host, kernel in place of its own), innermost last
        self.rows: tuple[Tensor, tuple[str, ...]] | None = None


_calls = _Calls()


@contextlib.contextmanager
def kernel_in_use(layer: Any, kernel: Tensor | None) -> Iterator[None]:
    """Lets the calls of a host, within a block, compute with a kernel; None is the host's own."""
    _calls.kernels.append((layer, kernel))
    try:
        yield
    finally:
        _calls.kernels.pop()


def kernels_in_use(layer: Any) -> list[Tensor | None]:
    """Returns the kernels that this thread's running calls of a host use; None is the host's own."""
    return [kernel for host, kernel in _calls.kernels if host is layer]


def rows_in_use() -> bool:
    """Returns whether each row of the batch has adapters of its own in this thread's running calls."""
    return _calls.rows is not None


@contextlib.contextmanager
def rows(shares: Tensor, names: Sequence[str]) -> Iterator[None]:
    """Lets hosts apply to each row of the batch, within a block, the adapters `names` by `shares` [rows, names].

    A share is 0 or, for all rows with an adapter, its scale.
    """
    before = _calls.rows
    _calls.rows = (shares, tuple(names))
    try:
        yield
    finally:
        _calls.rows = before


def mixed(layer: Any, site: Site, base: Base, x: Tensor) -> Tensor:
    """Returns the output of a host, before its activation, with the adapters of each row.

    Args:
        layer: the `AdapterLayer`.
        site: its kernel.
        base: the host without adapters.
        x: its input, whose first axis are the rows.
    """
    assert _calls.rows is not None
    shares, names = _calls.rows
    y = total = base(x)
    for i, name in enumerate(names):
        if layer.weights_at(name, site):
            own = shares[:, i]
            gate = ops.where(ops.max(own) > 0, ops.max(own), ops.min(own))  # what all rows with the adapter have
            added = layer.adapters[name].added(x, base, layer.parameters(name, site, gate))
            mine = ops.reshape(own != 0, (-1, *(1,) * (len(y.shape) - 1)))
            total = total + ops.where(mine, added, ops.zeros_like(added))
    return total

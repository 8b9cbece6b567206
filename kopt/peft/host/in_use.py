"""What the running calls of hosts compute with, apart in each thread: kernels, and the adapters of the rows."""

import collections
import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from keras import ops

from kopt.peft.adapter import Base
from kopt.peft.layers import Site, Tensor

_thread = threading.local()


def kernels_in_use(layer: Any) -> list[Tensor | None]:
    """Returns the kernels that this thread's running calls of a host use; None is the host's own."""
    if not hasattr(_thread, "kernels"):
        _thread.kernels = collections.defaultdict(list)
    kernels: list[Tensor | None] = _thread.kernels[id(layer)]
    return kernels


def rows_in_use() -> bool:
    """Returns whether each row of the batch has adapters of its own in this thread's running calls."""
    return getattr(_thread, "rows", None) is not None


@contextlib.contextmanager
def rows(shares: Tensor, names: Sequence[str]) -> Iterator[None]:
    """Lets hosts apply to each row of the batch, within a block, the adapters `names` by `shares` [rows, names].

    A share is 0 or, for all rows with an adapter, its scale.
    """
    before = getattr(_thread, "rows", None)
    _thread.rows = (shares, tuple(names))
    try:
        yield
    finally:
        _thread.rows = before


def mixed(layer: Any, site: Site, base: Base, x: Tensor) -> Tensor:
    """Returns the output of a host, before its activation, with the adapters of each row.

    Args:
        layer: the `AdapterLayer`.
        site: its kernel.
        base: the host without adapters.
        x: its input, whose first axis are the rows.
    """
    shares, names = _thread.rows
    y = total = base(x)
    for i, name in enumerate(names):
        if layer.weights_at(name, site):
            own = shares[:, i]
            gate = ops.where(ops.max(own) > 0, ops.max(own), ops.min(own))  # what all rows with the adapter have
            added = layer.adapters[name].added(x, base, layer.parameters(name, site, gate))
            mine = ops.reshape(own != 0, (-1, *(1,) * (len(y.shape) - 1)))
            total = total + ops.where(mine, added, ops.zeros_like(added))
    return total

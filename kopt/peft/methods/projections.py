"""Random matrices that all layers share, drawn from a key that files hold."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np

from kopt.declare import Range
from kopt.peft.adapter import Array, Initializer

Key = Annotated[int, Range(0, 2**32)]
"""A seed of torch's and NumPy's Mersenne twisters alike."""


def unit_numbers(key: int, count: int) -> Array:
    """Returns the first `count` float32 numbers in [0, 1) that torch draws on a CPU after `manual_seed(key)`."""
    bits = np.random.RandomState(key).randint(0, 2**32, count, np.uint32)
    return (bits & np.uint32(2**24 - 1)).astype(np.float32) * np.float32(2**-24)


def drawn(key: int, shapes: Sequence[tuple[int, ...]], bounds: Sequence[float], which: int) -> Initializer:
    """Returns an initializer that gives one of several tensors that torch draws from [-bound, bound), one by one.

    Args:
        key: the seed.
        shapes: theirs in torch, which has the axes in the opposite order.
        bounds: of each tensor.
        which: number of the one.
    """

    def initializer(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
        sizes = [int(np.prod(s)) for s in shapes[: which + 1]]
        unit = unit_numbers(key, sum(sizes))[-sizes[-1] :].reshape(shapes[which])
        bound = np.float32(bounds[which])
        values: Array = (unit * (2 * bound) - bound).transpose()
        return values

    return initializer

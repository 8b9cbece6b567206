"""Random matrices that all layers share, drawn from a key that files hold, and the base of methods with them."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
from typing_extensions import override

from kopt.declare import Range
from kopt.peft.adapter import Array, Initializer
from kopt.peft.layers import Site
from kopt.peft.methods.additive import Additive

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


class Projected(Additive):
    """A change made of random matrices that are as large as the largest layer needs: the others take a part of them.

    Args:
        projection_prng_key: seed of the matrices.
        bias: "none"; peft trains biases too, which kopt does with LoRA and BitFit.
    """

    additive = ordered = True
    batched = False
    kinds = ("einsum",)

    projection_prng_key: Key = 0
    bias: Literal["none"] = "none"

    largest = (0, 0)
    """The largest numbers of inputs and outputs of the layers; 0 while they are not known."""

    @property
    def dropout(self) -> float:
        """`vera_dropout` of VeRA, and so on, under the name that hosts look for."""
        share: float = getattr(self, f"{self.peft_type.lower()}_dropout")
        return share

    @override
    def among(self, sites: Sequence[Site]) -> Self:
        local = type(self)(**self.get_config())
        local.largest = (max(s.fan_in for s in sites), max(s.fan_out for s in sites))
        return local

    def extent(self, site: Site) -> tuple[int, int]:
        """Returns the numbers of inputs and outputs that the matrices have."""
        return max(self.largest[0], site.fan_in), max(self.largest[1], site.fan_out)

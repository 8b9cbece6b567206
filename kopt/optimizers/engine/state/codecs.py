"""How slots are stored.

A rule sees every slot as a float32 tensor. A codec decodes the stored parts before the rule and encodes its result
afterwards, so that the storage format is no business of the rule.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from keras import ops
from typing_extensions import override

from kopt.optimizers.engine.state.slots import Shape, Slot
from kopt.optimizers.engine.tensor_math import Tensor, round_stochastically


class Codec(Protocol):
    """Storage format of a slot: named parts, each a variable whose first axis is that of the slot."""

    smallest_row: int
    """Slots with fewer elements for each row of the weight are stored as float32."""

    def parts(self, shape: Shape, dtype: str) -> dict[str, tuple[Shape, str]]:
        """Returns shape and dtype of each stored part of a slot of this shape that the rule sees as `dtype`."""

    def decode(self, parts: dict[str, Tensor], dtype: str) -> Tensor:
        """Returns the slot as the rule sees it."""

    def encode(self, x: Tensor, uniform: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Returns the parts to store; `uniform(x)` draws noise in [0, 1) of the shape of x."""


class Float32(Codec):
    """Stored as the rule sees it: float32, or float64 beside a float64 weight."""

    smallest_row = 1

    @override
    def parts(self, shape: Shape, dtype: str) -> dict[str, tuple[Shape, str]]:
        return {"value": (shape, dtype)}

    @override
    def decode(self, parts: dict[str, Tensor], dtype: str) -> Tensor:
        return parts["value"]

    @override
    def encode(self, x: Tensor, uniform: Any) -> dict[str, Tensor]:
        return {"value": x}


class BFloat16(Codec):
    """Stored in 2 bytes with 8 significant bits, rounded stochastically.

    Rounding to nearest would freeze an average: β v + (1-β) g² with β = 0.999 changes v by less than half a unit in
    the last place. The relative error of one store is below 2⁻⁷, its expectation zero.

    The bits lie in integers: to write rows of a bfloat16 table XLA converts all of it on a CPU. torch keeps integers of
    16 bits without a sign in 32: there nothing is saved.
    """

    smallest_row = 1

    @override
    def parts(self, shape: Shape, dtype: str) -> dict[str, tuple[Shape, str]]:
        return {"bfloat16": (shape, "uint16")}

    @override
    def decode(self, parts: dict[str, Tensor], dtype: str) -> Tensor:
        return ops.cast(ops.view(ops.left_shift(ops.cast(parts["bfloat16"], "int32"), 16), "float32"), dtype)

    @override
    def encode(self, x: Tensor, uniform: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        rounded = ops.cast(round_stochastically(x, "bfloat16", uniform(x)), "float32")
        bits = ops.right_shift(ops.view(rounded, "int32"), 16)
        return {"bfloat16": ops.cast(ops.bitwise_and(bits, 2**16 - 1), "uint16")}


class Int8(Codec):
    """Stored in 1 byte, and 4 for each block of at most 256 elements of a row: the largest |x| in it, s.

        x = sign(k) (|k| / 127)⁴ s,        k = -127 ... 127

    The fourth power spreads the codes over eight decades, as the second moments of a row are spread. Rounded
    stochastically between neighbours; the error of one store is below 0.032 s and its expectation zero, but that only
    zero is stored as zero: a second moment of zero would let a step explode.
    """

    smallest_row = 16
    block = 256

    @override
    def parts(self, shape: Shape, dtype: str) -> dict[str, tuple[Shape, str]]:
        return {"int8": (shape, "int8"), "scale": ((shape[0], self._blocks(shape)), "float32")}

    @override
    def decode(self, parts: dict[str, Tensor], dtype: str) -> Tensor:
        code = ops.cast(parts["int8"], dtype)
        return ops.sign(code) * ops.square(ops.square(code / 127)) * self._spread(parts["scale"], code)

    @override
    def encode(self, x: Tensor, uniform: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        blocks = self._blocks(x.shape)
        size = -(-math.prod(x.shape[1:]) // blocks)
        rows = ops.reshape(ops.abs(x), (-1, math.prod(x.shape[1:])))
        rows = ops.pad(rows, [[0, 0], [0, blocks * size - rows.shape[1]]])
        scale = ops.max(ops.reshape(rows, (-1, blocks, size)), axis=2)
        y = ops.abs(x) / ops.maximum(self._spread(scale, x), np.finfo("float32").tiny)
        below = ops.minimum(ops.floor(127 * ops.sqrt(ops.sqrt(y))), 126)
        low, high = (ops.square(ops.square(k / 127)) for k in (below, below + 1))
        code = below + ops.cast(uniform(x) * (high - low) < y - low, x.dtype)
        return {"int8": ops.cast(ops.sign(x) * ops.maximum(code, 1), "int8"), "scale": ops.cast(scale, "float32")}

    def _blocks(self, shape: Shape) -> int:
        return -(-math.prod(shape[1:]) // self.block)

    def _spread(self, scale: Tensor, like: Tensor) -> Tensor:
        """Returns the scale of each element of a slot."""
        row = math.prod(like.shape[1:])
        size = -(-row // scale.shape[1])
        scale = ops.cast(ops.repeat(scale, size, axis=1)[:, :row], like.dtype)
        return ops.reshape(scale, (-1, *like.shape[1:]))


def codec(slot: Slot, state_dtype: str, shape: Shape) -> Codec:
    """Returns how a slot is stored beside a weight of the given shape."""
    stored = CODECS[state_dtype]
    small = math.prod(slot.shape_for(shape)[1:]) < stored.smallest_row
    return CODECS["float32"] if slot.exact or small else stored


CODECS: dict[str, Codec] = {"float32": Float32(), "bfloat16": BFloat16(), "int8": Int8()}

"""Matrices cut into blocks whose sides are not too long."""

import dataclasses
import math

import numpy as np
from keras import ops

from kopt.optimizers.optimizer import Layout, Tensor


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How a weight is cut: each side into equal parts, as few as may be, with zeros behind the last one.

    Attributes:
        stacked: matrices of the weight.
        parts: number of parts of both sides.
        sides: length of the parts.
        whole: lengths of both sides of the matrices.
    """

    stacked: int
    parts: tuple[int, int]
    sides: tuple[int, int]
    whole: tuple[int, int]

    @classmethod
    def of(cls, layout: Layout, longest: int) -> "Blocks":
        """Returns how to cut a weight into blocks whose sides are at most so long."""
        *stacked, p, q = layout.matrices
        parts = -(-p // longest), -(-q // longest)
        return cls(math.prod(stacked), parts, (-(-p // parts[0]), -(-q // parts[1])), (p, q))

    @property
    def count(self) -> int:
        """Number of blocks."""
        return self.stacked * math.prod(self.parts)

    def lengths(self, side: int) -> np.ndarray:
        """Returns how long a side of each block is without the zeros behind it, [count, 1, 1]."""
        own = self.whole[side] - self.sides[side] * np.arange(self.parts[side])
        own = np.minimum(own, self.sides[side]).reshape((-1, 1) if side == 0 else (1, -1))
        return np.broadcast_to(own, (self.stacked, *self.parts)).reshape(-1, 1, 1)

    def split(self, x: Tensor) -> Tensor:
        """Returns the blocks, [count, side, side], of a tensor like the matrices of the weight."""
        (a, b), (p, q) = self.parts, self.sides
        x = ops.reshape(x, (self.stacked, *self.whole))
        x = ops.pad(x, [[0, 0], [0, a * p - self.whole[0]], [0, b * q - self.whole[1]]])
        return ops.reshape(ops.transpose(ops.reshape(x, (self.stacked, a, p, b, q)), (0, 1, 3, 2, 4)), (-1, p, q))

    def join(self, x: Tensor, layout: Layout) -> Tensor:
        """Returns the matrices of the weight of its blocks."""
        (a, b), (p, q) = self.parts, self.sides
        x = ops.transpose(ops.reshape(x, (self.stacked, a, b, p, q)), (0, 1, 3, 2, 4))
        x = ops.reshape(x, (self.stacked, a * p, b * q))[:, : self.whole[0], : self.whole[1]]
        return ops.reshape(x, layout.matrices)


def transposed(x: Tensor) -> Tensor:
    """Returns the transposes of stacked matrices."""
    return ops.swapaxes(x, -1, -2)

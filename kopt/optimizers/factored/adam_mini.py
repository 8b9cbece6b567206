"""Adam-mini."""

import math

from keras import ops

from kopt.optimizers.adam_like import AdamLike
from kopt.optimizers.engine.tensor_math import sums_of_units
from kopt.optimizers.optimizer import Layout, Slot, Slots, Tensor, ema, override


class AdamMini(AdamLike):
    r"""Adam-mini: Adam with one second moment for each block of a weight.

        m ← β₁ m + (1-β₁) g
        v ← β₂ v + (1-β₂) mean(g²)                    over the block
        u = m / (1-β₁ᵗ) / (√(v / (1-β₂ᵗ)) + ε)

    A block is what leads to one output of a layer, all of one head in the queries and keys of attention, and a row of
    an embedding: blocks are read from the layers (see `Muon` on how they are found). Biases and gains have an output
    each, and are moved as by Adam.

    Slots: m, like w (4 bytes/parameter), and v, a number a block.  Not row-wise, but for embeddings and vectors.

    Differs from the authors' code and `pytorch_optimizer.AdamMini` in how blocks are found: there by the names of
    weights and the numbers of heads and embeddings; of what no name is known is one block in the second. On the same
    blocks all agree. Here kernels of einsums with several axes of outputs, as in attention, have a block for each place
    of the first of them, unless `keras.layers.MultiHeadAttention` says that they make its values.
    Reference: Zhang et al., 2024, arXiv:2406.16793.
    """

    row_wise = False
    by_layer = True

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        return super().slots | {"v": Slot(shape=_blocks)}

    @override
    def is_row_wise(self, layout: Layout) -> bool:
        return _blocks(layout)[:1] == tuple(layout[:1])

    @override
    def moments(self, g: Tensor, s: Slots) -> Slots:
        return Slots(m=ema(s.m, g, self.beta_1), v=ema(s.v, _means(ops.square(g), _inside(s.layout)), self.beta_2))

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return ops.broadcast_to(super().rate(s, t), s.m.shape)


def _inside(layout: Layout) -> tuple[int, ...]:
    """Returns the axes along which a block extends."""
    if layout.is_table:
        return tuple(range(1, len(layout)))
    return (*layout.inputs, *(layout.outputs[1:] if layout.has_heads else ()))


def _means(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Returns the means along axes, which stay as axes of length 1."""
    if axes == tuple(range(len(x.shape) - 1)):
        return sums_of_units(x) / max(math.prod(x.shape[:-1]), 1)
    return ops.mean(x, axis=axes, keepdims=True) if axes else x


def _blocks(layout: Layout) -> tuple[int, ...]:
    return tuple(1 if axis in _inside(layout) else size for axis, size in enumerate(layout))

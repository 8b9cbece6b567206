"""The base of the rules for matrices, which leave the other weights to AdamW."""

from collections.abc import Sequence

import keras
from keras import ops

from kopt.optimizers.matrix.choice import Others, by_path, check_others, is_chosen, on_matrix
from kopt.optimizers.optimizer import (
    Fraction,
    Layout,
    Optimizer,
    Positive,
    Slot,
    Slots,
    Step,
    Tensor,
    debias,
    ema,
    override,
)


class SeesMatrices(Optimizer, abstract=True):
    """Base of the rules that see matrices, whatever the axes of the kernel, and move the other weights in another way.

    Args:
        others: regular expressions, searched in the paths of weights: which matrices are among the other weights. None:
            the last one of the model. Tables and vectors always are.

    Raises:
        ValueError: a pattern of `others` is found in no weight.
    """

    others: Others = None
    row_wise = False
    by_layer = True

    def takes(self, layout: Layout) -> bool:
        """Returns whether this rule moves the weight as a matrix."""
        return is_chosen(self.others, layout)

    @override
    def is_row_wise(self, layout: Layout) -> bool:
        return not self.takes(layout)

    @override
    def check_weights(self, paths: Sequence[str]) -> None:
        check_others(type(self).__name__, self.others, paths)
        super().check_weights(paths)

    def destinations(self, model: keras.Model) -> dict[str, str]:
        """Returns by the path of each trainable weight what moves it: this rule, with its matrix, or another."""
        return by_path(model, self.destination)

    def destination(self, layout: Layout) -> str:
        """Returns what moves a weight of this layout."""
        return on_matrix(type(self).__name__, layout) if self.takes(layout) else self.other(layout)

    def other(self, layout: Layout) -> str:
        """Returns what moves a weight that is among the others."""
        raise NotImplementedError(f"{type(self).__name__} must define other(self, layout).")


class ByMatrix(SeesMatrices, abstract=True):
    r"""Base of the rules for matrices: the kernel of a layer as [fan-in, fan-out], whatever its axes.

    The kernel of a convolution has its fan-in on all axes but the last; that of an einsum, as in attention, where the
    layer sums: on the first axis of queries, keys and values, on the first two of the kernel that follows. Which layer
    a weight belongs to is read from the model whose `fit` builds the optimizer, or that the loop around has at hand.
    Biases, gains, embeddings and the last matrix, which makes the predictions, are moved by AdamW; without a model at
    hand the last matrix is one like the others, and kernels have their fan-in on all axes but the last.

    Args:
        others: regular expressions, searched in the paths of weights: which matrices AdamW moves. None: the last one of
            the model. Tables and vectors it always moves.
        adam_rate: > 0, factor of η for the direction of AdamW.
        beta_1: in [0, 1), memory of the gradient in AdamW.
        beta_2: in [0, 1), memory of its square there.
        epsilon: > 0, beside the root there.

    Raises:
        ValueError: a pattern of `others` is found in no weight.
    """

    adam_rate: Positive = 1.0
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.95
    epsilon: Positive = 1e-8

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        return {"m": Slot(), "v": Slot(shape=lambda layout: () if self.takes(layout) else tuple(layout))}

    @override
    def other(self, layout: Layout) -> str:
        return "AdamW"

    def matrix_rule(self, g: Tensor, s: Slots, t: Tensor) -> Step:
        """Returns the direction and the slots, as `rule` does, of [fan_in, fan_out] or a stack of such."""
        raise NotImplementedError(f"{type(self).__name__} must define matrix_rule(self, g, s, t).")

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        layout = s.layout
        if not self.takes(layout):
            m, v = ema(s.m, g, self.beta_1), ema(s.v, ops.square(g), self.beta_2)
            root = ops.sqrt(v / debias(self.beta_2, t)) + self.epsilon
            kept = {name: getattr(s, name) for name in self.slots}
            return self.adam_rate * m / debias(self.beta_1, t) / root, {**kept, "m": m, "v": v}
        seen = Slots(**{**vars(s), "m": layout.as_matrices(s.m)})
        u, new = self.matrix_rule(layout.as_matrices(g), seen, t)
        return layout.from_matrices(u), {"v": s.v, **new, "m": layout.from_matrices(new["m"])}

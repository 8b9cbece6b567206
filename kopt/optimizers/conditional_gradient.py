"""Conditional gradient (Frank-Wolfe)."""

import keras
import numpy as np
from keras import ops

from kopt.optimizers.optimizer import Literal, Optimizer, Positive, Slots, Step, Tensor, override, sum_of_squares

LIMIT = 300  # then the value is within 1 % of the largest, however close others are


class ConditionalGradient(Optimizer):
    r"""Conditional gradient (Frank-Wolfe): keeps every weight inside of a ball of a norm, without projections.

        d = g / ‖g‖                       (ord "fro")
        d = a bᵀ of the largest singular value of g (ord "nuclear": steps of rank one)
        w ← w - η (w + r d) = (1-η) w + η (-r d)

    -r d is the point of the ball where the linearized loss is least: for 0 ≤ η ≤ 1 a weight inside of the ball stays
    inside, and one outside comes closer. Each weight has its own ball. A weight with gradient zero does not move.

    Slots: none.  Not row-wise.  Scale-free.

    Args:
        radius: r > 0, largest norm of a weight; λ in the paper.
        ord: norm of the ball. "fro" is the root of the sum of squares; "nuclear" the sum of the singular values, of all
            axes but the last against the last; the same for vectors. Its pair a, b comes from a power iteration.

    From `tfa.optimizers.ConditionalGradient`: radius is its `lambda_`, and η is 1 - its `learning_rate`, which there is
    the share of the weight that stays: `learning_rate=0.999, lambda_=10` is η = 0.001, radius=10 here.
    Reference: Ravi, Dinh, Lokhande and Singh, 2019, arXiv:1803.06453; Frank and Wolfe, 1956,
    doi:10.1002/nav.3800030109.
    """

    learning_rate = 1e-3
    radius: Positive = 10.0
    ord: Literal["fro", "nuclear"] = "fro"
    row_wise = bounded = False
    scale_free = True

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        norm = ops.sqrt(sum_of_squares(g))
        d = g / ops.where(norm > 0, norm, 1.0)
        if self.ord == "nuclear" and len(w.shape) > 1:
            d = ops.reshape(_top_pair(ops.reshape(d, (-1, w.shape[-1]))), w.shape)
        return ops.where(norm > 0, w + self.radius * d, 0.0), {}


def _top_pair(x: Tensor) -> Tensor:
    """Returns a bᵀ of the largest singular value of a matrix whose norm is 1."""
    if x.shape[0] < x.shape[1]:
        return ops.transpose(_top_pair(ops.transpose(x)))
    square = ops.matmul(ops.transpose(x), x)
    accuracy = 2 * float(np.finfo(keras.backend.standardize_dtype(x.dtype)).eps)

    def turn(b: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
        new = _unit(ops.matmul(square, b))
        return new, ops.max(ops.abs(new - b))

    # No pattern: a start like all ones is orthogonal to the gradient of a softmax, whose rows sum to zero.
    start = _unit(ops.cast(np.random.default_rng(0).normal(size=(x.shape[1], 1)), x.dtype))
    going = (start, ops.ones((), x.dtype))
    b, _ = ops.while_loop(lambda b, change: change > accuracy, turn, going, maximum_iterations=LIMIT)
    return ops.matmul(_unit(ops.matmul(x, b)), ops.transpose(b))


def _unit(x: Tensor) -> Tensor:
    norm = ops.sqrt(sum_of_squares(x))
    return x / ops.where(norm > 0, norm, 1.0)

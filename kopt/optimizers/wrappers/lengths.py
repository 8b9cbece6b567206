"""Wrappers that set the length of a step by that of the matrix: Hyperball and UpdateFloor."""

from collections.abc import Sequence
from typing import Literal

from keras import ops

from kopt.optimizers.engine.rule_checks import direction
from kopt.optimizers.engine.tensor_math import sums_of_units
from kopt.optimizers.matrix.choice import Others, check_others, is_chosen, on_matrix
from kopt.optimizers.optimizer import Layout, Positive, Slot, Slots, Step, Tensor, override, total
from kopt.optimizers.wrappers.wrapper import AlongDirection


def _norm(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Returns the norms over these axes, which stay as axes of length 1."""
    square, rank = ops.square(x), len(x.shape)
    if len(axes) == rank:
        return ops.reshape(ops.sqrt(total(square)), (1,) * rank)
    units = axes == tuple(range(rank - 1))
    return ops.sqrt(sums_of_units(square) if units else ops.sum(square, axis=axes, keepdims=True))


def _of_matrix(layout: Layout) -> tuple[int, ...]:
    """Returns the axes of each matrix of a weight."""
    return tuple(i for i in range(len(layout)) if i not in layout.stacks)


def _per_unit(size: Tensor, length: Tensor) -> Tensor:
    """Returns size / length, 0 where the length is 0."""
    return ops.where(length > 0, size / ops.where(length > 0, length, 1.0), 0.0)


class ForMatrices(AlongDirection, abstract=True):
    """Base of the wrappers that change how matrices are moved; the other weights are the rule's within alone.

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
        """Returns whether the weight is moved in another way than by the optimizer within."""
        return is_chosen(self.others, layout)

    @override
    def is_row_wise(self, layout: Layout) -> bool:
        return not self.takes(layout) and self.optimizer.is_row_wise(layout)

    @override
    def check_weights(self, paths: Sequence[str]) -> None:
        check_others(type(self).__name__, self.others, paths)
        super().check_weights(paths)

    @override
    def destination(self, layout: Layout) -> str:
        return on_matrix(type(self).__name__, layout) if self.takes(layout) else super().destination(layout)


class Hyperball(ForMatrices):
    r"""Hyperball: every matrix stays on the sphere where it began, and every step is a share of its radius.

        u ← direction of the optimizer within
        R = ‖w₁‖                                       of the first weights
        w ← w - κ η R u / ‖u‖
        w ← R w / ‖w‖

    So η is the angle of a step, nearly, whatever the rule, the width and the depth; about 0.01 with a schedule that
    falls to zero. Matrices do not decay: it would not change their direction. Those that begin at zero have no sphere,
    and are moved by the optimizer within alone, as are vectors, embeddings and the last matrix.

    Slots: those of the optimizer within, and R, a number a matrix.  Not row-wise, but for the other weights.

    Args:
        sphere_rate: κ > 0, factor of η on the sphere, where the other weights need another η.

    Raises:
        ValueError: the optimizer within does not step along a direction.

    `optimizer.destinations(model)` tells which weights are on a sphere.
    Differs from the authors' code, which takes the norm of the weights before each step for R.
    Reference: Wen et al., 2026, arXiv:2606.16899.
    """

    sphere_rate: Positive = 1.0

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        return {**super().slots, "radius": Slot(self._radius, shape=self._shape, exact=True)}

    def _shape(self, layout: Layout) -> tuple[int, ...]:
        if not self.takes(layout):
            return ()
        return tuple(n if i in layout.stacks else 1 for i, n in enumerate(layout))

    def _radius(self, w: Tensor, layout: Layout) -> Tensor:
        if not self.takes(layout):
            return ops.zeros((), w.dtype)
        return _norm(w, _of_matrix(layout))

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        u, new = direction(self.optimizer, g, w, s, t)
        plain = w - s.learning_rate * self.decayed(u, w, s)
        if not self.takes(s.layout):
            return plain, dict(new)
        axes = _of_matrix(s.layout)
        ball = w - u * (self.sphere_rate * s.learning_rate * _per_unit(s.radius, _norm(u, axes)))
        return ops.where(s.radius > 0, ball * _per_unit(s.radius, _norm(ball, axes)), plain), dict(new)


class UpdateFloor(ForMatrices):
    r"""Update floor: the direction of a matrix is at least so long, in units of the matrix.

        u ← direction of the optimizer within
        u ← u max(1, φ ‖w‖ / ‖u‖)                      norms of the matrix, or of the weights into each output

    The matrix then grows until its steps are as small as they should be, which takes the place of weight decay.

    Slots: those of the optimizer within.  Not row-wise, but for the weights that are no matrices.

    Args:
        floor: φ > 0, least ratio of the norms.
        by: "matrix" or "output".

    Raises:
        ValueError: the optimizer within does not step along a direction.

    `optimizer.destinations(model)` tells which weights it sees; the others are moved by the optimizer within alone.
    Differs from those records in the axes alone: there the outputs come first.
    Reference: K. Krishna, 2026, github.com/KellerJordan/modded-nanogpt/pull/269 ("u/w floor"); by output: pull/328
    there ("RowFloor").
    """

    bounded = False
    floor: Positive = 0.35
    by: Literal["matrix", "output"] = "matrix"

    @override
    def turned(self, u: Tensor, g: Tensor, w: Tensor, s: Slots) -> Tensor:
        if not self.takes(s.layout):
            return u
        axes = s.layout.inputs if self.by == "output" else _of_matrix(s.layout)
        return u * ops.maximum(1.0, self.floor * _per_unit(_norm(w, axes), _norm(u, axes)))

"""Wrappers that change the gradient before the rule sees it."""

from typing import Any, ClassVar

from keras import ops

from kopt._hyper import hyper
from kopt.optimizers._math import Tensor
from kopt.optimizers._wrapper import Wrapper


def _unit_axes(x: Tensor) -> tuple[int, ...]:
    """Axes of the weights that lead into one unit: all but the last, that of the outputs; none of a vector."""
    return tuple(range(len(x.shape) - 1))


class GradientCentralization(Wrapper):
    r"""Gradient centralization: the gradient of the weights into each unit has mean zero.

        g ← g - mean(g)          over all axes but the last; vectors stay as they are

    Slots: those of the optimizer within.  Not row-wise: the mean goes over the rows.

    Differs from code for torch in the axes alone: there the outputs come first.
    Reference: Yong et al., 2020, arXiv:2004.01461.
    """

    row_wise: ClassVar[bool] = False

    def gradient(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> Tensor:
        """Subtracts the mean."""
        axes = _unit_axes(g)
        return g - ops.mean(g, axis=axes, keepdims=True) if axes else g


class AdaptiveClip(Wrapper):
    r"""Adaptive gradient clipping: bounds the gradient of each unit by the size of its weights.

        g ← g min(1, λ max(‖w‖, ε) / ‖g‖)          norms over all axes but the last; of a vector, its elements

    Slots: those of the optimizer within.  Not row-wise: the norms go over the rows.

    Args:
        clipping: λ > 0, largest ratio of the norms.
        epsilon: ε > 0, norm that weights have at least: units that begin at zero must move.

    Reference: Brock et al., 2021, arXiv:2102.06171.
    """

    row_wise: ClassVar[bool] = False
    clipping: float = hyper(0.01, above=0)
    epsilon: float = hyper(1e-3, above=0)

    def gradient(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> Tensor:
        """Scales down what is too long."""

        def norm(x: Tensor) -> Tensor:
            axes = _unit_axes(x)
            return ops.sqrt(ops.sum(ops.square(x), axis=axes, keepdims=True)) if axes else ops.abs(x)

        bound = self.clipping * ops.maximum(norm(w), self.epsilon)
        return g * bound / ops.maximum(norm(g), bound)

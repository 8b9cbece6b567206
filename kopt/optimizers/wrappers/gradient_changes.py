"""Wrappers that change the gradient before the rule sees it."""

import math
from typing import Annotated

from keras import ops

from kopt.declare import Range
from kopt.optimizers.engine.noise import normal
from kopt.optimizers.engine.tensor_math import sums_of_units
from kopt.optimizers.optimizer import NonNegative, Positive, Slots, Tensor, override
from kopt.optimizers.wrappers.wrapper import Wrapper


class GradientCentralization(Wrapper):
    r"""Gradient centralization: the gradient of the weights into each unit has mean zero.

        g ← g - mean(g)          over all axes but the last; vectors stay as they are

    Slots: those of the optimizer within.  Not row-wise: the mean goes over the rows.

    Differs from code for torch in the axes alone: there the outputs come first.
    Reference: Yong et al., 2020, arXiv:2004.01461.
    """

    row_wise = False

    @override
    def gradient(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Tensor:
        if len(g.shape) < 2:
            return g
        return g - sums_of_units(g) / math.prod(g.shape[:-1])


class AdaptiveClip(Wrapper):
    r"""Adaptive gradient clipping: bounds the gradient of each unit by the size of its weights.

        g ← g min(1, λ max(‖w‖, ε) / ‖g‖)          norms over all axes but the last; of a vector, over it

    Slots: those of the optimizer within.  Not row-wise: the norms go over the rows.

    Args:
        clipping: λ > 0, largest ratio of the norms.
        epsilon: ε > 0, norm that weights have at least: units that begin at zero must move.

    Agrees with `optax.adaptive_grad_clip`.
    Reference: Brock et al., 2021, arXiv:2102.06171.
    """

    bounded = False
    row_wise = False
    clipping: Positive = 0.01
    epsilon: Positive = 1e-3

    @override
    def gradient(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Tensor:

        def norm(x: Tensor) -> Tensor:
            square = ops.square(x)
            return ops.sqrt(sums_of_units(square) if len(x.shape) > 1 else ops.sum(square, keepdims=True))

        bound = self.clipping * ops.maximum(norm(w), self.epsilon)
        return g * bound / ops.maximum(norm(g), bound)


class GradientNoise(Wrapper):
    r"""Gradient noise: adds normal noise that fades, which helps deep and poorly started networks on their way.

        g ← g + σ z,  σ² = scale / t^fading,  z normal with variance 1

    Slots: those of the optimizer within.  Not row-wise: every row has noise.

    Args:
        scale: ≥ 0, variance of the noise before it fades: 0.01, 0.3 and 1 in the paper.
        fading: ≥ 0, how fast it fades.
        seed: in [0, 16384), chooses the noise; it depends on the update and the place of the weight.

    Reference: Neelakantan et al., 2015, arXiv:1511.06807.
    """

    row_wise = False
    scale: NonNegative = 0.01
    fading: NonNegative = 0.55
    seed: Annotated[int, Range(0, 2**14)] = 0

    @override
    def gradient(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Tensor:
        z = normal(g, s.update, -1 - s.index - 2**16 * self.seed)
        return g + ops.sqrt(self.scale * ops.power(t, -self.fading)) * z

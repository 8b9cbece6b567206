"""Cautious and CautiousDecay: some elements stay, or do not decay."""

from keras import ops

from kopt.optimizers.engine.tensor_math import decays
from kopt.optimizers.optimizer import Positive, Slots, Tensor, mean, override
from kopt.optimizers.wrappers.wrapper import AlongDirection


class Cautious(AlongDirection):
    r"""Cautious: only the elements whose direction agrees with the gradient's sign move.

        u ← direction of the optimizer within
        c = [u g > 0]
        u ← u c / max(mean(c), ξ)

    Slots: those of the optimizer within.  Not row-wise: the mean goes over the whole weight.

    Args:
        floor: ξ > 0, bounds the factor that makes up for the elements that stay.

    Raises:
        ValueError: the optimizer within does not step along a direction.

    Reference: Liang et al., 2024, arXiv:2411.16085.
    """

    row_wise = False
    floor: Positive = 1e-3

    @override
    def turned(self, u: Tensor, g: Tensor, w: Tensor, s: Slots) -> Tensor:
        agree = ops.cast(u * g > 0, u.dtype)
        return u * agree / ops.maximum(mean(agree), self.floor)


class CautiousDecay(AlongDirection):
    r"""Cautious weight decay: only the elements that the step makes smaller decay.

        u ← direction of the optimizer within
        w ← w - η (u + λ [u w ≥ 0] w)

    λ is the `weight_decay` of the optimizer within, or the one given here; without one nothing changes.

    Slots: those of the optimizer within.  Row-wise, where the optimizer within is.

    Raises:
        ValueError: the optimizer within does not step along a direction.

    Differs from modded-nanogpt, where elements whose step is zero do not decay.
    Reference: Chen et al., 2025, arXiv:2510.12402.
    """

    @override
    def decayed(self, u: Tensor, w: Tensor, s: Slots) -> Tensor:
        agree = ops.cast(u * w >= 0, u.dtype)
        return self.optimizer.decayed(u, agree * w, s) if decays(s) else u

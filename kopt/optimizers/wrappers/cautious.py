"""Cautious."""

from keras import ops

from kopt.optimizers.engine.rule_checks import direction
from kopt.optimizers.optimizer import Optimizer, Positive, Slots, Step, Tensor, mean, override
from kopt.optimizers.wrappers.wrapper import Wrapper


class Cautious(Wrapper):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.optimizer).advance is not Optimizer.advance:
            raise ValueError(f"Cautious takes an optimizer that steps along a direction. Received: {self.optimizer!r}")

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        return Optimizer.advance(self, g, w, s, t)

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        u, new = direction(self.optimizer, g, w, s, t)
        agree = ops.cast(u * g > 0, u.dtype)
        return u * agree / ops.maximum(mean(agree), self.floor), dict(new)

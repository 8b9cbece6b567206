"""Lookahead."""

from typing import ClassVar

from keras import ops

from kopt.optimizers.optimizer import Any, Count, OpenFraction, Slot, Slots, Step, Tensor, override
from kopt.optimizers.wrappers.wrapper import Wrapper


class Lookahead(Wrapper):
    r"""Lookahead: fast weights explore, and every k-th update the slow ones go part of the way to them.

        w ← step of the optimizer within
        every k-th update:  a ← a + α (w - a),  w ← a

    Slots: those of the optimizer within, and a, the slow weights (4 bytes/parameter).  Row-wise: of an embedding, rows
    that no batch reads at a k-th update meet their slow weights at the next k-th update that does.

    Args:
        k: ≥ 1, updates from one meeting to the next.
        alpha: α in (0, 1), share of the way.

    Agrees with the authors' code and with TensorFlow Addons'.
    Reference: Zhang et al., 2019, arXiv:1907.08610.
    """

    k: Count = 5
    alpha: OpenFraction = 0.5
    own_slots: ClassVar[Any] = {"slow": Slot("weight", exact=True)}

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        fast, new = super().advance(g, w, s, t)
        meet = ops.equal(ops.floor(t / self.k) * self.k, t)
        slow = ops.where(meet, s.slow + self.alpha * (fast - s.slow), s.slow)
        return ops.where(meet, slow, fast), {**new, "slow": slow}

"""SM3."""

from keras import ops

from kopt.optimizers.optimizer import Fraction, Optimizer, Slot, Slots, Step, Tensor, ema, override


class SM3(Optimizer):
    r"""SM3: AdaGrad whose sums are bounded by one number for each place on each axis of a weight.

        n = min(μ₁ᵢ, μ₂ⱼ, ...) + g²                   of the element at i, j, ...
        μ₁ᵢ ← max of n over all else,  μ₂ⱼ ← max of n over all else, ...
        m ← β m + (1-β) g / √n                        (0/0 = 0; without momentum: m = g / √n)
        u = m

    Slots: μ, of a weight of p × q × ... p + q + ... numbers (0.005 bytes/parameter of 1024 × 4096); with momentum m,
    like w (4 bytes/parameter).  Not row-wise.

    Args:
        momentum: β in [0, 1), memory of the direction; 0 keeps none.

    Differs from `optax.sm3`, which adds 1e-8 to n; agrees with it where that counts for nothing.
    Reference: Anil et al., 2019, arXiv:1901.11150, Algorithm SM3-II.
    """

    learning_rate = 0.1
    momentum: Fraction = 0.9
    row_wise = False
    scale_free = True

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        bounds = Slot(shape=lambda layout: (sum(layout or (1,)),))
        return {"mu": bounds} | ({"m": Slot()} if self.momentum else {})

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        shape = tuple(g.shape) or (1,)
        axes = range(len(shape))
        starts = [sum(shape[:axis]) for axis in axes]
        old = [s.mu[start : start + size] for start, size in zip(starts, shape, strict=True)]
        n = ops.reshape(ops.square(g), shape) + self._least(old)
        # No bound falls; and of an axis beside an empty one there is no largest number.
        bounds = [ops.maximum(old[axis], ops.max(n, axis=[a for a in axes if a != axis])) for axis in axes]
        u = ops.reshape(ops.where(n > 0, ops.rsqrt(ops.where(n > 0, n, 1.0)), 0.0), g.shape) * g
        new = {"mu": ops.concatenate(bounds)}
        if self.momentum:
            u = new["m"] = ema(s.m, u, self.momentum)
        return u, new

    def _least(self, bounds: list[Tensor]) -> Tensor:
        """Returns for each element the least of its bounds."""
        least = bounds[0]
        for bound in bounds[1:]:
            least = ops.minimum(least[..., None], bound)
        return least

"""StableAdamW."""

from keras import ops

from kopt.optimizers.adam import AdamW
from kopt.optimizers.optimizer import Fraction, Slots, Step, Tensor, debias, mean, override


class StableAdamW(AdamW):
    r"""StableAdamW: AdamW that shortens the steps of a layer whose gradients outgrow their second moments.

        m, v, u as in `Adam`
        R = √mean(g² / max(v / (1-β₂ᵗ), ε²))
        w ← w - η / max(R, 1) (u + λ w)

    Slots: as `Adam`.  Not row-wise.

    Args:
        beta_2: β₂ in [0, 1), memory of the square; shorter than Adam's, as in the paper.

    It needs no clipping of gradients. Agrees with `optimi.StableAdamW` and `pytorch_optimizer.StableAdamW`.
    Reference: Wortsman et al., 2023, arXiv:2304.13013.
    """

    beta_2: Fraction = 0.99
    row_wise = False

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        u, new = self.rule(g, w, s, t)
        v = new["v"] / debias(self.beta_2, t)
        surprise = ops.sqrt(mean(ops.square(g) / ops.maximum(v, self.epsilon**2)))
        return w - s.learning_rate / ops.maximum(surprise, 1.0) * (u + s.weight_decay * w), new

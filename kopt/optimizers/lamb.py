"""LAMB."""

from keras import ops

from kopt.optimizers.adam_like import AdamLike
from kopt.optimizers.optimizer import Fraction, Positive, Slots, Step, Tensor, override, sum_of_squares


class LAMB(AdamLike):
    r"""LAMB: AdamW whose step is as long as the weight, layer by layer, for large batches.

        m ← β₁ m + (1-β₁) g
        v ← β₂ v + (1-β₂) g²
        r = m / (1-β₁ᵗ) / (√(v / (1-β₂ᵗ)) + ε) + λ w
        w ← w - η ‖w‖/‖r‖ r               (‖w‖/‖r‖ = 1 where one of them is zero)

    Slots: m, v, each like w (4 bytes/parameter).  Not row-wise.

    Args:
        adapt_vectors: whether weights of one axis (biases, gains) are scaled by their norm, too. Many codes leave them
            out, and do not decay them: `decay_mask`.
        weight_decay: λ ≥ 0, inside the norm.

    Differs from `keras.optimizers.Lamb`, whose decay is outside of the norm and off, with ε = 1e-7; and from
    `torch_optimizer.Lamb` and `pytorch_optimizer.Lamb`, which leave m and v in r uncorrected, so that λ weighs less,
    and bound ‖w‖ by 10. With `debias=True` the first multiplies the step by √(1-β₂ᵗ) / (1-β₁ᵗ); the second always
    divides it by 1-β₁ᵗ, and decays outside of the norm unless `weight_decouple=False`. Agrees with `optax.lamb`.
    Reference: You et al., 2020, arXiv:1904.00962.
    """

    weight_decay = 0.01
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    epsilon: Positive = 1e-6
    adapt_vectors: bool = True
    row_wise = bounded = False

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        new = self.moments(g, s)
        r = self.mean(new, t) / self.root(new, t) + s.weight_decay * w
        if self.adapt_vectors or len(w.shape) > 1:
            length, norm = ops.sqrt(sum_of_squares(w)), ops.sqrt(sum_of_squares(r))
            r = r * ops.where((length > 0) & (norm > 0), length / ops.where(norm > 0, norm, 1.0), 1.0)
        return w - s.learning_rate * r, vars(new)

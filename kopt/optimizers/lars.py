"""LARS."""

from keras import ops

from kopt.optimizers.optimizer import Fraction, Optimizer, Positive, Slot, Slots, Step, Tensor, override, sum_of_squares


class LARS(Optimizer):
    r"""LARS: momentum with a rate of its own for each layer, relative to the norm of the weight, for large batches.

        k = c ‖w‖ / (‖g‖ + λ ‖w‖)         (k = 1 where w or the denominator is zero)
        b ← μ b + η k (g + λ w)
        w ← w - b

    Slots: b, like w (4 bytes/parameter).  Not row-wise.

    Args:
        momentum: μ in [0, 1), what a step keeps of the one before.
        trust_coefficient: c > 0, length of a step in units of ‖w‖, at η = 1.
        adapt_vectors: whether weights of one axis (biases, gains) have a k of their own; else k = 1 for them. One that
            begins at zero would leap by η g and then hardly move. Many codes do not decay vectors either: `decay_mask`.
        weight_decay: λ ≥ 0, the paper's β, part of the gradient and of k.

    The rate is inside of the momentum, as in the paper. k makes η of another size than in SGD: well above
    1 for large batches.

    Differs from `optax.lars`, whose k has ‖g + λ w‖, and from `torch_optimizer.LARS`, where λ = 0 turns k off and λ > 0
    gives vectors one, too, as `adapt_vectors=True` does; its defaults are μ = 0 and c = 0.01. Agrees with
    `pytorch_optimizer.LARS` while η is constant, but that this never decays vectors.
    Reference: You, Gitman and Ginsburg, 2017, arXiv:1708.03888.
    """

    learning_rate = 0.1
    weight_decay = 5e-4
    momentum: Fraction = 0.9
    trust_coefficient: Positive = 1e-3
    adapt_vectors: bool = False
    slots = {"b": Slot()}
    row_wise = bounded = False

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        k: Tensor = 1.0
        if self.adapt_vectors or len(w.shape) > 1:
            length, slope = ops.sqrt(sum_of_squares(w)), ops.sqrt(sum_of_squares(g))
            total = slope + s.weight_decay * length
            k = self.trust_coefficient * length / ops.where(total > 0, total, 1.0)
            k = ops.where((length > 0) & (total > 0), k, 1.0)
        b = self.momentum * s.b + s.learning_rate * k * (g + s.weight_decay * w)
        return w - b, {"b": b}

"""Adafactor."""

from keras import ops

from kopt.optimizers.factored.by_sides import BySides
from kopt.optimizers.optimizer import (
    Fraction,
    OpenFraction,
    Positive,
    Slot,
    Slots,
    Step,
    Tensor,
    ema,
    mean,
    override,
)


class Adafactor(BySides):
    r"""Adafactor: the second moment of a kernel by the means of its rows and columns, and steps relative to the weight.

        k = t^-γ
        r ← r + k (mean over columns of (g² + ε₁) - r),  c ← c + k (mean over rows of (g² + ε₁) - c)
        x = g / √(r cᵀ / mean(r)),  x ← x / max(1, rms(x)/d)              (rms: root of the mean square)
        m ← β₁ m + (1-β₁) x                                               (without β₁: m = x)
        u = min(1, t^-ρ/η) max(ε₂, rms(w)) m                              (without scale_parameter: min(1, t^-ρ/η) m)

    Slots: r and c, of a kernel p × q p + q numbers (0.005 bytes/parameter of 1024 × 4096), of what is no matrix r like
    w; with β₁ m, like w (4 bytes/parameter).  Not row-wise.

    Args:
        decay_exponent: γ in (0, 1): the memory of the squares grows as 1 - t^-γ.
        step_exponent: ρ in [0, 1): η is at most t^-ρ; 0 leaves it as it is.
        clip_threshold: d > 0, the largest rms(x).
        beta_1: β₁ in [0, 1), memory of x; 0 keeps none.
        scale_parameter: whether η is a share of the weight, as in the paper's Algorithm 5, or a length, as in its
            Algorithm 4, as that of `Adam`.
        epsilon_1: ε₁ > 0, added to each square.
        epsilon_2: ε₂ > 0, what the rms of a weight counts at least.

    Differs from `keras.optimizers.Adafactor`, which keeps a third slot as large as w, so that it takes more memory than
    without r and c, reads kernels by their last two axes, and has neither β₁, γ and ρ to choose nor steps that are
    lengths; from `optax.adafactor`, which leaves matrices with a side below 128 as they are; and from that of
    `transformers`, whose β₁ averages the whole step. Agrees with `torch.optim.Adafactor` on matrices and vectors.
    Reference: Shazeer and Stern, 2018, arXiv:1804.04235.
    """

    learning_rate = 0.01
    decay_exponent: OpenFraction = 0.8
    step_exponent: Fraction = 0.5
    clip_threshold: Positive = 1.0
    beta_1: Fraction = 0.0
    scale_parameter: bool = True
    epsilon_1: Positive = 1e-30
    epsilon_2: Positive = 1e-3
    bounded = False

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        return {"r": self.rows(), "c": self.columns()} | ({"m": Slot()} if self.beta_1 else {})

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        x, fresh = self.as_matrices(g, s.layout), ops.power(t, -self.decay_exponent)
        r, c = self.means(ops.square(x) + self.epsilon_1, s.layout)
        new = {"r": s.r + fresh * (r - s.r), "c": s.c + fresh * (c - s.c)}
        x = self.over_root(x, **new, layout=s.layout)
        x = self.from_matrices(x / ops.maximum(1.0, _rms(x) / self.clip_threshold), s.layout)
        if self.beta_1:
            x = new["m"] = ema(s.m, x, self.beta_1)
        size = ops.maximum(self.epsilon_2, _rms(w)) if self.scale_parameter else 1.0
        return self._share(s.learning_rate, t) * size * x, new

    def _share(self, rate: Tensor, t: Tensor) -> Tensor:
        """Returns how much of η counts."""
        if not self.step_exponent:
            return 1.0
        bound = ops.power(t, -self.step_exponent)
        return ops.where(rate > bound, bound / ops.where(rate > bound, rate, 1.0), 1.0)


def _rms(x: Tensor) -> Tensor:
    return ops.sqrt(mean(ops.square(x)))

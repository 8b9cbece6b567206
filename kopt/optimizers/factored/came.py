"""CAME."""

from keras import ops

from kopt.optimizers.factored.by_sides import BySides
from kopt.optimizers.optimizer import Fraction, Positive, Slot, Slots, Step, Tensor, ema, mean, override


class CAME(BySides):
    r"""CAME: Adafactor with momentum, which trusts it less where it and the gradient disagree.

        r ← β₂ r + (1-β₂) mean over columns of (g² + ε₁),  c ← β₂ c + (1-β₂) mean over rows of (g² + ε₁)
        x = g / √(r cᵀ / mean(r)),  x ← x / max(1, rms(x)/d)              (rms: root of the mean square)
        m ← β₁ m + (1-β₁) x
        R ← β₃ R + (1-β₃) mean over columns of ((x - m)² + ε₂),  C ← β₃ C + (1-β₃) mean over rows of ((x - m)² + ε₂)
        u = m / √(R Cᵀ / mean(R))                                         (of what is no matrix: u = m)

    Slots: m, like w (4 bytes/parameter); r, c, R and C, of a kernel p × q 2 (p + q) numbers; of what is no matrix r
    like w and none of the rest.  Not row-wise.

    Args:
        beta_1: β₁ in [0, 1), memory of x.
        beta_2: β₂ in [0, 1), memory of the squares of the gradient.
        beta_3: β₃ in [0, 1), memory of the squares of what x and m differ in.
        clip_threshold: d > 0, the largest rms(x).
        epsilon_1: ε₁ > 0, added to each square of the gradient.
        epsilon_2: ε₂ > 0, added to each square of a difference.

    Agrees with the authors' code and `pytorch_optimizer.CAME` on matrices and vectors; kernels of more axes are
    matrices for each place of the first axes there.
    Reference: Luo et al., 2023, arXiv:2307.02047.
    """

    learning_rate = 2e-4
    beta_1: Fraction = 0.9
    beta_2: Fraction = 0.999
    beta_3: Fraction = 0.9999
    clip_threshold: Positive = 1.0
    epsilon_1: Positive = 1e-30
    epsilon_2: Positive = 1e-16

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        trust = {"R": self.rows(whole=False), "C": self.columns()}
        return {"m": Slot(), "r": self.rows(), "c": self.columns()} | trust

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        layout, x = s.layout, self.as_matrices(g, s.layout)
        new = self._averaged(s, ("r", "c"), ops.square(x) + self.epsilon_1, self.beta_2)
        x = self.over_root(x, new["r"], new["c"], layout)
        x = x / ops.maximum(1.0, ops.sqrt(mean(ops.square(x))) / self.clip_threshold)
        m = ema(self.as_matrices(s.m, layout), x, self.beta_1)
        if not self.takes(layout):
            return m, {"m": m, **new, "R": s.R, "C": s.C}
        new |= self._averaged(s, ("R", "C"), ops.square(x - m) + self.epsilon_2, self.beta_3)
        u = self.over_root(m, new["R"], new["C"], layout)
        return self.from_matrices(u, layout), {"m": self.from_matrices(m, layout), **new}

    def _averaged(self, s: Slots, names: tuple[str, str], squares: Tensor, beta: float) -> dict[str, Tensor]:
        now = self.means(squares, s.layout)
        return {name: ema(getattr(s, name), x, beta) for name, x in zip(names, now, strict=True)}

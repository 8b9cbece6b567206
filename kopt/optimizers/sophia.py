"""Sophia, with both of its estimators."""

from keras import ops

from kopt.optimizers.by_curvature import ByCurvature
from kopt.optimizers.optimizer import Fraction, Positive, Slot, Slots, Step, Tensor, ema, override


class SophiaG(ByCurvature):
    r"""Sophia-G: momentum over the curvature, clipped; the Gauss-Newton diagonal from labels that the model draws.

        t = 1, 1+k, 1+2k ...:  h ← β₂ h + (1-β₂) ĥ,   ĥ = B ĝ²
        m ← β₁ m + (1-β₁) g
        u = clip(m / max(γ h, ε), -1, 1)

    ĝ is the gradient of the loss on the B labels of the batch that the model itself predicts, at random
    (`kopt.Curvature`). Where h is not positive, u is the sign of m.

    Slots: m, h, each like w (4 bytes/parameter), and the scalar n, of estimates.  Row-wise.

    Args:
        beta_1: β₁ in [0, 1), memory of the gradient.
        beta_2: β₂ in [0, 1), memory of the curvature.
        gamma: γ > 0: the larger, the fewer elements are clipped.
        epsilon: ε > 0.

    Differs from the authors' code, which names γ B as `rho` times `bs`, and from `optax.contrib.sophia`, which corrects
    m for its start at zero and updates h after the step; with γ = 1 it agrees with `pytorch_optimizer.SophiaH`, given
    the same curvature.
    Reference: Liu et al., 2023, arXiv:2305.14342.
    """

    learning_rate = 6e-4
    weight_decay = 0.2
    beta_1: Fraction = 0.96
    beta_2: Fraction = 0.99
    gamma: Positive = 0.05
    epsilon: Positive = 1e-12
    slots = {"m": Slot(), "h": Slot()}
    estimator = "bartlett"

    @override
    def curved(self, c: Tensor, w: Tensor, s: Slots) -> dict[str, Tensor]:
        return {"h": ema(s.h, c, self.beta_2)}

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        m = ema(s.m, g, self.beta_1)
        return ops.clip(m / ops.maximum(self.gamma * s.h, self.epsilon), -1.0, 1.0), {"m": m, "h": s.h}


class SophiaH(SophiaG):
    r"""Sophia-H: `SophiaG` with Hutchinson's estimate of the Hessian, ĥ = z ⊙ ∇²L z.

    z are random signs (`kopt.Curvature`), where the paper draws normal numbers: that estimate varies more. It takes any
    loss.

    Slots: as `SophiaG`.  Row-wise.

    Args:
        gamma: γ > 0: the larger, the fewer elements are clipped.

    Differs from the authors' code, which has the other estimator; agrees with `pytorch_optimizer.SophiaH` as `SophiaG`
    does.
    Reference: Liu et al., 2023, arXiv:2305.14342.
    """

    gamma: Positive = 0.01
    estimator = "hutchinson"

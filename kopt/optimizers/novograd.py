"""NovoGrad."""

from keras import ops

from kopt.optimizers.engine.tensor_math import sum_of_squares
from kopt.optimizers.optimizer import Fraction, Optimizer, Positive, Slot, Slots, Step, Tensor, ema, override


class NovoGrad(Optimizer):
    r"""NovoGrad: gradients normalized by one second moment for each layer, then momentum.

        v ← β₂ v + (1-β₂) ‖g‖²                              (v ← ‖g‖² at the first step)
        m ← β₁ m + k (g / (√v + ε) + λ w)                   (k = 1; grad_averaging: 1-β₁ from the second step on)
        w ← w - η m

    Slots: m, like w (4 bytes/parameter), and the scalar v.  Not row-wise.

    Args:
        beta_1: β₁ in [0, 1), memory of the normalized gradient.
        beta_2: β₂ in [0, 1), memory of the squared norm.
        epsilon: ε > 0, keeps the quotient finite.
        grad_averaging: average the normalized gradients instead of summing them; η is then 1/(1-β₁) times larger.
        weight_decay: λ ≥ 0, inside of the momentum.

    Agrees with `optax.novograd`, and with `pytorch_optimizer.NovoGrad` while η is constant.
    Reference: Ginsburg et al., 2019, arXiv:1905.11286.
    """

    learning_rate = 0.01
    beta_1: Fraction = 0.95
    beta_2: Fraction = 0.98
    epsilon: Positive = 1e-8
    grad_averaging: bool = False
    slots = {"m": Slot(), "v": Slot(shape=lambda shape: ())}
    row_wise = False

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        first, norm = ops.equal(t, 1), sum_of_squares(g)
        new = Slots(v=ops.where(first, norm, ema(s.v, norm, self.beta_2)))
        share = 1.0 - self.beta_1 * ops.cast(t > 1, g.dtype) if self.grad_averaging else 1.0
        new.m = self.beta_1 * s.m + share * (self.rate(new, t) * g + s.weight_decay * w)
        return w - s.learning_rate * new.m, vars(new)

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return 1.0 / (ops.sqrt(s.v) + self.epsilon)

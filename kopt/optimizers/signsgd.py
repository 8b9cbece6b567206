"""SignSGD and, with momentum, Signum."""

from keras import ops

from kopt.optimizers.optimizer import Fraction, Optimizer, Slot, Slots, Step, Tensor, ema, override


class SignSGD(Optimizer):
    r"""SignSGD: the sign of the gradient; with momentum Signum, the sign of its running average.

        m ← β m + (1-β) g                 (with momentum; else m = g)
        u = sign(m)

    Slots: m with momentum, like w (4 bytes/parameter).  Row-wise.  Scale-free.

    Args:
        momentum: β in [0, 1), memory of the gradient: 0 is SignSGD, the paper's Signum has 0.9.

    Agrees with `optax.sign_sgd` and `optax.signum`. The vote over workers is left out: gradients are summed first.
    Reference: Bernstein et al., 2018, arXiv:1802.04434.
    """

    learning_rate = 1e-4
    momentum: Fraction = 0.0
    scale_free = True

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        return {"m": Slot()} if self.momentum else {}

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        if not self.momentum:
            return ops.sign(g), {}
        m = ema(s.m, g, self.momentum)
        return ops.sign(m), {"m": m}

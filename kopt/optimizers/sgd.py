"""Stochastic gradient descent, with and without momentum."""

from kopt.optimizers.optimizer import Fraction, Optimizer, Slot, Slots, Step, Tensor, override


class SGD(Optimizer):
    r"""Stochastic gradient descent.

        u = g
        w ← w - η u

    Slots: none.  Row-wise.

    Differs from `keras.optimizers.SGD`, which has momentum too: that is `Momentum`, with Nesterov's `NAG`, here.
    Reference: Robbins and Monro, A Stochastic Approximation Method, 1951, doi:10.1214/aoms/1177729586.
    """

    learning_rate = 0.01
    elsewhere = {"momentum": "kopt.Momentum", "nesterov": "kopt.NAG"}

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        return g, {}


class Momentum(Optimizer):
    r"""Gradient descent with heavy-ball momentum.

        b ← μ b + g
        u = b

    Slots: b, like w (4 bytes/parameter).  Row-wise.

    Args:
        momentum: μ in [0, 1), what a step keeps of the one before.

    Differs from `keras.optimizers.SGD(momentum=...)`: the buffer holds gradients, not steps, so that a change of the
    learning rate acts at once (the form of `torch.optim.SGD`).
    Reference: Polyak, 1964, doi:10.1016/0041-5553(64)90137-5.
    """

    learning_rate = 0.01
    momentum: Fraction = 0.9
    slots = {"b": Slot()}
    elsewhere = {"nesterov": "kopt.NAG"}

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        b = self.momentum * s.b + g
        return b, {"b": b}


class NAG(Optimizer):
    r"""Nesterov's accelerated gradient.

        b ← μ b + g
        u = g + μ b

    Slots: b, like w (4 bytes/parameter).  Row-wise.

    Args:
        momentum: μ in [0, 1), what a step keeps of the one before.

    Differs from `keras.optimizers.SGD(nesterov=True)` when the learning rate changes: see `Momentum`.
    Reference: Nesterov, 1983; in this form Sutskever et al., 2013, proceedings.mlr.press/v28/sutskever13.
    """

    learning_rate = 0.01
    momentum: Fraction = 0.9
    slots = {"b": Slot()}

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        b = self.momentum * s.b + g
        return g + self.momentum * b, {"b": b}


class SGDW(Optimizer):
    r"""SGDW: momentum, or Nesterov's, with decoupled weight decay.

        b ← μ b + g
        u = b                             (nesterov: g + μ b)
        w ← w - η (u + λ w)

    Slots: b, like w (4 bytes/parameter).  Row-wise.

    Args:
        momentum: μ in [0, 1), what a step keeps of the one before.
        nesterov: look one momentum step ahead.
        weight_decay: λ ≥ 0.

    Differs from the paper and from `tfa.optimizers.SGDW` in the unit of λ: one step at the base rate η₀ removes η₀ λ w
    here and λ w there; and from `torch_optimizer.SGDW`, which subtracts η λ from every element, whatever w is. Agrees
    with `pytorch_optimizer.SGDW`, given the momentum, which is 0 there by default.
    Reference: Loshchilov and Hutter, 2019, arXiv:1711.05101.
    """

    learning_rate = 0.01
    weight_decay = 0.01
    momentum: Fraction = 0.9
    nesterov: bool = False
    slots = {"b": Slot()}

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        b = self.momentum * s.b + g
        return g + self.momentum * b if self.nesterov else b, {"b": b}

"""MADGRAD."""

from keras import ops

from kopt.optimizers.optimizer import Fraction, Optimizer, Positive, Slot, Slots, Step, Tensor, cube_root, ema, override


class MADGRAD(Optimizer):
    r"""MADGRAD: dual averaging from the first weights x₀, over the cube root of the summed squares, with momentum.

        g ← g + λ w
        s ← s + η √t g
        v ← v + η √t g²
        z = x₀ - s / (∛v + ε)
        w ← μ w + (1-μ) z

    Slots: s, v, x₀, each like w (4 bytes/parameter).  Row-wise.

    Args:
        momentum: μ in [0, 1), what a weight keeps of its place; 1 - c in the paper.
        epsilon: ε > 0, keeps the quotient finite.
        weight_decay: λ ≥ 0, part of the gradient: weights are computed anew from x₀, which would undo a decoupled
            decay. The authors need less than for other rules, often none.

    x₀ is taken when the optimizer is built, that is at the first step: load weights before.

    Differs from the authors' code, which adds ε to η as well; else agrees with it and with
    `pytorch_optimizer.MADGRAD`.
    Reference: Defazio and Jelassi, 2022, arXiv:2101.11075.
    """

    bounded = False
    learning_rate = 1e-2
    momentum: Fraction = 0.9
    epsilon: Positive = 1e-6
    # The weights are computed from s and x0: rounding them would shake the weights at each step.
    slots = {"s": Slot(exact=True, anchored=True), "v": Slot(), "x0": Slot("weight", exact=True)}

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        g = g + s.weight_decay * w
        k = s.learning_rate * ops.sqrt(t)
        new = {"s": s.s + k * g, "v": s.v + k * ops.square(g)}
        z = s.x0 - new["s"] / (cube_root(new["v"]) + self.epsilon)
        return ema(w, z, self.momentum), new

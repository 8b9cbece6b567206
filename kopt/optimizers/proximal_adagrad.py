"""ProximalAdaGrad."""

from keras import ops

from kopt.optimizers.optimizer import NonNegative, Optimizer, Positive, Slot, Slots, Step, Tensor, override, soft


class ProximalAdaGrad(Optimizer):
    r"""ProximalAdaGrad: AdaGrad with l1 and l2 penalties that make weights exactly zero.

        a ← a + g²,  κ = η / √a
        x = w - κ g - η λ w
        w ← sign(x) max(|x| - κ l₁, 0) / (1 + κ l₂)

    Slots: a, like w (4 bytes/parameter).  Row-wise.

    Args:
        initial_accumulator_value: a before the first step, > 0.
        l1: l₁ ≥ 0, weight of |w| in the objective.
        l2: l₂ ≥ 0, weight of w²/2 in the objective.

    Agrees with TensorFlow's `ResourceApplyProximalAdagrad`.
    Reference: Duchi, Hazan and Singer, 2011, jmlr.org/papers/v12/duchi11a; Duchi and Singer, 2009,
    jmlr.org/papers/v10/duchi09a (the proximal step).
    """

    learning_rate = 0.01
    initial_accumulator_value: Positive = 0.1
    l1: NonNegative = 0.0
    l2: NonNegative = 0.0

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        return {"a": Slot(self.initial_accumulator_value)}

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        new = Slots(a=s.a + ops.square(g))
        k = s.learning_rate * self.rate(new, t)
        return soft(w - k * g - s.learning_rate * s.weight_decay * w, k * self.l1) / (1.0 + k * self.l2), vars(new)

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return 1.0 / ops.sqrt(s.a)

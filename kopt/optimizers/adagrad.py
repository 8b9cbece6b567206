"""AdaGrad."""

from keras import ops

from kopt.optimizers.optimizer import NonNegative, Optimizer, Positive, Slot, Slots, Step, Tensor, override


class AdaGrad(Optimizer):
    r"""AdaGrad: steps shrink with the sum of all squared gradients of a coordinate.

        a ← a + g²
        u = g / (√a + ε)

    Slots: a, like w (4 bytes/parameter).  Row-wise; a row that was not read does not move in either case, so that
    `sparse="lazy"` and "exact" are equal.

    Args:
        initial_accumulator_value: a before the first step, ≥ 0.
        epsilon: ε > 0, keeps the quotient finite.

    Differs from `keras.optimizers.Adagrad`: ε outside of the root and a = 0 at first, as in the paper; η is 0.001
    there. Agrees with `torch.optim.Adagrad`.
    Reference: Duchi, Hazan and Singer, 2011, jmlr.org/papers/v12/duchi11a.
    """

    learning_rate = 0.01
    initial_accumulator_value: NonNegative = 0.0
    epsilon: Positive = 1e-10

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        return {"a": Slot(self.initial_accumulator_value)}

    @override
    def rule(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        new = Slots(a=s.a + ops.square(g))
        return self.rate(new, t) * g, vars(new)

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return 1.0 / (ops.sqrt(s.a) + self.epsilon)

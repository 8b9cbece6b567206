"""COCOB."""

from keras import ops

from kopt.optimizers.optimizer import Optimizer, Positive, Slot, Slots, Step, Tensor, override, with_decay


class COCOB(Optimizer):
    r"""COCOB-Backprop: every weight bets on the sign of its gradient; what it has won sets the size of the next bet.

        L ← max(L, |g|),  G ← G + |g|,  θ ← θ - g
        R ← max(R - g b, 0)
        b' = θ / (L max(G + L, α L)) (L + R)
        w ← w + η (b' - b),  b ← b'

    At η = 1 the weight is w₁ + b. η is the unit of length that bets are made in: the first step is η/α on every
    element, and the bets themselves do not depend on it.

    Slots: θ, L, G, R and b, each like w (4 bytes/parameter).  Row-wise.

    Args:
        learning_rate: η ≥ 0; 1 unless weights are far from the size of one.
        alpha: α > 0, holds back the first bets: about α gradients pass before all that was won is at stake.
        epsilon: ε > 0, smallest L.
        weight_decay: λ ≥ 0, adds λ w to the gradient.

    Differs from `optax.contrib.cocob` in the learning rate: there it multiplies the gradients, which changes little;
    agrees at η = 1, and with the authors' code.
    Reference: Orabona and Tommasi, 2017, arXiv:1705.07795.
    """

    bounded = False
    learning_rate = 1.0
    alpha: Positive = 100.0
    epsilon: Positive = 1e-8
    slots = {"theta": Slot(exact=True), "most": Slot(), "total": Slot(), "reward": Slot(), "bet": Slot(exact=True)}

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        g = with_decay(g, w, s)
        size = ops.abs(g)
        new = Slots(
            theta=s.theta - g,
            most=ops.maximum(ops.maximum(s.most, self.epsilon), size),
            total=s.total + size,
            reward=s.reward - ops.minimum(g * s.bet, s.reward),  # max(R - g b, 0)
        )
        new.bet = self.rate(new, t) * new.theta
        return w + s.learning_rate * (new.bet - s.bet), vars(new)

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        most = ops.maximum(s.most, self.epsilon)
        return (most + s.reward) / ops.maximum(s.total + most, self.alpha * most) / most

"""FTRL."""

from typing import Annotated

from keras import ops

from kopt.declare import Range
from kopt.optimizers.optimizer import NonNegative, Optimizer, Positive, Slot, Slots, Step, Tensor, override, soft


class FTRL(Optimizer):
    r"""FTRL: follow the regularized leader, AdaGrad with an l1 penalty over all steps; for sparse linear models.

        n' = n + g²,  q = β + n^p,  q' = β + n'^p                             p = -learning_rate_power
        y ← ((q + η l₂) y + (q' - q) w - η g) / (q' + η l₂) - η λ w
        w ← sign(y) max(|y| - η l₁ / (q' + η l₂), 0),  n ← n'

    y is the weight without the l1 penalty, -z η / (q + η l₂) of the paper: without l₁ it is w.

    Slots: n, y, each like w (4 bytes/parameter), whatever state_dtype says.  Row-wise.

    Args:
        learning_rate_power: -p in [-2, 0); -0.5 is AdaGrad's root.
        initial_accumulator_value: n before the first step, > 0.
        l1: l₁ ≥ 0, weight of |w| in the objective.
        l2: l₂ ≥ 0, weight of w²/2 in the objective.
        beta: β ≥ 0, shortens the first steps.

    Differs from `keras.optimizers.Ftrl`, whose first step forgets the weight it starts from, and whose l2 weighs w²;
    agrees with it from weights of zero on. η is 0.001 there.
    Reference: McMahan et al., 2013, doi:10.1145/2487575.2488200.
    """

    learning_rate = 0.1
    learning_rate_power: Annotated[float, Range(-2, 0)] = -0.5
    initial_accumulator_value: Positive = 0.1
    l1: NonNegative = 0.0
    l2: NonNegative = 0.0
    beta: NonNegative = 0.0

    @property
    def bounded(self) -> bool:
        """Whether n^p cannot overflow where n does not."""
        return self.learning_rate_power >= -1

    @property
    @override
    def slots(self) -> dict[str, Slot]:
        return {"n": Slot(self.initial_accumulator_value, exact=True), "y": Slot("weight", exact=True)}

    @override
    def advance(self, g: Tensor, w: Tensor, s: Slots, t: Tensor) -> Step:
        new, ridge = Slots(n=s.n + ops.square(g)), s.learning_rate * self.l2
        before, after = self._slowness(s.n), self._slowness(new.n)
        top = (before + ridge) * s.y + (after - before) * w - s.learning_rate * g
        new.y = top / (after + ridge) - s.learning_rate * s.weight_decay * w
        w = soft(new.y, s.learning_rate * self.l1 / (after + ridge)) if self.l1 else new.y
        return w, vars(new)

    @override
    def rate(self, s: Slots, t: Tensor) -> Tensor:
        return 1.0 / self._slowness(s.n)

    def _slowness(self, n: Tensor) -> Tensor:
        power = -self.learning_rate_power
        return self.beta + (ops.sqrt(n) if power == 0.5 else ops.power(n, power))

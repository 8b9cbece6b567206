"""A rule of your own: thirteen lines, and everything else works with it.

The rule is AdaGrad with a memory that fades, and a step that no element makes longer than `bound` times the rate.
"""

import keras
import numpy as np
from keras import ops

import kopt


class Fading(kopt.Optimizer):
    """v ← β v + (1-β) g²,  u = clip(g / (√v + ε), -b, b),  w ← w - η (u + λ w)."""

    learning_rate = 1e-2
    beta: kopt.Fraction = 0.99  # the annotation is the range, [0, 1): kopt.Fading(beta=2) is an error that says so
    bound: kopt.Positive = 3.0
    epsilon: kopt.Positive = 1e-8
    slots = {"v": kopt.Slot()}

    def rule(self, g, w, s, t):
        """Returns the direction and the new slot. It is a pure function: the engine assigns."""
        v = self.beta * s.v + (1 - self.beta) * g**2
        return ops.clip(g / (ops.sqrt(v) + self.epsilon), -self.bound, self.bound), {"v": v}


keras.utils.set_random_seed(0)
x = np.random.default_rng(0).uniform(-2, 2, (2000, 2)).astype("float32")
y = np.sin(2 * x[:, :1]) * x[:, 1:]
schedule = kopt.schedules.WarmupLinear(1e-2, steps=40 * 20, warmup=40)
for optimizer in (
    Fading(schedule),
    Fading(schedule, state_dtype="bfloat16", global_clipnorm=1.0, weight_decay=1e-3, decay_mask=[(r"bias$", 0.0)]),
    kopt.Lookahead(Fading(schedule)),
):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(64, "tanh"), keras.layers.Dense(1)])
    model.compile(optimizer, "mse")
    model.fit(x, y, batch_size=50, epochs=20, verbose=0)
    loss, size = model.evaluate(x, y, verbose=0), kopt.state_bytes(optimizer, model) / model.count_params()
    print(f"mean squared error {loss:.4f} with {size:.0f} bytes a parameter: {optimizer}")
try:
    Fading(beta=2.0)
except ValueError as error:
    print(error)

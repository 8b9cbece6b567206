"""`anchor`: rules that remember where the weights were go on from where somebody put them."""

import numpy as np
import pytest
import tensorflow as tf
from problems import look_at_curvature, rules, variables
from registry import every_rule_in_turn

REMEMBER = [x for x in rules() if x.startswith(("DAdaptAdaG", "FTRL", "Hyper", "Look", "MADG", "Mechanic", "Sched"))]
"""Those that would go back to where the weights were: the test sees it."""


def moved(optimizer, size, anchor=True):
    """Trains, puts the weights 100 away, and returns how far a few steps with tiny gradients then carry them."""
    rng = np.random.default_rng(0)
    weights = variables([rng.normal(size=(4, 3)), rng.normal(size=3)])
    optimizer.build(weights)

    def step(size, loss):
        gs = [tf.constant(size * rng.normal(size=w.shape), "float32") for w in weights]
        optimizer.scale_loss(tf.constant(loss)), look_at_curvature(optimizer, gs), optimizer.apply(gs, weights)

    for i in range(7):
        step(1.0, 2.0 - 0.1 * i)
    for w in weights:
        w.assign(w + 100.0)
    there = [w.numpy() for w in weights]
    if anchor:
        optimizer.anchor()
        if hasattr(optimizer, "averages"):
            np.testing.assert_equal([np.asarray(a) for a in optimizer.averages()], there)
    for _ in range(6):  # Lookahead meets its slow weights at every fifth
        step(size, 1.0)
    return max(np.abs(w.numpy() - a).max() for w, a in zip(weights, there, strict=True))


@pytest.mark.parametrize("size", [0.0, pytest.param(1e-6, marks=pytest.mark.slow)])
@every_rule_in_turn
def test_a_rule_goes_on_from_where_it_is_put(name, size):
    assert moved(rules()[name](), size) < 5  # momentum, and the trust of LARS in larger weights
    if name in REMEMBER:
        assert moved(rules()[name](), size, anchor=False) > 40

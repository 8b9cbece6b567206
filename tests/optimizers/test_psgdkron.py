"""PSGDKron beyond the contract: its factors whiten, begin when there is something to fit, and stay finite."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import variables
from registry import RULES

EVERY_TIME = {"momentum": 0.0, "flat_start": 10**6}


def moved(optimizer, gradients, w):
    """Returns what each gradient moves a kernel, in units of the rate, and its factors at the end."""
    moves = []
    tf.config.run_functions_eagerly(len(gradients) < 10)
    try:
        for g in gradients:
            before = w.numpy()
            optimizer.apply([tf.constant(g, "float32")], [w])
            moves.append(before - w.numpy())
    finally:
        tf.config.run_functions_eagerly(False)
    return np.array(moves), [optimizer.setup.parameters[0].slots[name]["value"].numpy() for name in "LR"]


def steps(gradients, **options):
    """As `moved`, from zero."""
    return moved(RULES["PSGDKron"](1.0, **options), gradients, *variables([np.zeros(gradients[0].shape)]))


def rms(x):
    """Returns the roots of the mean squares of matrices."""
    return np.sqrt(np.square(x).mean((-2, -1)))


@pytest.mark.slow
def test_it_whitens():
    rng, (p, q) = np.random.default_rng(0), (6, 5)
    turn, right = np.linalg.qr(rng.normal(size=(p, p)))[0], np.diag([1, 2, 3, 4, 5.0])
    gradients = [np.diag(np.logspace(-1, 1, p)) @ turn @ rng.normal(size=(p, q)) @ right for _ in range(300)]
    moves, factors = steps(gradients, fit_rate=0.2, **EVERY_TIME)
    for (factor,) in factors:
        np.testing.assert_array_equal(factor, np.triu(factor))
        assert np.all(np.diag(factor) > 0)
    assert np.isclose(*(np.abs(factor).max() for factor in factors), rtol=1e-5)

    def spread(x):
        rows = np.transpose(x, (0, 2, 1)).reshape(-1, p)
        return np.linalg.cond(rows.T @ rows)

    assert spread(np.array(gradients[200:])) > 3000
    assert spread(moves[200:]) < 5


@pytest.mark.parametrize("options", [{}, {"max_size": 1}], ids=str)
def test_it_begins_with_the_first_gradient_that_is_not_zero(options):
    g = np.random.default_rng(1).normal(size=(4, 3))
    moves, _ = steps([0 * g, 0 * g, 1e-6 * g, 1e-6 * g], momentum=0.0, **options)
    np.testing.assert_array_equal(moves[:2], 0)
    assert np.all(np.abs(rms(moves[2:]) - 0.95) < 0.15)


def test_experts_begin_one_by_one():
    layer = keras.layers.EinsumDense("bei,eio->beo", (3, 5))
    layer.build((None, 3, 4))
    g = np.random.default_rng(2).normal(size=(3, 4, 5))
    g[1] = 0
    (moves,), _ = moved(RULES["PSGDKron"](1.0), [g], layer.kernel)
    np.testing.assert_allclose(moves[0], steps([g[0]])[0][0], atol=1e-5)
    np.testing.assert_array_equal(moves[1], 0)
    assert 0.8 < rms(moves[2]) < 1.1


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"ratio": 1.0}], ids=str)
def test_whatever_comes_it_stays_finite(options):
    g = np.random.default_rng(3).normal(size=(4, 3))
    dead = g * [[1], [1], [1], [0]]
    moves, factors = steps([g, 1e17 * g, 1e-30 * g, *[dead] * 300, *[0 * g] * 1000, g], **EVERY_TIME, **options)
    assert all(np.isfinite(x).all() for x in (moves, *factors))
    assert rms(moves).max() < 1.11
    assert max(np.abs(x).max() for x in factors) < 1e9**0.25 * 10

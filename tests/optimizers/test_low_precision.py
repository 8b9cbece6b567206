"""Short weights and short slots, for every rule of the registry."""

import keras
import numpy as np
import pytest
from problems import RATE, descend, weights_and_gradients
from registry import RULES, every_rule, every_rule_in_turn, one_of_each


@every_rule_in_turn
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_short_weights_move_as_float32_ones_do(name, dtype, rounding="kahan"):
    weights = [np.linspace(0.5, 2.0, 600)]
    gradients = [
        [np.full(600, g)] for g in (0.1, 0.1, -0.1) * 13
    ]  # rules that learn their rate would run away downhill
    optimizer = RULES[name](rounding=rounding)
    short, full = descend(optimizer, weights, gradients, dtype)[0], descend(RULES[name](), weights, gradients)[0]
    assert np.isfinite(short).all()
    if (residual := optimizer.setup.parameters[0].residual) is not None:
        assert np.abs(short - weights[0]).max() > 0
        short = short + residual.numpy().astype("float64")
    moved, expected = (short - weights[0]).mean(), (full - weights[0]).mean()
    assert moved == pytest.approx(expected, rel=0.1, abs=1e-4)


@pytest.mark.slow
@one_of_each
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_weights_move_when_rounded_stochastically(name, dtype):
    test_short_weights_move_as_float32_ones_do(name, dtype, "stochastic")


@pytest.mark.slow
@every_rule
@pytest.mark.parametrize("gradient", [0.0, 1e-7, 1e4])
def test_short_weights_stay_finite(name, gradient):
    for dtype in ("bfloat16", "float16"):
        optimizer = RULES[name](learning_rate=1e-3)
        assert np.isfinite(descend(optimizer, [np.ones(4)], [[np.full(4, gradient)]] * 20, dtype)[0]).all()


BOUNDS = {"bfloat16": (1.25 * 2.0**-7, 0, 0.02), "int8": (0, 0.032, 0.3)}
"""Error of a store: relative to each value, and to the largest one of its row; error of twenty steps, relative."""


@pytest.mark.few(5)
@every_rule_in_turn
@pytest.mark.parametrize("dtype", [pytest.param("bfloat16", marks=pytest.mark.slow), "int8"])
def test_short_state_keeps_its_bound(name, dtype):
    weights, gradients = weights_and_gradients(20, ((40, 30),))
    full, short = RULES[name](learning_rate=RATE), RULES[name](learning_rate=RATE, state_dtype=dtype)
    descend(full, weights, gradients[:1]), descend(short, weights, gradients[:1])
    own, row, moved = BOUNDS[dtype]
    p = short.setup.parameters[0]
    expected = full.setup.parameters[0].remembered()
    for slot, found in p.remembered().items():
        exact = expected[slot].numpy()
        stored = {keras.backend.standardize_dtype(part.dtype) for part in p.slots[slot].values()}
        if p.rule.slots[slot].exact or (dtype == "int8" and np.prod(exact.shape[1:]) < 16):
            np.testing.assert_array_equal(exact, found.numpy())
            assert stored == {"float32"}
            continue
        assert stored == {"bfloat16": {"uint16"}, "int8": {"int8", "float32"}}[dtype]
        largest = np.abs(exact).max(tuple(range(1, exact.ndim)), keepdims=True)
        assert np.all(np.abs(found.numpy() - exact) <= own * np.abs(exact) + 1.25 * row * largest)
        np.testing.assert_array_equal(found.numpy() == 0, exact == 0)
    a, b = (descend(RULES[name](learning_rate=RATE, state_dtype=d), weights, gradients)[0] for d in ("float32", dtype))
    assert np.abs(a - b).mean() < moved * np.abs(a - weights[0]).mean()

"""What the rules compute with in place of functions that XLA is slow at, against NumPy in float64."""

import statistics

import numpy as np
import pytest
import tensorflow as tf

from kopt.optimizers.engine import tensor_math
from kopt.optimizers.engine.tensor_math import arctan2, cube_root, normal_quantile

CALLS = {"eager": lambda f: f, "xla": lambda f: tf.function(f, jit_compile=True, autograph=False)}
in_every_way = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


def spread(count, seed, low=-6, high=6):
    """Numbers of both signs over many decades."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=count) * 10 ** rng.uniform(low, high, count)).astype("float32")


def units(found, exact):
    """Returns the largest error in units in the last place."""
    return np.max(np.abs(found.numpy() - exact) / np.spacing(np.abs(exact).astype("float32")))


@in_every_way
def test_arctan2_is_exact_to_2_units(call):
    y, x = spread(200_000, 0), spread(200_000, 1)
    exact = np.arctan2(y.astype("float64"), x.astype("float64"))
    found = call(arctan2)(tf.constant(y), tf.constant(x))
    assert units(found, exact) <= 2
    assert len({(a, b) for a, b in zip(y > 0, x > 0, strict=True)}) == 4


@in_every_way
def test_arctan2_at_zeros_and_infinities(call):
    ends = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf], "float32")
    y, x = np.repeat(ends, 6), np.tile(ends, 6)
    found, exact = call(arctan2)(tf.constant(y), tf.constant(x)), np.arctan2(y.astype("float64"), x)
    np.testing.assert_allclose(found, exact, rtol=2.4e-7)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(exact))
    assert np.isnan(call(arctan2)(tf.constant([np.nan, 1.0]), tf.constant([1.0, np.nan]))).all()


@in_every_way
def test_cube_root_is_exact_to_2_units(call):
    x = np.abs(spread(200_000, 2, -30, 30))
    assert units(call(cube_root)(tf.constant(x)), np.cbrt(x.astype("float64"))) <= 2
    ends = np.array([0.0, 1.0, 8.0, 3e38, np.inf], "float32")
    np.testing.assert_allclose(call(cube_root)(tf.constant(ends)), np.cbrt(ends.astype("float64")), rtol=2.4e-7)


@in_every_way
def test_normal_quantiles(call):
    p = np.concatenate([2 ** np.random.default_rng(3).uniform(-26, -1, 2000), [2.0**-26, 0.5]]).astype("float32")
    exact = [-statistics.NormalDist().inv_cdf(float(x)) for x in p]
    np.testing.assert_allclose(call(normal_quantile)(tf.constant(p)), exact, rtol=2e-6, atol=2e-7)


def test_float64_keeps_its_digits():
    y, x = (tf.constant(spread(1000, seed).astype("float64")) for seed in (4, 5))
    np.testing.assert_allclose(arctan2(y, x), np.arctan2(y, x), rtol=1e-14)
    np.testing.assert_allclose(cube_root(tf.abs(x)), np.cbrt(np.abs(x)), rtol=1e-14)


# ------------------------------------------------------------------------------------------------- sums


@in_every_way
@pytest.mark.parametrize("shape", [(300, 300), (8209,), (3, 5, 7, 211), (2, 3), (), (0, 4)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_of_any_size(shape, dtype, call):
    x = np.random.default_rng(6).uniform(0.5, 1.5, shape).astype(dtype)
    near = {"rtol": {"float32": 3e-7, "float64": 1e-14}[dtype]}
    np.testing.assert_allclose(call(tensor_math.total)(tf.constant(x)), x.sum(dtype="float64"), **near)
    np.testing.assert_allclose(
        call(tensor_math.sum_of_squares)(tf.constant(x)), np.sum(x.astype("float64") ** 2), **near
    )
    if len(shape) > 1:
        exact = x.astype("float64").sum(tuple(range(len(shape) - 1)), keepdims=True)
        found = call(tensor_math.sums_of_units)(tf.constant(x))
        assert found.shape == exact.shape
        np.testing.assert_allclose(found, exact, **near)


def test_large_sums_are_products_on_a_cpu_alone(monkeypatch):
    assert tensor_math.is_summed_in_blocks((100, 100))
    assert not tensor_math.is_summed_in_blocks((10, 10))
    assert not tensor_math.is_summed_in_blocks((None, 100_000))
    monkeypatch.setattr("keras.distribution.list_devices", lambda: ["cpu:0", "gpu:0"])
    assert not tensor_math.is_summed_in_blocks((100, 100))


def test_sums_keep_what_is_not_finite():
    for bad in (np.nan, np.inf):
        x = np.ones((120, 100), "float32")
        x[7, 5] = bad
        assert not np.isfinite(tensor_math.total(tf.constant(x)))
        columns = np.isfinite(tensor_math.sums_of_units(tf.constant(x)))[0]
        assert not columns[5] and columns.sum() == 99

"""Noise by a hash: the same on every backend and in every graph, uniform, and independent from place to place."""

import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from references import noise

from kopt.optimizers.engine.noise import normal, uniform
from kopt.optimizers.engine.tensor_math import round_stochastically

TABLE = {  # (update, salt): the first numbers, times 2²⁴
    (1, 0): [7766352, 4481955, 16053689, 6231507, 5108117, 4114168],
    (1, -5): [8053355, 2116886, 11720152, 10662136, 10320061, 908065],
    (2**31 - 1, 0): [9671766, 12071337, 6414814, 1953097, 14726116, 10626070],
    (2**31 - 1, -5): [14540038, 16531981, 13824729, 15556074, 7192670, 8428729],
}
ROUNDED = {
    "bfloat16": [1.0, -0.298828125, 0.001007080078125, 700.0],
    "float16": [1.0, -0.300048828125, 0.0010004043579101562, 701.5],
}
"""1, -0.3, 0.001, 701.7 at update 1 with salt 0."""


def check_values():
    """Checks the numbers of the backend at hand."""
    for (update, salt), expected in TABLE.items():
        drawn = uniform(ops.zeros((2, 3)), ops.convert_to_tensor(update, "int32"), salt)
        assert (ops.convert_to_numpy(drawn) * 2**24).ravel().tolist() == expected
    x = ops.convert_to_tensor([1.0, -0.3, 1e-3, 701.7])
    for dtype, expected in ROUNDED.items():
        rounded = round_stochastically(x, dtype, uniform(x, ops.convert_to_tensor(1), 0))
        assert keras.backend.standardize_dtype(rounded.dtype) == dtype
        np.testing.assert_allclose(ops.convert_to_numpy(ops.cast(rounded, "float32")), expected, rtol=1e-7)


def test_numbers_are_these():
    check_values()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jax", "torch"])
def test_numbers_are_these_on_other_backends(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not here")
    paths = os.pathsep.join(p for p in sys.path if p)
    environment = os.environ | {"KERAS_BACKEND": name, "PYTHONPATH": paths}
    subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); "
         "import test_noise; test_noise.check_values()"], env=environment, check=True,
    )  # fmt: skip


@pytest.mark.parametrize("update", [1, 2**31 + 3])
def test_eager_graph_and_xla_draw_the_same(update):
    x, t = tf.zeros((5, 7, 11)), tf.constant(update, "int64")
    expected = noise.uniform((5, 7, 11), update, 9)
    for options in (None, {}, {"jit_compile": True}):
        draw = (lambda t: uniform(x, t, 9)) if options is None else tf.function(lambda t: uniform(x, t, 9), **options)
        np.testing.assert_array_equal(draw(t), expected)


def drawn(count, update, salt):
    """Returns numbers of a vector."""
    return uniform(tf.zeros(count), tf.constant(update, "int64"), salt).numpy().astype("float64")


@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_it_is_uniform(count):
    """By the test of Kolmogorov and Smirnov, at a level of 1e-4 for each of 8 draws."""
    for update, salt in ((1, 0), (2, 0), (1, 1), (1000, 7), (2**24 + 1, 2), (5, -1), (5, -70_000), (2**31, 3)):
        x = np.sort(drawn(count, update, salt))
        steps = np.arange(count + 1) / count
        assert max(np.max(steps[1:] - x), np.max(x - steps[:-1])) < np.sqrt(-np.log(1e-4 / 2) / 2 / count)


def test_weights_and_steps_are_independent():
    rows = np.stack([drawn(20_000, update, salt) for update in (1, 2, 3, 4, 65537) for salt in (0, 1, 2, 3, -1, -2)])
    correlations = np.corrcoef(rows)[np.triu_indices(30, 1)] * np.sqrt(20_000)
    assert np.abs(correlations).max() < 4.6  # 435 pairs, each normal
    assert 0.8 < correlations.std() < 1.2


@pytest.mark.parametrize("lag", [1, 2, 3, 64, 256, 320, 1024, 4096])
def test_elements_are_independent(lag):
    x = drawn(100_000, 3, 5)
    a, b = x[:-lag], x[lag:]
    assert abs(np.corrcoef(a, b)[0, 1]) * np.sqrt(len(a)) < 4
    cells, expected = np.histogram2d(a, b, 16, [[0, 1], [0, 1]])[0], len(a) / 256
    assert abs(np.sum((cells - expected) ** 2 / expected) - 255) < 5 * np.sqrt(2 * 255)


def test_normal_numbers_are_normal():
    x = normal(tf.zeros((100, 1000)), tf.constant(3), 5).numpy().astype("float64")
    np.testing.assert_allclose(x, noise.normal((100, 1000), 3, 5), rtol=2e-6, atol=2e-7)
    assert abs(x.mean()) < 4 / np.sqrt(1e5)
    assert abs(np.square(x).mean() - 1) < 4 * np.sqrt(2 / 1e5)
    assert abs((x**4).mean() - 3) < 4 * np.sqrt(96 / 1e5)

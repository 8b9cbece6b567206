"""Rules that keep squares by rows and columns, or one number for a block."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kopt


@pytest.mark.parametrize("name", ["Adafactor"])
def test_zeros_beside_huge_numbers_stay_where_they_are(name):
    gradient = np.zeros((3, 4), "float32")
    gradient[0, :2] = 3e16
    kernel = keras.Variable(np.ones((3, 4)), name="kernel")
    optimizer = kopt.get(name)
    optimizer.learning_rate = 0.1
    for _ in range(3):
        optimizer.apply([tf.constant(gradient)], [kernel])
    moved = kernel.numpy() != 1
    np.testing.assert_array_equal(moved, gradient > 0)
    assert np.isfinite(kernel.numpy()).all()


def test_short_sides_keep_their_squares():
    shapes = [(4, 200), (200, 300), (300,)]
    made = [keras.Variable(np.ones(s), name=n) for s, n in zip(shapes, ("a", "b", "bias"), strict=True)]
    optimizer = kopt.Adafactor(min_dim_size_to_factor=128)
    optimizer.build(made)
    found = [[tuple(p.slots[k]["value"].shape) for k in "rc"] for p in optimizer.setup.parameters]
    assert found == [[(4, 200), ()], [(200,), (300,)], [(300,), ()]]


def test_tables_are_factored_by_rows():
    layer = keras.layers.Embedding(30, 8)
    layer.build(None)
    optimizer = kopt.Adafactor()
    optimizer.build(layer.trainable_variables)
    (p,) = optimizer.setup.parameters
    assert [tuple(p.slots[k]["value"].shape) for k in "rc"] == [(30,), (8,)]

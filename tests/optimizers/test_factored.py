"""Rules that keep squares by rows and columns, or one number for a block."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kopt

NAMES = ("Adafactor", "CAME", "SM3", "AdamMini")


@pytest.mark.parametrize("name", NAMES)
def test_zeros_beside_huge_numbers_stay_where_they_are(name):
    gradient = np.zeros((3, 4), "float32")
    gradient[0, :2] = 3e16
    kernel = keras.Variable(np.ones((3, 4)), name="kernel")
    optimizer = kopt.get(name)
    optimizer.learning_rate = 0.1
    for _ in range(3):
        optimizer.apply([tf.constant(gradient)], [kernel])
    assert np.isfinite(kernel.numpy()).all()
    np.testing.assert_array_equal(kernel.numpy() != 1, gradient > 0)


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


def test_blocks_are_those_of_the_layers():
    x = inputs = keras.Input((7,), dtype="int32")
    x = keras.layers.Embedding(20, 16, name="embedding")(x)
    x = keras.layers.MultiHeadAttention(2, 5, name="attention")(x, x)
    x = keras.layers.Conv1D(12, 3, name="conv")(x)
    x = keras.layers.Conv1DTranspose(4, 3, name="up")(x)
    model = keras.Model(inputs, keras.layers.Dense(3, name="dense")(x))
    optimizer = kopt.AdamMini()
    optimizer.build(model.trainable_variables)
    found = {p.path: tuple(p.slots["v"]["value"].shape) for p in optimizer.setup.parameters}
    assert found == {
        "embedding/embeddings": (20, 1),
        "attention/query/kernel": (1, 2, 1),
        "attention/query/bias": (2, 5),
        "attention/key/kernel": (1, 2, 1),
        "attention/key/bias": (2, 5),
        "attention/value/kernel": (1, 2, 5),
        "attention/value/bias": (2, 5),
        "attention/attention_output/kernel": (1, 1, 16),
        "attention/attention_output/bias": (16,),
        "conv/kernel": (1, 1, 12),
        "conv/bias": (12,),
        "up/kernel": (3, 4, 1),
        "up/bias": (4,),
        "dense/kernel": (1, 3),
        "dense/bias": (3,),
    }
    assert [p.path for p in optimizer.setup.parameters if not p.row_wise and "bias" in p.path] == []
    assert optimizer.setup.parameters[0].row_wise


@pytest.mark.parametrize("state_dtype", [pytest.param("bfloat16", marks=pytest.mark.slow), "int8"])
@pytest.mark.parametrize("name", [*(pytest.param(n, marks=pytest.mark.slow) for n in NAMES[:-1]), "AdamMini"])
def test_short_states_keep_near(name, state_dtype):
    rng, start = np.random.default_rng(0), np.zeros((24, 32), "float32")
    kernels = [keras.Variable(start, name="kernel") for _ in range(2)]
    options = {"beta_1": 0.9} if name == "Adafactor" else {}
    cls, rate = type(kopt.get(name)), 0.01
    made = [cls(learning_rate=rate, state_dtype=d, **options) for d in ("float32", state_dtype)]
    for _ in range(20):
        gradient = tf.constant(1 + rng.normal(size=start.shape), "float32")
        for optimizer, kernel in zip(made, kernels, strict=True):
            optimizer.apply([gradient], [kernel])
    moved, short = (kernel.numpy() for kernel in kernels)
    assert not np.array_equal(moved, short)
    assert np.abs(short - moved).mean() < 0.1 * np.abs(moved).mean()
    assert kopt.state_bytes(made[1]) < 0.6 * kopt.state_bytes(made[0])


@pytest.mark.parametrize("name", ["SM3", "AdamMini"])
def test_a_graph_may_forget_the_shape_of_a_gradient(name):
    kernels = [keras.Variable(np.zeros((3, 4)), name="kernel") for _ in range(2)]
    optimizers = [kopt.get(name) for _ in kernels]
    for optimizer, kernel in zip(optimizers, kernels, strict=True):
        optimizer.build([kernel])
    gradient = tf.constant(np.random.default_rng(0).normal(size=(3, 4)), "float32")
    forgetful = tf.function(
        lambda g: optimizers[0].apply([g], [kernels[0]]), input_signature=[tf.TensorSpec((None, None))], autograph=False
    )
    forgetful(gradient)
    optimizers[1].apply([gradient], [kernels[1]])
    np.testing.assert_allclose(kernels[0].numpy(), kernels[1].numpy(), rtol=1e-6)

"""Gradients of some rows of a table, for every rule of the registry."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import RATE, flat, look_at_curvature, variables
from registry import RULES, every_row_wise_rule, one_of_each, sampled

# The contract gives every rule mini-batches; that full-batch rules warn of them is test_habits.py.
pytestmark = pytest.mark.filterwarnings("ignore:.*compares whole losses")


def rows(ids, values, height):
    return tf.IndexedSlices(tf.constant(values, tf.float32), tf.constant(ids), tf.constant([height, len(values[0])]))


def random_rows(rng, height, count=7, width=3):
    return rng.integers(0, height, count), rng.normal(size=(count, width))


@pytest.mark.few(4)
@sampled([name for name, cls in RULES.items() if "exact" in cls.fields["sparse"].choices])
def test_exact_rows_equal_the_dense_gradient(name):
    rng = np.random.default_rng(3)
    table = rng.normal(size=(6, 3))
    (sparse,), (dense,) = variables([table]), variables([table])
    a, b = RULES[name](learning_rate=RATE, sparse="exact"), RULES[name](learning_rate=RATE)
    for _ in range(3):
        ids, values = random_rows(rng, 6)
        a.scale_loss(tf.constant(1.0)), b.scale_loss(tf.constant(1.0))
        summed = tf.math.unsorted_segment_sum(tf.constant(values, tf.float32), ids, 6)
        for optimizer, variable, gradient in ((a, sparse, rows(ids, values, 6)), (b, dense, summed)):
            optimizer.build([variable])
            look_at_curvature(optimizer, [summed])
            optimizer.apply([gradient], [variable])
    np.testing.assert_allclose(sparse.numpy(), dense.numpy(), atol=1e-6)


@pytest.mark.few(3)
@every_row_wise_rule
def test_lazy_rows_run_the_rule_on_the_rows_that_were_read(name):
    rng = np.random.default_rng(4)
    table = rng.normal(size=(9, 3))
    cls = RULES[name]
    (sparse,), (dense,) = variables([table]), variables([table[:5]])
    a, b = cls(learning_rate=RATE, weight_decay=0.1), cls(learning_rate=RATE, weight_decay=0.1)
    a.build([sparse]), b.build([dense])

    def step(ids, values):
        look_at_curvature(a, [tf.math.unsorted_segment_sum(values, ids, 9)])
        a.apply([tf.IndexedSlices(values, ids, tf.constant([9, 3]))])

    step = tf.function(step, jit_compile=True, autograph=False)
    for _ in range(4):
        ids = np.concatenate([rng.permutation(5), rng.integers(0, 5, 4)])  # each of the first five, some twice
        values = rng.normal(size=(9, 3))
        step(tf.constant(ids), tf.constant(values, tf.float32))
        summed = tf.math.unsorted_segment_sum(tf.constant(values, tf.float32), ids, 5)
        look_at_curvature(b, [summed])
        b.apply([summed], [dense])
    np.testing.assert_allclose(sparse.numpy()[:5], dense.numpy(), atol=1e-6)
    np.testing.assert_array_equal(sparse.numpy()[5:], table[5:].astype("float32"))  # bit for bit


@pytest.mark.slow
@one_of_each
@pytest.mark.parametrize("options", [{}, {"use_ema": True}, {"gradient_accumulation_steps": 2}], ids=str)
def test_embedding_with_repeated_ids_equals_one_hot_dense(name, options):
    rng = np.random.default_rng(5)
    ids, y = rng.integers(0, 6, (32, 3)), rng.normal(size=(32, 1)).astype("float32")
    table = rng.normal(size=(6, 4)).astype("float32")

    def trained(first, x):
        keras.utils.set_random_seed(6)
        model = keras.Sequential([keras.Input(x.shape[1:]), first, keras.layers.Flatten(), keras.layers.Dense(1)])
        first.set_weights([table])
        model.compile(RULES[name](learning_rate=RATE, sparse="exact", **options), "mse")
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        return flat(model)

    one_hot = np.eye(6, dtype="float32")[ids]
    embedded, dense = (
        trained(keras.layers.Embedding(6, 4), ids),
        trained(keras.layers.Dense(4, use_bias=False), one_hot),
    )
    np.testing.assert_allclose(embedded, dense, atol=2e-6)

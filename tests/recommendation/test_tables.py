"""Embedding tables: the rows that were read, in every way to run, and the tables of keras-rs."""

import keras
import keras_rs
import numpy as np
import pytest
import tensorflow as tf

import kopt

ROWS, WIDTH, STEPS = 40, 3, 20
READ = np.array([3, 7, 3, 11, 30, 7, 3, 11], np.int32)  # some of them more than once


def model(optimizer, sparse, **options):
    """Returns a model of one table: sparse gradients by ids, dense ones by a product with one-hot rows."""
    table = keras.layers.Embedding(ROWS, WIDTH, "ones")
    inputs = keras.Input((), dtype="int32")
    if sparse:
        outputs = table(inputs)
    else:
        table.build(())
        outputs = keras.layers.Dense(WIDTH, use_bias=False, kernel_initializer="ones")(
            keras.layers.CategoryEncoding(ROWS, output_mode="one_hot")(inputs)
        )
    made = keras.Model(inputs, outputs)
    made.compile(optimizer, "mse", **options)
    return made


def data():
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(STEPS, len(READ), WIDTH)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((np.tile(READ, STEPS), targets.reshape(-1, WIDTH))).batch(len(READ))


def trained(optimizer, sparse, **options):
    made = model(optimizer, sparse, **options)
    made.fit(data(), shuffle=False, verbose=0)
    return made.trainable_variables[0].numpy(), [
        part.numpy() for parts in made.optimizer._parameters[0].slots.values() for part in parts.values()
    ]


@pytest.mark.parametrize("how", ["plain", "xla", "replicas"])
def test_twenty_steps_with_repeated_ids(how, request):
    expected, slots = trained(kopt.Adam(0.1), sparse=False, jit_compile=False)
    if how == "replicas":
        with request.getfixturevalue("two_devices").scope():
            table, found = trained(kopt.Adam(0.1), sparse=True)
    else:
        table, found = trained(kopt.Adam(0.1), sparse=True, jit_compile=how == "xla")
    untouched = np.setdiff1d(np.arange(ROWS), READ)
    np.testing.assert_allclose(table[READ], expected[READ], rtol=1e-5)
    assert np.abs(table[READ] - 1).min() > 1e-3
    np.testing.assert_array_equal(table[untouched], 1)
    for slot, dense in zip(found, slots, strict=True):
        np.testing.assert_allclose(slot[READ], dense[READ], rtol=1e-4, atol=1e-7)
        np.testing.assert_array_equal(slot[untouched], 0)


OPTIONS = [{"weight_decay": 0.1}, {"state_dtype": "bfloat16"}]


@pytest.mark.parametrize(
    "options", [{"global_clipnorm": 0.5}, *(pytest.param(o, marks=pytest.mark.slow) for o in OPTIONS)], ids=str
)
def test_tables_of_keras_rs(options):
    def distributed():
        config = keras_rs.layers.TableConfig(
            name="table", vocabulary_size=ROWS, embedding_dim=WIDTH, initializer="ones", optimizer="sgd"
        )
        feature = keras_rs.layers.FeatureConfig(
            name="feature", table=config, input_shape=(8, 1), output_shape=(8, WIDTH)
        )
        inputs = keras.Input((1,), batch_size=8, dtype="int32")
        return keras.Model(inputs, keras_rs.layers.DistributedEmbedding(feature)(inputs))

    made = distributed()
    made.compile(kopt.Adam(0.1, **options), "mse")
    targets = next(iter(data()))[1].numpy()
    for _ in range(3):
        made.train_on_batch(READ[:, None], targets)
    plain = model(kopt.Adam(0.1, **options), sparse=True)
    for _ in range(3):
        plain.train_on_batch(READ, targets)
    (table,) = made.trainable_variables
    np.testing.assert_allclose(table.numpy(), plain.trainable_variables[0].numpy(), rtol=1e-5)
    np.testing.assert_array_equal(table.numpy()[0], 1)

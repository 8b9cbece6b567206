"""Each replica its rows: sizes that do not divide, order, and a loss that is that of one process."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from workers import fit, problem

import kopt
from kopt import checkpoint, distribution
from recipes.mnist import build


def rows(strategy, data):
    """Returns for each step the rows of each replica."""
    shards = distribution.shard(data, strategy)
    return [[part.numpy().tolist() for part in strategy.experimental_local_results(x)] for x in shards]


def test_sizes_that_do_not_divide(two_devices):
    data = tf.data.Dataset.range(9).batch(4)
    assert rows(two_devices, data) == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8], [8]]]
    assert rows(two_devices, tf.data.Dataset.range(7).batch(5)) == [[[0, 1], [2, 3, 4]], [[5], [6]]]


def test_batches_keep_their_order_and_their_epochs(two_devices):
    data = checkpoint.ShuffledBatches(np.arange(6), batch_size=4, seed=1)
    plain = []
    for epoch in range(2):
        data.set_epoch(epoch)
        plain.append([data[i][0].tolist() for i in range(2)])
    shards = distribution.shard(data, two_devices)
    for epoch in (1, 0):
        shards.set_epoch(epoch)
        found = [[part.numpy().tolist() for part in two_devices.experimental_local_results(x)] for x in shards]
        assert [[*one, *two] for one, two in found] == plain[epoch]
    assert plain[0] != plain[1]


def test_one_replica_gets_the_data_as_they_are():
    data = tf.data.Dataset.range(3).batch(2)
    assert distribution.shard(data, tf.distribute.get_strategy()) is data


def test_what_cannot_be_sharded(two_devices):
    with pytest.raises(TypeError, match=r"ShuffledBatches.x, y.. Received: ndarray"):
        distribution.shard(np.ones(3), two_devices)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["adamw", "accumulating"])
def test_two_replicas_are_one(two_devices, case):
    _, plain, expected = fit(tf.distribute.get_strategy(), case)
    _, weights, history = fit(two_devices, case)
    np.testing.assert_allclose(weights, plain, rtol=0, atol=2e-6)
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=2e-6, err_msg=name)


@pytest.mark.slow
def test_a_network_with_normalization_trains_as_on_one_device_but_for_rounding(two_devices):
    """In float32 it does so for a step: rounding decides which units at zero are active, and those decide the rest."""
    keras.config.set_floatx("float64")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (200, 28, 28), "uint8"), rng.integers(0, 10, 200)
    found = []
    for strategy in (tf.distribute.get_strategy(), two_devices):
        with strategy.scope():
            keras.utils.set_random_seed(1)
            model = build("cnn", 0.0, several=strategy is two_devices)
            model.compile(kopt.Momentum(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        distribution.share_loss(model)
        data = checkpoint.ShuffledBatches(x, y, batch_size=33, seed=3)
        model.fit(distribution.shard(data, strategy), epochs=2, shuffle=False, verbose=0)
        found.append(np.concatenate([np.ravel(w) for w in model.get_weights()]))
    np.testing.assert_allclose(*found, rtol=0, atol=1e-9)


def test_a_share_of_the_loss_is_a_weight_of_its_gradient(two_devices):
    with two_devices.scope():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
        model.compile(keras.optimizers.SGD(1.0), "mse")
    distribution.share_loss(model)
    x = np.array([[1.0], [2.0], [4.0]], "float32")
    data = tf.data.Dataset.from_tensor_slices((x, np.zeros_like(x))).batch(3)
    loss = model.fit(distribution.shard(data, two_devices), shuffle=False, verbose=0).history["loss"]
    assert loss == pytest.approx([21 / 3])
    assert model.get_weights()[0].item() == pytest.approx(1 - 2 * 21 / 3)  # the mean of the replicas' would be -12


class Own(keras.Model):
    """A model with a loss of its own."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")

    def call(self, x):
        return self.dense(x)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return keras.ops.mean(keras.ops.square(y_pred))


def flat():
    """A model whose predictions have one axis, which Keras forgets to scale."""
    x = keras.Input((1,))
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    return keras.Model(x, keras.ops.reshape(dense(x), (-1,)))


@pytest.mark.few(1)
@pytest.mark.parametrize("make", [Own, flat])
def test_every_loss_is_scaled_once(two_devices, make):
    x = np.array([[1.0], [2.0], [4.0]], "float32")
    data = tf.data.Dataset.from_tensor_slices((x, np.zeros(3, "float32"))).batch(3)
    with two_devices.scope():
        model = make()
        model.compile(keras.optimizers.SGD(1.0), None if make is Own else "mse")
    distribution.share_loss(model)
    shards = distribution.shard(data, two_devices)
    assert model.evaluate(shards, verbose=0, return_dict=True)["loss"] == pytest.approx(7)
    assert model.fit(shards, shuffle=False, verbose=0).history["loss"] == pytest.approx([7])
    assert model.get_weights()[0].item() == pytest.approx(1 - 2 * 7)


@pytest.mark.slow
def test_a_detached_model_computes_alone(two_devices):
    with two_devices.scope():
        model, _, (x, y) = problem("adamw")
    distribution.share_loss(model)
    model.fit(
        distribution.shard(tf.data.Dataset.from_tensor_slices((x, y)).batch(8), two_devices), shuffle=False, verbose=0
    )
    before = model.get_weights()
    distribution.detach(model)
    plain, _, _ = problem("adamw")
    plain.set_weights(before)
    np.testing.assert_allclose(model.predict(x, verbose=0), plain.predict(x, verbose=0), rtol=1e-5)
    assert not any(getattr(layer, "synchronized", False) for layer in model.layers)
    model.compile(loss="mse")
    assert model.evaluate(x, y, verbose=0, return_dict=True)["loss"] > 0

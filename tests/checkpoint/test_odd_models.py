"""Checkpoints of models with train steps, optimizers and metrics of their own, and of what ends at odd places."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.testing import assert_array_equal

import kopt
from kopt.checkpoint import Checkpoint, ShuffledBatches

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 6)).astype("float32"), np.eye(3, dtype="float32")[np.arange(40) % 3]


class Parts(keras.Model):
    """Has two parts with an optimizer each, noise of no seed, and no `call`."""

    def __init__(self):
        super().__init__()
        self.lower = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, "tanh")])
        self.upper = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        self.mean = keras.metrics.Mean("loss")

    def compile(self, lower, upper):
        super().compile()
        self.of_lower, self.of_upper = lower, upper

    @property
    def metrics(self):
        return [self.mean]

    def train_step(self, data):
        x, y = data
        with tf.GradientTape(persistent=True) as tape:
            hidden = self.lower(x)
            loss = tf.reduce_mean((self.upper(hidden + keras.random.normal(tf.shape(hidden))) - y) ** 2)
        for optimizer, part in ((self.of_lower, self.lower), (self.of_upper, self.upper)):
            optimizer.apply(tape.gradient(loss, part.trainable_variables), part.trainable_variables)
        self.mean.update_state(loss)
        return {"loss": self.mean.result()}


def parts(built=True):
    keras.src.backend.common.global_state.set_global_attribute("global_seed_generator", None)
    keras.utils.set_random_seed(1)
    model = Parts()
    model.compile(kopt.Adam(0.01), kopt.Adam(0.02, use_ema=True))
    if built:
        model.of_lower.build(model.lower.trainable_variables)
        model.of_upper.build(model.upper.trainable_variables)
    return model


def scored():
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, "softmax")])
    model.compile(kopt.Adam(0.01), "categorical_crossentropy", metrics=[keras.metrics.F1Score(name="f1")])
    return model


class End(keras.callbacks.Callback):
    """Ends the training before a batch, numbered from the start of `fit`."""

    def __init__(self, at):
        super().__init__()
        self.left = at

    def on_train_batch_begin(self, batch, logs=None):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt


def train(make, folder, every="3s", end=1000):
    data, model = ShuffledBatches(X, Y, batch_size=8), make()
    checkpoint = Checkpoint(folder, every=every, data=data)
    begin = checkpoint.restore(model)
    try:
        history = model.fit(data, epochs=3, initial_epoch=begin, callbacks=[End(end), checkpoint], verbose=0).history
    except KeyboardInterrupt:
        history = None
    return model, history


def values(model):
    held = [model.optimizer, *(getattr(model, name, None) for name in ("of_lower", "of_upper"))]
    return [np.asarray(v) for x in [model, *(x for x in held if x is not None)] for v in x.variables]


@pytest.mark.few(1)
@pytest.mark.parametrize("make", [parts, scored])
@pytest.mark.parametrize("every", [1, pytest.param("3s", marks=pytest.mark.slow)])
def test_odd_models_go_on(make, every, tmp_path):
    model, rows = train(make, tmp_path / "whole")
    train(make, tmp_path / "cut", every, end=9)
    resumed, later = train(make, tmp_path / "cut", every)
    for ours, theirs in zip(values(resumed), values(model), strict=True):
        assert_array_equal(ours, theirs)
    assert len(later["loss"]) == 2
    for name, row in later.items():
        assert_array_equal(row, rows[name][-2:])


def test_second_optimizers_must_be_built(tmp_path):
    train(parts, tmp_path, 1, end=6)
    with pytest.raises(ValueError, match=r"optimizer 'of_lower' is not built"):
        Checkpoint(tmp_path).restore(parts(built=False))


def test_a_model_learns_after_an_end_while_batches_are_read(tmp_path):
    train(scored, tmp_path, end=4)
    model, _ = train(scored, tmp_path, end=1)
    before = model.get_weights()
    model.fit(X, Y, verbose=0)
    assert all((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))

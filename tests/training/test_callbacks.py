"""Averaged weights: evaluated, saved, and never left in the model unasked."""

import keras
import numpy as np
import pytest
from problems import flat, network, regression

import kopt


def evaluated(model, weights):
    """Returns the loss of a model at other weights."""
    before = model.get_weights()
    model.set_weights(weights)
    loss = model.evaluate(regression(), verbose=0)
    model.set_weights(before)
    return loss


class Seen(keras.callbacks.Callback):
    """Keeps the weights after each epoch and batch."""

    def __init__(self):
        super().__init__()
        self.epochs, self.batches = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(self.model.get_weights())

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(self.model.get_weights())


def mean(lists):
    return [np.mean(arrays, axis=0) for arrays in zip(*lists, strict=True)]


def test_swa_is_the_mean_over_epochs():
    model, seen, swa = network(kopt.Adam(0.01)), Seen(), kopt.SWA(start=2, every=2)
    history = model.fit(regression(), epochs=6, verbose=0, callbacks=[seen, swa], shuffle=False)
    expected = mean([seen.epochs[i] for i in (1, 3, 5)])
    np.testing.assert_array_equal(flat(model), np.concatenate([w.ravel() for w in seen.epochs[-1]]))
    with swa.weights():
        np.testing.assert_allclose(flat(model), np.concatenate([w.ravel() for w in expected]), rtol=1e-6)
    np.testing.assert_array_equal(flat(model), np.concatenate([w.ravel() for w in seen.epochs[-1]]))
    assert history.history["loss"][-1] > 0


def test_validation_is_done_at_the_average():
    model, seen, swa = network(kopt.Adam(0.01)), Seen(), kopt.SWA()
    history = model.fit(
        regression(), epochs=3, verbose=0, callbacks=[seen, swa], shuffle=False, validation_data=regression()
    )
    # Keras validates before on_epoch_end: the third validation sees the mean of the first two epochs.
    assert history.history["val_loss"][2] == pytest.approx(evaluated(model, mean(seen.epochs[:2])), rel=1e-5)
    assert model.evaluate(regression(), verbose=0, callbacks=[swa]) == pytest.approx(
        evaluated(model, mean(seen.epochs)), rel=1e-5
    )


def test_ema_decays_by_batch_and_can_be_kept():
    model, seen, ema = network(kopt.Adam(0.01)), Seen(), kopt.EMA(momentum=0.8, every=2, keep=True)
    model.fit(regression(), epochs=2, verbose=0, callbacks=[seen, ema], shuffle=False)
    average = seen.batches[1]
    for weights in seen.batches[3::2]:
        average = [0.8 * a + 0.2 * w for a, w in zip(average, weights, strict=True)]
    np.testing.assert_allclose(flat(model), np.concatenate([w.ravel() for w in average]), rtol=1e-5)


@pytest.mark.parametrize("optimizer", [kopt.ScheduleFreeAdamW, lambda: kopt.AdamW(0.01, use_ema=True)])
def test_the_average_of_the_optimizer(optimizer):
    model = network(optimizer())
    for batch in regression():  # at the end of `fit` Keras would overwrite the weights with the average of use_ema
        model.train_on_batch(*batch)
    callback = kopt.AveragedWeights()
    callback.set_model(model)
    raw = flat(model)
    with callback.weights():
        assert np.abs(flat(model) - raw).max() > 1e-5
    np.testing.assert_array_equal(flat(model), raw)


def test_schedule_free_average_is_the_mean_of_z():
    (w,) = (keras.Variable(np.array([1.0, -2.0])),)
    optimizer, z, points = kopt.ScheduleFreeSGD(0.1), np.array([1.0, -2.0]), []
    for _ in range(5):
        g = w.numpy()
        optimizer.apply([keras.ops.convert_to_tensor(g)], [w])
        z = z - 0.1 * g
        points.append(z)
    np.testing.assert_allclose(optimizer.averages()[0], np.mean(points, axis=0), rtol=1e-5)


def test_batch_normalization_learns_anew():
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(3.0, 2.0, (64, 4)).astype("float32")
    y = x.sum(1, keepdims=True)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(6), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
    )
    model.compile(kopt.Adam(0.05), "mse")
    swa = kopt.SWA(batches=[(x[:32], y[:32]), (x[32:], y[32:])])
    model.fit(x, y, batch_size=16, epochs=4, verbose=0, callbacks=[swa])
    norm = model.layers[1]
    before, momentum = norm.moving_mean.numpy(), norm.momentum
    with swa.weights():
        hidden = model.layers[0](x)
        parts = [hidden[:32], hidden[32:]]
        np.testing.assert_allclose(norm.moving_mean, np.mean([np.mean(p, 0) for p in parts], 0), rtol=1e-4)
        np.testing.assert_allclose(norm.moving_variance, np.mean([np.var(p, 0) for p in parts], 0), rtol=1e-3)
    np.testing.assert_array_equal(norm.moving_mean, before)
    assert norm.momentum == momentum


def test_errors():
    model = network(kopt.Adam(0.01))
    with pytest.raises(ValueError, match="needs an optimizer that averages"):
        model.fit(regression(), verbose=0, shuffle=False, callbacks=[kopt.AveragedWeights()])
    with pytest.raises(ValueError, match="every must be an integer in"):
        kopt.SWA(every=0)
    with pytest.raises(ValueError, match=r"momentum must be a finite number in \[0, 1\)"):
        kopt.EMA(1.0)

"""The mean over the last part of a training."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import network, regression

import kopt

X, Y = (np.concatenate(list(part)) for part in zip(*regression().as_numpy_iterator(), strict=True))


@pytest.fixture(autouse=True)
def _by_operation():
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


class Seen(keras.callbacks.Callback):
    """Notes the weights after each batch."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append([v.numpy() for v in self.model.trainable_variables])

    def mean(self, *batches):
        return [np.mean([self.weights[i][k] for i in batches], axis=0) for k in range(4)]


def fit(model, callbacks, epochs=3, **options):
    options = {"batch_size": 16, "shuffle": False, "verbose": 0} | options
    return model.fit(X, Y, epochs=epochs, callbacks=callbacks, **options).history


def close(values, expected):
    for a, b in zip(values, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=1e-5, atol=1e-7)


@pytest.mark.few(1)
@pytest.mark.filterwarnings("ignore:Even though the .tf.config")
@pytest.mark.parametrize(
    ("share", "every", "batches"), [(0.25, 1, (9, 10, 11)), (0.5, 2, (7, 9, 11)), (0.95, 5, (1, 6, 11))]
)
def test_it_is_the_mean_of_the_last_batches(share, every, batches):
    model, seen, tail = network(kopt.Adam(0.02)), Seen(), kopt.TailAverage(share, every=every)
    history = fit(model, [seen, tail], validation_data=(X, Y))
    close(tail.average(), seen.mean(*batches))
    close([v.numpy() for v in model.trainable_variables], seen.weights[-1])
    with tail.weights():  # what the last validation saw
        assert model.evaluate(X, Y, verbose=0) == pytest.approx(history["val_loss"][-1], rel=1e-5)


@pytest.mark.filterwarnings("ignore:Even though the .tf.config")
def test_a_training_in_parts_is_one_training_and_another_one_begins_anew():
    model, seen, tail = network(kopt.Adam(0.02)), Seen(), kopt.TailAverage(0.5)
    fit(model, [seen, tail], epochs=1)
    fit(model, [seen, tail], epochs=3, initial_epoch=1)
    close(tail.average(), seen.mean(*range(6, 12)))
    fit(model, [seen, tail], epochs=2, batch_size=32)  # four batches of a training of its own
    close(tail.average(), seen.mean(14, 15))

    model, seen, tail = network(kopt.Adam(0.02)), Seen(), kopt.TailAverage(0.5, steps=12)
    for _ in range(3):
        fit(model, [seen, tail], epochs=1)
    close(tail.average(), seen.mean(*range(6, 12)))


@pytest.mark.filterwarnings("ignore:Even though the .tf.config")
def test_a_state_goes_on_in_another_callback():
    model, seen, first = network(kopt.Adam(0.02)), Seen(), kopt.TailAverage(0.5)
    fit(model, [seen, first], epochs=3, initial_epoch=1)
    second = kopt.TailAverage(0.5)
    second.set_state(first.get_state())
    fit(model, [seen, second], epochs=4, initial_epoch=3)  # of 16 batches the last 8, of which the first kept 6
    close(second.average(), seen.mean(*range(2, 12)))


def test_batches_that_are_trained_together_count_each():
    model, tail = network(kopt.Adam(0.02), steps_per_execution=2, run_eagerly=False), kopt.TailAverage(0.5)
    tf.config.run_functions_eagerly(False)
    fit(model, [tail])
    assert int(tail.get_state()["looks"]) == 12
    assert int(tail.get_state()["0.looks"]) == 3


@pytest.mark.filterwarnings("ignore:Even though the .tf.config")
def test_what_it_cannot_know_is_an_error():
    batches = (pair for pair in [(X[:16], Y[:16])] * 4)
    with pytest.raises(ValueError, match=r"does not know how many batches.*TailAverage\(steps=1000\)"):
        network(kopt.Adam()).fit(batches, callbacks=[kopt.TailAverage()], shuffle=False, verbose=0)
    with pytest.raises(ValueError, match="share must be"):
        kopt.TailAverage(0.0)

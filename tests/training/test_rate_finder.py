"""The rate finder: what it suggests for known curves, and that nothing of a sweep remains, however it ends."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import kopt
from kopt.training.rate_finder import suggest

RNG = np.random.default_rng(0)
X = RNG.normal(size=(64, 4)).astype("float32")
Y = X @ np.array([[1.0], [-2.0], [0.5], [0.0]], "float32")
RATES = np.geomspace(1e-4, 1.0, 80)


def network(optimizer=None, **options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dropout(0.3), layers.Dense(1)])
    model.compile(optimizer or kopt.AdamW(0.01), "mse", metrics=["mae"], **options)
    return model


def everything(model):
    """All that a training changes, as arrays and plain values."""
    held = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    arrays = [np.array(v) for v in held]
    names = [model.stop_training, model.steps_per_execution, id(model.optimizer), id(model.train_function)]
    return arrays, [*names, random.getstate(), str(np.random.get_state(legacy=False))]


def same(a, b):
    return a[1] == b[1] and all(np.array_equal(x, y) for x, y in zip(a[0], b[0], strict=True))


# ----------------------------------------------------------------------------------------------------- the suggestion


def test_a_suggestion_is_where_most_of_the_fall_is_done():
    losses = np.interp(np.log10(RATES), [-4, -3, -1, 0], [2.0, 2.0, 1.0, 3.0])  # falls from 1e-3 to 1e-1
    found = suggest(RATES, losses, 0.5, 1.0)
    assert 0.008 < found < 0.013
    assert found < suggest(RATES, losses, 0.7, 1.0) < 0.1 / 3 + 1e-3
    assert suggest(RATES, losses, 0.99, 1.0) == pytest.approx(RATES[np.argmin(losses)] / 3, rel=0.2)  # the margin


def test_a_suggestion_is_not_moved_by_noise():
    losses = np.interp(np.log10(RATES), [-4, -3, -1, 0], [2.0, 2.0, 1.0, 3.0])
    noisy = losses + 0.1 * np.random.default_rng(1).normal(size=80)
    assert suggest(RATES, noisy, 0.7, 2.5) == pytest.approx(suggest(RATES, losses, 0.7, 2.5), rel=0.5)


@pytest.mark.parametrize("losses", [np.full(80, 2.0), np.linspace(1, 2, 80), [3.0, 2.0]])
def test_a_curve_that_does_not_fall_is_an_error(losses):
    with pytest.raises(ValueError, match=r"LearningRateFinder: the loss .* Plot the curve"):
        suggest(RATES[: len(losses)], losses, 0.8, 2.0)


# -------------------------------------------------------------------------------------------------- nothing remains


def test_a_sweep_leaves_everything_as_it_was_and_the_training_after_it_too():
    plain, swept = network(), network()
    for model in (plain, swept):
        model.fit(X, Y, shuffle=False, verbose=0)
    before = everything(swept)
    finder = kopt.LearningRateFinder(steps=30)
    rate = finder.find(swept, X, Y, batch_size=16)
    assert same(before, everything(swept))
    assert len(finder.rates) == len(finder.losses) <= 30 and finder.rates[0] == pytest.approx(1e-7)
    assert np.all(np.diff(finder.rates) > 0) and 1e-4 < rate < 10 and finder.suggestion == rate
    for model in (plain, swept):
        model.fit(X, Y, shuffle=False, verbose=0)
    assert same((everything(plain)[0], []), (everything(swept)[0], []))


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_what_ends_a_sweep_leaves_everything_as_it_was(error, monkeypatch):
    model, epochs = network(), []
    model.fit(X, Y, verbose=0)
    before = everything(model)

    def end(self, epoch, logs=None):
        epochs.append((random.random(), np.random.random()))
        if len(epochs) == 3:
            raise error

    monkeypatch.setattr(keras.callbacks.History, "on_epoch_end", end)
    with pytest.raises(error):
        kopt.LearningRateFinder().find(model, X, Y)
    assert len(epochs) == 3 and same(before, everything(model))


@pytest.mark.slow
def test_the_rate_of_a_model_in_the_making():
    model = keras.Sequential([layers.Dense(1)])
    model.compile(kopt.SGD(kopt.schedules.REX(0.1, steps=5), gradient_accumulation_steps=2), "mse")
    finder = kopt.LearningRateFinder(lowest=1e-4, highest=1.0, steps=40)
    assert 1e-3 < finder.find(model, X, Y, batch_size=16) < 1
    assert len(finder.rates) <= 40 and finder.rates[-1] > 0.05
    assert not model.optimizer.built and float(model.optimizer.learning_rate) == pytest.approx(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.Adam(0.01),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01)),
        lambda: keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, 9), gradient_accumulation_steps=2),
        lambda: kopt.Lookahead(kopt.AdamW(0.01, use_ema=True)),
        lambda: kopt.Route([("kernel", kopt.SGD(0.1)), ("", "adamw")]),
        lambda: kopt.ScheduleFreeAdamW(0.01, on_nonfinite="raise"),
        lambda: kopt.LossScaleOptimizer(kopt.Momentum(0.01, multipliers=[("bias", 2.0)])),
    ],
)
def test_any_optimizer_is_swept(optimizer, tmp_path):
    model = network(optimizer(), steps_per_execution=2)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(16).repeat(2)
    model.fit(data, epochs=1, shuffle=False, verbose=0)
    before, finder = everything(model), kopt.LearningRateFinder(steps=40)
    rate = finder.find(model, data)
    assert same(before, everything(model))
    assert 1e-6 < rate < 5 and finder.rates[0] == pytest.approx(1e-7, rel=1e-3)
    finder.plot(tmp_path / "rates.png")
    assert (tmp_path / "rates.png").read_bytes()[:4] == b"\x89PNG"


# --------------------------------------------------------------------------------------------------------- errors


def test_errors():
    finder = kopt.LearningRateFinder()
    with pytest.raises(ValueError, match="compiled"):
        finder.find(keras.Sequential([layers.Dense(1)]), X, Y)
    with pytest.raises(ValueError, match="iterator"):
        finder.find(network(), iter([(X, Y)]))
    with pytest.raises(ValueError, match="batch_size are for arrays"):
        finder.find(network(), tf.data.Dataset.from_tensors((X, Y)), batch_size=2)
    with pytest.raises(ValueError, match="find"):
        finder.plot("rates.png")
    with pytest.raises(ValueError, match=r"highest must be above lowest. Received: 1.0 to 0.5"):
        kopt.LearningRateFinder(lowest=1.0, highest=0.5)
    with pytest.raises(ValueError, match=r"steps must be an integer in \[10"):
        kopt.LearningRateFinder(steps=5)

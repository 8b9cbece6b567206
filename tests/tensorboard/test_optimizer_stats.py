"""The values that `OptimizerStats` writes, read back from its event files."""

import importlib
import sys
import time
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from events import X, Y, fit, read, regression, run
from keras import ops

import kopt
import kopt.tensorboard
from kopt.tensorboard import OptimizerStats
from kopt.tensorboard.optimizer_stats import _distribution


class Recorder(keras.callbacks.Callback):
    """Keeps the weights before each batch, and after the last."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_batch_begin(self, batch, logs=None):
        self.weights.append([w.copy() for w in self.model.get_weights()])

    def on_epoch_end(self, epoch, logs=None):
        self.on_train_batch_begin(0)


def norm(arrays):
    return np.sqrt(sum(np.sum(np.square(a, dtype=float)) for a in arrays))


def watched(model):
    return bool(ops.convert_to_numpy(model.optimizer._watched))


def gradient(weights, x, y):
    """Of the mean squared error of the linear model."""
    w, b = weights
    error = 2 * (x @ w + b - y) / len(x)
    return [x.T @ error, error.sum(axis=0)]


def test_points_lie_after_every_nth_update_and_the_last(tmp_path):
    scalars, _ = run(tmp_path, kopt.SGD(0.1), every=4)
    assert list(scalars["optimizer/learning_rate"]) == [4, 6]
    assert list(scalars["optimizer/grad_norm"]) == [4, 6]


def test_first_update_with_a_global_clip_or_a_built_optimizer(tmp_path):
    scalars, _ = run(tmp_path / "clip", kopt.SGD(0.1, global_clipnorm=0.1), every=1)
    assert list(scalars["optimizer/grad_norm"]) == [1, 2, 3, 4, 5, 6]
    model = regression(kopt.SGD(0.1))
    model.optimizer.build(model.trainable_weights)
    before = model.get_weights()
    fit(model, OptimizerStats(tmp_path / "built", 1))
    scalars, _ = read(tmp_path / "built")
    assert scalars["optimizer/grad_norm"][1] == pytest.approx(norm(gradient(before, X[:4], Y[:4])), rel=1e-5)


def test_norms_are_those_of_the_update(tmp_path):
    recorder, model = Recorder(), regression(kopt.SGD(0.1, clipnorm=0.5))
    fit(model, [OptimizerStats(tmp_path, 1), recorder])
    scalars, _ = read(tmp_path)
    for i in range(6):
        before, after = recorder.weights[i : i + 2]
        change = [a - b for a, b in zip(after, before, strict=True)]
        grads = gradient(before, X[4 * i : 4 * i + 4], Y[4 * i : 4 * i + 4])
        at = {tag: values[i + 1] for tag, values in scalars.items() if i + 1 in values}
        if i:  # the first batch builds the optimizer
            assert at["optimizer/grad_norm"] == pytest.approx(norm(grads), rel=1e-5)  # before clipping
        assert at["optimizer/update_norm"] == pytest.approx(norm(change), rel=1e-4)
        assert at["optimizer/param_norm"] == pytest.approx(norm(after), rel=1e-5)
        assert at["optimizer/update_to_param"] == pytest.approx(norm(change) / norm(before), rel=1e-4)
        assert at["optimizer/learning_rate"] == pytest.approx(0.1)


def test_clip_fraction_counts_since_the_last_point(tmp_path):
    x = np.ones((8, 1), "float32")
    y = np.float32([[0], [0], [0], [9], [9], [9], [9], [0]])  # at rate 0 the gradient is -2 y, for w and b alike
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile(kopt.SGD(0.0, global_clipnorm=1.0), "mse")
    fit(model, OptimizerStats(tmp_path, 4), x, y, batch_size=1)
    assert read(tmp_path)[0]["optimizer/clip_fraction"] == {4: 0.25, 8: 0.75}
    unclipped, _ = run(tmp_path / "unclipped", kopt.SGD(0.1))
    assert "optimizer/clip_fraction" not in unclipped


@pytest.mark.few(1)
@pytest.mark.parametrize("rule", [kopt.AdaBound, kopt.AdaBoundW])
def test_adabound_stays_between_its_bounds(tmp_path, rule):
    f, gamma = 0.05, 0.1
    scalars, model = run(tmp_path, rule(0.01, final_lr=f, gamma=gamma), every=3)
    statistics, prefix = model.optimizer.statistics(), rule.__name__.lower()
    for t in (3, 6):
        assert scalars[f"{prefix}/lower_bound"][t] == pytest.approx(f * (1 - 1 / (gamma * t + 1)), rel=1e-5)
        assert scalars[f"{prefix}/upper_bound"][t] == pytest.approx(f * (1 + 1 / (gamma * t)), rel=1e-5)
    rates = {path: np.asarray(s["effective_learning_rate"]) for path, s in statistics.items()}
    for path, rate in rates.items():
        low, high = np.percentile(rate, (5, 95))
        for name, value in {"mean": rate.mean(), "p5": low, "p95": high}.items():
            assert scalars[f"layer/{path}/effective_lr_{name}"][6] == pytest.approx(value, rel=1e-5)
    every = np.concatenate([rate.ravel() for rate in rates.values()])  # three of the kernel, one of the bias
    assert len(every) == 4
    assert scalars[f"{prefix}/effective_learning_rate"][6] == pytest.approx(every.mean(), rel=1e-5)
    for name in ("share_at_lower_bound", "share_at_upper_bound"):
        share = sum(float(s[name]) * rates[path].size for path, s in statistics.items()) / 4
        assert scalars[f"{prefix}/{name}"][6] == pytest.approx(share)


def test_effective_rate_of_sgd_is_the_rate(tmp_path):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([3], [0.1, 0.01])
    scalars, _ = run(tmp_path, kopt.SGD(schedule))
    expected = pytest.approx({2: 0.1, 4: 0.01, 6: 0.01})
    assert scalars["optimizer/learning_rate"] == expected
    assert scalars["layer/model/linear/kernel/effective_lr_p95"] == expected
    assert scalars["sgd/effective_learning_rate"] == expected


@pytest.mark.parametrize("size", [2**14, 2**14 + 1, 300 * 128])
def test_percentiles_of_a_sample(size):
    x = np.arange(size, dtype="float32") % 128  # a value a column
    mean, low, high = _distribution(ops.convert_to_tensor(x.reshape(1, -1)))
    assert mean == pytest.approx(x.mean(), rel=1e-5)
    assert (low, high) == pytest.approx(np.percentile(x, (5, 95)), abs=1)


def test_accumulated_batches_count_as_one_update(tmp_path):
    recorder, model = Recorder(), regression(kopt.SGD(0.1, gradient_accumulation_steps=2))
    fit(model, [OptimizerStats(tmp_path, 2), recorder])
    scalars, _ = read(tmp_path)
    assert list(scalars["optimizer/grad_norm"]) == [2, 3]
    assert scalars["optimizer/grad_norm"][3] == pytest.approx(
        norm(gradient(recorder.weights[5], X[16:], Y[16:])), rel=1e-5
    )
    assert scalars["optimizer/update_norm"][3] == pytest.approx(0.1 * scalars["optimizer/grad_norm"][3], rel=1e-4)


def test_the_last_full_accumulation_is_the_last_update(tmp_path):
    scalars, _ = run(tmp_path, kopt.SGD(0.1, gradient_accumulation_steps=4), every=100)
    assert list(scalars["optimizer/update_norm"]) == [1]  # after batch 4 of 6


def test_several_steps_an_execution(tmp_path):
    recorder, model = Recorder(), regression(kopt.SGD(0.1), steps_per_execution=3)
    fit(model, [OptimizerStats(tmp_path, 2), recorder])
    scalars, _ = read(tmp_path)
    assert list(scalars["optimizer/update_norm"]) == [3, 6]
    change = [a - b for a, b in zip(recorder.weights[2], recorder.weights[1], strict=True)]
    assert scalars["optimizer/update_norm"][6] == pytest.approx(norm(change), rel=1e-4)


def test_a_second_fit_and_a_resumed_one_go_on_counting(tmp_path):
    model = regression(kopt.Adam())
    stats = OptimizerStats(tmp_path, 4)
    fit(model, stats)
    fit(model, stats, epochs=3, initial_epoch=1, validation_data=(X, Y))
    fit(model, OptimizerStats(tmp_path, 4), epochs=1, initial_epoch=0)
    scalars, _ = read(tmp_path)
    assert list(scalars["optimizer/grad_norm"]) == [4, 6, 8, 12, 16, 18, 20, 24]


def test_an_early_end_still_gives_a_last_point(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 3

    fit(regression(kopt.SGD(0.1, global_clipnorm=9.0)), [OptimizerStats(tmp_path, 3), Stop()])
    scalars, _ = read(tmp_path)
    assert list(scalars["optimizer/param_norm"]) == list(scalars["optimizer/grad_norm"]) == [3, 4]
    assert list(scalars["optimizer/update_norm"]) == [3]  # nothing told that update 4 would be the last


def test_data_of_unknown_length(tmp_path):
    data = tf.data.Dataset.from_generator(
        lambda: ((X[i : i + 4], Y[i : i + 4]) for i in range(0, 24, 4)),
        output_signature=(tf.TensorSpec((None, 3)), tf.TensorSpec((None, 1))),
    )
    model = regression(kopt.SGD(0.1))
    with pytest.warns(UserWarning, match="ran out of data"):
        model.fit(data, epochs=2, verbose=0, shuffle=False, callbacks=[OptimizerStats(tmp_path, 5)])
    scalars, _ = read(tmp_path)
    assert list(scalars["optimizer/param_norm"]) == [5, 10, 12]


def test_watch_is_on_only_when_a_point_is_due(tmp_path):
    class Watching(keras.callbacks.Callback):
        seen = ()

        def on_train_batch_begin(self, batch, logs=None):
            self.seen += (watched(self.model),)

    model, watching = regression(kopt.Adam()), Watching()
    model.optimizer.build(model.trainable_weights)
    fit(model, [OptimizerStats(tmp_path, 3), watching], epochs=2)
    assert watching.seen == (False, False, True) * 4
    assert not watched(model)


def test_watch_is_off_after_an_interrupted_fit_is_followed_by_another(tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            raise KeyboardInterrupt

    model, stats = regression(kopt.Adam()), OptimizerStats(tmp_path, 1)
    model.optimizer.build(model.trainable_weights)
    with pytest.raises(KeyboardInterrupt):
        fit(model, [stats, Interrupt()])
    assert watched(model)
    stats.every = 100
    fit(model, stats)
    assert not watched(model)
    assert list(read(tmp_path)[0]["optimizer/param_norm"]) == [6]


def test_skipped_steps_are_counted_and_are_no_updates(tmp_path):
    y = Y.copy()
    y[4:8] = np.nan
    scalars, _ = run(tmp_path, kopt.SGD(0.1, on_nonfinite="skip"), y=y, epochs=2)
    assert scalars["optimizer/nonfinite_steps"] == {2: 1, 4: 1, 6: 1, 8: 2, 10: 2}
    assert all(np.isfinite(list(values.values())).all() for values in scalars.values())


def test_throughput_counts_examples_in_training_alone(tmp_path, monkeypatch):
    class Clock(keras.callbacks.Callback):
        now = 0.0

        def on_train_batch_begin(self, batch, logs=None):
            self.now += 0.5

        def on_test_begin(self, logs=None):
            self.now += 100

    clock = Clock()
    monkeypatch.setattr(
        kopt.tensorboard.optimizer_stats, "time", SimpleNamespace(perf_counter=lambda: clock.now, time=time.time)
    )
    fit(regression(kopt.SGD(0.1)), [OptimizerStats(tmp_path, 3), clock], epochs=2, validation_data=(X, Y))
    assert read(tmp_path)[0]["throughput/examples_per_second"] == {3: 8, 6: 8, 9: 8, 12: 8}


def test_updates_a_second_if_nothing_counts_examples(tmp_path):
    class Own(keras.Sequential):
        def train_step(self, data):
            with tf.GradientTape() as tape:
                loss = ops.mean(ops.square(self(data[0]) - data[1]))
            self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
            return {"error": loss}

    model = Own([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(kopt.SGD(0.1))
    fit(model, OptimizerStats(tmp_path, 3))
    scalars, _ = read(tmp_path)
    assert list(scalars["throughput/updates_per_second"]) == [3, 6]
    assert "throughput/examples_per_second" not in scalars


def test_plain_keras_optimizer(tmp_path):
    scalars, _ = run(tmp_path, keras.optimizers.SGD(0.1, clipnorm=1.0))
    assert set(scalars) == {f"optimizer/{name}" for name in ("learning_rate", "param_norm", "update_norm")} | {
        "Loss/train",
        "optimizer/update_to_param",
        "throughput/examples_per_second",
    }
    assert list(scalars["optimizer/update_norm"]) == [2, 4, 6]


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_loss_scale_and_the_rule_inside(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    model = regression(kopt.SGD(0.01))
    assert isinstance(model.optimizer, keras.mixed_precision.LossScaleOptimizer)
    recorder = Recorder()
    model.optimizer.initial_scale = 2.0**8
    fit(model, [OptimizerStats(tmp_path, 2), recorder])
    scalars, _ = read(tmp_path)
    assert scalars["optimizer/loss_scale"] == {2: 256.0, 4: 256.0, 6: 256.0}
    expected = norm(gradient(recorder.weights[5], X[20:], Y[20:]))
    assert scalars["optimizer/grad_norm"][6] == pytest.approx(expected, rel=1e-2)  # of the unscaled gradient
    assert scalars["layer/model/linear/bias/effective_lr_mean"][6] == pytest.approx(0.01)


@pytest.mark.slow
def test_replicas_see_what_one_device_sees(tmp_path, two_devices):
    def train(folder):
        model = regression(kopt.AdaBound(0.01, clipnorm=1.0))
        model.set_weights([np.float32([[0.3], [0.2], [0.1]]), np.float32([0.5])])
        fit(model, OptimizerStats(folder, 2), epochs=2)
        return read(folder)[0]

    one = train(tmp_path / "one")
    with two_devices.scope():
        two = train(tmp_path / "two")
    assert set(one) == set(two)
    for tag in set(one) - {"throughput/examples_per_second"}:
        assert two[tag] == pytest.approx(one[tag], rel=1e-4), tag
    assert list(two["throughput/examples_per_second"]) == list(one["throughput/examples_per_second"])


@pytest.mark.parametrize("every", [0, -1, 2.5, True])
def test_bad_period(tmp_path, every):
    with pytest.raises(ValueError, match="every must be an integer in"):
        OptimizerStats(tmp_path, every)


def test_old_or_missing_tensorboard_is_told_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("tensorboard.version.VERSION", "2.9.1")
    with pytest.raises(ImportError, match=r"^OptimizerStats needs tensorboard >= 2\.21: .*version 2\.9\.1 is too old"):
        OptimizerStats(tmp_path)
    monkeypatch.setitem(sys.modules, "tensorboard.version", None)
    with pytest.raises(ImportError, match=r"^OptimizerStats needs tensorboard >= 2\.21: pip install[^\n]*$"):
        OptimizerStats(tmp_path)


def test_import_is_light(monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("tensorboard", "kopt.tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    importlib.import_module("kopt.tensorboard")
    assert not [name for name in sys.modules if name.startswith("tensorboard")]


def test_uncompiled_model(tmp_path):
    stats = OptimizerStats(tmp_path)
    stats.set_model(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
    with pytest.raises(ValueError, match="compiled with an optimizer"):
        stats.on_train_begin()

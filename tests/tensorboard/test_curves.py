"""What a curve shows: the loss by step, as many points as are needed, no rates of what was never read; one run."""

import contextlib
import shutil
import struct
import zlib

import keras
import numpy as np
import pytest
from events import X, Y, fit, read, regression, run

import kopt
from kopt import peft
from kopt.checkpoint import Checkpoint, ShuffledBatches
from kopt.tensorboard import AdapterStats, EventFile, OptimizerStats
from kopt.tensorboard.points import period


class StopError(Exception):
    """Ends a training where a process could be killed."""


@pytest.mark.slow
@pytest.mark.parametrize("place", [(0, 4), (1, 1), (1, 2)])
def test_a_training_that_goes_on_writes_the_same_losses(tmp_path, place):
    batches = ShuffledBatches(X, Y, batch_size=4, seed=0)

    def train(folder, stop=None):
        class Ends(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch, logs=None):
                self.epoch = epoch

            def on_train_batch_end(self, batch, logs=None):
                if (self.epoch, batch) == stop:
                    raise StopError

        model, stats = regression(kopt.SGD(0.05, global_clipnorm=1.0)), OptimizerStats(folder / "logs", 4)
        model.build((None, 3))
        checkpoint = Checkpoint(folder / "checkpoints", every="2s", callbacks=[stats], data=batches)
        begin = checkpoint.restore(model)
        model.fit(batches, epochs=2, initial_epoch=begin, verbose=0, callbacks=[stats, checkpoint, Ends()])

    keras.utils.set_random_seed(0)
    train(tmp_path / "whole")
    for stop in (place, None):
        keras.utils.set_random_seed(0)
        with contextlib.suppress(StopError):
            train(tmp_path / "parts", stop)
    whole, parts = (read(tmp_path / name / "logs")[0]["Loss/train"] for name in ("whole", "parts"))
    assert list(whole) == [4, 8, 12] and parts == whole


class Losses(keras.callbacks.Callback):
    """Notes the loss of each batch."""

    def on_epoch_begin(self, epoch, logs=None):
        self.total = 0.0
        self.of = getattr(self, "of", [])

    def on_train_batch_end(self, batch, logs=None):
        mean = logs["loss"] * (batch + 1)
        self.of.append(mean - self.total)
        self.total = mean


@pytest.mark.parametrize("validated", [False, True])
def test_the_loss_is_the_mean_since_the_last_point_across_epochs(tmp_path, validated):
    noted = Losses()
    options = {"validation_data": (X * 9, Y)} if validated else {}
    fit(regression(kopt.SGD(0.05)), [OptimizerStats(tmp_path, 4), noted], epochs=2, **options)
    expected = {step: np.mean(noted.of[step - 4 : step]) for step in (4, 8, 12)}
    assert read(tmp_path)[0]["Loss/train"] == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_skipped_updates_is_left_out_until_the_epoch_ends(tmp_path):
    y = Y.copy()
    y[8:12] = np.nan  # the third batch
    scalars, _ = run(tmp_path / "a", kopt.SGD(0.1, on_nonfinite="skip"), y=y, every=1, epochs=2)
    assert list(scalars["Loss/train"]) == [1, 2, 6, 7]
    assert list(scalars["optimizer/param_norm"]) == list(range(1, 11))
    shown = run(tmp_path / "b", kopt.SGD(0.1), y=y, every=3)[0]["Loss/train"]
    assert not np.isfinite([*shown.values()]).any()  # nothing was skipped: the training is lost


@pytest.mark.parametrize(
    "epochs, steps, stride, expected", [(1, 6, 1, 1), (10, 100, 1, 10), (3, 67, 1, 3), (10, 100, 4, 3), (1, 1, 1, 1)]
)
def test_about_a_hundred_points_whatever_the_length(epochs, steps, stride, expected):
    assert period({"epochs": epochs, "steps": steps}, stride, 0) == expected
    assert epochs * steps / stride / expected <= 100


def test_points_of_an_unknown_length_thin_out():
    steps = [0]
    while steps[-1] < 100_000:
        every = period({"epochs": 1, "steps": None}, 1, steps[-1])
        steps.append((steps[-1] // every + 1) * every)
    assert steps[:201] == list(range(201)) and steps[201] == 202 and len(steps) < 1200
    assert period({"epochs": 1, "steps": None}, 1, -1) == 1


def test_the_default_is_a_hundred_points(tmp_path):
    fit(regression(kopt.SGD(0.01)), OptimizerStats(tmp_path), batch_size=1, epochs=9)  # 216 updates
    assert list(read(tmp_path)[0]["Loss/train"]) == [*range(3, 217, 3)]


def embedding(optimizer):
    layers = [keras.layers.Embedding(1000, 4, name="table"), keras.layers.Flatten(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((2,), dtype="int32"), *layers], name="model")
    model.compile(optimizer, "mse")
    return model


@pytest.mark.parametrize("rule, state_dtype", [(kopt.AdamW, "float32"), (kopt.AdaGrad, "int8")])
def test_rows_that_no_batch_has_read_have_no_rate(tmp_path, rule, state_dtype):
    model = embedding(rule(0.003, state_dtype=state_dtype))
    x, y = np.int32([[1, 2], [2, 3], [998, 3]]), np.ones((3, 1), "float32")
    fit(model, OptimizerStats(tmp_path, 1), x, y, batch_size=3, epochs=2)
    read_rows = np.asarray(model.optimizer.statistics()["model/table/embeddings"]["effective_learning_rate"])
    rates = np.broadcast_to(read_rows, (1000, 4))[[1, 2, 3, 998]]
    scalars, _ = read(tmp_path)
    tag = "layer/model/table/embeddings/effective_lr_"
    assert scalars[tag + "mean"][2] == pytest.approx(rates.mean(), rel=1e-5)
    low, high = np.percentile(rates, (5, 95))
    assert (scalars[tag + "p5"][2], scalars[tag + "p95"][2]) == pytest.approx((low, high), rel=1e-5)
    assert scalars[f"{rule.__name__.lower()}/effective_learning_rate"][2] < 10  # 30,000 are lr / epsilon


def test_rows_that_no_batch_has_read_are_at_no_bound(tmp_path):
    model = embedding(kopt.AdaBound(1.0, final_lr=5.0, gamma=0.05))
    fit(model, OptimizerStats(tmp_path, 1), np.int32([[1, 2], [2, 3], [998, 3]]), np.ones((3, 1)), batch_size=3)
    rates = {path: np.asarray(s["effective_learning_rate"]) for path, s in model.optimizer.statistics().items()}
    table = rates.pop("model/table/embeddings")[[1, 2, 3, 998]]
    every = np.concatenate([table.ravel(), *(rate.ravel() for rate in rates.values())])
    scalars, _ = read(tmp_path)
    expected = np.mean(every >= scalars["adabound/upper_bound"][1] * (1 - 1e-6))
    assert 0 < expected < 1
    assert scalars["adabound/share_at_upper_bound"][1] == pytest.approx(expected)


def test_a_weight_without_any_gradient_is_left_out(tmp_path):
    model = regression(kopt.Adam(0.01))
    fit(model, OptimizerStats(tmp_path, 1), X * np.float32([1, 0, 1]), Y)
    kernel = np.asarray(model.optimizer.statistics()["model/linear/kernel"]["effective_learning_rate"])
    shown = read(tmp_path)[0]["layer/model/linear/kernel/effective_lr_mean"][6]
    assert shown == pytest.approx(kernel[[0, 2]].mean(), rel=1e-5) and kernel[1] > 1e4
    model = regression(kopt.Adam(0.01))
    model.layers[0].bias.trainable = True
    fit(model, OptimizerStats(tmp_path / "none", 1), X * 0, Y * 0)
    assert not any(tag.startswith("layer/") for tag in read(tmp_path / "none")[0])


def test_all_that_write_to_a_folder_are_one_run(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="one"), keras.layers.Dense(1)])
    peft.get_peft_model(model, peft.LoRA(r=1, target_modules=["one"]))
    model.compile(kopt.AdamW(0.01), "mse")
    stats, calls = OptimizerStats(tmp_path / "logs", 3, log=lambda values, step: calls.append((step, values))), []

    class Mine(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            stats.add({"mine": float(epoch)})

    with EventFile(tmp_path / "logs") as file:
        fit(model, [stats, AdapterStats(tmp_path / "logs", 3), Mine()], epochs=2)
        file.scalars({"beside": 1.0}, 12)
    assert len([*(tmp_path / "logs").iterdir()]) == 1
    scalars, _ = read(tmp_path / "logs")
    assert scalars["mine"] == {6: 0, 12: 1} and scalars["beside"] == {12: 1}
    assert list(scalars["adapter/default/norm"]) == [0, 3, 6, 9, 12]
    assert [step for step, _ in calls] == [3, 6, 6, 9, 12, 12]
    assert calls[1][1]["Loss/train"] == pytest.approx(scalars["Loss/train"][6])


def test_a_folder_that_was_removed_is_made_again(tmp_path):
    left_open = EventFile(tmp_path / "logs")
    left_open.scalars({"a": 1.0}, 1)
    shutil.rmtree(tmp_path / "logs")
    with EventFile(tmp_path / "logs") as file:
        file.scalars({"b": 2.0}, 2)
    left_open.close()
    assert read(tmp_path / "logs")[0] == {"b": {2: 2.0}}


def test_without_a_folder_the_function_alone_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = {}
    stats = OptimizerStats(None, 6, hparams={"a": 1}, log=lambda values, step: seen.update(values))
    fit(regression(kopt.SGD(0.1)), stats)
    stats.finish({"accuracy": 0.5})
    assert {"Loss/train", "accuracy", "optimizer/learning_rate"} <= set(seen)
    assert not [*tmp_path.iterdir()]
    with pytest.raises(ValueError, match="the path of a folder, or None"):
        OptimizerStats(5)


def test_images_are_those_of_png_files(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 3, 2, 8, 0, 0, 0, 0)
    rows = zlib.compress(b"\0\1\2\3" * 2)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    with EventFile(tmp_path) as file:
        file.image("picture", png, 4)
        with pytest.raises(ValueError, match="picture: expected the content of a PNG file"):
            file.image("picture", b"GIF89a", 4)
    (event,) = read(tmp_path)[1].Images("picture")
    assert (event.step, event.width, event.height, event.encoded_image_string) == (4, 3, 2, png)

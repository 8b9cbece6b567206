"""The recipes as a user meets them: flags, files, exit codes."""

import csv
import gzip
import inspect
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import kopt
from recipes import _callbacks, _cli, _data, _optimizer, _plots, _run, mnist

# Keras hands its variables to NumPy 2 without the keyword `copy`.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

LINE = re.compile(r"Epoch: \d{3} \| train loss: \d+\.\d{4} \| test loss: \d+\.\d{4} \| test accuracy: [01]\.\d{4}")


def blobs(n, seed):
    """Images whose class can be told from where they are bright, with noise enough for errors."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 10
    x = rng.integers(0, 200, (n, 28, 28))
    for image, label in zip(x, y, strict=True):
        image[2 * label + 3 : 2 * label + 6, 6:22] += 55
    return x.astype(np.uint8), y.astype(np.int64)


@pytest.fixture(scope="session")
def arrays():
    return (*blobs(200, 0), *blobs(60, 1))


@pytest.fixture(scope="session")
def npz(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "blobs.npz"
    np.savez(path, **dict(zip(("x_train", "y_train", "x_test", "y_test"), arrays, strict=True)))
    return path


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    keras.config.set_dtype_policy("float32")
    tf.config.experimental.enable_tensor_float_32_execution(True)


def read_rows(folder):
    with (folder / "history.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves the pictures out, which take most of the time of a small run."""
    for name in ("plot_confusion", "plot_errors", "log_images"):
        monkeypatch.setattr(_plots, name, lambda *args, **kwargs: None)


@pytest.fixture
def train(npz):
    """Trains for an epoch of four steps unless told otherwise; returns metrics and folder."""

    def run(*flags, code=0):
        folder = Path("out") / str(time.monotonic_ns())
        defaults = ["--data", str(npz), "--model", "mlp", "--epochs", "1", "--batch-size", "50"]
        assert mnist.main(["train", *defaults, "--output-dir", str(folder), *flags]) == code
        return json.loads((folder / "metrics.json").read_text()), folder

    return run


@pytest.fixture(scope="session")
def baseline(npz, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "baseline"
    flags = f"--data {npz} --model mlp --epochs 2 --batch-size 50 --optimizer adam --progress plain".split()
    assert mnist.main([*flags, "--output-dir", str(folder)]) == 0
    return folder


# ------------------------------------------------------------------------------------------------- what a run leaves


def test_lines_and_folder(train, capsys):
    metrics, folder = train("--epochs", "3")
    out = capsys.readouterr().out
    assert "━" not in out  # no bar but on a terminal
    lines = [line for line in out.splitlines() if line.startswith("Epoch")]
    assert len(lines) == 3 and all(LINE.fullmatch(line) for line in lines)
    assert lines[0].startswith("Epoch: 001 | ")
    assert {path.name for path in folder.iterdir()} == {*_run.FILES, "logs"}
    rows = read_rows(folder)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert metrics["test_loss"] == pytest.approx(rows[-1]["test_loss"], rel=1e-4)
    assert f"{metrics['test_loss']:.4f} | test accuracy: {metrics['test_accuracy']:.4f}" in lines[-1]
    assert metrics["parameters"] == 203_530 and metrics["optimizer"] == "adabound" and metrics["epochs"] == 3
    assert metrics["data"] == "blobs.npz" and metrics["seed"] == 42 and metrics["train_seconds"] > 0
    assert set(metrics["test_recall"]) == set("0123456789") and set(metrics["versions"]) >= {"kopt", "keras"}
    card = (folder / "README.md").read_text()
    assert "python -m recipes.mnist" in card and f"{metrics['test_accuracy']:.4f}" in card and "keras 3" in card
    for name in ("confusion.png", "errors.png"):
        assert np.asarray(Image.open(folder / name).convert("L")).std() > 10


def test_saved_model_loads_with_its_optimizer(train, undrawn):
    folder = train()[1]
    model = keras.models.load_model(folder / "model.keras")
    assert isinstance(model.optimizer, kopt.AdaBound)
    assert int(model.optimizer.iterations) == 4


def test_tensorboard(baseline):
    def tags(run):
        events = EventAccumulator(str(baseline / "logs" / run))
        events.Reload()
        return {tag for kind in events.Tags().values() if isinstance(kind, list) for tag in kind}

    assert {"epoch_loss", "epoch_accuracy", "confusion", "errors"} <= tags("validation")
    assert {"epoch_loss", "epoch_accuracy"} <= tags("train")
    assert {"optimizer/learning_rate", "settings"} <= {tag.removesuffix("/text_summary") for tag in tags("")}
    assert {"test_loss", "test_accuracy"} <= tags("hparams")


def test_schedule_reaches_fit(baseline):
    events = EventAccumulator(str(baseline / "logs" / "train"))
    events.Reload()
    rates = [float(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors("epoch_learning_rate")]
    assert rates == pytest.approx([5e-4, 0], abs=1e-9)  # half a cosine over two epochs


def test_config_round_trip(baseline, train):
    config = yaml.safe_load((baseline / "config.yaml").read_text())
    assert config["optimizer"] == "adam" and "output_dir" not in config and "config" not in config
    again = Path("again")
    assert mnist.main(["--config", str(baseline / "config.yaml"), "--output-dir", str(again)]) == 0
    assert yaml.safe_load((again / "config.yaml").read_text()) == config
    first, second = (json.loads((f / "metrics.json").read_text()) for f in (baseline, again))
    assert first["test_loss"] == second["test_loss"]  # the seed settles the result


def test_flags_win_over_config():
    Path("c.yaml").write_text("epochs: 7\nlearning-rate: 1e-3\naugment: true\nopt: {final_lr: 0.5}\nseed: null\n")
    flags = _cli.parse(["--epochs=3", "--config", "c.yaml", "--opt", "gamma=0.1"], {"train": mnist.Train}, "x")
    assert flags.epochs == 3 and flags.augment and flags.run.seed == 42
    assert flags.optim.learning_rate == 0.001 and flags.optim.opt == ("final_lr=0.5", "gamma=0.1")
    assert not _cli.parse(["--config=c.yaml", "--no-augment"], {"train": mnist.Train}, "x").augment


def test_help_needs_no_keras():
    code = (
        "import sys; from recipes import mnist\n"
        "try: mnist.main(['predict', '--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert not {'keras', 'tensorflow', 'matplotlib', 'sklearn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(mnist.__file__).parents[1], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"--invert" in done.stdout


# ----------------------------------------------------------------------------------------- every flag does something


@pytest.mark.parametrize(
    "flags",
    [
        "--batch-size 40",
        "--epochs 1",
        "--max-steps 5",
        "--seed 1",
        "--validation-split 0.2",
        "--augment",
        "--dropout 0.5",
        "--label-smoothing 0.2",
        "--optimizer sgd --learning-rate 1e-2",
        "--precision mixed_bfloat16",
    ],
)
def test_flag_changes_the_result(flags, baseline, undrawn):
    argv = ["--config", str(baseline / "config.yaml"), "--output-dir", "run", *flags.split()]
    assert mnist.main(argv) == 0
    before, after = (json.loads((folder / "metrics.json").read_text()) for folder in (baseline, Path("run")))
    assert before["test_loss"] != after["test_loss"]
    assert np.isfinite(after["test_loss"])


def descend(**flags):
    """Five steps from 1 on half the square, and the average if there is one."""
    optimizer = _optimizer.make_optimizer(_optimizer.OptimizerFlags(**flags), 6)
    w = keras.Variable([1.0], name="w")
    for _ in range(5):
        optimizer.apply([keras.ops.convert_to_tensor(w)], [w])
    optimizer.finalize_variable_values([w])
    return float(w.numpy()[0])


@pytest.mark.parametrize("optimizer", ["adam", "ftrl"])
@pytest.mark.parametrize(
    "flags",
    [
        {"learning_rate": 0.5},
        {"lr_schedule": "cosine"},
        {"lr_schedule": "linear"},
        {"warmup": "50%"},
        {"weight_decay": 0.9},
        {"clip_norm": 1e-8},
        {"grad_accum": 2},
        {"ema": 0.9},
    ],
)
def test_flag_changes_the_steps(flags, optimizer):
    assert descend(optimizer=optimizer, **flags) != descend(optimizer=optimizer)


def test_opt_changes_the_steps():
    assert descend(opt=("final_lr=1e-8", "gamma=100")) != descend() != descend(optimizer="lion")


@pytest.mark.parametrize("flag, value", [("auto", "auto"), ("on", True), ("off", False)])
def test_jit(flag, value, npz, monkeypatch):
    def compile_(self, **options):
        assert options["jit_compile"] == value
        raise _cli.UsageError("seen")

    monkeypatch.setattr(keras.Sequential, "compile", compile_)
    assert mnist.main(["--data", str(npz), "--model", "mlp", "--jit", flag]) == 2


@pytest.mark.parametrize("precision", ["float32", "mixed_float16", "mixed_bfloat16", "tf32"])
def test_precision(precision):
    _run.prepare(_run.RunFlags(precision=precision))
    mixed = precision.startswith("mixed")
    assert keras.config.dtype_policy().compute_dtype == (precision.removeprefix("mixed_") if mixed else "float32")
    assert tf.config.experimental.tensor_float_32_execution_enabled() == (precision == "tf32")
    model = mnist.build("cnn", 0.1)
    assert model(np.zeros((1, 28, 28), np.uint8)).dtype == "float32"


def test_mixed_float16_trains(train, undrawn):
    assert np.isfinite(train("--precision", "mixed_float16", "--ema", "0.5", "--progress", "none")[0]["test_loss"])


def test_deterministic(monkeypatch):
    called = []
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: called.append(1))
    _run.prepare(_run.RunFlags())
    assert not called
    _run.prepare(_run.RunFlags(deterministic=True))
    assert called


def test_models():
    assert mnist.build("mlp", 0.0).count_params() == 203_530
    cnn = mnist.build("cnn", 0.5)
    assert cnn(np.zeros((2, 28, 28), np.uint8)).shape == (2, 10)
    assert {layer.rate for layer in cnn.layers if isinstance(layer, keras.layers.Dropout)} == {0.5}


def test_progress(train, capsys, undrawn):
    train("--progress", "none")
    assert capsys.readouterr().out == ""
    train("--progress", "rich")
    drawn = capsys.readouterr().out
    assert "━" in drawn and LINE.search(drawn)


def test_run_name_and_default_folder(npz, undrawn):
    flags = ["--data", str(npz), "--model", "mlp", "--max-steps", "1", "--epochs", "1"]
    assert mnist.main([*flags, "--run-name", "mine"]) == 0
    assert (Path("saved_models/mnist/mine") / "metrics.json").exists()
    name = _run.run_folder(_run.RunFlags(), "mnist", "AdaBound").name
    assert re.fullmatch(r"adabound-\d{8}-\d{6}", name)
    with pytest.raises(_cli.UsageError):
        _run.run_folder(_run.RunFlags(run_name="../x"), "mnist", "adam")


def test_dry_run_leaves_nothing(npz, capsys):
    assert mnist.main(["--data", str(npz), "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("dry run: cnn, ")
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize("ema, split", [((), ()), (("--ema", "0.9"), ("--validation-split", "0.2"))])
def test_early_stopping_returns_to_the_best_weights(train, ema, split, undrawn):
    # A rate this high makes the loss worse soon.
    rate = ("--optimizer", "sgd", "--learning-rate", "3", "--lr-schedule", "constant", "--clip-norm", "1")
    metrics, folder = train("--epochs", "30", "--early-stopping", "2", *rate, *ema, *split)
    rows = read_rows(folder)
    watched = [row["val_loss" if split else "test_loss"] for row in rows]
    assert metrics["epochs"] < 30
    assert metrics["best_epoch"] == int(np.argmin(watched)) + 1 == metrics["epochs"] - 2
    assert metrics["test_loss"] == pytest.approx(rows[metrics["best_epoch"] - 1]["test_loss"], rel=1e-3)


def test_ema_is_what_is_tested(train, undrawn):
    metrics, folder = train("--epochs", "2", "--ema", "0.8", "--validation-split", "0.2")
    rows = read_rows(folder)
    assert metrics["test_loss"] == pytest.approx(rows[-1]["test_loss"], rel=1e-4)


# --------------------------------------------------------------------------------------------------------- optimizer


def rates(steps, **flags):
    optimizer = _optimizer.make_optimizer(_optimizer.OptimizerFlags(learning_rate=1.0, **flags), steps)
    schedule = optimizer._learning_rate
    return [round(float(schedule(step)), 4) for step in range(0, steps + 1, steps // 4)]


@pytest.mark.parametrize("name", ["adabound", "ftrl"])
def test_schedules(name):
    assert rates(8, optimizer=name, lr_schedule="linear") == [1, 0.75, 0.5, 0.25, 0]
    assert rates(8, optimizer=name, lr_schedule="linear", warmup="50%") == [0, 0.5, 1, 0.5, 0]
    assert rates(8, optimizer=name, lr_schedule="cosine") == [1, 0.8536, 0.5, 0.1464, 0]
    assert rates(8, optimizer=name, lr_schedule="cosine", warmup="4") == [0, 0.5, 1, 0.5, 0]
    assert rates(8, optimizer=name, warmup="4") == [0, 0.5, 1, 1, 1]


def test_schedule_counts_updates():
    flags = {"lr_schedule": "linear", "warmup": "50%", "grad_accum": 4, "learning_rate": 1.0}
    ours = _optimizer.make_optimizer(_optimizer.OptimizerFlags(optimizer="adabound", **flags), 80)
    keras_ = _optimizer.make_optimizer(_optimizer.OptimizerFlags(optimizer="ftrl", **flags), 80)
    assert float(ours._learning_rate(10)) == float(keras_._learning_rate(40)) == 1.0
    assert float(ours._learning_rate(20)) == float(keras_._learning_rate(80)) == 0.0


def test_default_rate_is_the_optimizers_own():
    scheduled = _optimizer.make_optimizer(_optimizer.OptimizerFlags(lr_schedule="cosine"), 10)
    assert float(scheduled._learning_rate(0)) == pytest.approx(float(kopt.AdaBound().learning_rate))


def test_schedule_is_saved():
    optimizer = _optimizer.make_optimizer(_optimizer.OptimizerFlags(lr_schedule="linear", warmup="10%"), 100)
    config = keras.optimizers.serialize(optimizer)
    again = keras.optimizers.deserialize(config)
    assert float(again._learning_rate(5)) == float(optimizer._learning_rate(5)) > 0


def test_options():
    pairs = ("a=1", "b=1e-3", "c=true", "d=x", "e=null", "f=0.5")
    assert _optimizer.parse_options(pairs) == {"a": 1, "b": 0.001, "c": True, "d": "x", "e": None, "f": 0.5}
    optimizer = _optimizer.make_optimizer(_optimizer.OptimizerFlags(opt=("final_lr=1e-2", "ams_bound=true")), 1)
    assert optimizer.final_lr == 0.01 and optimizer.ams_bound is True


@pytest.mark.parametrize("name", sorted(kopt.registry()))
def test_every_optimizer_can_be_named(name):
    assert isinstance(_optimizer.make_optimizer(_optimizer.OptimizerFlags(optimizer=name.upper()), 1), kopt.Optimizer)


def test_keras_optimizers_can_be_named():
    assert _optimizer.find_class("Ftrl") is keras.optimizers.Ftrl


# -------------------------------------------------------------------------------------------------------- exit codes


def fails(capsys, code, *argv):
    capsys.readouterr()
    assert mnist.main(list(map(str, argv))) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    "flags, says",
    [
        ("--optimizer adamm", "adam"),
        ("--opt bta_1=1", "beta_1"),
        ("--optimizer ftrl --opt foo=1", "takes"),
        ("--opt beta_1=3", "beta_1"),
        ("--opt beta_1", "NAME=VALUE"),
        ("--grad-accum 0", "at least 1"),
        ("--ema 2", "ema_momentum"),
        ("--clip-norm=-1", "clipnorm"),
        ("--warmup many", "percentage"),
        ("--warmup 200%", "updates"),
        ("--epochs 0", "at least 1"),
        ("--batch-size 0", "at least 1"),
        ("--max-steps 0", "at least 1"),
        ("--early-stopping 0", "at least 1"),
        ("--seed=-1", "at least 0"),
        ("--dropout 1", "less than 1"),
        ("--validation-split 0.001", "validation-split"),
        ("--config missing.yaml", "missing.yaml"),
    ],
)
def test_usage_errors(flags, says, npz, capsys):
    assert says in fails(capsys, 2, "--data", npz, "--model", "mlp", *flags.split())
    assert not Path("saved_models").exists()


@pytest.mark.parametrize("content, says", [("epoch: 3", "epochs"), ("[1]", "list"), ("a: [", "YAML"), ("", "NoneType")])
def test_bad_config(content, says, capsys):
    Path("c.yaml").write_text(content)
    assert says in fails(capsys, 2, "--config", "c.yaml")


@pytest.mark.parametrize("flags", ["--model vgg", "--epochs x", "--nonsense 1"])
def test_malformed_flags(flags, capsys):
    with pytest.raises(SystemExit) as exit_:
        mnist.main(flags.split())
    assert exit_.value.code == 2


def test_full_folder_is_refused(train, npz, capsys, undrawn):
    folder = train()[1]
    argv = ["--data", npz, "--model", "mlp", "--max-steps", "1", "--epochs", "1", "--output-dir", folder]
    assert "--overwrite" in fails(capsys, 2, *argv)
    before = (folder / "metrics.json").read_text()
    assert mnist.main([*map(str, argv), "--overwrite"]) == 0
    assert (folder / "metrics.json").read_text() != before
    assert len(list((folder / "logs" / "train").iterdir())) == 1  # the old events are gone
    Path("precious").mkdir()
    Path("precious/file").touch()
    assert "not a run" in fails(capsys, 2, *argv[:-1], "precious", "--overwrite")
    assert Path("precious/file").exists()


def damage(arrays, **changes):
    Path("bad.npz").unlink(missing_ok=True)
    parts = dict(zip(("x_train", "y_train", "x_test", "y_test"), arrays, strict=True)) | changes
    np.savez("bad.npz", **{key: value for key, value in parts.items() if value is not None})
    return "bad.npz"


def test_data_errors(arrays, npz, capsys):
    x, y = arrays[:2]

    def says(data):
        return fails(capsys, 3, "--data", data)

    assert "no such file" in says("nowhere").lower()
    assert "no such file" in says("nowhere.npz").lower()
    assert "y_test" in says(damage(arrays, y_test=None))
    assert "(n, 28, 28)" in says(damage(arrays, x_train=x[:, :27]))
    assert "uint8" in says(damage(arrays, x_train=x / 255))
    assert "float64" in says(damage(arrays, y_train=y / 1.0))
    assert "199 labels" in says(damage(arrays, y_train=y[1:]))
    assert "0 to 10" in says(damage(arrays, y_train=y % 10 + (y == 9)))
    assert "-1" in says(damage(arrays, y_test=arrays[3] - 1))
    whole = npz.read_bytes()
    Path("cut.npz").write_bytes(whole[: len(whole) // 2])
    assert "cut short" in says("cut.npz")
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 255
    Path("flipped.npz").write_bytes(middle)
    assert "flipped.npz" in says("flipped.npz")
    Path("text.npz").write_text("x,y")
    assert "text.npz" in says("text.npz")
    np.save("array.npy", x)
    assert "array.npy" in says("array.npy")


def idx(array, zipped):
    head = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = head + array.astype(np.uint8).tobytes()
    return gzip.compress(content) if zipped else content


@pytest.mark.parametrize("zipped", [False, True])
def test_idx(arrays, zipped, capsys):
    folder = Path("idx")
    folder.mkdir()
    names = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte"]
    files = [folder / (name + ".gz" * zipped) for name in names]
    for file, array in zip(files, arrays, strict=True):
        file.write_bytes(idx(array, zipped))
    for read, array in zip(mnist.load("idx"), arrays, strict=False):
        np.testing.assert_array_equal(read, array)
    good = files[0].read_bytes()
    for bad in (good[:-5], good[: len(good) // 2], good[:2], b"", b"PNG!" + good):
        files[0].write_bytes(bad)
        fails(capsys, 3, "--data", "idx")
    files[0].unlink()
    assert "train-images-idx3-ubyte" in fails(capsys, 3, "--data", "idx")


def test_divergence(npz, capsys):
    argv = ["--data", npz, "--model", "mlp", "--optimizer", "sgd", "--learning-rate", "1e30", "--output-dir", "out"]
    assert "at step" in fails(capsys, 4, *argv)
    assert not Path("out/model.keras").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupt(train, undrawn, monkeypatch):
    end = _callbacks.Report.on_train_batch_end

    def interrupted(self, batch, logs=None):
        if self.steps_done == 5:
            signal.raise_signal(signal.SIGINT)
        end(self, batch, logs)

    monkeypatch.setattr(_callbacks.Report, "on_train_batch_end", interrupted)
    metrics, folder = train("--epochs", "9", "--ema", "0.5", code=130)
    assert metrics["interrupted"] and metrics["epochs"] == 2
    assert "interrupted" in (folder / "README.md").read_text()
    assert keras.models.load_model(folder / "model.keras").optimizer.iterations == 6
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_second_interrupt_quits(npz, monkeypatch, capsys):
    def twice(self, batch, logs=None):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(_callbacks.Report, "on_train_batch_end", twice)
    assert mnist.main(["--data", str(npz), "--model", "mlp", "--output-dir", "out"]) == 130
    assert not Path("out/model.keras").exists()


# -------------------------------------------------------------------------------------------------------------- data


def test_auto_without_network(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(_data, "is_reachable", lambda url, seconds: False)
    data = mnist.load("auto")
    assert data.source == "scikit-learn digits"
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "scikit-learn" in err
    assert "cannot be downloaded" in fails(capsys, 3, "--data", "mnist")


def test_auto_with_a_cache(monkeypatch, arrays, capsys):
    monkeypatch.setattr(_data, "is_reachable", lambda url, seconds: True)
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: (arrays[:2], arrays[2:]))
    assert mnist.load("auto").source == "MNIST (Keras)"

    def broken():
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", broken)
    assert mnist.load("auto").source == "scikit-learn digits"


def test_a_silent_server_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        assert not _data.is_reachable(f"http://127.0.0.1:{server.getsockname()[1]}/", 0.3)
        assert time.monotonic() - began < 2


def test_digits():
    data = mnist.load("digits")
    assert (
        data.x_train.shape == (1437, 28, 28) and data.x_test.shape == (360, 28, 28) and data.x_train.dtype == np.uint8
    )
    assert np.bincount(data.y_test).min() >= 35
    np.testing.assert_array_equal(data.x_test, mnist.load("digits").x_test)


def test_order_is_new_each_epoch_and_repeats_with_the_seed():
    def order(seed):
        dataset = _data.batches(np.arange(64), np.arange(64), 16, shuffle_seed=seed)
        return [np.concatenate([x for x, _ in dataset.as_numpy_iterator()]).tolist() for _ in range(2)]

    first, second = order(1)
    assert first != second and sorted(first) == sorted(second) == list(range(64))
    assert order(1) == [first, second] != order(2)


def test_augmentation(arrays):
    x, y = arrays[:2]

    def images():
        dataset = _data.batches(x, y, 50, shuffle_seed=3, augment=_data.shift_and_rotate)
        return [np.concatenate([x for x, _ in dataset.as_numpy_iterator()]) for _ in range(2)]

    (first, second), again = images(), images()
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, again[0])
    np.testing.assert_array_equal(second, again[1])
    dot = np.zeros((200, 28, 28), np.uint8)
    dot[:, 13:15, 13:15] = 200
    moved = np.asarray(_data.shift_and_rotate(tf.constant(dot), tf.constant([1, 2])))
    rows = (moved * np.arange(28)[:, None]).sum((1, 2)) / moved.sum((1, 2))
    assert moved.dtype == np.uint8 and 1.5 < np.ptp(rows) / 2 <= 2.2 and rows.mean() == pytest.approx(13.5, abs=0.3)
    still = _data.shift_and_rotate(tf.constant(x), tf.constant([1, 2]), pixels=0.0, degrees=0.0)
    np.testing.assert_array_equal(still, x)


def test_smoothing():
    np.testing.assert_allclose(_data.one_hot(np.array([1]), 2, 0.1), [[0.05, 0.95]])


# ------------------------------------------------------------------------------------------------ evaluate and predict


def test_evaluate(baseline, npz, capsys):
    for model in (baseline, baseline / "model.keras"):
        assert mnist.main(["evaluate", "--model", str(model), "--data", str(npz)]) == 0
        printed = json.loads(capsys.readouterr().out)
        trained = json.loads((baseline / "metrics.json").read_text())
        assert printed["test_loss"] == pytest.approx(trained["test_loss"], rel=1e-5)
        assert printed["test_accuracy"] == trained["test_accuracy"]


def test_evaluate_errors(baseline, npz, tmp_path, capsys):
    assert "no such file" in fails(capsys, 3, "evaluate", "--model", "nowhere", "--data", npz)
    Path("cut.keras").write_bytes((baseline / "model.keras").read_bytes()[:5000])
    assert "cut.keras" in fails(capsys, 3, "evaluate", "--model", "cut.keras", "--data", npz)
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save("other.keras")
    assert "28x28" in fails(capsys, 3, "evaluate", "--model", "other.keras", "--data", npz)


def test_predict(baseline, arrays, capsys):
    x = arrays[2][3]
    Image.fromarray(x).save("gray.png")
    Image.fromarray(255 - x).save("dark.png")
    np.save("one.npy", x)
    np.save("many.npy", np.stack([x, x]) / 255)

    def predict(*files):
        assert mnist.main(["predict", "--model", str(baseline), *files]) == 0
        return [line.split("\t") for line in capsys.readouterr().out.splitlines()]

    rows = predict("gray.png", "one.npy", "many.npy")
    assert [row[0] for row in rows] == ["gray.png", "one.npy", "many.npy[0]", "many.npy[1]"]
    assert len({tuple(row[1:]) for row in rows}) == 1
    assert rows[0][1] in "0123456789" and 0.1 <= float(rows[0][2]) <= 1
    assert predict("--invert", "dark.png")[0][1:] == rows[0][1:]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_images_of_every_mode(mode):
    drawn = np.zeros((60, 40), np.uint8)
    drawn[20:40, 10:30] = 255
    image = Image.fromarray(drawn)
    if mode == "I;16":
        image = Image.fromarray(drawn.astype(np.uint16) * 257)
    elif mode in ("LA", "RGBA"):  # white strokes on nothing
        image = Image.merge(mode, [Image.new("L", image.size, 255)] * (len(mode) - 1) + [image])
    else:
        image = image.convert(mode)
    image.save("a.png")
    read = _data.read_image(Path("a.png"), 28, 28)
    assert read.shape == (28, 28) and read.dtype == np.uint8
    assert read[14, 14] == 255 and read[2, 14] == 0 and read[14, 1] == 0


def test_predict_errors(baseline, capsys):
    Path("text.png").write_text("no")
    np.save("small.npy", np.zeros((8, 8), np.uint8))
    np.save("wide.npy", np.zeros((28, 28), np.int64))
    Path("cut.npy").write_bytes(Path("wide.npy").read_bytes()[:500])
    for file in ("text.png", "missing.png", "missing.npy", "small.npy", "wide.npy", "cut.npy"):
        assert file in fails(capsys, 3, "predict", "--model", baseline, file)
    fails(capsys, 2, "predict", "--model", baseline)


# ------------------------------------------------------------------------------------------------------------ writing


def test_atomic():
    path = Path("file.txt")
    path.write_text("old")
    with pytest.raises(RuntimeError), _run.atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(Path.cwd().iterdir()) == [Path.cwd() / "file.txt"]


def test_a_run_without_errors_can_be_drawn():
    probabilities = np.eye(10)[[1, 2]]
    _plots.plot_errors(Path("e.png"), np.zeros((2, 28, 28)), np.array([1, 2]), probabilities, mnist.NAMES, "Errors")
    assert Path("e.png").exists()


@pytest.mark.slow
def test_cnn_learns_digits(tmp_path):
    argv = ["--data", "digits", "--epochs", "8", "--output-dir", "run", "--augment"]
    assert mnist.main(argv) == 0
    assert json.loads(Path("run/metrics.json").read_text())["test_accuracy"] > 0.95


@pytest.mark.slow
def test_start_up_is_quiet(npz):
    root = Path(inspect.getfile(mnist)).parents[1]
    argv = [sys.executable, "-m", "recipes.mnist", "--data", str(npz), "--model", "mlp", "--dry-run"]
    env = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run(argv, cwd=root, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.count("\n") == 1

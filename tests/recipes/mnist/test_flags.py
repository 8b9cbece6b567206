"""Every flag does something."""

import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from digit_data import LINE, read_rows
from problems import rules

import kopt
from recipes import mnist
from recipes.run.errors import UsageError
from recipes.run.fit import prepare
from recipes.run.flags import RunFlags
from recipes.run.folder import choose_folder
from recipes.run.optimizer_flags import OptimizerFlags, find_class, make_optimizer, parse_options

# ----------------------------------------------------------------------------------------- every flag does something


@pytest.mark.slow
def test_a_rate_that_is_found_trains_as_one_that_is_given(train, undrawn):
    flags = ("--epochs", "2", "--optimizer", "adamw", "--precision", "mixed_float16")
    found, folder = train(*flags, "--lr-find")
    curve = json.loads((folder / "learning_rate.json").read_text())
    assert curve["suggestion"] == found["learning_rate"] and len(curve["rates"]) == len(curve["losses"]) > 20
    assert (folder / "learning_rate.png").read_bytes()[:4] == b"\x89PNG"
    given, _ = train(*flags, "--learning-rate", str(found["learning_rate"]))
    assert given["test_loss"] == found["test_loss"]
    argv = ["--config", str(folder / "config.yaml"), "--output-dir", str(folder), "--resume", "auto"]
    assert mnist.main([*argv, "--epochs", "3"]) == 0
    assert json.loads((folder / "metrics.json").read_text())["learning_rate"] == found["learning_rate"]


@pytest.mark.parametrize("flags", ["--learning-rate 0.1", "--distribute mirrored"])
def test_a_rate_is_not_looked_for_that_is_given_or_on_several_devices(flags, npz, capsys):
    assert mnist.main(["--data", str(npz), "--lr-find", *flags.split()]) == 2
    assert capsys.readouterr().err.startswith("error: --lr-find")


@pytest.mark.slow
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
    optimizer = make_optimizer(OptimizerFlags(**flags), 6)
    w = keras.Variable([1.0], name="w")
    for _ in range(5):
        optimizer.apply([keras.ops.convert_to_tensor(w)], [w])
    optimizer.finalize_variable_values([w])
    return float(w.numpy()[0])


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "keras.adafactor"])
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
        raise UsageError("seen")

    monkeypatch.setattr(keras.Sequential, "compile", compile_)
    assert mnist.main(["--data", str(npz), "--model", "mlp", "--jit", flag]) == 2


@pytest.mark.parametrize("precision", ["float32", "mixed_float16", "mixed_bfloat16", "tf32", "bfloat16"])
def test_precision(precision):
    prepare(RunFlags(precision=precision))
    expected = "float32" if precision == "tf32" else precision.removeprefix("mixed_")
    assert keras.config.dtype_policy().compute_dtype == expected
    assert keras.config.dtype_policy().variable_dtype == ("bfloat16" if precision == "bfloat16" else "float32")
    assert tf.config.experimental.tensor_float_32_execution_enabled() == (precision == "tf32")
    model = mnist.build("cnn", 0.1)
    assert model(np.zeros((1, 28, 28), np.uint8)).dtype == "float32"


@pytest.mark.slow
def test_mixed_float16_trains(train, undrawn):
    assert np.isfinite(train("--precision", "mixed_float16", "--ema", "0.5", "--progress", "none")[0]["test_loss"])


def test_deterministic(monkeypatch):
    called = []
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: called.append(1))
    prepare(RunFlags())
    assert not called
    prepare(RunFlags(deterministic=True))
    assert called


def test_models():
    assert mnist.build("mlp", 0.0).count_params() == 203_530
    cnn = mnist.build("cnn", 0.5)
    assert cnn(np.zeros((2, 28, 28), np.uint8)).shape == (2, 10)
    assert {layer.rate for layer in cnn.layers if isinstance(layer, keras.layers.Dropout)} == {0.5}


@pytest.mark.slow
def test_progress(train, capsys, undrawn):
    train("--progress", "none")
    assert capsys.readouterr().out == ""
    train("--progress", "rich")
    drawn = capsys.readouterr().out
    assert "━" in drawn and LINE.search(drawn)


def test_folder_of_a_run():
    name = choose_folder(RunFlags(), "mnist", "AdaBound").name
    assert re.fullmatch(r"adabound-\d{8}-\d{6}", name)
    with pytest.raises(UsageError):
        choose_folder(RunFlags(run_name="../x"), "mnist", "adam")


@pytest.mark.slow
def test_run_name_and_default_folder(npz, undrawn):
    flags = ["--data", str(npz), "--model", "mlp", "--max-steps", "1", "--epochs", "1"]
    assert mnist.main([*flags, "--run-name", "mine"]) == 0
    assert (Path("saved_models/mnist/mine") / "metrics.json").exists()


@pytest.mark.slow
def test_dry_run_leaves_nothing(npz, capsys):
    assert mnist.main(["--data", str(npz), "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("dry run: cnn, ")
    assert not list(Path.cwd().iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("ema", [(), ("--ema", "0.9")])
def test_early_stopping_returns_to_the_best_weights(train, ema, undrawn):
    # A rate this high makes the loss worse soon.
    rate = ("--optimizer", "sgd", "--learning-rate", "3", "--lr-schedule", "constant", "--clip-norm", "1")
    metrics, folder = train("--epochs", "30", "--early-stopping", "2", *rate, *ema)
    chosen = f"weights of epoch {metrics['best_epoch']}, the best on the validation set"
    assert chosen in (folder / "README.md").read_text()
    rows = read_rows(folder)
    watched = [row["val_loss"] for row in rows]
    assert metrics["epochs"] < 30
    assert metrics["best_epoch"] == int(np.argmin(watched)) + 1 == metrics["epochs"] - 2
    assert metrics["validation_loss"] == pytest.approx(min(watched), rel=1e-3)


@pytest.mark.slow
def test_ema_is_what_is_tested(train, undrawn):
    metrics, folder = train("--epochs", "2", "--ema", "0.8", "--validation-split", "0.2")
    rows = read_rows(folder)
    assert metrics["validation_loss"] == pytest.approx(rows[-1]["val_loss"], rel=1e-4)


# --------------------------------------------------------------------------------------------------------- optimizer


def rates(steps, **flags):
    optimizer = make_optimizer(OptimizerFlags(learning_rate=1.0, **flags), steps)
    schedule = optimizer._learning_rate
    return [round(float(schedule(step)), 4) for step in range(0, steps + 1, steps // 4)]


@pytest.mark.parametrize("name", ["adabound", "keras.adafactor"])
def test_schedules(name):
    assert rates(8, optimizer=name, lr_schedule="linear") == [1, 0.75, 0.5, 0.25, 0]
    assert rates(8, optimizer=name, lr_schedule="linear", warmup="50%") == [0, 0.5, 1, 0.5, 0]
    assert rates(8, optimizer=name, lr_schedule="cosine") == [1, 0.8536, 0.5, 0.1464, 0]
    assert rates(8, optimizer=name, lr_schedule="cosine", warmup="4") == [0, 0.5, 1, 0.5, 0]
    assert rates(8, optimizer=name, warmup="4") == [0, 0.5, 1, 1, 1]


def test_schedule_counts_updates():
    flags = {"lr_schedule": "linear", "warmup": "50%", "grad_accum": 4, "learning_rate": 1.0}
    ours = make_optimizer(OptimizerFlags(optimizer="adabound", **flags), 80)
    keras_ = make_optimizer(OptimizerFlags(optimizer="keras.adafactor", **flags), 80)
    assert float(ours._learning_rate(10)) == float(keras_._learning_rate(40)) == 1.0
    assert float(ours._learning_rate(20)) == float(keras_._learning_rate(80)) == 0.0


def test_default_rate_is_the_optimizers_own():
    scheduled = make_optimizer(OptimizerFlags(lr_schedule="cosine"), 10)
    assert float(scheduled._learning_rate(0)) == pytest.approx(float(kopt.AdaBound().learning_rate))


def test_schedule_is_saved():
    optimizer = make_optimizer(OptimizerFlags(lr_schedule="linear", warmup="10%"), 100)
    config = keras.optimizers.serialize(optimizer)
    again = keras.optimizers.deserialize(config)
    assert float(again._learning_rate(5)) == float(optimizer._learning_rate(5)) > 0


def test_options():
    pairs = ("a=1", "b=1e-3", "c=true", "d=x", "e=null", "f=0.5")
    assert parse_options("--opt", pairs) == {"a": 1, "b": 0.001, "c": True, "d": "x", "e": None, "f": 0.5}
    optimizer = make_optimizer(OptimizerFlags(opt=("final_lr=1e-2", "ams_bound=true")), 1)
    assert optimizer.final_lr == 0.01 and optimizer.ams_bound is True


@pytest.mark.parametrize("name", sorted(map(str.lower, rules())))
def test_every_optimizer_can_be_named(name):
    if name in ("adahessian", "sophiag", "sophiah"):
        with pytest.raises(UsageError, match="Curvature"):
            make_optimizer(OptimizerFlags(optimizer=name), 1)
        return
    assert isinstance(make_optimizer(OptimizerFlags(optimizer=name.upper()), 1), kopt.Optimizer)


def test_keras_optimizers_can_be_named():
    assert find_class("keras.adafactor") is find_class("Keras.Adafactor") is keras.optimizers.Adafactor
    assert find_class("adafactor") is kopt.Adafactor

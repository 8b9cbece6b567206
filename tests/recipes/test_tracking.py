"""Names under which trackers show runs, what a run leaves in Weights & Biases, and the picture of its curves."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from digit_data import blobs
from PIL import Image

from recipes import mnist
from recipes.run import facts, plots
from recipes.run.errors import UsageError
from recipes.run.flags import RunFlags
from recipes.run.optimizer_flags import OptimizerFlags, peak_learning_rate
from recipes.run.tracking import epoch_tags, read_names

needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")


def test_names_of_trackers(monkeypatch):
    assert read_names("none") == () and read_names("tensorboard") == ("tensorboard",)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "there")
    assert read_names("tensorboard, wandb,wandb") == ("tensorboard", "wandb")
    for wrong in ("", "mlflow", "none,wandb", "tensorboard;wandb", "TensorBoard"):
        with pytest.raises(UsageError, match="expected none, or tensorboard and wandb with a comma between"):
            read_names(wrong)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install wandb"):
        read_names("tensorboard,wandb")


def test_tags_of_an_epoch():
    row = {"epoch": 1, "train_loss": 1.0, "train_accuracy": 0.5, "test_loss": 2.0, "val_loss": 3.0}
    assert epoch_tags(row | {"val_ndcg_at_10": 4.0, "seconds": 1.0}) == {
        "Metrics/train_accuracy": 0.5,
        "Loss/test": 2.0,
        "Loss/validation": 3.0,
        "Metrics/validation_ndcg_at_10": 4.0,
    }


def test_the_learning_rate_is_resolved():
    assert peak_learning_rate(OptimizerFlags("adabound")) == 1e-3
    assert peak_learning_rate(OptimizerFlags("adam", opt=("learning_rate=0.02",), warmup="5%")) == 0.02
    assert peak_learning_rate(OptimizerFlags("adam", opt=("learning_rate=0.02",), learning_rate=0.5)) == 0.5


@pytest.mark.parametrize("given", ["fast", "[1]"])
def test_a_learning_rate_that_is_no_number(given):
    with pytest.raises(UsageError, match=r"--opt learning_rate=.*: expected a number"):
        peak_learning_rate(OptimizerFlags("adam", opt=(f"learning_rate={given}",)))


def test_the_command_of_flags_made_in_python():
    run = RunFlags(output_dir=Path("my runs"), deterministic=True)
    optim = OptimizerFlags("adam", opt=("beta_1=0.8", "amsgrad=true"), lr_schedule="cosine")
    flags = mnist.Train(epochs=3, optim=optim, run=run)
    expected = "--epochs 3 --optimizer adam --opt beta_1=0.8 --opt amsgrad=true --deterministic --output-dir 'my runs'"
    assert facts.command("mnist", flags, None) == f"python -m recipes.mnist {expected}"
    assert facts.command("mnist", flags, ["--epochs", "3"]) == "python -m recipes.mnist --epochs 3"


def test_the_revision_is_that_of_the_clone_with_the_recipes(monkeypatch):
    found = facts.revision()
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(facts.__file__).parent, capture_output=True, text=True)
    assert found is None if done.returncode else done.stdout.startswith(found.removesuffix("+")) and len(found) >= 12
    monkeypatch.setenv("PATH", "")  # no git
    assert facts.revision() is None


@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_curves_of_any_length(tmp_path, epochs):
    numbers = range(1, epochs + 1)
    rows = [{"epoch": e, "train_loss": 1 / e, "test_loss": 2 / e, "test_mae": e, "seconds": 9} for e in numbers]
    plots.plot_curves(tmp_path / "c.png", rows, [(0.5 * i, 1 / (i + 1)) for i in range(2 * epochs)], "run")
    image = np.asarray(Image.open(tmp_path / "c.png").convert("L"))
    assert image.shape[1] > (1000 if epochs else 500) and image.std() > 10


@pytest.fixture
def blobs_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arrays = (*blobs(100, 0), *blobs(40, 1))
    np.savez("blobs.npz", **dict(zip(("x_train", "y_train", "x_test", "y_test"), arrays, strict=True)))
    return ["--data", "blobs.npz", "--model", "mlp", "--epochs", "1", "--batch-size", "50", "--output-dir", "run"]


@pytest.mark.slow
def test_without_a_tracker_no_logs_are_written(blobs_file):
    assert mnist.main([*blobs_file, "--track", "none"]) == 0
    assert not Path("run/logs").exists() and Path("run/curves.png").is_file()


@pytest.mark.slow
@needs_wandb
def test_wandb_reads_its_run_back(blobs_file, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert mnist.main([*blobs_file, "--track", "wandb", "--log-every", "2"]) == 0
    assert not Path("run/logs").exists()
    (file,) = Path("wandb").glob("offline-run-*/run-*.wandb")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{")]
    (run,) = (record["run"] for record in records if record["type"] == "run")
    config, seen = run["config"]["update"], {}
    for record in records:
        seen |= record.get("history", {}).get("item", {})
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert run["display_name"] == "run" and config["optimizer"] == "adabound" and config["learning_rate"] == 0.001
    assert seen["test/accuracy"] == pytest.approx(metrics["test_accuracy"], rel=1e-5)
    assert seen["_step"] == 2 and np.isfinite(seen["Loss/train"]) and "optimizer/grad_norm" in seen
    assert any(key.startswith("confusion") for key in seen)

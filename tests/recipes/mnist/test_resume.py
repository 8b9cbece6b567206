"""A run that is killed, ended or made longer goes on as if it had never stopped."""

import gc
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from digit_data import fails, read_rows

from kopt.checkpoint import Checkpoint
from recipes import mnist
from recipes.run.batches import batches
from recipes.run.progress import Report

pytestmark = pytest.mark.usefixtures("undrawn")


class Killed(BaseException):
    """Ends a process where nothing can be saved any more."""


@pytest.fixture
def begin(npz):
    """Trains; returns the exit code."""

    def run(*flags, epochs=3):
        data = ["--data", str(npz), "--model", "mlp", "--batch-size", "50", "--progress", "none"]
        return mnist.main([*data, "--epochs", str(epochs), *flags])

    return run


@pytest.fixture
def kill(monkeypatch):
    """Lets the training be killed after a number of steps of this process."""
    end = Report.on_train_batch_end

    def at(count):
        steps = iter(range(1, count + 1))

        def ended(self, batch, logs=None):
            if next(steps) == count:
                monkeypatch.setattr(Report, "on_train_batch_end", end)
                raise Killed
            end(self, batch, logs)

        monkeypatch.setattr(Report, "on_train_batch_end", ended)

    return at


def folder(name):
    return Path("saved_models/mnist") / name


def state(name):
    """Returns all arrays of the last checkpoint, and of each epoch what was measured."""
    from kopt.checkpoint import snapshot_files

    last = snapshot_files.read(snapshot_files.numbered(folder(name) / "checkpoints")[-1])
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in read_rows(folder(name))]
    return last.arrays, rows


def same(name, other="whole"):
    (ours, rows), (theirs, others) = state(name), state(other)
    assert rows == others
    passing = [key for key in theirs if key.startswith(("callback", "random"))]
    assert ours.keys() - passing == theirs.keys() - passing
    for key in theirs.keys() - passing:
        np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
    weights = [key for key in theirs if key.startswith("model.")]
    assert len(weights) == 5  # two dense layers, and the seed of dropout


CASES = {
    "average": ("--ema", "0.9", "--early-stopping", "1", "--validation-split", "0.2", "--learning-rate", "0.05"),
    "augmented": ("--augment", "--grad-accum", "3", "--precision", "mixed_float16", "--optimizer", "adamw"),
    "lbfgs": ("--optimizer", "lbfgs", "--opt", "examples=200", "--opt", "batch_size=50", "--lr-schedule", "constant"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on(case, begin, kill):
    flags = (*CASES[case], "--save-every", "3s")
    assert begin(*flags, "--run-name", "whole") == 0
    kill(7)  # in the middle of an epoch
    with pytest.raises(Killed):
        begin(*flags, "--run-name", "killed", "--resume", "auto")
    gc.collect()  # Python 3.11 cannot do so while it parses, and what a kill leaves is much
    assert not (folder("killed") / "metrics.json").exists()
    assert begin(*flags, "--run-name", "killed", "--resume", "auto") == 0
    same("killed")


@pytest.mark.slow
def test_a_run_is_made_longer(begin, capsys):
    constant = ("--lr-schedule", "constant")
    assert begin(*constant, "--run-name", "whole") == 0
    assert begin(*constant, "--run-name", "longer", epochs=1) == 0
    assert begin("--resume", str(folder("longer")), epochs=3) == 0  # its flags come from the run
    same("longer")
    assert yaml.safe_load((folder("longer") / "config.yaml").read_text())["epochs"] == 3
    assert begin(*constant, "--run-name", "cut", "--max-steps", "6") == 0
    assert len(read_rows(folder("cut"))) == 2
    shutil.copytree(folder("cut"), folder("killed"))
    (folder("killed") / "metrics.json").unlink()  # as if killed at the very end
    assert begin(*constant, "--run-name", "killed", "--resume", "auto", "--max-steps", "6") == 0
    same("killed", "cut")
    assert begin(*constant, "--run-name", "cut", "--resume", "auto") == 0
    same("cut")
    capsys.readouterr()
    assert begin(*constant, "--run-name", "cut", "--resume", "auto") == 0
    assert "is complete" in capsys.readouterr().out
    assert begin(*constant, "--run-name", "cut", "--resume", "auto", epochs=2) == 2
    assert "--epochs 2: the run that goes on has 3 already" in capsys.readouterr().err


@pytest.mark.slow
def test_early_stopping_is_remembered(begin):
    flags = ("--early-stopping", "1", "--learning-rate", "3", "--optimizer", "sgd", "--clip-norm", "1")
    assert begin(*flags, "--run-name", "whole", epochs=30) == 0
    shutil.copytree(folder("whole"), folder("killed"))
    (folder("killed") / "metrics.json").unlink()
    assert begin(*flags, "--run-name", "killed", "--resume", "auto", epochs=30) == 0
    same("killed")
    found = [json.loads((folder(name) / "metrics.json").read_text()) for name in ("whole", "killed")]
    assert found[0]["best_epoch"] == found[1]["best_epoch"] and found[0]["test_loss"] == found[1]["test_loss"]


def test_other_flags_are_refused(begin, npz, capsys, tmp_path):
    path = tmp_path / "run"
    (path / "checkpoints" / "000001").mkdir(parents=True)
    (path / "config.yaml").write_text(f"data: {npz}\nmodel: mlp\nseed: 1\nopt: [gamma=0.1]\nepochs: 2\n")

    def refused(*flags):
        return fails(capsys, 2, "--data", npz, "--model", "mlp", *flags)

    auto = ("--output-dir", path, "--resume", "auto", "--opt", "gamma=0.1")
    assert "--seed (was 1, is 42)" in refused(*auto)
    assert "--dropout (was 0.25, is 0.1)" in refused(*auto, "--seed", "1", "--dropout", "0.1")
    assert "--dropout (was 0.25, is 0.1)." in fails(capsys, 2, "--resume", path, "--dropout", "0.1")
    assert "leave out --run-name" in refused("--resume", path, "--run-name", "x")
    assert "no such folder" in refused("--resume", tmp_path / "nowhere")
    assert "give --run-name" in refused("--resume", "auto")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    assert "not a run" in refused("--resume", "auto", "--output-dir", tmp_path / "full")
    assert "--resume auto to go on" in refused("--output-dir", path)


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5", "s", "0s", "١s"])
def test_cadences_that_are_none(text, npz, capsys):
    assert "--save-every" in fails(capsys, 2, "--data", npz, f"--save-every={text}")


def test_cadence_and_keep_reach_the_checkpoints(begin, monkeypatch):
    written = []
    save = Checkpoint.save
    monkeypatch.setattr(Checkpoint, "save", lambda self: written.append(self.place) or save(self))
    assert begin("--save-every", "3s", "--keep", "4", "--run-name", "x", epochs=2) == 0
    assert written == [(0, 3), (1, 2), (2, 0)]
    assert len(list((folder("x") / "checkpoints").iterdir())) == 3


def test_order_follows_from_the_epoch():
    dataset = batches(np.arange(64), np.arange(64), 16, shuffle_seed=1)

    def order():
        return np.concatenate([x for x, _ in dataset.as_numpy_iterator()]).tolist()

    first, second = order(), order()
    dataset.set_epoch(1)
    assert order() == order() == second != first
    dataset.set_epoch(0)
    assert order() == first

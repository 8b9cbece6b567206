"""Small data and runs for the tests of the recipe."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from digit_data import blobs

from recipes import mnist
from recipes.run import plots
from recipes.run.tracking import Tracking


@pytest.fixture(scope="session")
def arrays():
    return (*blobs(200, 0), *blobs(60, 1))


@pytest.fixture(scope="session")
def npz(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "blobs.npz"
    np.savez(path, **dict(zip(("x_train", "y_train", "x_test", "y_test"), arrays, strict=True)))
    return path


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves the pictures out, which take most of the time of a small run."""
    for name in ("plot_confusion", "plot_errors", "plot_curves"):
        monkeypatch.setattr(plots, name, lambda *args, **kwargs: None)
    monkeypatch.setattr(Tracking, "images", lambda self, pictures: None)


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

"""A folder of pictures, and runs on it."""

import json
import time
from pathlib import Path

import keras
import pytest
from picture_data import write_folder

from recipes.images import main, recipe
from recipes.run import plots
from recipes.run.tracking import Tracking

FLAGS = "--backbone small --image-size 32 --batch-size 16"


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("pictures") / "colours", 20, 0)


@pytest.fixture
def quick(monkeypatch):
    """Leaves out pictures, tracing and compilation, which take most of the time of a small run."""
    for name in ("plot_confusion", "plot_errors", "plot_curves"):
        monkeypatch.setattr(plots, name, lambda *args, **kwargs: None)
    monkeypatch.setattr(Tracking, "images", lambda self, pictures: None)
    adam = keras.optimizers.Adam
    monkeypatch.setattr(recipe, "make_optimizer", lambda flags, *_, **__: adam(flags.learning_rate))
    monkeypatch.setattr(keras.Model, "run_eagerly", property(lambda self: True, lambda self, value: None))


@pytest.fixture
def train(folder):
    """Trains for one epoch of three steps unless told otherwise; returns metrics and folder."""

    def run(*flags, code=0):
        out = Path("out") / str(time.monotonic_ns())
        argv = ["--data", str(folder), *FLAGS.split(), "--epochs", "1", "--output-dir", str(out), *flags]
        assert main(argv) == code
        return json.loads((out / "metrics.json").read_text()), out

    return run


@pytest.fixture(scope="session")
def base(folder, tmp_path_factory):
    """A run of the small backbone from scratch."""
    out = tmp_path_factory.mktemp("runs") / "base"
    argv = ["--data", str(folder), *FLAGS.split(), "--epochs", "4", "--dropout", "0", "--output-dir", str(out)]
    assert main([*argv, "--progress", "plain"]) == 0
    return out

"""Small data, a small language model, and runs on them for the tests of the text recipe."""

import json
import time
from pathlib import Path

import keras
import pytest
from text_data import sentences, write_bert, write_csv

from recipes.run import plots
from recipes.run.tracking import Tracking
from recipes.text_classification import main, recipe


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with train.csv, valid.csv, test.csv and a model, bert."""
    folder = tmp_path_factory.mktemp("made")
    write_csv(folder / "train.csv", sentences(96, 0))
    write_csv(folder / "test.csv", sentences(32, 1))
    write_csv(folder / "valid.csv", sentences(32, 5))
    write_bert(folder / "bert")
    return folder


@pytest.fixture
def quick(monkeypatch):
    """Leaves out pictures, tracing and compilation, which take most of the time of a small run."""
    for name in ("plot_confusion", "plot_curves"):
        monkeypatch.setattr(plots, name, lambda *args, **kwargs: None)
    monkeypatch.setattr(Tracking, "images", lambda self, pictures: None)
    adam = keras.optimizers.Adam
    monkeypatch.setattr(recipe, "make_optimizer", lambda flags, *_, **__: adam(flags.learning_rate))
    monkeypatch.setattr(keras.Model, "run_eagerly", property(lambda self: True, lambda self, value: None))


@pytest.fixture(scope="session")
def defaults(made):
    files = f"--train-file {made}/train.csv --validation-file {made}/valid.csv --test-file {made}/test.csv"
    return f"{files} --model {made}/bert".split()


@pytest.fixture
def train(defaults):
    """Trains for one epoch of six steps unless told otherwise; returns metrics and folder."""

    def run(*flags, code=0):
        folder = Path("out") / str(time.monotonic_ns())
        argv = ["train", *defaults, "--epochs", "1", "--max-length", "32", "--output-dir", str(folder), *flags]
        assert main(argv) == code
        return json.loads((folder / "metrics.json").read_text()), folder

    return run


@pytest.fixture(scope="session")
def baseline(defaults, tmp_path_factory):
    """A run of LoRA that has learnt the task."""
    folder = tmp_path_factory.mktemp("runs") / "baseline"
    flags = {"epochs": 8, "max-length": 32, "batch-size": 8, "learning-rate": 3e-2, "rank": 4, "progress": "plain"}
    argv = [*defaults, *(f"--{key}={value}" for key, value in flags.items()), "--target", "query", "--target", "value"]
    assert main([*argv, "--merge", "--output-dir", str(folder)]) == 0
    return folder

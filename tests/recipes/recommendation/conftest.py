"""Ratings in files, and runs on them."""

import csv

import keras
import numpy as np
import pytest
from rating_data import ITEMS, USERS

from recipes.recommendation import main, training


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Ratings that depend on whether the taste of the user is the genre of the item."""
    folder = tmp_path_factory.mktemp("ratings")
    rng = np.random.default_rng(0)
    rows = [(u, i) for u in range(1, USERS + 1) for i in rng.permutation(ITEMS)[:12] + 1]
    with (folder / "ratings.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item", "stars", "when"])
        for t, row in enumerate(rng.permutation(len(rows))):
            u, i = rows[row]
            writer.writerow([f"u{u}", i, 2 + 2 * (u % 2 == i % 2) + rng.choice([0, 0.5]), 1000 + t])
    with (folder / "items.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item", "title", "genres"])
        writer.writerows([i, f"Film {i}", "Drama|War" if i % 2 else "Comedy"] for i in range(1, ITEMS + 1))
    return folder


@pytest.fixture
def call(files, capsys):
    """Runs the recipe; returns exit code, output and errors."""

    def run(*arguments):
        code = main(list(arguments))
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def train(call, files):
    def run(name, *flags, plain=False):
        data = ["--interactions", str(files / "ratings.csv"), "--label-column", "stars", "--time-column", "when"]
        data += [
            "--items-file",
            str(files / "items.csv"),
            *([] if plain else ["--embedding-dim", "4"]),
        ]
        if {"two-tower", "dcn", "dlrm"} & set(flags):
            data += ["--hidden", "8"]
        code, out, err = call(*data, "--epochs", "2", "--batch-size", "32", "--run-name", name, *flags)
        assert code == 0, err
        return out

    return run


@pytest.fixture
def quick(monkeypatch):
    """Leaves out tracing and compilation, which take most of the time of a small run."""
    adam = keras.optimizers.Adam
    monkeypatch.setattr(training, "make_optimizer", lambda flags, *_, **__: adam(flags.learning_rate))
    monkeypatch.setattr(keras.Model, "run_eagerly", property(lambda self: True, lambda self, value: None))

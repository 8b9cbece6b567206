"""Data made for the tests of the recipe, and ways to read what a run printed and left."""

import csv
import re

import numpy as np
import recipe_commands

from recipes import mnist

LINE = re.compile(
    r"Epoch: \d{3} \| train loss: \d+\.\d{4} \| validation loss: \d+\.\d{4} \| validation accuracy: [01]\.\d{4}"
)


def blobs(n, seed):
    """Images whose class can be told from where they are bright, with noise enough for errors."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 10
    x = rng.integers(0, 200, (n, 28, 28))
    for image, label in zip(x, y, strict=True):
        image[2 * label + 3 : 2 * label + 6, 6:22] += 55
    return x.astype(np.uint8), y.astype(np.int64)


def read_rows(folder):
    with (folder / "history.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


fails, _ = recipe_commands.of(mnist.main)

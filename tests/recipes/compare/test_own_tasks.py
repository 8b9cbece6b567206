"""Tasks of a file: what they may be, and what is said of those that cannot be compared on."""

import pytest

from recipes.compare import tasks, training
from recipes.run.errors import DataError, UsageError

TASKS = """
import keras, numpy as np, pandas as pd, tensorflow as tf

X = np.arange(12, dtype="float32").reshape(6, 2) / 12
Y = X[:, :1]
linear = lambda: keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])

def task(**changed):
    return {"model": linear, "loss": "mse", "train": (X, Y), "test": (X, Y), "steps": 3, "batch_size": 2, **changed}

def twins():
    a, b = keras.Input((2,)), keras.Input((2,))
    return keras.Model([a, b], [keras.layers.Dense(1)(a), keras.layers.Dense(1)(b)])

frames = lambda: task(train=(pd.DataFrame(X), pd.Series(Y[:, 0])), test=(tf.constant(X), tf.constant(Y)))
several = lambda: task(model=twins, loss=["mse", "mse"], train=([X, X], [Y, Y]), test=([X, X], [Y, Y]))
made = lambda: task(model=linear())
short = lambda: task(train=(X, Y[:2]))
none = lambda: task(test=(X[:0], Y[:0]))
numbers = lambda: task(train=(X.tolist(), Y.tolist()))
alone = lambda: task(train=X)
zero = lambda: task(batch_size=0)
half = lambda: task(steps=2.5)
far = lambda: task(target=float("inf"))
"""


@pytest.fixture
def file_of_tasks(tmp_path):
    path = tmp_path / "my tasks.py"
    path.write_text(TASKS)
    return path


@pytest.mark.parametrize(
    ("function", "code", "told"),
    [
        ("made", UsageError, "model must be a function"),
        ("zero", UsageError, "batch_size must be a whole number of at least 1"),
        ("half", UsageError, "steps must be a whole number of at least 1"),
        ("far", UsageError, "target must be a finite number"),
        ("alone", UsageError, "train must be a pair"),
        ("short", DataError, r"train must be arrays with a row an example.* \(6, 2\), \(2, 1\)"),
        ("none", DataError, "test must be arrays with a row an example, one or more"),
        ("numbers", DataError, "train must be arrays"),
    ],
)
def test_wrong_tasks_of_files(function, code, told, file_of_tasks):
    with pytest.raises(code, match=told):
        tasks.load(f"{file_of_tasks}:{function}", "auto")


@pytest.mark.parametrize("function", ["frames", "several"])
def test_other_data_than_a_pair_of_arrays(function, file_of_tasks):
    name = f"{file_of_tasks}:{function}"
    assert tasks.load(name, "auto").size == 6
    found = training.run(training.Job(training.Setting(name, "", 3, 2, "constant", "0"), "sgd", "trial", 0, 0.01, 0))
    assert found["error"] is None and len(found["points"]) == 4

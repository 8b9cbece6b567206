"""Recipes that several workers train: flags, the result of one process, kills, and `kopt launch`."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from digit_data import blobs
from events import read
from workers import addresses, environment

from kopt import distribution
from kopt.__main__ import ALONE, main
from kopt.__main__ import recipes as recipes_of_kopt
from recipes import mnist
from recipes.run import signals, workers
from recipes.run.flags import RunFlags


@pytest.fixture
def data(tmp_path):
    x, y = blobs(90, 0)
    path = tmp_path / "digits.npz"
    np.savez(path, x_train=x[:70], y_train=y[:70], x_test=x[70:], y_test=y[70:])
    return path


def command(data, name, *flags):
    options = [
        "--batch-size",
        "16",
        "--epochs",
        "2",
        "--track",
        "none",
        "--run-name",
        name,
        "--validation-split",
        "0.3",
    ]
    return ["mnist", "--data", str(data), *options, *map(str, flags)]


def kopt(*argv, **options):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "kopt", *argv],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def ended(process, code=0):
    out, err = process.communicate(timeout=400)
    assert process.returncode == code, (out, err)
    return out, err


def weights(name):
    model = keras.models.load_model(Path("saved_models/mnist", name, "model.keras"), compile=False)
    return np.concatenate([np.ravel(w) for w in model.get_weights()])


def metrics(name):
    return json.loads(Path("saved_models/mnist", name, "metrics.json").read_text())


# ------------------------------------------------------------------------------------------------- flags


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--workers a:1,b:1", "--workers and --worker-index: give --distribute multiworker too"),
        ("--worker-index 0 --distribute mirrored", "--workers and --worker-index: give --distribute multiworker too"),
        ("--distribute multiworker", "--distribute multiworker: No workers: set TF_CONFIG"),
        ("--distribute multiworker --workers a,b --worker-index 0", '"host:port"'),
        ("--distribute multiworker --workers a:1,b:1 --worker-index 2", "from 0 to 1 here. Received: 2"),
        ("--sync-every 4", "--sync-every: give --distribute multiworker too, or start it by kopt launch"),
        ("--precision tf32", "--precision tf32: no GPU here has it"),
        ("--precision bfloat16 --optimizer keras.adam", "--precision bfloat16: Keras' optimizers lose what is rounded"),
        ("--precision mixed_float16 --opt loss_scale_factor=2", "kopt.LossScaleOptimizer and loss_scale_factor both"),
        ("--distribute mirrored --jit on", "--jit on: Keras compiles no train step of several replicas"),
    ],
)
def test_wrong_flags(flags, message, data, capsys):
    assert mnist.main([*command(data, "x")[1:], *flags.split()]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not Path("saved_models/mnist/x").exists()


def test_a_worker_that_never_comes_is_named(data, capsys):
    one, two = addresses(2)
    flags = [
        "--distribute",
        "multiworker",
        "--workers",
        f"{one}, {two}",
        "--worker-index",
        "0",
        "--start-timeout",
        "0.1",
    ]
    assert mnist.main([*command(data, "x")[1:], *flags]) == 5
    assert capsys.readouterr().err.startswith(f"error: worker 1 ({two}) has not come within 0.1 s.")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nothing"], "nothing: no recipe. Give one of images, mnist, "),
        (["compare"], "compare: not started by launch. Give one of images, mnist, "),
        (["--workers", "0", "mnist"], "--workers is at least 1"),
        (["mnist", "--worker-index=1"], "--worker-index: set by launch; leave it out"),
        (["mnist", "--worker_index=1"], "--worker-index: set by launch; leave it out"),
        (["--restarts", "1", "mnist"], "--restarts: give --run-name or --output-dir"),
    ],
)
def test_wrong_launches(argv, message, capsys):
    with pytest.raises(SystemExit) as end:
        main(["launch", *argv])
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_signal_is_agreed_on(monkeypatch):
    """Of several workers one is told, and all stop at the same step."""
    found = workers.Workers(RunFlags())
    assert not found.stopped(1)
    monkeypatch.setattr(workers.Workers, "several", True)
    asked = []
    monkeypatch.setattr(distribution, "total", lambda strategy, x: asked.append(x.tolist()) or np.array([1]))
    with signals.caught(), signals.held(""):
        assert [step for step in range(1, 33) if found.stopped(step)] == [16, 32]
        assert signals.received() == signal.SIGTERM
    assert asked == [[0], [1]]


def test_launch_knows_the_recipes_that_several_workers_can_train():
    together = set[str]()
    for name in recipes_of_kopt():
        train = getattr(importlib.import_module(f"recipes.{name}"), "Train", None)
        if train is not None and "run" in {field.name for field in dataclasses.fields(train)}:
            together.add(name)
    assert set(recipes_of_kopt()) - set(ALONE) == together - {"generation"}, "generation refuses --distribute"


# ------------------------------------------------------------------------------------------------- launching


PROGRAM = "import json, os, sys; index = json.loads(os.environ['TF_CONFIG'])['task']['index']; "


def launch(program, *options, **more):
    return distribution.launch([sys.executable, "-c", PROGRAM + program], 2, **more)


def test_what_workers_print_has_their_number(capsys):
    assert launch("print('a', index); print('b', file=sys.stderr)") == 0
    out, err = capsys.readouterr()
    assert sorted(out.splitlines()) == ["[0] a 0", "[1] a 1"]
    assert sorted(err.splitlines()) == ["[0] b", "[1] b"]


def test_the_code_of_the_one_that_failed(monkeypatch, capsys):
    monkeypatch.setattr("kopt.distribution.launching.PATIENCE", 0.1)
    assert launch("import time; sys.exit(3) if index else time.sleep(60)", restarts=2) == 3
    assert launch("sys.exit(5 - 2 * index)") == 3  # that it is lost says less
    assert launch("import time; os.kill(os.getpid(), 9) if index else time.sleep(60)") == 5
    assert not capsys.readouterr().err


def test_all_are_started_again(tmp_path, capsys):
    program = (
        f"p = {str(tmp_path)!r} + '/' + str(index); again = os.path.exists(p); open(p, 'w'); print(sys.argv[1:]); "
    )
    assert launch(program + "again or sys.exit(5)", restarts=1, again=["--resume"]) == 0
    out, err = capsys.readouterr()
    assert sorted(out.splitlines()) == ["[0] ['--resume']", "[0] []", "[1] ['--resume']", "[1] []"]
    assert err == "launch: all workers are started again; 0 more times if need be.\n"


# ------------------------------------------------------------------------------------------------- training


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--model mlp", "--model cnn --max-steps 1 --augment"], ids=["mlp", "cnn"])
def test_two_workers_are_one_process(flags, data):
    """Of the cnn one step: afterwards the rounding of sums decides which units are zero, on one device as well."""
    flags = [*flags.split(), "--dropout", "0", "--optimizer", "momentum", "--clip-norm", "1", "--learning-rate", "0.01"]
    assert mnist.main([*command(data, "one", *flags)[1:], "--progress", "none"]) == 0
    out, _ = ended(kopt("launch", "--workers", "2", *command(data, "two", *flags)))
    assert "[0] Epoch: 001" in out and "[1] Epoch" not in out
    np.testing.assert_allclose(weights("two"), weights("one"), rtol=0, atol=1e-5)
    one, two = metrics("one"), metrics("two")
    for name in ("validation_loss", "validation_accuracy", "test_loss"):
        assert two[name] == pytest.approx(one[name], rel=1e-4), name
    assert sorted(p.name for p in Path("saved_models/mnist/two").iterdir()) == sorted(
        p.name for p in Path("saved_models/mnist/one").iterdir()
    )


@pytest.mark.slow
def test_batches_follow_the_noise_and_go_on(data):
    flags = ["--model", "mlp", "--batch-size", "4", "--track", "tensorboard"]
    flags += ["--adaptive-batch", "--batch-rule", "linear", "--lr-schedule", "constant", "--optimizer", "momentum"]
    assert mnist.main([*command(data, "whole")[1:], *flags]) == 0
    assert mnist.main([*command(data, "halves")[1:], *flags, "--epochs", "1"]) == 0
    assert mnist.main([*command(data, "halves")[1:], *flags, "--resume", "auto"]) == 0
    assert np.array_equal(weights("halves"), weights("whole"))
    points = read(Path("saved_models/mnist/whole/logs"))[0]
    assert points["Batch/examples"][1] == 8 and set(points["Batch/noise_scale"]) == set(points["Batch/examples"])


@pytest.mark.slow
def test_workers_that_train_by_themselves(data):
    flags = ["--model", "mlp", "--epochs", "3", "--sync-every", "2"]
    out, _ = ended(kopt("launch", "--workers", "2", *command(data, "plain", *flags)))
    assert "[0] Epoch: 003" in out and "[1] Epoch" not in out
    assert np.isfinite(weights("plain")).all() and metrics("plain")["epochs"] == 3


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_which_goes_on_bit_for_bit(data):
    flags = ["--model", "mlp", "--epochs", "12", "--save-every", "5s", "--dropout", "0.2"]
    ended(kopt("launch", "--workers", "2", *command(data, "plain", *flags)))
    run = kopt("launch", "--workers", "2", "--restarts", "1", *command(data, "killed", *flags))
    while not list(Path("saved_models/mnist/killed/checkpoints").glob("000002")):
        assert run.poll() is None
        time.sleep(0.05)
    os.kill(children(run.pid)[-1], signal.SIGKILL)
    out, err = ended(run)
    assert "[0] error: worker 1 (127.0.0.1:" in err and "is gone" in err
    assert "goes on after" in out
    assert np.array_equal(weights("killed"), weights("plain"))


def children(pid):
    """Returns the processes that one has started, in the order of their start."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append((int(fields[19]), int(stat.parent.name)))
    return [number for _, number in sorted(found)]

"""However a run ends, it says so in one line, and what was whole before is whole after."""

import errno
import json
import os
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import filelock
import keras
import pytest
from digit_data import fails

import kopt
from recipes import mnist
from recipes.run import folder as folders
from recipes.run import plots
from recipes.run.errors import UsageError
from recipes.run.flags import RunFlags
from recipes.run.folder import choose_folder
from recipes.run.optimizer_flags import SCHEDULES, OptimizerFlags, find_class, known_arguments, make_optimizer

RUN = Path("saved_models/mnist/run")
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def argv(npz):
    return ["--data", str(npz), "--model", "mlp", "--batch-size", "50", "--progress", "none", "--run-name", "run"]


def raises(number):
    return lambda *args, **options: signal.raise_signal(number)


# ----------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_while_data_are_read(name, code, argv, monkeypatch, capsys):
    before = signal.getsignal(getattr(signal, name))
    monkeypatch.setattr(mnist, "load", raises(getattr(signal, name)))
    assert mnist.main(argv) == code
    assert capsys.readouterr().err == "interrupted: nothing was saved.\n"
    assert not Path("saved_models").exists()
    assert signal.getsignal(getattr(signal, name)) == before


@pytest.mark.slow
def test_signals_from_training_to_the_end(argv, monkeypatch, capsys):
    argv += ["--epochs", "1", "--resume", "auto"]
    ends = [  # where, exit code, whether the model is there
        (mnist, "score", signal.SIGINT, 130, True),
        (plots, "plot_errors", signal.SIGTERM, 143, True),
        (folders, "save_results", signal.SIGHUP, 129, True),
    ]
    for place, name, number, code, saved in ends:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, raises(number))
            if place is folders:
                patch.setattr("recipes.run.fit.save_results", raises(number))
            assert mnist.main(argv) == code
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "the model is saved" in error and "--resume goes on" in error
        assert (RUN / "model.keras").exists() == saved and not (RUN / "metrics.json").exists()
    assert mnist.main(argv) == 0
    assert not [path for path in RUN.rglob(".*")]
    found = json.loads((RUN / "metrics.json").read_text())
    assert not found["interrupted"] and found["epochs"] == 1
    last = keras.models.load_model(RUN / "model.keras")
    assert last.optimizer.iterations == 4


# ------------------------------------------------------------------------------------------- locks, names, replacing


def test_two_at_once(argv, capsys):
    RUN.mkdir(parents=True)
    with filelock.FileLock(RUN / ".lock"):
        assert "another process trains there" in fails(capsys, 2, *argv)
    assert "another process" not in fails(capsys, 2, *argv, "--dropout", "-1")


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "a/b", "x" * 201, "ü" * 101, "a\nb", "\udcff"])
def test_names_that_are_none(name):
    with pytest.raises(UsageError) as error:
        choose_folder(RunFlags(run_name=name), "mnist", "adam")
    assert str(error.value).isprintable() and len(str(error.value)) < 300


def test_names_do_not_collide():
    first = choose_folder(RunFlags(), "mnist", "adam")
    first.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "datetime", type("Now", (), {"now": lambda zone: Stamp(first.name[5:])}))
        assert choose_folder(RunFlags(), "mnist", "adam") == first.with_name(first.name + "-2")


class Stamp(str):
    def __format__(self, form):
        return str(self)


def put_run(folder, word, complete=True):
    (folder / "logs" / "train").mkdir(parents=True)
    for name in ("model.keras", "config.yaml", "history.csv", f"logs/train/{word}", f"only-{word}.txt"):
        (folder / name).write_text(word)
    (folder / "metrics.json").write_text(json.dumps({"interrupted": not complete}))


def test_a_replacement_is_ended_from_wherever_it_was(tmp_path, monkeypatch):
    replace, count = os.replace, 0
    while True:
        home = tmp_path / str(count)
        put_run(home, "old")
        put_run(home / ".new", "new")
        left = iter(range(count))

        def some(a, b, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            replace(a, b)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", some)
            try:
                folders._end_replacement(home)
                break
            except KeyboardInterrupt:
                pass
        folders._end_replacement(home)
        assert {path.read_text() for path in home.rglob("*") if path.suffix not in ("", ".json", ".txt")} == {"new"}
        assert sorted(path.name for path in home.rglob("only*")) == ["only-new.txt", "only-old.txt"]
        assert [path.name for path in (home / "logs" / "train").iterdir()] == ["new"]
        assert not list(home.glob(".*"))
        count += 1
    assert count > 8  # moves
    put_run(tmp_path / "x" / ".new", "half", complete=False)
    put_run(tmp_path / "x", "old")
    flags = mnist.Train(run=RunFlags(output_dir=tmp_path / "x", overwrite=True))
    place = folders.Folder(flags, "mnist", "adam")
    place.publish()
    place.close()
    assert place.path == tmp_path / "x" / ".new"
    assert (tmp_path / "x" / "model.keras").read_text() == "old" and (tmp_path / "x" / ".new").is_dir()


@pytest.mark.slow
def test_a_run_that_diverges_leaves_the_one_before(argv, capsys):
    argv += ["--epochs", "1"]
    assert mnist.main(argv) == 0
    before = {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()}
    assert "--overwrite" in fails(capsys, 2, *argv)
    error = fails(
        capsys, 4, *argv, "--overwrite", "--optimizer", "sgd", "--learning-rate", "1e30", "--save-every", "1s"
    )
    assert "at step 2" in error and "kernel" in error and ".new/checkpoints has the last checkpoint" in error
    assert {path: path.read_bytes() for path in before} == before
    assert mnist.main([*argv, "--overwrite", "--seed", "1"]) == 0
    assert not (RUN / ".new").exists()
    assert {"model.keras", "history.csv", "README.md", "logs", "checkpoints"} <= {path.name for path in RUN.iterdir()}
    assert (RUN / "metrics.json").read_bytes() != before[RUN / "metrics.json"]


# -------------------------------------------------------------------------------------------------------------- disk


def test_room_is_looked_for_before_training(argv, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    error = fails(capsys, 3, *argv)
    assert "1 MB are free" in error and "needs 60 MB" in error  # three checkpoints and a model of 2.4 MB, and 50 MB
    assert not Path("saved_models").exists()


@pytest.mark.slow
def test_a_full_disk(argv, monkeypatch, capsys):
    sync, calls = os.fsync, iter(range(100))

    def full(handle):
        if next(calls) > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "the disk is full" in fails(capsys, 3, *argv, "--epochs", "9", "--save-every", "1s")
    assert len(list((RUN / "checkpoints").iterdir())) == 2
    assert mnist.main([*argv, "--epochs", "9", "--save-every", "1s", "--resume", "auto"]) == 0


# --------------------------------------------------------------------------------------------------------- optimizers


def test_names_in_the_sources_are_those_of_the_classes():
    known = known_arguments()
    assert {"adabound", "lookahead", "route", "keras.adafactor"} <= known.keys() == set(known) and len(known) > 60
    assert known.keys() > {name for name, cls in kopt.registry().items() if cls.__module__.startswith("kopt.")}
    assert {"gamma", "beta_1", "learning_rate", "ema_momentum"} <= known["adabound"] and "gamma" not in known["adam"]
    for name in known:
        assert find_class(name)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--optimizer", "adamm"], "Did you mean adam"),
        (["--opt", "bta_1=0.5"], "Did you mean beta_1"),
        (["--optimizer", "keras.adafactor", "--opt", "final_lr=1"], "keras.adafactor takes"),
        (["--optimizer", "route"], "routes="),
        (["--optimizer", "switch", "--opt", "first=adam"], "second="),
    ],
)
def test_wrong_names_are_found_before_keras_is_imported(flags, says, argv, capsys, monkeypatch):
    monkeypatch.setattr("recipes.run.command_line._import_quietly", lambda: pytest.fail("imported"))
    assert says in fails(capsys, 2, *argv, *flags)


def test_wrong_values_are_found_before_data_are_read(argv, capsys, monkeypatch):
    monkeypatch.setattr(mnist, "load", lambda data: pytest.fail("read"))
    assert "beta_1" in fails(capsys, 2, *argv, "--opt", "beta_1=3")
    assert "only kopt's" in fails(capsys, 2, *argv, "--optimizer", "keras.adafactor", "--on-nonfinite", "skip")
    assert "has its own way up" in fails(capsys, 2, *argv, "--lr-schedule", "one-cycle", "--warmup", "3")
    assert "rex takes end, start, steps" in fails(capsys, 2, *argv, "--lr-schedule", "rex", "--schedule-opt", "x=1")
    assert "no arguments" in fails(capsys, 2, *argv, "--lr-schedule", "constant", "--schedule-opt", "end=1")
    assert not Path("saved_models").exists()


def test_every_schedule_has_a_name():
    public = {name for name, thing in vars(kopt.schedules).items() if isinstance(thing, type)}
    assert set(SCHEDULES.values()) == public
    for name, rate in (("stable-decay", 0.75), ("one-cycle", 0.02), ("polynomial", 0.25), ("rex", 2 / 3)):
        flags = OptimizerFlags(
            learning_rate=1.0, lr_schedule=name, schedule_opt=("decay=10",) * (name == "stable-decay")
        )
        step = {"stable-decay": 92.5, "one-cycle": 68}.get(name, 50)
        found = float(make_optimizer(flags, 100)._learning_rate(step))
        assert found == pytest.approx({"one-cycle": found}.get(name, rate), rel=1e-3)


@pytest.mark.slow
def test_skipped_updates_are_counted(argv):
    argv += ["--optimizer", "sgd", "--learning-rate", "1e30", "--epochs", "2"]
    assert mnist.main([*argv, "--on-nonfinite", "skip"]) == 0
    assert json.loads((RUN / "metrics.json").read_text())["skipped_updates"] == 7  # all but the first
    assert mnist.main([*argv[:-4], "--run-name", "free", "--learning-rate", "1e30", "--on-nonfinite", "ignore"]) == 0

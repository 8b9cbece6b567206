"""What SIGTERM leaves behind while a command writes: a whole file or none."""

import os
import signal
from pathlib import Path

import pytest
import tensorflow as tf
from rating_data import make_model
from row_files import write

from recipes.recommendation import lists, main, saved_run, serving


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a command on a small model, with a SIGTERM before the first call of a function."""

    def run(owner, name, *arguments):
        whole = getattr(owner, name)

        def signalled(*args, **options):
            setattr(owner, name, whole)
            signal.raise_signal(signal.SIGTERM)
            return whole(*args, **options)

        monkeypatch.setattr(saved_run, "restore", lambda folder: make_model("mf", task="retrieval")[::-1])
        monkeypatch.setattr(owner, name, signalled)
        code = main([*arguments, "--model", "a run"])
        assert not list(Path().rglob(".*"))
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(("owner", "name"), [(lists, "read_key"), (lists, "best"), (os, "fsync"), (os, "replace")])
@pytest.mark.parametrize("before", ["", "what was there"])
def test_predict(command, owner, name, before):
    users, output = write("users.csv", "user\n1\n2\n"), Path("lists.csv")
    if before:
        output.write_text(before)
    code, error = command(owner, name, "predict", "--users-file", str(users), "--output", str(output), "--k", "2")
    if owner is os:
        assert (code, error) == (143, "interrupted: lists.csv is written.\n")
        assert len(output.read_text().splitlines()) == 5
    else:
        assert (code, error) == (143, "interrupted: nothing was saved.\n")
        assert (output.read_text() if output.exists() else "") == before


@pytest.mark.parametrize(("owner", "name"), [(serving, "_write_table"), (tf.saved_model, "save"), (os, "replace")])
def test_export(command, monkeypatch, owner, name):
    if owner is os:  # quick
        monkeypatch.setattr(tf.saved_model, "save", lambda server, folder, signatures: Path(folder).mkdir())
    code, error = command(owner, name, "export", "--to", "out/model")
    if owner is os:
        assert (code, error) == (143, f"interrupted: {Path('out/model')} is written.\n")
        assert {path.name for path in Path("out/model").iterdir()} >= {
            "users.npy",
            "items.npy",
            "serving",
            "about.json",
        }
    else:
        assert (code, error) == (143, "interrupted: nothing was saved.\n")
        assert list(Path("out").iterdir()) == []

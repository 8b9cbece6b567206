"""README.md keeps its word: its code runs, its commands work, and the rules that it names exist."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import textwrap

import pytest
from problems import rules

import kopt
from kopt.declare.registry import OPTIMIZERS

ROOT = pathlib.Path(__file__).parents[2]
README = ROOT / "README.md"


def blocks(language):
    """Returns the fenced blocks of README.md in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands():
    """Returns the commands of README.md, but those that install and those that run the tests."""
    parts = [part.strip() for block in blocks("bash") for line in block.splitlines() for part in line.split("&&")]
    return [part for part in parts if not part.startswith(("pip install", "pytest"))]


def test_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(OPTIMIZERS, "_classes", OPTIMIZERS.classes())
    names = {"__name__": "readme"}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert type(names["model"].optimizer).__name__ == "SignMomentum"
    assert (tmp_path / "model.keras").exists() and list((tmp_path / "logs").glob("events*"))


def test_a_loaded_model_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(blocks("python")[0], names)
    assert int(names["model"].optimizer.iterations) == 16
    assert type(names["model"].optimizer) is kopt.AdaBound


def test_optimizers_that_are_named_exist():
    (table,) = re.findall(r"^\| family \|.*?\n\n", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    named = re.findall(r"`(\w+)`", table)
    assert len(named) == len(set(named)) > 50
    assert set(named) <= set(rules())
    missing = sorted(set(rules()) - set(named))
    assert not missing, f"Give each a place in the table of families in README.md: {missing}"


@pytest.mark.slow
@pytest.mark.parametrize("line", commands())
def test_commands_work(line, tmp_path):
    env = os.environ | {
        "HOME": str(tmp_path),
        "KERAS_HOME": str(tmp_path / "keras"),
        "PATH": f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "https_proxy": "http://127.0.0.1:9",  # no network: the small digits that come with scikit-learn
    }
    line = re.sub(r"^kopt ", "python -m kopt ", line)  # where it is not installed
    done = subprocess.run(shlex.split(line), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, textwrap.indent(done.stderr, "    ")
    for metrics in (tmp_path / "saved_models").glob("*/*/metrics.json"):
        assert json.loads(metrics.read_text())["test_accuracy"] > 0.9
    assert done.stdout

"""README.md keeps its word: its code and its commands work. The families of docs/optimizers.md name every rule."""

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
from kopt import catalogue

ROOT = pathlib.Path(__file__).parents[2]
README, OPTIMIZERS = ROOT / "README.md", ROOT / "docs" / "optimizers.md"


def blocks(language):
    """Returns the fenced blocks of README.md in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands():
    """Returns the commands of README.md, but those that install and those that run the tests."""
    parts = [part.strip() for block in blocks("bash") for line in block.splitlines() for part in line.split("&&")]
    return [part for part in parts if not part.startswith(("pip install", "pytest"))]


def test_a_loaded_model_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(blocks("python")[0], names)
    assert int(names["model"].optimizer.iterations) == 16
    assert type(names["model"].optimizer) is kopt.AdaBound


def test_it_is_one_screen():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 80 and all(len(line) <= 400 for line in lines)


def test_schedules_that_are_named_exist():
    page = (ROOT / "docs" / "schedules.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| schedule \|.*?\n\n", page, re.DOTALL | re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", table)) == {cls.__name__ for cls in catalogue.classes("schedule").values()}


def test_optimizers_that_are_named_exist():
    (table,) = re.findall(r"^\| family \|.*?\n\n", OPTIMIZERS.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    named = re.findall(r"`(\w+)`", table)
    assert len(named) == len(set(named)) > 50
    assert set(named) <= set(rules())
    missing = sorted(set(rules()) - set(named))
    assert not missing, f"Give each a place in the table of families in docs/optimizers.md: {missing}"


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

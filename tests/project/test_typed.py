"""Type checkers know every argument: they find no fault in good.py, and each mistake in bad.py, where it is."""

import collections
import json
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TYPED = pathlib.Path(__file__).parent / "typed"
FILES = [TYPED / "good.py", TYPED / "bad.py"]


def mypy():
    """Returns file name and line of every error that mypy finds, with its message."""
    options = ["--no-incremental", "--cache-dir=/dev/null", "--no-error-summary", "--hide-error-context"]
    own = ["--config-file", str(ROOT / "pyproject.toml"), "--allow-untyped-defs"]  # users need not annotate
    done = run("mypy", *options, *own, *map(str, FILES))
    found = re.findall(r"^(.*?):(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    assert found or not done.stdout.strip(), done.stdout
    return [(pathlib.Path(file).name, int(line), text) for file, line, text in found]


def basedpyright():
    """Returns file name and line of every error that basedpyright finds, with its message."""
    report = json.loads(
        run("basedpyright", "--project", str(TYPED), "--pythonpath", sys.executable, "--outputjson").stdout
    )
    assert report["summary"]["filesAnalyzed"] == len(FILES)
    return [
        (pathlib.Path(found["file"]).name, found["range"]["start"]["line"] + 1, found["message"])
        for found in report["generalDiagnostics"]
        if found["severity"] == "error"
    ]


def run(program, *arguments):
    """Runs a checker with the interpreter of the tests, whose packages it sees."""
    done = subprocess.run([sys.executable, "-m", program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr  # 1: it has found errors
    return done


def expected():
    """Returns file name and line of every mistake."""
    return [
        (file.name, number)
        for file in FILES
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        if line.endswith("# expect")
    ]


@pytest.mark.parametrize("checker", [mypy, pytest.param(basedpyright, marks=pytest.mark.slow)])
def test_each_mistake_is_found_and_nothing_else(checker):
    found = checker()
    assert len(expected()) >= 7
    counts = collections.Counter((file, line) for file, line, _ in found)
    assert counts == dict.fromkeys(expected(), 1), "\n".join(map(str, found))

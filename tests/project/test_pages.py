"""The documents keep their word: their Python blocks run, and print what stands below them; so do the examples."""

import pathlib
import runpy
import sys
import tomllib
from unittest import mock

import keras
import page_blocks
import pytest

import kopt
from kopt.declare.registry import ADAPTERS, OPTIMIZERS

ROOT = pathlib.Path(__file__).parents[2]
EVERYWHERE = [
    *ROOT.glob("*.md"),
    *(p for room in ("docs", "recipes", "benchmarks") for p in (ROOT / room).rglob("*.md")),
]
PAGES = sorted(page for page in EVERYWHERE if page_blocks.has_blocks(page))
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
QUICK = ("README.md", "adapters.md", "own-rule.md")
"""Pages whose blocks run in the default tier; those of the others are slow."""


@pytest.fixture
def apart(tmp_path, monkeypatch):
    """An empty folder, and registries that forget what a page defines."""
    monkeypatch.chdir(tmp_path)
    for known in (OPTIMIZERS, ADAPTERS):
        monkeypatch.setattr(known, "_classes", known.classes())
    return tmp_path


@pytest.fixture
def trackers(monkeypatch):
    """Stand-ins for the services that docs/tracking.md speaks of, which need an account."""
    found = {name: mock.MagicMock(name=name) for name in ("wandb", "mlflow", "comet_ml")}
    found["mlflow"].keras.MlflowCallback.side_effect = lambda run: keras.callbacks.Callback()
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


def cases():
    """Returns the pages, those that are not quick as slow cases."""
    slow = {page: () if page.name in QUICK else (pytest.mark.slow,) for page in PAGES}
    return [pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks) for page, marks in slow.items()]


@pytest.mark.parametrize("page", cases())
def test_blocks_run_and_print_what_the_page_says(page, apart, trackers):
    names = {"__name__": page.stem}
    for block in page_blocks.run(page, names):
        if block.expected is not None:
            command = f"python docs/page_blocks.py {page.relative_to(ROOT)}"
            assert block.printed == block.expected, f"Run `{command}`."
    if page.name == "own-rule.md":
        assert type(names["model"].optimizer.optimizer).__name__ == "SignMomentum"
    if page.name == "tracking.md":
        assert list((apart / "logs").glob("events*"))
        assert trackers["wandb"].init().log.called and trackers["mlflow"].log_metrics.called
        assert trackers["comet_ml"].start().log_metrics.called


def test_a_page_is_brought_up_to_date(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("```python\na = 2\nprint(a)\n```\n\n```text\n1\n```\n\n```python\nprint(a + 1)\n```\n")
    monkeypatch.setattr(sys, "argv", ["page_blocks.py", str(page)])
    page_blocks.main()
    assert page.read_text().count("```text\n2\n```") == 1 and page.read_text().endswith("print(a + 1)\n```\n")


def test_every_example_is_described():
    assert len(EXAMPLES) == 5
    for path in EXAMPLES:
        text = path.read_text(encoding="utf-8")
        assert text.startswith('"""') and text.count("\n") < 50, path.name


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_say_something(path, apart, capsys):
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1
    assert not any(word in line for line in lines for word in ("nan", "inf ", "False"))


def test_the_version_is_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert project["version"] == kopt.__version__
    assert f"version: {kopt.__version__}" in citation
    assert f"\n## {kopt.__version__} " in changes

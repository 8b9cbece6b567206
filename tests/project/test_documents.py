"""The documents: generated parts are those of the code, links lead somewhere, results can be repeated."""

import importlib
import json
import re
import shlex
import tomllib

import generate
import keras
import numpy as np
import pytest
import yaml
from generate import COMMAND, RECIPES, ROOT, result_table, section
from problems import rules
from result_tables import rows_of, short_name, table_of

from kopt import catalogue
from recipes.recommendation.flags import ModelFlags, Train, fill
from recipes.run.command_line import parse
from recipes.run.flags import flatten

ROOMS = ("docs", "recipes", "benchmarks")
PAGES = [*ROOT.glob("*.md"), *(page for room in ROOMS for page in (ROOT / room).rglob("*.md"))]
RUNS = ROOT / "saved_models"  # but for the example, they are written on this machine
PAGES += [*RUNS.glob("*.md"), *RUNS.glob("text_classification/minilm-sst2-lora/*.md")]


def test_generated_parts_are_up_to_date():
    assert not generate.out_of_date(), f"Run `{COMMAND}`."


def test_a_page_that_is_out_of_date_is_named_and_written(tmp_path, monkeypatch):
    page = tmp_path / "docs" / "optimizers.md"
    page.parent.mkdir()
    page.write_text(generate.OPTIMIZERS.read_text(encoding="utf-8").replace("`Adam`", "`Madam`"), encoding="utf-8")
    whole = generate.OPTIMIZERS.read_text(encoding="utf-8")
    monkeypatch.setattr(generate, "pages", lambda found, measure: {page: whole})
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    assert generate.main(["--check"]) == "Out of date: docs/optimizers.md. Run `python docs/generate.py`."
    assert generate.main([]) is None
    assert generate.main(["--check"]) is None and page.read_text(encoding="utf-8") == whole


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith(("https://", "http://")):
            path, _, heading = link.partition("#")
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name} links to {link}, which does not exist."
            assert not heading or heading in headings(target), f"{page.name} links to {link}: no such heading."


def test_the_page_on_the_package_index_has_no_dead_links():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    text = page = (ROOT / "README.md").read_text(encoding="utf-8")
    for change in project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links and all(link.startswith(("https://", "#")) for link in links)
    code = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
    assert code.findall(text) == code.findall(page)


def headings(page):
    """Returns the headings of a page as GitHub writes them into links."""
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_every_decision_is_in_the_list():
    pages = sorted(page.name for page in (ROOT / "docs" / "decisions").glob("*.md"))
    listed = re.findall(r"\]\(decisions/(.*?)\)", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    assert pages and listed == pages


def test_state_takes_the_bytes_of_the_table():
    for cls in rules().values():
        optimizer = cls()
        optimizer.build([keras.Variable(np.zeros((8, 8)), dtype="float32")])
        slots = optimizer.setup.parameters[0].slots.values()
        assert sum(part.numpy().nbytes for slot in slots for part in slot.values()) == 64 * catalogue.state_bytes(
            optimizer, (8, 8)
        )


def test_results_repeat():
    page = RECIPES.read_text(encoding="utf-8")
    lines = [line for name in generate.RESULTS.values() for line in rows_of(section(page, name))]
    assert len(lines) > 20
    for line in lines:
        recipe = importlib.import_module(line.split()[2])
        parse(shlex.split(line)[3:], {"train": recipe.Train}, line)


def test_results_of_runs_that_are_not_here_stay():
    page = section(RECIPES.read_text(encoding="utf-8"), "results")
    assert result_table("mnist", {}, page) == page
    again = next(iter(rows_of(page)))
    run = {"train_examples": 60_000, "epochs": 10, "test_accuracy": 0.5, "test_loss": 1.0, "train_seconds": 1.0}
    before, after = page.splitlines(), result_table("mnist", {again: run}, page).splitlines()
    assert f"| {short_name('mnist', again)} | 60,000 | 10 | 0.5000 | 1.0000 | 1 |" in after
    assert sum(old == new for old, new in zip(before, after, strict=True)) == len(before) - 1


def test_runs_of_one_name_are_told_apart():
    rows = {f"python -m recipes.mnist --epochs {i}": f" {i} |" for i in range(3)}
    page = table_of("mnist", rows)
    assert rows_of(page) == rows and "| cnn, 3 |" in page


@pytest.mark.parametrize(("source", "flag"), [("mnist.npz", ""), ("scikit-learn digits", "--data digits ")])
def test_commands_of_runs(source, flag, tmp_path):
    folder = tmp_path / "mnist" / "run"
    folder.mkdir(parents=True)
    changed = {"data": "mnist.npz", "optimizer": "sgd", "opt": ["nesterov=true", "momentum=0.9"], "augment": True}
    defaults = flatten(importlib.import_module("recipes.mnist").Train())
    (folder / "config.yaml").write_text(yaml.safe_dump(defaults | changed, sort_keys=False))
    (folder / "metrics.json").write_text(json.dumps({"data": source}))
    expected = "--augment --optimizer sgd --opt nesterov=true --opt momentum=0.9"
    assert generate.command_of(folder) == f"python -m recipes.mnist {flag}{expected}"


def test_commands_leave_out_what_the_model_chooses(tmp_path):
    folder = tmp_path / "recommendation" / "run"
    folder.mkdir(parents=True)
    flags = fill(Train(choose=ModelFlags(task="retrieval", dropout=0.1)))
    (folder / "config.yaml").write_text(yaml.safe_dump(flatten(flags)))
    (folder / "metrics.json").write_text(json.dumps({"data": "ratings.csv"}))
    words = shlex.split(generate.command_of(folder))
    assert sorted(words[3:]) == sorted(["--task", "retrieval", "--dropout", "0.1"])

"""README.md keeps its word: its code runs, its table is that of the registry, its commands work.

python tests/test_readme.py --write

brings the generated parts up to date: the table of optimizers, and the results of the runs under saved_models/.
"""

import importlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib

import keras
import numpy as np
import pytest
import yaml
from problems import rules

import kopt
from kopt import catalogue
from kopt.declare.registry import OPTIMIZERS
from recipes.run.command_line import parse
from recipes.run.flags import flatten

ROOT = pathlib.Path(__file__).parents[1]
README, RECIPES = ROOT / "README.md", ROOT / "recipes" / "README.md"


# ------------------------------------------------------------------------------------------------- generated parts


def section(text, name):
    """Returns what stands between the markers `<!-- name -->` and `<!-- /name -->`."""
    return text.split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0]


def replaced(text, name, content):
    """Returns the text with another content between the markers."""
    head, tail = text.split(f"<!-- {name} -->\n")[0], text.split(f"<!-- /{name} -->")[1]
    return f"{head}<!-- {name} -->\n{content}<!-- /{name} -->{tail}"


def optimizer_table():
    """Returns the optimizers of the registry as Markdown."""
    lines = ["| optimizer | slots | bytes/parameter | row-wise | reference |", "|---|---|---:|---|---|"]
    for row in catalogue.optimizers():
        slots, bytes_each = ", ".join(row["slots"]) or "none", f"{row['bytes_per_parameter']:g}"
        cells = (f"`{row['name']}`", slots, bytes_each, "yes" if row["row_wise"] else "no", linked(row["reference"]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def adapter_table():
    """Returns the methods of the registry of adapters as Markdown."""
    lines = ["| method | what it is | merges | file of `peft` | reference |", "|---|---|---|---|---|"]
    for row in catalogue.adapters():
        merges, file = "yes" if row["merges"] else "no", row["peft_file"] or "-"
        lines.append(f"| `{row['name']}` | {row['about']} | {merges} | {file} | {linked(row['reference'])} |")
    return "\n".join([*lines, ""])


def linked(text):
    """Returns a reference with links."""
    text = re.sub(r"arXiv:(\d{4}\.\d{5}|\d{4}\.\d{4})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"doi:([^\s;,]+)", r"[doi:\1](https://doi.org/\1)", text)


def runs():
    """Returns the command and the metrics of the latest complete run of each command."""
    found = {}
    for path in sorted((ROOT / "saved_models").glob("*/*/metrics.json"), key=lambda p: p.stat().st_mtime):
        found[command(path.parent)] = json.loads(path.read_text(encoding="utf-8"))
    return found


def command(folder):
    """Returns the command that repeats a run, from its settings; where data lay and results went is left out."""
    recipe = folder.parent.name
    defaults = flatten(importlib.import_module(f"recipes.{recipe}").Train())
    words = ["python", "-m", f"recipes.{recipe}"]
    if json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["data"] == "scikit-learn digits":
        words += ["--data", "digits"]  # which "auto" may have come to
    for key, value in yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")).items():
        if value == defaults[key] or key in ("data", "progress"):
            continue
        flag = "--" + key.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        else:
            words += [word for v in (value if isinstance(value, list) else [value]) for word in (flag, str(v))]
    return shlex.join(words)


COLUMNS = {  # of the results of a recipe: heading and function of the metrics
    "mnist": {
        "images": lambda m: f"{m['train_examples']:,}",
        "epochs": lambda m: m["epochs"],
        "test accuracy": lambda m: f"{m['test_accuracy']:.4f}",
        "test loss": lambda m: f"{m['test_loss']:.4f}",
        "seconds": lambda m: f"{m['train_seconds']:.0f}",
    },
    "text_classification": {
        "texts": lambda m: f"{m['train_examples']:,}",
        "test accuracy": lambda m: f"{m['test_accuracy']:.4f}",
        "macro-F1": lambda m: f"{m['test_macro_f1']:.4f}",
        "trained parameters": lambda m: f"{m['trained_parameters']:,}",
        "seconds": lambda m: f"{m['train_seconds']:.0f}",
        "peak memory, MB": lambda m: f"{m['peak_memory_mb']:,.0f}",
    },
    "recommendation": {
        "measured by": lambda m: "RMSE" if m["task"] == "rating" else "NDCG@10",
        "test": lambda m: f"{m['test_' + MEASURE[m['task'] == 'rating']]:.4f}",
        "baseline": lambda m: f"{m['baseline_' + MEASURE[m['task'] == 'rating']]:.4f}",
        "trained parameters": lambda m: f"{m['trained_parameters']:,}",
        "seconds": lambda m: f"{m['train_seconds']:.0f}",
    },
}
MEASURE = {True: "rmse", False: "ndcg_at_10"}
SECTIONS = {"mnist": "results", "text_classification": "text-results", "recommendation": "recommendation-results"}


def result_table(recipe, found, before):
    """Returns the runs of one recipe as Markdown: those of the table before, replaced where they ran again."""
    columns = COLUMNS[recipe]
    rows = dict(re.findall(r"^\| `(.*?)` \|(.*)$", before, re.MULTILINE))
    for line, m in found.items():
        rows[line] = "".join(f" {cell(m)} |" for cell in columns.values())
    default_first = sorted(rows.items(), key=lambda item: (len(item[0].split()) > 3, item[0]))
    lines = ["| command | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    lines += [f"| `{line}` |{cells}" for line, cells in default_first]
    return "\n".join([*lines, ""])


def headline(command, m):
    """Returns a command and its result in two lines."""
    return (
        f"```text\n$ {command}\ntest accuracy {m['test_accuracy']:.4f}, test loss {m['test_loss']:.4f} on "
        f"{m['test_examples']:,} images after {m['epochs']} epochs\n```\n"
    )


def write():
    """Brings README.md and recipes/README.md up to date; results of runs that are not here stay."""
    text, found = replaced(README.read_text(encoding="utf-8"), "optimizers", optimizer_table()), runs()
    text = replaced(text, "adapters", adapter_table())
    main = "python -m recipes.mnist"
    if main in found:
        text = replaced(text, "mnist", headline("kopt mnist", found[main]))
    README.write_text(text, encoding="utf-8")
    page = RECIPES.read_text(encoding="utf-8")
    for recipe, name in SECTIONS.items():
        own = {c: m for c, m in found.items() if m["recipe"] == recipe}
        page = replaced(page, name, result_table(recipe, own, section(page, name)))
    RECIPES.write_text(page, encoding="utf-8")


# ------------------------------------------------------------------------------------------------- tests


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


@pytest.mark.parametrize(("name", "table"), [("optimizers", optimizer_table), ("adapters", adapter_table)])
def test_tables_are_those_of_the_registries(name, table):
    assert section(README.read_text(encoding="utf-8"), name) == table(), "Run `python tests/test_readme.py --write`."


def test_state_takes_the_bytes_of_the_table():
    for cls in rules().values():
        optimizer = cls()
        optimizer.build([keras.Variable(np.zeros((8, 8)), dtype="float32")])
        slots = optimizer._parameters[0].slots.values()
        assert sum(part.numpy().nbytes for slot in slots for part in slot.values()) == 64 * catalogue.state_bytes(
            optimizer, (8, 8)
        )


def test_links_lead_somewhere():
    for page in (README, RECIPES, ROOT / "CONTRIBUTING.md", ROOT / "saved_models" / "README.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_page_on_the_package_index_has_no_dead_links():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    text = page = README.read_text(encoding="utf-8")
    for change in project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(change["pattern"], change["replacement"], text)
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links and all(link.startswith(("https://", "#")) for link in links)
    code = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
    assert code.findall(text) == code.findall(page)


def test_results_repeat():
    page = RECIPES.read_text(encoding="utf-8")
    lines = re.findall(r"`(python -m recipes\.\w+.*?)`", "".join(section(page, name) for name in SECTIONS.values()))
    assert lines
    for line in lines:
        recipe = importlib.import_module(line.split()[2])
        parse(shlex.split(line)[3:], {"train": recipe.Train}, line)


def test_results_of_runs_that_are_not_here_stay():
    page = section(RECIPES.read_text(encoding="utf-8"), "results")
    assert result_table("mnist", {}, page) == page
    again = re.search(r"`(python .*?)`", page)[1]
    run = {"train_examples": 60_000, "epochs": 10, "test_accuracy": 0.5, "test_loss": 1.0, "train_seconds": 1.0}
    before, after = page.splitlines(), result_table("mnist", {again: run}, page).splitlines()
    assert f"| `{again}` | 60,000 | 10 | 0.5000 | 1.0000 | 1 |" in after
    assert sum(old == new for old, new in zip(before, after, strict=True)) == len(before) - 1


@pytest.mark.parametrize(("source", "flag"), [("mnist.npz", ""), ("scikit-learn digits", "--data digits ")])
def test_commands_of_runs(source, flag, tmp_path):
    folder = tmp_path / "mnist" / "run"
    folder.mkdir(parents=True)
    changed = {"data": "mnist.npz", "optimizer": "sgd", "opt": ["nesterov=true", "momentum=0.9"], "augment": True}
    defaults = flatten(importlib.import_module("recipes.mnist").Train())
    (folder / "config.yaml").write_text(yaml.safe_dump(defaults | changed, sort_keys=False))
    (folder / "metrics.json").write_text(json.dumps({"data": source}))
    expected = "--augment --optimizer sgd --opt nesterov=true --opt momentum=0.9"
    assert command(folder) == f"python -m recipes.mnist {flag}{expected}"


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


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    write()

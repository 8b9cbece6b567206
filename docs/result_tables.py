"""The tables of results in recipes/README.md: a line with a short name for each run, and below them the commands."""

import itertools
import re
import shlex
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

MEASURE = {True: "rmse", False: "ndcg_at_10"}  # of recommendation: is the task "rating"?
COLUMNS: dict[str, dict[str, Callable[[Mapping[str, Any]], Any]]] = {  # of a recipe: heading, cell from the metrics
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
RESULTS = {"mnist": "results", "text_classification": "text-results", "recommendation": "recommendation-results"}
"""The part of the page that holds the table of a recipe."""
NAMED_BY: dict[str, dict[str, str]] = {  # flag and how it is said
    "mnist": {"model": "{}", "optimizer": "{}", "data": "{}"},
    "text_classification": {"method": "{}", "data": "{}", "epochs": "{} epochs", "learning-rate": "rate {}"},
    "recommendation": {"task": "{}", "model": "{}", "data": "{}", "seed": "seed {}", "epochs": "{} epochs"},
}
DEFAULTS = {
    "mnist": {"model": "cnn"},
    "text_classification": {"method": "lora"},
    "recommendation": {"task": "rating"},
}
WIDTH = 116


def short_name(recipe: str, command: str) -> str:
    """Returns what tells a run from others: its method, its data, and what else was chosen."""
    words = shlex.split(command)[3:]
    given = {flag[2:]: value for flag, value in itertools.pairwise(words) if flag.startswith("--")}
    given = DEFAULTS[recipe] | given
    said = [form.format(given[flag]) for flag, form in NAMED_BY[recipe].items() if flag in given]
    return ", ".join("1 epoch" if part == "1 epochs" else part for part in said)


def rows_of(section: str) -> dict[str, str]:
    """Returns the cells of a table by the command of each line."""
    cells = dict(re.findall(r"^\| ([^|]+?) \|(.*)$", section, re.MULTILINE))
    block = section.partition("```text\n")[2].partition("```")[0]
    entries = re.findall(r"^(\S.*)\n((?: .*\n)+)", block, re.MULTILINE)
    return {" ".join(command.replace("\\\n", " ").split()): cells[name] for name, command in entries}


def table_of(recipe: str, rows: Mapping[str, str]) -> str:
    """Returns the table of a recipe and the commands of its lines as Markdown.

    Args:
        recipe: its name.
        rows: the cells by command.
    """
    default_first = sorted(rows.items(), key=lambda item: (len(item[0].split()) > 3, item[0]))
    names: dict[str, str] = {}
    for command, _ in default_first:
        name, count = short_name(recipe, command), 1
        while (unique := name if count == 1 else f"{name}, {count}") in names:
            count += 1
        names[unique] = command
    lines = ["| run | " + " | ".join(COLUMNS[recipe]) + " |", "|---|" + "---:|" * len(COLUMNS[recipe])]
    lines += [f"| {name} |{rows[command]}" for name, command in names.items()]
    lines += ["", "```text"]
    for name, command in names.items():
        kept = re.sub(r" (--\S+) (?!--)", r" \1\0", command)  # a flag and its value on one line
        parts = textwrap.wrap(kept, WIDTH, break_long_words=False, break_on_hyphens=False)
        lines += [name, "    " + " \\\n        ".join(parts).replace("\0", " ")]
    return "\n".join([*lines, "```", ""])


def result_table(recipe: str, found: Mapping[str, Mapping[str, Any]], before: str) -> str:
    """Returns the runs of one recipe as Markdown: those of the table before, replaced where they ran again."""
    rows = rows_of(before)
    for command, metrics in found.items():
        rows[command] = "".join(f" {cell(metrics)} |" for cell in COLUMNS[recipe].values())
    return table_of(recipe, rows)

"""Twelve rules on five tasks: the recipe `compare` trains them, one folder a task, and its figures are put together."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..run.errors import RecipeError
from ..run.folder import atomic

RULES = (
    "adamw",
    "nadamw",
    "momentum",
    "rmsprop",
    "adabound",
    "lion",
    "adafactor",
    "muon",
    "soap",
    "shampoo",
    "schedulefreeadamw",
    "prodigy",
)
"""The first one is what `compare` compares the others with."""
TARGETS = {"digits": 0.97, "tabular": 0.03, "text": 0.6, "recommendation": 0.87, "language-model": 2.3}
"""Of the test metric of each task: accuracy of digits and text, loss of the others."""
TRIALS, SEEDS, SPAN = 5, 2, 1000.0
"""Of each rule on each task: rates to try, runs of the best one, and the ratio of the highest rate to the lowest."""
FILE = "tasks.json"


def arguments(task: str, rules: Sequence[str], folder: Path) -> list[str]:
    """Returns the arguments of `compare` for a task."""
    flags = {
        "--task": task,
        "--optimizers": ",".join(rules),
        "--trials": TRIALS,
        "--seeds": SEEDS,
        "--span": SPAN,
        "--target": TARGETS[task],
        "--processes": 1,
        "--output-dir": folder / "tasks" / task,
    }
    return [str(word) for pair in flags.items() for word in pair]


def run(task: str, rules: Sequence[str], folder: Path, progress: str) -> None:
    """Makes the runs of a task that are missing, and adds its rows to the figures.

    Raises:
        RecipeError: `compare` failed.
    """
    words, start = arguments(task, rules, folder), time.monotonic()
    done = subprocess.run([sys.executable, "-m", "kopt", "compare", *words, "--progress", progress], check=False)
    if done.returncode:
        raise RecipeError(f"kopt compare {' '.join(words)} ended with code {done.returncode}.")
    metrics = json.loads((folder / "tasks" / task / "metrics.json").read_text(encoding="utf-8"))
    write(folder / FILE, task, metrics, (time.monotonic() - start) / 60)


def write(path: Path, task: str, metrics: dict[str, Any], minutes: float = 0.0) -> None:
    """Puts what `compare` has found on a task into a file, beside the other tasks and rules there.

    Args:
        path: the file.
        task: its name.
        metrics: of `compare`.
        minutes: that this took; those of earlier calls are added.
    """
    found = json.loads(path.read_text(encoding="utf-8"))["tasks"] if path.exists() else {}
    before = {row["rule"]: row for row in found.get(task, {}).get("rows", ())}
    ours = {row["optimizer"]: _row(row) for row in metrics["rows"]}
    rows = [(before | ours)[rule] for rule in RULES if rule in before | ours]
    facts = {key: metrics[key] for key in ("about", "metric", "target", "steps", "batch_size", "trials", "span")}
    minutes += found.get(task, {}).get("minutes", 0.0)
    found[task] = facts | {"seeds": SEEDS, "minutes": round(minutes, 1), "rows": rows}
    with atomic(path) as part:
        part.write_text(json.dumps({"tasks": found}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _row(row: dict[str, Any]) -> dict[str, Any]:
    def short(x: float | None) -> float | None:
        return None if x is None else float(f"{x:.4g}")

    return {
        "rule": row["optimizer"],
        "learning_rate": short(row["learning_rate"]),
        "reached": row["reached"],
        "runs": row["seeds"],
        **{key: short(row[key]) for key in ("steps", "seconds", "last")},
    }

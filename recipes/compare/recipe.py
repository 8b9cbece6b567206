"""Compare optimizers on one task, each tuned under the same budget.

python -m recipes.compare --task digits --optimizers adamw,lion,muon
python -m recipes.compare --task FILE.py:function --optimizers "adamw, adamw beta_2=0.95, keras.adam" --trials 8
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from ..run import signals
from ..run.command_line import program, run_command
from ..run.errors import RecipeError, UsageError
from ..run.flags import Count, OptionalCount, OptionalNumber, OptionalPath, Range, flatten, optional
from ..run.optimizer_flags import check_name, check_names

PICTURES = ("curves.png", "sensitivity.png", "times.png")


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare optimizers on one task, each tuned under the same budget; the same command goes on where it ended."""

    task: str = "digits"
    """mnist, digits, text, recommendation, language-model, tabular, test-functions, or FILE.py:FUNCTION, which returns
    a dictionary with model (a function), loss, train and test (inputs and targets each)."""
    optimizers: str = "adamw, momentum, lion, muon, soap, adabound, schedulefreeadamw, prodigy"
    """Optimizers with commas between, as for --optimizer, each perhaps with arguments: "adamw beta_2=0.95, keras.adam".
    The first one is what the others are compared with."""
    trials: Count = 5
    """Learning rates that each optimizer has to try, from a log-uniform space around its own."""
    span: Annotated[float, Range(1, above=True)] = 1000.0
    """Ratio of the highest rate of that space to the lowest."""
    seeds: Count = 3
    """Runs of the best trial, which are compared."""
    steps: OptionalCount = None
    """Updates of a run. Default: those of the task."""
    batch_size: OptionalCount = None
    """Examples per step. Default: that of the task."""
    target: OptionalNumber = None
    """Value of the test metric to reach. Default: that of the task, else what the best trial of the first one has."""
    lr_schedule: Literal["constant", "linear", "cosine", "polynomial", "rex"] = "constant"
    """Learning rate after the warm-up."""
    warmup: str = "0"
    """Length of the linear warm-up, in updates or in percent of all updates, as in 5%."""
    data: str = "auto"
    """Of --task mnist: as for the recipe mnist."""
    processes: OptionalCount = None
    """Runs at the same time. Default: one for every two cores."""
    output_dir: OptionalPath = None
    """Folder of the comparison. Default: saved_models/compare/TASK."""
    progress: Literal["auto", "rich", "plain", "none"] = "auto"
    """rich shows a table of all optimizers, plain a line for each run; auto is rich on a terminal."""
    config: Annotated[Path | None, optional("FILE")] = None
    """YAML file of flags; flags on the command line override it."""


def entries(flags: Compare) -> list[str]:
    """Returns the optimizers of a comparison.

    Raises:
        UsageError: one is unknown, or there twice.
    """
    from .training import Setting, flags_of

    found = [" ".join(part.split()) for part in flags.optimizers.split(",") if part.strip()]
    if not found:
        raise UsageError("--optimizers: give at least one.")
    for entry in found:
        if found.count(entry) > 1:
            raise UsageError(f"--optimizers {entry}: is there twice.")
        check_name(entry.split()[0], "--optimizers")
        check_names(flags_of(entry, Setting("", "", 1, 1, "constant", "0")))
    return found


def compare(flags: Compare, arguments: Sequence[str] | None = None) -> int:
    """Compares optimizers; returns the exit code. `arguments` are those of the command line, for the page."""
    from ..run.optimizer_flags import make_optimizer
    from . import tasks
    from .progress import Progress
    from .runs import Runs
    from .training import Setting, flags_of

    tasks.check_name(flags.task)
    listed = entries(flags)
    task = tasks.load(flags.task, flags.data)
    setting = Setting(
        flags.task,
        _identity(flags),
        flags.steps or task.steps,
        flags.batch_size or task.batch_size,
        flags.lr_schedule,
        flags.warmup,
    )
    for entry in listed:  # a wrong value is found before the first run
        make_optimizer(flags_of(entry, setting), setting.steps, flag="--optimizers")
    folder = flags.output_dir or Path("saved_models") / "compare" / flags.task.replace("/", "-").replace(":", "-")
    target = task.target if flags.target is None else flags.target
    with _alone(folder):
        runs = Runs(folder, setting, listed, flags.trials, flags.seeds, flags.span, target, task.sign)
        processes = flags.processes or max(1, (os.cpu_count() or 1) // 2)
        words = shlex.join(arguments if arguments is not None else _given(flags))
        try:
            with Progress(flags.progress, runs, task) as progress:
                for kind in ("trial", "seed"):
                    runs.make(kind, processes, progress.add)
        except signals.Interrupted as error:
            error.left = f"{folder} has the runs so far; the same command goes on."
            raise
        return _finish(folder, runs, task, flags, f"{program('compare')} {words}".rstrip())


def _identity(flags: Compare) -> str:
    """Returns what tells the data of two comparisons apart."""
    file, colon, _ = flags.task.rpartition(":")
    if colon and Path(file).is_file():
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]
    return flags.data


def _given(flags: Compare) -> list[str]:
    from ..run.facts import arguments_of

    return arguments_of(flatten(flags), flatten(type(flags)()))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Makes a folder, and keeps other comparisons out of it."""
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except (filelock.Timeout, OSError) as error:
        reason = "another comparison writes there" if isinstance(error, filelock.Timeout) else error.strerror
        raise UsageError(f"{folder}: {reason}. Choose another --output-dir.") from error
    try:
        yield
    finally:
        lock.release()


def _finish(folder: Path, runs: Any, task: Any, flags: Compare, command: str) -> int:
    """Writes figures, pictures, page and TensorBoard's files, and prints the table."""
    from ..run import facts
    from ..run.folder import atomic
    from . import pictures, results, tasks

    rows = results.rows(runs)
    order = [row["optimizer"] for row in rows]
    pictures.curves(folder / PICTURES[0], runs, order, task.metric)
    pictures.sensitivity(folder / PICTURES[1], runs, order, task.metric)
    pictures.times(folder / PICTURES[2], rows, f"{flags.task}: {task.metric} {runs.sign * runs.target:.4g}")
    names = [*PICTURES]
    if flags.task == tasks.OF_FUNCTIONS:
        names.append("ways.png")
        pictures.ways(folder / names[-1], runs, order)
    results.write_logs(folder, runs, task.metric)
    with atomic(folder / "README.md") as path:
        path.write_text(results.page(runs, task, rows, command, names), encoding="utf-8")
    metrics = {
        "recipe": "compare",
        "task": flags.task,
        "about": task.about,
        "metric": task.metric,
        "target": runs.sign * runs.target,
        "steps": runs.setting.steps,
        "batch_size": runs.setting.batch_size,
        "trials": flags.trials,
        "span": flags.span,
        "rows": rows,
        "versions": facts.versions(),
        "revision": facts.revision(),
        "command": command,
    }
    with atomic(folder / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    if flags.progress != "none":
        print(results.table(rows, task.metric))
        print(f"saved in {folder}; curves and rates: tensorboard --logdir {folder / results.LOGS}")
    if all(row["learning_rate"] is None for row in rows):
        raise RecipeError("no optimizer has a run that works.")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv` (default: the program's arguments) and returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return run_command("compare", arguments, {Compare: functools.partial(compare, arguments=arguments)})

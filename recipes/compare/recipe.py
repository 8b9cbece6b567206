"""Compare optimizers on one task, each tuned under the same budget.

python -m recipes.compare --task digits --optimizers adamw,lion,muon
python -m recipes.compare --task FILE.py:function --optimizers "adamw, adamw beta_2=0.95, keras.adam" --trials 8
"""

import dataclasses
import functools
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from ..run import signals
from ..run.command_line import program, run_command
from ..run.errors import RecipeError, UsageError
from ..run.flags import Count, OptionalCount, OptionalNumber, OptionalPath, Range, flatten, optional
from ..run.optimizer_flags import check_name, check_names
from . import contestants

PICTURES = ("curves.png", "sensitivity.png", "times.png")


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare optimizers on one task, each tuned under the same budget; the same command goes on where it ended."""

    task: str = "digits"
    """mnist, digits, text, recommendation, language-model, tabular, multimodal, test-functions, or FILE.py:FUNCTION,
    which returns a dictionary with model (a function), loss, train and test (inputs and targets each)."""
    optimizers: Annotated[str | None, optional("LIST")] = None
    """Optimizers with commas between, as for --optimizer, each perhaps with arguments: "adamw beta_2=0.95, keras.adam".
    The first one is what the others are compared with. Default: those of --transfer, else eight of different kinds, of
    multimodal Route and Switch too."""
    trials: Count = 5
    """Learning rates that each optimizer has to try, from a log-uniform space around its own."""
    trial_seeds: Count = 1
    """Runs of each of these rates; the rate that is the best on the mean is chosen."""
    span: Annotated[float, Range(1, above=True)] = 1000.0
    """Ratio of the highest rate of that space to the lowest."""
    seeds: Count = 3
    """Runs with the best rate, by other seeds than those of the trials, which are compared."""
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
    transfer: Annotated[Path | None, optional("FOLDER")] = None
    """Comparison of another task, whose best rates are tried too: what carries over from one task to the next."""
    processes: OptionalCount = None
    """Runs at the same time. Default: one for every two cores."""
    output_dir: OptionalPath = None
    """Folder of the comparison. Default: saved_models/compare/TASK."""
    progress: Literal["auto", "rich", "plain", "none"] = "auto"
    """rich shows a table of all optimizers, plain a line for each run; auto is rich on a terminal."""
    config: Annotated[Path | None, optional("FILE")] = None
    """YAML file of flags; flags on the command line override it."""


def entries(flags: Compare, carried: Mapping[str, float]) -> list[str]:
    """Returns the optimizers of a comparison.

    Args:
        flags: of the comparison.
        carried: rates of optimizers on another task.

    Raises:
        UsageError: one is unknown, or there twice, or there is no rate for any of them.
    """
    from .training import Setting, flags_of

    of_transfer = flags.optimizers is None and flags.transfer is not None
    found = list(carried) if of_transfer else contestants.given(flags.optimizers, flags.task)
    for entry in found:
        check_name(contestants.words(entry)[0], "--optimizers")
        check_names(flags_of(entry, Setting("", "", 1, 1, "constant", "0")))
    if flags.transfer is not None and not carried.keys() & set(found):
        raise UsageError(f"--transfer {flags.transfer}: has rates of {', '.join(carried)} alone.")
    return found


def rates_of(folder: Path) -> tuple[str, dict[str, float]]:
    """Returns the task of a comparison, and the best rate of each optimizer.

    Raises:
        UsageError: the folder holds no comparison.
    """
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        rates = {row["optimizer"]: row["learning_rate"] for row in metrics["rows"] if row["learning_rate"] is not None}
        return metrics["task"], rates
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--transfer {folder}: no comparison that has ended. Give the folder of one.") from error


def compare(flags: Compare, arguments: Sequence[str] | None = None) -> int:
    """Compares optimizers; returns the exit code. `arguments` are those of the command line, for the page."""
    from ..run.optimizer_flags import make_optimizer
    from ..run.workers import alone
    from . import tasks
    from .progress import Progress
    from .runs import Runs
    from .training import Setting, flags_of

    tasks.check_name(flags.task)
    other, carried = (None, dict[str, float]()) if flags.transfer is None else rates_of(flags.transfer)
    listed = entries(flags, carried)
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
    with alone(folder, "another comparison writes there"):
        budget = (flags.trials, flags.seeds, flags.span)
        runs = Runs(folder, setting, listed, *budget, target, task.sign, carried, flags.trial_seeds)
        words = shlex.join(arguments if arguments is not None else _given(flags))
        try:
            with Progress(flags.progress, runs, task) as progress:
                for kind in ("trial", "seed", "carried"):
                    runs.make(kind, _processes(flags), progress.add)
        except signals.Interrupted as error:
            error.left = f"{folder} has the runs so far; the same command goes on."
            raise
        return _finish(folder, runs, task, flags, f"{program('compare')} {words}".rstrip(), other)


def _processes(flags: Compare) -> int:
    return flags.processes or max(1, (os.cpu_count() or 1) // 2)


def _identity(flags: Compare) -> str:
    """Returns what tells the data of two comparisons apart."""
    file, colon, _ = flags.task.rpartition(":")
    if colon and Path(file).is_file():
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12]
    return flags.data


def _given(flags: Compare) -> list[str]:
    from ..run.facts import arguments_of

    return arguments_of(flatten(flags), flatten(type(flags)()))


def _finish(folder: Path, runs: Any, task: Any, flags: Compare, command: str, other: str | None) -> int:
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
        path.write_text(results.page(runs, task, rows, command, names, other), encoding="utf-8")
    metrics = {
        "recipe": "compare",
        "task": flags.task,
        "about": task.about,
        "metric": task.metric,
        "target": runs.sign * runs.target,
        "steps": runs.setting.steps,
        "batch_size": runs.setting.batch_size,
        "trials": flags.trials,
        "trial_seeds": flags.trial_seeds,
        "span": flags.span,
        **({} if other is None else {"carried_from": other}),
        "rows": rows,
        "versions": facts.versions(),
        "revision": facts.revision(),
        "command": command,
    }
    with atomic(folder / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    if flags.progress != "none":
        print(results.table(rows, task.metric))
        if other is not None:
            print(f"\nrates carried over from {other}:\n\n{results.table_of_carried(rows, task.metric)}\n")
        print(f"saved in {folder}; curves and rates: tensorboard --logdir {shlex.quote(str(folder / results.LOGS))}")
    if all(row["learning_rate"] is None for row in rows):
        raise RecipeError("no optimizer has a run that works.")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv` (default: the program's arguments) and returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    command = functools.partial(compare, arguments=arguments)
    return run_command("compare", arguments, {Compare: command}, trains=lambda flags: _processes(flags) == 1)

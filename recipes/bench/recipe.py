"""Every optimizer on forty small problems, twelve on five tasks, adapters on two models: boards to repeat.

python -m recipes.bench
python -m recipes.bench --rule lion
python -m recipes.bench --part adapters
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from ..run import signals
from ..run.command_line import run_command
from ..run.errors import RecipeError, UsageError
from ..run.flags import CountOrZero, OptionalName, OptionalPath, optional, refuse
from ..run.optimizer_flags import OF_KERAS, check_name

ABOUT, ROWS = "problems.json", "rows"


@dataclasses.dataclass(frozen=True)
class Bench:
    """Run optimizers on problems and tasks, adapters on two models; the same command goes on where it ended."""

    rule: OptionalName = None
    """Run this optimizer alone, its problems anew, and say how its row differs from that of the board in kopt."""
    method: OptionalName = None
    """With --part adapters: run this method of fine-tuning alone, and anew."""
    part: Literal["all", "problems", "tasks", "adapters"] = "all"
    """problems: 40 for every optimizer, half a minute each; tasks: five for twelve; adapters: each on two models."""
    data: OptionalPath = None
    """With --part adapters: folder of SST-2 as GLUE has it, train.tsv and dev.tsv. Default: texts in a package."""
    adapter_task: Literal["all", "sentences", "language"] = "all"
    """With --part adapters: sentences on MiniLM, language with SmolLM2, or those whose packages are there (all)."""
    seed: CountOrZero = 0
    """First seed of the problems. Another one than that of the board shows how much of a row is chance."""
    check: bool = False
    """Run nothing: say which rows of the board are missing or made by other problems than these."""
    output_dir: OptionalPath = None
    """Folder of rows, figures and pictures. Default: saved_models/bench; of --check, the board in kopt."""
    progress: Literal["plain", "none"] = "plain"
    """plain prints a line for each optimizer and task."""
    config: Annotated[Path | None, optional("FILE")] = None
    """YAML file of flags; flags on the command line override it."""


def bench(flags: Bench) -> int:
    """Makes the rows that are missing, or one anew; returns the exit code."""
    from kopt import board, catalogue

    from . import rows, tasks

    classes = catalogue.classes("optimizer")
    if flags.rule is not None:
        _check_rule(flags.rule, flags.part)
    if flags.check:
        refuse(flags, ["rule", "method", "part", "data", "adapter_task", "seed", "progress"], "with --check")
        names = [name for name in classes if name not in rows.LEFT_OUT]
        return _check(flags.output_dir or board.reader.FOLDER, names)
    _check_adapters(flags)
    folder = flags.output_dir or Path("saved_models") / "bench"
    try:
        (folder / ROWS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}. Choose another --output-dir.") from error
    chosen = list(classes) if flags.rule is None else [flags.rule.lower()]
    try:
        if flags.part == "adapters" or (flags.part == "all" and flags.rule is None):
            _adapters(flags, folder)
        if flags.part in ("all", "problems"):
            _problems(flags, folder, {name: classes[name] for name in chosen if name not in rows.LEFT_OUT})
        if flags.part in ("all", "tasks"):
            _tasks(flags, folder, [name for name in tasks.RULES if name in chosen])
    except signals.Interrupted as error:
        error.left = f"{folder} has the rows so far; the same command goes on."
        raise
    _draw(folder)
    if flags.progress != "none":
        print(f"saved in {folder}")
    return 0


def _check_rule(name: str, part: str) -> None:
    from . import rows, tasks

    check_name(name, "--rule")
    if name.lower().startswith(OF_KERAS):
        raise UsageError(f"--rule {name}: the board is of kopt's optimizers.")
    if part == "problems" and name.lower() in rows.LEFT_OUT:
        raise UsageError(f"--rule {name}: has no row, because {rows.LEFT_OUT[name.lower()]}.")
    if part == "tasks" and name.lower() not in tasks.RULES:
        raise UsageError(f"--rule {name}: not one of the twelve with tasks: {', '.join(tasks.RULES)}.")


def _check_adapters(flags: Bench) -> None:
    from . import adapters

    others = flags.part != "adapters" and f"with --part {flags.part}"
    refuse(flags, ["method", "data", "adapter_task"], others)
    refuse(flags, ["rule", "seed"], flags.part == "adapters" and "with --part adapters")
    if flags.data is not None:
        refuse(flags, ["data"], flags.adapter_task == "language" and "with --adapter-task language")
        adapters.check_data(flags.data)
    names = adapters.METHODS if flags.adapter_task == "all" else adapters.TASKS[flags.adapter_task].methods
    if flags.method is not None and flags.method not in names:
        raise UsageError(f"--method {flags.method}: not one of {', '.join(names)}.")


def _adapters(flags: Bench, folder: Path) -> None:
    """Makes the rows of methods that are missing, of the tasks whose packages are there; with --method that one."""
    from . import adapters

    for name, task in adapters.TASKS.items():
        if flags.adapter_task not in ("all", name):
            continue
        if gone := adapters.missing(task):
            text = f"adapters, {name}: not run. It needs {', '.join(gone)}: pip install --no-deps {' '.join(gone)}."
            if flags.adapter_task == name:
                raise UsageError(text)
            if flags.progress != "none":
                print(text)
            continue
        methods = task.methods if flags.method is None else [flags.method]
        adapters.run(name, methods, folder, flags.data, flags.method is not None, flags.progress)


def _listed() -> list[Any]:
    from . import networks, vectors

    found = [*vectors.PROBLEMS, *networks.PROBLEMS]
    families = list(dict.fromkeys(problem.family for problem in found))
    return sorted(found, key=lambda problem: families.index(problem.family))


def _problems(flags: Bench, folder: Path, classes: Mapping[str, Any]) -> None:
    """Makes the rows that are missing; with --rule that one, and says how it differs from the board's."""
    from kopt import board

    from . import rows
    from .descent import branches
    from .thresholds import THRESHOLDS

    listed = _listed()
    functions = branches(listed)
    about = {
        p.name: {"family": p.family, "why": p.why, "threshold": THRESHOLDS[p.name], "steps": p.steps} for p in listed
    }
    facts = {"protocol": rows.protocol(listed), "factors": rows.FACTORS, "seeds": rows.SEEDS}
    facts |= {"left_out": rows.LEFT_OUT, "problems": about}
    rows.write(folder / ABOUT, facts)
    for name, cls in classes.items():
        path = folder / ROWS / f"{name}.json"
        found = None if flags.rule is not None else rows.read(path)
        if found is None or (found["protocol"], found["first_seed"]) != (facts["protocol"], flags.seed):
            found = rows.make_row(name, cls, listed, functions, flags.seed)
            rows.write(path, found)
            if flags.progress != "none":
                print(_line(board.reader.as_row(found, facts)), flush=True)
        if flags.rule is not None:
            before = rows.read(board.reader.FOLDER / ROWS / f"{name}.json")
            _tell(board.reader.as_row(found, facts), None if before is None else board.reader.as_row(before, facts))


def _tasks(flags: Bench, folder: Path, names: Sequence[str]) -> None:
    """Makes the runs that are missing; with --rule says how far they are from the board's."""
    from kopt import board

    from . import tasks

    for task in tasks.TARGETS if names else ():
        tasks.run(task, names, folder, flags.progress)
        if flags.rule is not None:
            ours = board.tasks(folder)[task][names[0]]
            before = board.tasks().get(task, {}).get(names[0])
            print(f"{task}: {_time(ours)}; on the board: {'not run' if before is None else _time(before)}")


def _time(result: Any) -> str:
    if result.steps is None:
        return "no rate works"
    return f"{result.steps:.0f} steps, {result.reached} of {result.runs} runs reach the target"


def _line(row: Any) -> str:
    missed = ", ".join(name for name, verdict in row.verdicts.items() if not verdict.passed) or "none"
    return f"{row.rule}: passes {row.passed} of {len(row.verdicts)} in {row.seconds:.0f} s; fails {missed}"


def _tell(row: Any, before: Any) -> None:
    """Prints each problem of a row, then how it differs from the row of the board, if there is one."""
    from . import rows

    print(
        f"{'problem':18} {'passed':6} {'seeds':>6} {'rates':>6} {'error':>9} {'to pass':>9}  best rate, times its own"
    )
    for name, verdict in row.verdicts.items():
        print(
            f"{name:18} {'yes' if verdict.passed else 'no':6} {verdict.seeds_passed:>6} {verdict.rates_passed:>6} "
            f"{verdict.error:>9.2g} {verdict.threshold:>9.2g}  {verdict.factor:g}"
        )
    if before is None:
        print(f"The board has no row of {row.rule} to compare with.")
        return
    if before.protocol != row.protocol:
        print("The row of the board was made by other problems; the verdicts below are not of the same ones.")
    found = rows.differences(row, before)
    for kind, names in found.items():
        print(f"Other verdicts than the board's, {kind} its noise: {', '.join(names) or 'none'}")
    close = [name for name, verdict in before.verdicts.items() if verdict.is_close]
    print(f"Noise: problems of which some seeds pass and some fail. On the board: {', '.join(close) or 'none'}")


def _check(folder: Path, names: Sequence[str]) -> int:
    """Says which rows are missing or out of date; 1 if some are."""
    from . import rows

    protocol, wrong = rows.protocol(_listed()), list[str]()
    for name in names:
        row = rows.read(folder / ROWS / f"{name}.json")
        if row is None or row["protocol"] != protocol:
            wrong.append(f"{name} ({'missing' if row is None else 'made by other problems'})")
    if wrong:
        raise RecipeError(f"{folder}: {len(wrong)} of {len(names)} rows are not there: {', '.join(wrong)}.")
    print(f"{folder}: all {len(names)} rows are there.")
    return 0


def _draw(folder: Path) -> None:
    from kopt import board

    from . import pictures

    if found := board.rows(folder):
        pictures.draw_board(folder / "board.png", found, board.problems(folder))
    if results := board.tasks(folder):
        pictures.draw_profiles(folder / "board-profiles.png", results)
    if methods := board.adapters(folder):
        pictures.draw_adapters(folder / "board-adapters.png", methods)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv` (default: the program's arguments) and returns the exit code."""
    return run_command("bench", sys.argv[1:] if argv is None else argv, {Bench: bench})

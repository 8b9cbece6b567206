"""Search for the best flags of a recipe.

python -m recipes.tune mnist --trials 20 -- --epochs 3 --model mlp
python -m recipes.tune mnist --search "learning_rate=log(1e-4, 1e-1)" --search "optimizer=choice(adam, lion)"
"""

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..run import signals
from ..run.command_line import program, run_command
from ..run.errors import DivergedError, RecipeError, UsageError
from ..run.flags import Count, CountOrZero, OptionalCount, OptionalPath
from .spaces import Space, read, usual
from .tuned import Tuned

PICTURES = ("history.png", "slices.png")
SMALL = ("loss", "rmse", "mae", "mse", "error", "perplexity")
"""What names of metrics end in that are to be small."""


@dataclasses.dataclass(frozen=True)
class Tune:
    """Search for the best flags of a recipe; the same command goes on where it ended.

    After -- come the flags that all trials have: kopt tune mnist --trials 20 -- --epochs 3 --model mlp
    """

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")]
    """Recipe whose flags are searched, as mnist, text-classification or recommendation."""
    search: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """FLAG=SPACE, repeatable: "learning_rate=log(1e-4, 1e-1)", "dropout=float(0, 0.5)", "batch_size=int(32, 256)" or
    log_int(32, 256), "optimizer=choice(adam, lion)", "opt.beta_1=float(0.8, 0.99)" for an argument of the optimizer.
    Default: learning rate and weight decay around the optimizer's own."""
    trials: Count = 20
    """Runs of the recipe."""
    metric: str = "val_loss"
    """What is to be made best: a metric of the validation set, as val_loss or val_accuracy."""
    direction: Literal["auto", "min", "max"] = "auto"
    """Whether the metric is to be small or large; auto tells by its name."""
    pruner: Literal["median", "halving", "none"] = "median"
    """Which trials are given up early: those worse than the median of the others after as many epochs, or all but a
    quarter after 1, 4, 16, ... epochs (halving)."""
    processes: OptionalCount = None
    """Trials at the same time. Default: one for every two cores; with a GPU one."""
    seed: CountOrZero = 0
    """Seed of the values that are tried. That of the runs is a flag of the recipe."""
    output_dir: OptionalPath = None
    """Folder of the search. Default: saved_models/tune/RECIPE."""
    progress: Literal["plain", "none"] = "plain"
    """plain prints a line for each trial."""


class Tuning:
    """The command, from what can be checked before anything is loaded to the last file.

    Args:
        arguments: those of the command line.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        words = list(arguments)
        place = words.index("--") if "--" in words else len(words)
        self.own, self._fixed = words[:place], words[place + 1 :]
        self.command = f"{program('tune')} {shlex.join(words)}".rstrip()
        self._tuned: Any = None
        self._space: Any = None

    def check(self, flags: Tune) -> None:
        """Checks all flags.

        Raises:
            UsageError: one is wrong.
        """
        if not flags.metric.startswith("val_"):
            guess = f"val_{flags.metric.removeprefix('test_').removeprefix('train_')}"
            raise UsageError(f"--metric {flags.metric}: expected one of the validation set, as {guess}.")
        axes = read(flags.search)
        self._tuned = Tuned(flags.recipe, self._fixed)
        if axes:
            self._space = Space(self._tuned, axes)

    def run(self, flags: Tune) -> int:
        """Searches; returns the exit code."""
        from ..run.workers import alone
        from . import results
        from .study import Study

        space = self._space or Space(self._tuned, usual(self._tuned))
        folder = flags.output_dir or Path("saved_models") / "tune" / self._tuned.name
        small = flags.metric.endswith(SMALL) if flags.direction == "auto" else flags.direction == "min"
        says = flags.progress != "none"
        with alone(folder, "another search writes there"):
            study = Study(folder, self._tuned, space, flags.metric, small, flags.pruner, flags.seed)
            if says:
                searched = "; ".join(map(str, space.axes))
                done = len(study.trials())
                so_far = f", {done} of them done" if done else ""
                print(f"{self._tuned.name}: {flags.trials} trials{so_far}, {flags.metric}; {searched}", flush=True)

            def report(trial: Any) -> None:
                results.write_log(folder, study, trial)
                if says:
                    best = study.best()
                    note = f"; best so far {best.value:.4f}, trial {best.number}" if best is not None else ""
                    print(results.described(trial, flags.metric) + note, flush=True)

            try:
                study.make(flags.trials, flags.processes or _processes(), report)
            except signals.Interrupted as error:
                with signals.held(""):
                    self._finish(folder, study, says)
                error.left = f"{folder} has the trials so far; the same command goes on."
                raise
            self._finish(folder, study, says)
        return _code(study)

    def _finish(self, folder: Path, study: Any, says: bool) -> None:
        """Writes page, pictures and the best flags, and prints the table."""
        from ..run import facts
        from ..run.folder import atomic
        from . import pictures, results

        trials, best = study.ranked(), study.best()
        if not trials:
            return
        importances = study.importances()
        pictures.history(folder / PICTURES[0], study, importances)
        pictures.slices(folder / PICTURES[1], study)
        file = folder / "best.yaml"
        use = f"{program(study.tuned.name)} --config {shlex.quote(str(file))}"
        kept: dict[str, Any] = {}
        if best is not None:
            results.write_best(file, study, best, self.command)
            measured = json.loads((study.place(best.number) / "metrics.json").read_text(encoding="utf-8"))
            kept = {key: value for key, value in measured.items() if key.startswith(("validation_", "test_"))}
        page = results.page(study, self.command, importances, PICTURES, use)
        with atomic(folder / "README.md") as path:
            path.write_text(page, encoding="utf-8")
        metrics = {
            "recipe": "tune",
            "tuned": study.tuned.name,
            "metric": study.metric,
            "direction": "min" if study.minimize else "max",
            "search": [str(axis) for axis in study.space.axes],
            "best": None if best is None else dataclasses.asdict(best) | kept,
            "trials": [dataclasses.asdict(trial) for trial in trials],
            "importances": importances,
            "versions": facts.versions(),
            "revision": facts.revision(),
            "command": self.command,
        }
        with atomic(folder / "metrics.json") as path:
            path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        if says:
            print(results.table(trials[: results.SHOWN], study.metric))
            tests = ", ".join(f"{k.replace('_', ' ')} {v:.4f}" for k, v in kept.items() if isinstance(v, float))
            if best is not None:
                print(f"best: trial {best.number}; {tests}. Train with its flags: {use}")
            print(
                f"saved in {folder}; all trials: tensorboard --logdir {shlex.quote(str(folder / results.LOGS))}",
                flush=True,
            )


def _processes() -> int:
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return 1
    return max(1, (os.cpu_count() or 1) // 2)


def _code(study: Any) -> int:
    """Returns 0 if a trial is complete.

    Raises:
        DivergedError: all have diverged.
        RecipeError: none is complete.
    """
    ends = {trial.ended for trial in study.trials()}
    if "complete" in ends:
        return 0
    if ends == {"diverged"}:
        raise DivergedError("all trials diverged. Search among smaller learning rates.")
    raise RecipeError(f"no trial is complete; {study.folder / 'README.md'} says why.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv` (default: the program's arguments) and returns the exit code."""
    tuning = Tuning(sys.argv[1:] if argv is None else argv)
    return run_command("tune", tuning.own, {Tune: tuning.run}, check=tuning.check, trains=lambda _: False)

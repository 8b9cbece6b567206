"""What a comparison has come to: a row for each optimizer, as figures, Markdown and TensorBoard's HParams."""

import math
import shutil
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import protocol
from .runs import Runs
from .tasks import Task

LOGS = "logs"


def rows(runs: Runs) -> list[dict[str, Any]]:
    """Returns a row for each optimizer, the one that reaches the target first before the others."""
    found = [_row(runs, entry) for entry in runs.entries]
    base = found[0]["steps_of_seeds"] if found else []
    for row in found:
        ours = row["steps_of_seeds"]
        row["p"] = protocol.p_value(ours, base) if row is not found[0] and min(len(ours), len(base)) > 1 else None
    return sorted(found, key=lambda row: (row["steps"] is None, row["steps"] or 0, runs.sign * (row["last"] or 0)))


def _row(runs: Runs, entry: str) -> dict[str, Any]:
    trials = [run for job in runs.jobs("trial") if job.entry == entry and (run := runs.read(job))]
    best, rates = runs.best(entry), [run["rate"] for run in trials]
    seeds = [run for job in runs.jobs("seed") if job.entry == entry and (run := runs.read(job))]
    carried = [run for job in runs.jobs("carried") if job.entry == entry and (run := runs.read(job))]
    counted = [_reached(runs, run) for run in seeds]
    steps = [min(count, runs.setting.steps) for count, _ in counted]
    ends = [runs.sign * end for run in seeds if (end := protocol.last(protocol.curve(run, runs.sign))) < math.inf]
    failed = [run for run in (*trials, *seeds) if run["diverged"] or run["error"]]
    sizes = [run["bytes"] / run["parameters"] for run in (*seeds, *trials) if "bytes" in run]
    return {
        "optimizer": entry,
        "learning_rate": None if best is None else best.rate,
        "at_end": best is not None and best.rate in (min(rates), max(rates)),
        "seeds": len(seeds),
        "reached": sum(count < math.inf for count, _ in counted),
        "steps": statistics.mean(steps) if steps else None,
        "steps_of_seeds": steps,
        "steps_deviation": statistics.stdev(steps) if len(steps) > 1 else None,
        "seconds": statistics.mean(seconds for _, seconds in counted) if counted else None,
        "milliseconds": statistics.median(run["milliseconds"] for run in seeds) if seeds else None,
        "last": statistics.mean(ends) if ends else None,
        "last_deviation": statistics.stdev(ends) if len(ends) > 1 else None,
        "bytes_per_parameter": sizes[0] if sizes else None,
        "failures": len(failed),
        "runs": len(trials) + len(seeds),
        "errors": sorted({run["error"] for run in failed if run["error"]}),
        **({"carried": _carried(runs, carried)} if carried else {}),
    }


def _carried(runs: Runs, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what an optimizer comes to with a rate that was tuned on another task."""
    counted = [_reached(runs, run)[0] for run in found]
    ends = [protocol.last(protocol.curve(dict(run), runs.sign)) for run in found]
    return {
        "learning_rate": found[0]["rate"],
        "seeds": len(found),
        "reached": sum(count < math.inf for count in counted),
        "steps": statistics.mean(min(count, runs.setting.steps) for count in counted),
        "last": runs.sign * statistics.mean(ends) if all(map(math.isfinite, ends)) else None,
    }


def _reached(runs: Runs, run: Mapping[str, Any]) -> tuple[float, float]:
    """Returns the steps and the seconds to the target; without it `inf`, and the seconds of the whole run."""
    steps, seconds = (
        protocol.steps_to(runs.target, protocol.curve(dict(run), runs.sign, by)) for by in ("step", "seconds")
    )
    return steps, seconds if seconds < math.inf else run["points"][-1]["seconds"]


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _code(row: Mapping[str, Any]) -> str:
    return f"`{row['optimizer']}`".replace("|", "\\|")


def table(found: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Returns the rows as Markdown."""
    head = ["optimizer", "rate", "reached", "steps", "±", "p", "seconds", f"last {metric}", "±", "bytes/parameter"]
    lines = [[*head, "failures"], ["---", *["---:"] * 10]]
    for row in found:
        lines.append(
            [
                _code(row),
                _shown(row["learning_rate"], ".2g"),
                f"{row['reached']} of {row['seeds']}",
                ("> " if row["reached"] < row["seeds"] else "") + _shown(row["steps"], ".0f"),
                _shown(row["steps_deviation"], ".0f"),
                _shown(row["p"], ".1g"),
                _shown(row["seconds"], ".2f"),
                _shown(row["last"], ".4f"),
                _shown(row["last_deviation"], ".4f"),
                _shown(row["bytes_per_parameter"], ".1f"),
                f"{row['failures']} of {row['runs']}",
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def table_of_carried(found: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Returns as Markdown what the rates of another task come to, beside those that were tuned on this one."""
    lines = [["optimizer", "tuned rate", "carried rate", "steps, tuned", "steps, carried", "ratio"]]
    lines[0] += [f"last {metric}, tuned", f"last {metric}, carried"]
    lines.append(["---", *["---:"] * 7])
    for row in (row for row in found if "carried" in row):
        other = row["carried"]
        ratio = "" if not row["steps"] or not row["reached"] else f"{other['steps'] / row['steps']:.2f}"
        counts = [
            ("> " if part["reached"] < part["seeds"] else "") + _shown(part["steps"], ".0f") for part in (row, other)
        ]
        rates = [_shown(part["learning_rate"], ".2g") for part in (row, other)]
        ends = [_shown(part["last"], ".4f") for part in (row, other)]
        lines.append([_code(row), *rates, *counts, ratio, *ends])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(
    runs: Runs,
    task: Task,
    found: Sequence[Mapping[str, Any]],
    command: str,
    pictures: Sequence[str],
    other: str | None = None,
) -> str:
    """Returns the page of a comparison.

    Args:
        runs: of the comparison.
        task: of the comparison.
        found: rows of the optimizers.
        command: that made it.
        pictures: files beside the page.
        other: the task whose rates are carried over, if there is one.
    """
    setting, target = runs.setting, runs.sign * runs.target
    errors = "".join(f"\n- `{row['optimizer']}`: {error}" for row in found for error in row["errors"])
    seeds = (
        "with seed 0" if runs.trial_seeds == 1 else f"each with seeds 0 to {runs.trial_seeds - 1}, whose mean counts"
    )
    batches = f" with batches of {setting.batch_size}" if task.train[0] is not None else ""
    about = f"""
{task.about}; {setting.steps} steps{batches}; learning rate {setting.lr_schedule}, warm-up {setting.warmup}. Each
optimizer has {runs.trials} trials with rates from a log-uniform space, its own rate times 1/{runs.span**0.5:.3g} to
{runs.span**0.5:.3g}, the same places in it for all, {seeds}. The best rate is run again with other seeds,
{runs.seeds} of them, which the table is of: steps and seconds to {task.metric} {target:.4g}, means and standard
deviations. A run that does not reach it counts with all its steps. p: the probability of such a lead over
`{runs.entries[0]}`, in steps, without a true one (one-sided z-test). Seconds are those of training alone, without the
compilation. Failures: runs that diverged, or that the optimizer cannot do.
"""
    parts = [
        f"# Optimizers compared on {setting.task}",
        f"    {command}",
        textwrap.fill(" ".join(about.split()), 120, break_on_hyphens=False),
        table(found, task.metric),
        errors.strip(),
        *_ends_of_spaces(found),
        *([] if other is None else _transferred(found, task.metric, other)),
        *(f"![{Path(name).stem}]({name})" for name in pictures),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _ends_of_spaces(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns what is to be said of best rates that have none beyond them."""
    names = ", ".join(_code(row) for row in found if row["at_end"])
    told = "The best rate is the lowest or the highest of those that were tried, so that a better one may lie beyond it"
    return [f"{told}: {names}. More `--trials` or a larger `--span` would tell."] if names else []


def _transferred(found: Sequence[Mapping[str, Any]], metric: str, other: str) -> list[str]:
    return [
        f"## Rates carried over from {other}",
        f"The same seeds with the rate that was tuned on {other}. Ratio: steps with that rate to those with the rate\n"
        "tuned here, where a run that does not reach the target counts with all its steps.",
        table_of_carried(found, metric),
    ]


def write_logs(folder: Path, runs: Runs, metric: str) -> None:
    """Writes all runs for TensorBoard, in place of what was there."""
    from kopt.tensorboard import EventFile, OptimizerStats

    logs = folder / LOGS
    shutil.rmtree(logs, ignore_errors=True)
    for job in (*runs.jobs("trial"), *runs.jobs("seed"), *runs.jobs("carried")):
        run = runs.read(job)
        if run is None or not run["points"]:
            continue
        place = logs / runs.file(job).relative_to(runs.folder).with_suffix("")
        steps, seconds = _reached(runs, run)
        with EventFile(place) as file:
            for point in run["points"]:
                values = {f"{metric}/test": point["value"], "seconds": point["seconds"]}
                if point["train_loss"] is not None:
                    values["loss/train"] = point["train_loss"]
                file.scalars(values, point["step"])
            hparams = {"optimizer": job.entry, "learning_rate": job.rate, "kind": job.kind, "seed": job.seed}
            name = place.relative_to(logs).as_posix()
            results = {f"last/{metric}": run["points"][-1]["value"]}
            if steps < math.inf:
                results |= {"target/steps": steps, "target/seconds": seconds}
            stats = OptimizerStats(place, hparams=hparams, run_name=name)
            stats.finish(results, others=["target/steps", "target/seconds"])

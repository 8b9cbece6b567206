"""What a search has come to: a table, a page, the best flags, and a line of TensorBoard's HParams for each trial."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..run.flags import settings
from ..run.folder import atomic
from .study import Study, Trial

LOGS = "logs"
SHOWN = 10
"""Trials in the table of the terminal."""


def shown(value: Any) -> str:
    """Returns a value in a few letters."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def described(trial: Trial, metric: str) -> str:
    """Returns a trial in a line."""
    values = ", ".join(f"{name} {shown(value)}" for name, value in trial.values.items())
    epochs = f"{trial.epochs} {'epoch' if trial.epochs == 1 else 'epochs'}"
    ends = {
        "complete": lambda: f"{metric} {trial.value:.4f}",
        "pruned": lambda: f"given up after {epochs}, {metric} {trial.value:.4f}",
        "diverged": lambda: f"diverged after {epochs}",
        "failed": lambda: f"failed: {trial.error}",
    }
    return f"trial {trial.number}: {values}: {ends[trial.ended]()}"


def table(trials: Sequence[Trial], metric: str) -> str:
    """Returns trials as a Markdown table."""
    names = list(trials[0].values) if trials else []
    lines = [["trial", metric, "epochs", "", *names], ["---:", "---:", "---:", "---", *["---:"] * len(names)]]
    for trial in trials:
        value = "" if trial.value is None else f"{trial.value:.4f}"
        end = "" if trial.ended == "complete" else "given up" if trial.ended == "pruned" else trial.ended
        lines.append([str(trial.number), value, str(trial.epochs), end, *map(shown, trial.values.values())])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write_best(path: Path, study: Study, trial: Trial, command: str) -> None:
    """Writes the flags of a trial as a file for `--config`: those of all trials, and its own."""
    kind = study.tuned.kind
    found, usual = settings(study.space.flags(trial.values)), settings(kind())
    searched = {axis.name.partition(".")[0] for axis in study.space.axes}
    flags = {name: value for name, value in found.items() if name in searched or value != usual[name]}
    head = f"# {command}\n# trial {trial.number}, {study.metric} {trial.value:.6g}\n"
    with atomic(path) as part:
        part.write_text(head + yaml.safe_dump(flags, sort_keys=False), encoding="utf-8")


def write_log(folder: Path, study: Study, trial: Trial) -> None:
    """Writes a trial for TensorBoard: the metric after each epoch, and its line of the HParams page."""
    from kopt.tensorboard import EventFile, OptimizerStats

    name = f"{trial.number:03d}"
    place = folder / LOGS / name
    with EventFile(place) as file:
        for epoch, value in enumerate(trial.history, 1):
            file.scalars({study.metric: value}, epoch)
        stats = OptimizerStats(place, hparams={**trial.values, "ended": trial.ended}, run_name=name)
        best = {} if trial.value is None else {f"kept/{study.metric}": trial.value}
        stats.finish({**best, "epochs": float(trial.epochs)}, others=[f"kept/{study.metric}"])


def page(study: Study, command: str, importances: Mapping[str, float], pictures: Sequence[str], use: str) -> str:
    """Returns the page of a study."""
    trials, best = study.ranked(), study.best()
    counts = {ended: sum(trial.ended == ended for trial in trials) for ended in dict.fromkeys(t.ended for t in trials)}
    told = ", ".join(f"{count} {'given up' if ended == 'pruned' else ended}" for ended, count in counts.items())
    searched = "\n".join(f"- `{axis}`" for axis in study.space.axes)
    shares = ", ".join(f"{name} {share:.0%}" for name, share in importances.items())
    parts = [
        f"# {study.tuned.name} tuned for {study.metric}",
        f"    {command}",
        searched,
        f"{len(trials)} trials: {told}. Each is a run in `trials/`, judged by {study.metric} of the model that it\n"
        "kept, on its validation set; the test set has no part in it.",
        "" if best is None else f"The best one is trial {best.number}, its flags are in `best.yaml`:\n\n    {use}",
        table(trials, study.metric),
        "\n".join(f"- trial {trial.number}: {trial.error}" for trial in trials if trial.error),
        f"Share of each flag in the differences between complete trials (fANOVA): {shares}." if shares else "",
        *(f"![{Path(name).stem}]({name})" for name in pictures),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"

"""What a search has come to, as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..run import plots
from .spaces import Axis
from .study import Study, Trial

MARKS = {"complete": ("o", "tab:blue", "complete"), "pruned": ("v", "tab:gray", "given up")}
COLUMNS = 3
"""Of the picture with all flags."""
ROOM = 0.03
"""Share of a space that is shown beyond its ends."""


def history(path: Path, study: Study, importances: Mapping[str, float]) -> None:
    """Writes the metric of each trial with the best one so far, and beside it how much each flag matters."""
    trials = [trial for trial in study.trials() if trial.value is not None]
    figure = plots.make_figure(11 if importances else 7, 4.5)
    panels = figure.subplots(1, 2 if importances else 1, squeeze=False, width_ratios=[2, 1] if importances else None)[0]
    axes = panels[0]
    _points(axes, [trial.number for trial in trials], trials)
    complete = [trial for trial in trials if trial.ended == "complete"]
    if complete:
        values = np.array([trial.value for trial in complete], float)
        best = (np.minimum if study.minimize else np.maximum).accumulate(values)
        axes.step([trial.number for trial in complete], best, where="post", color="tab:orange", label="best so far")
    lost = [trial.number for trial in study.trials() if trial.value is None]
    if lost:
        style = {"ls": "none", "marker": "x", "color": "tab:red", "transform": axes.get_xaxis_transform()}
        axes.plot(lost, [0.02] * len(lost), label="diverged or failed", **style)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="trial", ylabel=study.metric)
    _limit(axes, trials)
    axes.grid(alpha=0.3)
    axes.legend()
    if importances:
        names, shares = list(importances)[::-1], list(importances.values())[::-1]
        panels[1].barh(names, shares, color="tab:blue")
        panels[1].set(xlabel="share in the differences (fANOVA)", xlim=(0, 1))
        panels[1].grid(alpha=0.3, axis="x")
    plots.save_figure(figure, path)


def slices(path: Path, study: Study) -> None:
    """Writes the metric over each flag that is searched."""
    axes_of = study.space.axes
    trials = [trial for trial in study.trials() if trial.value is not None]
    rows, columns = -(-len(axes_of) // COLUMNS), min(COLUMNS, len(axes_of))
    figure = plots.make_figure(1 + 4 * columns, 0.5 + 3.5 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, axis in zip(grid.flat, axes_of, strict=False):
        _slice(axes, axis, trials)
        axes.set_xlabel(axis.name)
        axes.grid(alpha=0.3)
    for axes in list(grid.flat)[len(axes_of) :]:
        axes.axis("off")
    for row in grid:
        row[0].set_ylabel(study.metric)
    _limit(grid[0][0], trials)
    grid[0][0].legend()
    plots.save_figure(figure, path)


def _slice(axes: Any, axis: Axis, trials: Sequence[Trial]) -> None:
    values = [trial.values[axis.name] for trial in trials]
    if axis.kind == "choice":
        axes.set_xticks(range(len(axis.values)), axis.values)
        axes.set_xlim(-0.5, len(axis.values) - 0.5)
        # beside each other where several trials have one value
        values = [axis.values.index(value) + 0.3 * (i / max(1, len(values)) - 0.5) for i, value in enumerate(values)]
    elif axis.kind.startswith("log"):
        low, high = axis.values
        room = (high / low) ** ROOM
        axes.set_xscale("log")
        axes.set_xlim(low / room, high * room)
        if high >= 10 * low:  # else the numbers between the powers of ten are needed
            axes.xaxis.set_minor_formatter("")
    else:
        low, high = axis.values
        room = (high - low) * ROOM
        axes.set_xlim(low - room, high + room)
    _points(axes, values, trials)


def _points(axes: Any, places: Sequence[float], trials: Sequence[Trial]) -> None:
    for ended, (marker, color, label) in MARKS.items():
        chosen = [(place, trial.value) for place, trial in zip(places, trials, strict=True) if trial.ended == ended]
        if chosen:
            axes.plot(*zip(*chosen, strict=True), ls="none", marker=marker, color=color, alpha=0.8, label=label)


def _limit(axes: Any, trials: Sequence[Trial]) -> None:
    """Leaves out what is far beyond the others."""
    values = np.array([trial.value for trial in trials if trial.value is not None])
    if len(values) < 4:
        return
    low, middle, high = np.percentile(values, [0, 50, 100])
    reach = 6 * np.percentile(np.abs(values - middle), 75)
    if reach > 0:
        low, high = max(low, middle - reach), min(high, middle + reach)
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))

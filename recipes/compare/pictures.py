"""Pictures of a comparison: curves, the sensitivity to the rate, times to the target, ways on functions."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..run import plots
from .functions import FUNCTIONS
from .runs import Runs

STYLES = ("-", "--", ":")


def _looks(entries: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns color and line of each optimizer: ten colors, then the same with other lines."""
    return {entry: {"color": f"C{i % 10}", "ls": STYLES[i // 10 % len(STYLES)]} for i, entry in enumerate(entries)}


def _label(entry: str) -> str:
    """Returns an optimizer as it stands beside a picture, which one with many arguments must not fill."""
    return textwrap.fill(entry, 36)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """Returns the range of a picture: what is far beyond the others is not shown."""
    finite = np.array([value for value in values if math.isfinite(value)] or [0.0])
    low, high = finite.min(), np.percentile(finite, 90)
    room = 0.05 * max(high - low, 1e-9)
    return float(low - room), float(high + room)


def curves(path: Path, runs: Runs, order: Sequence[str], metric: str) -> None:
    """Writes the test metric over steps and over seconds: the mean of the seeds, and from the least to the largest."""
    figure = plots.make_figure(13, 5)
    target, looks = runs.sign * runs.target, _looks(runs.entries)
    panels = list(zip(figure.subplots(1, 2, sharey=True), ("step", "seconds"), strict=True))
    shown = list[float]()
    for entry in order:
        found = [run for job in runs.jobs("seed") if job.entry == entry and (run := runs.read(job))]
        found = [run for run in found if len(run["points"]) > 1]
        if not found:
            continue
        length = min(len(run["points"]) for run in found)
        values = np.array([[point["value"] for point in run["points"][:length]] for run in found])
        shown += values[:, max(1, length // 10) :].ravel().tolist()
        for axes, by in panels:
            x = np.mean([[point[by] for point in run["points"][:length]] for run in found], axis=0)
            axes.plot(x, values.mean(axis=0), label=_label(entry), lw=1.5, **looks[entry])
            axes.fill_between(x, values.min(axis=0), values.max(axis=0), color=looks[entry]["color"], alpha=0.12, lw=0)
    low, high = _ends([runs.sign * value for value in shown] + [runs.sign * target])
    for axes, by in panels:
        axes.axhline(target, color="gray", ls="--", lw=1)
        axes.set(xlabel=by, ylim=sorted((runs.sign * low, runs.sign * high)))
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel(f"test {metric}")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right upper")
    plots.save_figure(figure, path)


def sensitivity(path: Path, runs: Runs, order: Sequence[str], metric: str) -> None:
    """Writes the last test metric of the trials over their rates, which are shown as multiples of the own rate."""
    from .training import rate_of

    figure = plots.make_figure(10, 5)
    axes, looks, shown = figure.subplots(), _looks(runs.entries), list[float]()
    axes.set_xscale("log")
    for entry in order:
        tried = sorted(runs.tried(entry).items())
        ends = [(rate / rate_of(entry), runs.sign * runs.end(found)) for rate, found in tried]
        works = [(rate, end) for rate, end in ends if math.isfinite(end)]
        if works:
            shown += [runs.sign * end for _, end in works]
            axes.plot(*zip(*works, strict=True), marker="o", ms=4, lw=1.3, label=_label(entry), **looks[entry])
        for rate in (rate for rate, end in ends if not math.isfinite(end)):
            axes.plot(rate, 0.02, marker="x", color=looks[entry]["color"], transform=axes.get_xaxis_transform())
    low, high = _ends(shown)
    axes.set(xlabel="learning rate / the optimizer's own", ylabel=f"last test {metric}; × at the bottom: diverged")
    axes.set_ylim(sorted((runs.sign * low, runs.sign * high)))
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    plots.save_figure(figure, path)


def times(path: Path, found: Sequence[Mapping[str, Any]], title: str) -> None:
    """Writes steps and seconds to the target as bars; those of optimizers that do not always reach it are pale."""
    known = [row for row in found if row["steps"] is not None][::-1]
    figure = plots.make_figure(11, 1.4 + 0.28 * len(known))
    pair = figure.subplots(1, 2, sharey=True)
    for axes, name in zip(pair, ("steps", "seconds"), strict=True):
        for i, row in enumerate(known):
            whole = row["reached"] == row["seeds"]
            axes.barh(i, row[name], color="tab:blue" if whole else "lightsteelblue")
            if name == "steps":
                axes.plot(row["steps_of_seeds"], [i] * len(row["steps_of_seeds"]), "k.", ms=4)
        axes.set(xlabel=f"{name} to the target (pale: not reached by all seeds)")
        axes.grid(alpha=0.3, axis="x")
    pair[0].set_yticks(range(len(known)), [_label(row["optimizer"]) for row in known])
    figure.suptitle(title)
    plots.save_figure(figure, path)


def ways(path: Path, runs: Runs, order: Sequence[str]) -> None:
    """Writes the ways of the best trials on the functions, with lines of equal value."""
    figure, looks = plots.make_figure(15, 9), _looks(runs.entries)
    best = {entry: run for entry in order if (job := runs.best(entry)) and (run := runs.read(job))}
    for axes, (name, function) in zip(figure.subplots(2, 3).flat, FUNCTIONS.items(), strict=True):
        left, right, low, high = function.window
        x, y = np.meshgrid(np.linspace(left, right, 200), np.linspace(low, high, 200))
        height = np.log10(np.maximum(function.value(np, x, y), 1e-6))
        axes.contourf(x, y, height, 25, cmap="Greys", alpha=0.6)
        for entry, run in best.items():
            way = np.array([point for point in run["ways"][name] if point is not None])
            axes.plot(*way.T, lw=1.2, label=_label(entry), **looks[entry])
            axes.plot(*way[-1], marker="o", ms=4, color=looks[entry]["color"])
        axes.plot(*function.minimum, marker="*", ms=12, color="gold", mec="black", mew=0.6)
        axes.set(title=name, xlim=(left, right), ylim=(low, high))
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper")
    plots.save_figure(figure, path)

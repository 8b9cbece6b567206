"""Pictures of the board: who passes what, and performance profiles."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from kopt import board

from ..run import plots

COLORS = ("#d9d9d9", "#c6dbef", "#6baed6", "#08519c")
"""No seed passes, one, two, all three."""


def draw_board(path: Path, rows: Mapping[str, board.Row], problems: Mapping[str, board.Problem]) -> None:
    """Writes a cell for each rule and problem, the rules that pass most first."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    order = sorted(rows.values(), key=lambda row: (-row.passed, row.rule))
    cells = np.array([[row.verdicts[name].seeds_passed for name in problems] for row in order])
    figure = plots.make_figure(3 + 0.24 * len(problems), 2.2 + 0.17 * len(order))
    axes = figure.subplots()
    axes.pcolormesh(cells, cmap=ListedColormap(COLORS), vmin=0, vmax=len(COLORS) - 1, edgecolors="white", lw=0.5)
    axes.invert_yaxis()
    axes.set_xticks(np.arange(len(problems)) + 0.5, [*problems], rotation=90, fontsize=7)
    axes.set_yticks(np.arange(len(order)) + 0.5, [f"{row.class_name}  {row.passed}" for row in order], fontsize=7)
    families = [problem.family for problem in problems.values()]
    edges = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(families)) if a != b), len(families)]
    for left, right in pairwise(edges):
        axes.axvline(right, color="black", lw=0.8)
        axes.text((left + right) / 2, -0.4, families[left], ha="center", va="bottom", fontsize=8)
    labels = ("no seed passes", "one of three", "two of three: passed", "all seeds pass")
    patches = [Patch(color=color, label=label) for color, label in zip(COLORS, labels, strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    plots.save_figure(figure, path)


def draw_adapters(path: Path, results: Mapping[str, Mapping[str, board.MethodResult]]) -> None:
    """Writes what each method reaches over the number of parameters that it trains, a plot for each task."""
    figure = plots.make_figure(6.5 * len(results), 5)
    for axes, (task, found) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        order = sorted(found.values(), key=lambda result: result.trained_parameters)
        axes.scatter([r.trained_parameters for r in order], [r.value for r in order], s=24, zorder=3)
        for i, result in enumerate(order):  # names above and below in turn, so that neighbours do not meet
            place = (result.trained_parameters, result.value)
            shift = (0, 7 if i % 2 else -14)
            axes.annotate(result.method, place, shift, textcoords="offset points", ha="center", fontsize=8)
        if (before := order[0].before) is not None:
            axes.axhline(before, color="grey", lw=0.8, ls="--", label="before")
            axes.legend(fontsize=8)
        axes.set(
            xscale="log",
            xlabel="trained parameters",
            ylabel=f"test {order[0].metric}",
            title=f"{task}, {order[0].model}",
        )
        axes.margins(0.12)
        axes.grid(alpha=0.3)
    plots.save_figure(figure, path)


def draw_profiles(path: Path, results: Mapping[str, Mapping[str, board.TaskResult]]) -> None:
    """Writes the share of tasks that each rule solves within a multiple of the fastest rule's time."""
    rules = list(dict.fromkeys(rule for found in results.values() for rule in found))
    figure = plots.make_figure(12, 5)
    for axes, by in zip(figure.subplots(1, 2, sharey=True), ("steps", "seconds"), strict=True):
        ratios = {rule: board.profile(results, rule, by) for rule in rules}
        order = sorted(rules, key=lambda rule: -board.score(ratios[rule]))
        for i, rule in enumerate(order):
            known = sorted(ratio for ratio in ratios[rule] if ratio <= board.reader.LONGEST)
            x, y = [1.0, *known, board.reader.LONGEST], [0, *range(1, len(known) + 1), len(known)]
            share = np.array(y) / len(results) + 0.004 * (i - len(order) / 2)  # so that equal lines are seen
            place = rules.index(rule)
            look = {"color": f"C{place % 10}", "ls": ("-", "--")[place // 10 % 2]}
            axes.step(x, share, where="post", lw=1.6, label=f"{rule}  {board.score(ratios[rule]):.2f}", **look)
        axes.set(xlabel=f"{by} to the target / those of the fastest rule", xlim=(1, board.reader.LONGEST))
        axes.set(ylim=(-0.05, 1.05))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, title="area", loc="center left", bbox_to_anchor=(1, 0.5))
        if by == "steps":
            axes.set_ylabel("share of the tasks")
    plots.save_figure(figure, path)

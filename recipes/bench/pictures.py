"""Pictures of the board: who passes what, and performance profiles."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from kopt import board

from ..run import plots
from . import adapters

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
    """Writes for each task a line a method, the best first: what it reaches, and the parameters that it trains."""
    figure = plots.make_figure(8, 1.2 + sum(0.6 + 0.22 * len(found) for found in results.values()))
    parts = figure.subplots(len(results), 2, squeeze=False, height_ratios=[4 + len(f) for f in results.values()])
    for (left, right), (task, found) in zip(parts, results.items(), strict=True):
        order = adapters.best_first(task, found)
        lines = range(len(order))
        left.plot([result.value for result in order], lines, "o", ms=5)
        if (before := order[0].before) is not None:
            left.axvline(before, color="grey", lw=0.8, ls="--", label="before")
            left.legend(fontsize=8)
        right.plot([result.trained_parameters for result in order], lines, "o", ms=5, color="C1")
        left.set(xlabel=f"test {order[0].metric}", title=f"{task}, {order[0].model}")
        left.set_yticks(lines, [result.method for result in order], fontsize=8)
        right.set(xlabel="trained parameters", xscale="log")
        right.set_yticks(lines, [])
        for axes in (left, right):
            axes.set_ylim(len(order) - 0.5, -0.5)
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

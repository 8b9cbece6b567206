"""Pictures of how a training went, and of a classifier's results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .batches import Array
from .folder import atomic

LARGEST = 24
"""Inches of the largest picture."""
COLORS = {"train": "tab:blue", "val": "tab:orange", "test": "tab:green"}


def make_figure(width: float, height: float) -> Any:
    """Returns a figure of this size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")  # not pyplot: that keeps every figure alive
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure as PNG."""
    scales = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) if axis.get_scale() == "log"]
    powers = {id(part) for axis in scales for part in axis.findobj()}  # 10³ is written as a formula
    for text in figure.findobj(lambda part: hasattr(part, "set_parse_math") and id(part) not in powers):
        text.set_parse_math(False)  # a name with dollars is none
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120)


def plot_confusion(path: Path, counts: Array, names: Sequence[str], title: str) -> None:
    """Writes a confusion matrix as PNG.

    Args:
        path: file to write.
        counts: [true class, predicted class].
        names: of the classes.
        title: above the picture.
    """
    size = min(2.5 + 0.5 * len(names) + 0.08 * max(map(len, names)), LARGEST)
    figure = make_figure(size, size)
    axes = figure.add_subplot()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # The square root lets single errors be seen beside a diagonal of thousands.
    axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        if count and len(names) <= 40:
            axes.text(j, i, f"{count}", ha="center", va="center", color="white" if share[i, j] > 0.3 else "black")
    axes.set(xlabel="predicted", ylabel="true", title=title)
    slanted = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, names)) > 2 else {}
    axes.set_xticks(range(len(names)), names, **slanted)
    axes.set_yticks(range(len(names)), names)
    save_figure(figure, path)


def plot_errors(
    path: Path, images: Array, y: Array, probabilities: Array, names: Sequence[str], title: str, rows: int = 4
) -> None:
    """Writes a grid of the worst errors as PNG: those whose true class was given the least probability.

    Args:
        path: file to write.
        images: [n, height, width].
        y: true classes.
        probabilities: [n, class].
        names: of the classes.
        title: above the grid.
        rows: of eight images each, or twice as many of four whose classes have longer names.
    """
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != y)
    worst = wrong[np.argsort(probabilities[wrong, y[wrong]], kind="stable")][: rows * 8]
    columns = 8 if max(map(len, names)) <= 3 else 4
    rows, names = max(1, -(-len(worst) // columns)), [name if len(name) < 18 else f"{name[:15]}..." for name in names]
    figure = make_figure(11, 0.7 + (0.35 + 10.4 / columns) * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid:
        axes.axis("off")
    for axes, i in zip(grid, worst, strict=False):
        axes.imshow(images[i], cmap="gray", vmin=0, vmax=255)
        label = f"true {names[y[i]]} ({probabilities[i, y[i]]:.1%})"
        label += f"\npredicted {names[predicted[i]]} ({probabilities[i].max():.1%})"
        axes.set_title(label, fontsize=9)
    figure.suptitle(title if len(worst) else f"{title}: none")
    save_figure(figure, path)


def plot_bars(path: Path, values: Sequence[float], names: Sequence[str], notes: Sequence[str], title: str) -> None:
    """Writes a bar from 0 to 1 for each name as PNG; of many names the first 60.

    Args:
        path: file to write.
        values: in [0, 1].
        names: of the bars.
        notes: at the end of each bar.
        title: above the picture.
    """
    names, values, notes = names[:60], values[:60], notes[:60]
    figure = make_figure(7.5, min(1.2 + 0.3 * len(names), LARGEST))
    axes = figure.add_subplot()
    axes.barh(range(len(names)), values, color=COLORS["test"], height=0.7)
    for i, (value, note) in enumerate(zip(values, notes, strict=True)):
        axes.text(value + 0.01, i, f"{value:.3f}  ({note})", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlim=(0, 1.18), title=title, xlabel="F1, and how many have the label")
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    save_figure(figure, path)


def plot_numbers(path: Path, true: Array, predicted: Array, title: str) -> None:
    """Writes predicted over true numbers as PNG, with the line where both are equal.

    Args:
        path: file to write.
        true: numbers [n].
        predicted: numbers [n].
        title: above the picture.
    """
    figure = make_figure(5.5, 5.5)
    axes = figure.add_subplot()
    axes.scatter(true, predicted, s=12, alpha=0.4, color=COLORS["train"], edgecolors="none")
    ends = [float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))]
    axes.plot(ends, ends, color="black", linewidth=1)
    axes.set(xlabel="true", ylabel="predicted", title=title)
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def plot_curves(
    path: Path, history: Sequence[Mapping[str, float]], losses: Sequence[tuple[float, float]], title: str
) -> None:
    """Writes learning curves as PNG: the losses, and beside them the other metrics, if there are any.

    Args:
        path: file to write.
        history: one row an epoch; `train_`, `val_` and `test_` begin the names of metrics.
        losses: epochs done, which may end within one, and the training loss until then.
        title: above the picture.
    """
    names = dict.fromkeys(key.partition("_")[2] for row in history for key in row if key not in ("epoch", "seconds"))
    panels = ["loss", *(name for name in names if name != "loss")]
    figure = make_figure(1 + 4.2 * len(panels), 4)
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        if name == "loss" and losses:
            axes.plot(*zip(*losses, strict=True), color=COLORS["train"], linewidth=1, label="train")
        for split, color in COLORS.items():
            points = [(row["epoch"], row[key]) for row in history if (key := f"{split}_{name}") in row]
            if points and not (name == "loss" and split == "train" and losses):
                label = {"val": "validation"}.get(split, split)
                axes.plot(*zip(*points, strict=True), marker="o", markersize=4, color=color, label=label)
        axes.set(xlabel="epoch", title=name.replace("_", " "))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.suptitle(title)
    save_figure(figure, path)

"""The picture of a schedule."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from kopt.checkpoint.atomic_files import atomic_file
from kopt.declare import Count, Field

POINTS = 500
"""The most points of a curve."""


def draw_curve(schedule: Callable[[Any], Any], path: str | os.PathLike[str], steps: int) -> None:
    """Writes the learning rate over the updates as a PNG file.

    Args:
        schedule: gives the rate of the update after so many updates.
        path: of the file, which is written whole or not at all.
        steps: ≥ 1, updates that are shown.

    Raises:
        ValueError: `steps` is below 1.
        ImportError: matplotlib is missing.
    """
    name = type(schedule).__name__
    Field("steps", Count).check(f"{name}.plot", steps)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"{name}.plot needs matplotlib: pip install matplotlib") from error
    updates = np.unique(np.linspace(0, steps, min(steps, POINTS) + 1).astype(int))
    rates = [float(schedule(int(t))) for t in updates]  # one by one: schedules of Keras take no arrays
    figure = Figure((7, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(updates, rates, color="tab:blue", lw=2)
    axes.set(xlabel="update", ylabel="learning rate", title=name, xlim=(0, steps), ylim=(0, 1.05 * max(rates) or 1.0))
    axes.grid(alpha=0.3)
    with atomic_file(path) as part:
        figure.savefig(part, dpi=120, format="png")

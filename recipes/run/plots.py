"""Pictures of a classifier's results."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .batches import Array
from .folder import atomic

LARGEST = 24
"""Inches of the largest picture."""


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")  # not pyplot: that keeps every figure alive
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
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
    figure = _figure(size, size)
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
    _save(figure, path)


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
        rows: of eight images each.
    """
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != y)
    worst = wrong[np.argsort(probabilities[wrong, y[wrong]], kind="stable")][: rows * 8]
    rows = max(1, -(-len(worst) // 8))
    figure = _figure(11, 0.7 + 1.65 * rows)
    grid = list(figure.subplots(rows, 8, squeeze=False).flat)
    for axes in grid:
        axes.axis("off")
    for axes, i in zip(grid, worst, strict=False):
        axes.imshow(images[i], cmap="gray", vmin=0, vmax=255)
        label = f"true {names[y[i]]} ({probabilities[i, y[i]]:.1%})"
        label += f"\npredicted {names[predicted[i]]} ({probabilities[i].max():.1%})"
        axes.set_title(label, fontsize=9)
    figure.suptitle(title if len(worst) else f"{title}: none")
    _save(figure, path)


def log_images(log_dir: Path, images: dict[str, Path], step: int) -> None:
    """Writes PNG files as images for TensorBoard."""
    import tensorflow as tf

    with _writer(log_dir, step):
        for name, path in images.items():
            tf.summary.image(name, tf.io.decode_png(path.read_bytes(), channels=3)[None])


def log_texts(log_dir: Path, texts: dict[str, str], step: int) -> None:
    """Writes Markdown by title for TensorBoard."""
    import tensorflow as tf

    with _writer(log_dir, step):
        for title, markdown in texts.items():
            tf.summary.text(title, markdown)


def log_pr_curves(log_dir: Path, y: Array, probabilities: Array, names: Sequence[str], step: int) -> None:
    """Writes curves of precision over recall for TensorBoard: of the second of two classes, or of each.

    Args:
        log_dir: folder of the run.
        y: true classes.
        probabilities: [n, class].
        names: of the classes.
        step: where on the step axis.
    """
    import tensorflow as tf
    from tensorboard.plugins.pr_curve import summary

    with _writer(log_dir, step):
        for i, name in enumerate(names):
            if len(names) > 2 or i == 1:
                curve = summary.pb(f"pr_curve/{name}", y == i, probabilities[:, i].astype(np.float32))
                tf.summary.experimental.write_raw_pb(curve.SerializeToString())


def log_embeddings(log_dir: Path, vectors: Array, labels: Sequence[str]) -> None:
    """Writes vectors [n, dim] with a label for each, for the projector of TensorBoard."""
    from tensorboard.plugins import projector

    log_dir.mkdir(parents=True, exist_ok=True)
    np.savetxt(log_dir / "embeddings.tsv", vectors, "%.5g", delimiter="\t")
    lines = "".join(" ".join(label.split()) + "\n" for label in labels)
    (log_dir / "labels.tsv").write_text(lines, encoding="utf-8")
    config = projector.ProjectorConfig()
    config.embeddings.add(tensor_name="items", tensor_path="embeddings.tsv", metadata_path="labels.tsv")
    projector.visualize_embeddings(str(log_dir), config)


@contextlib.contextmanager
def _writer(log_dir: Path, step: int) -> Iterator[None]:
    import tensorflow as tf

    writer = tf.summary.create_file_writer(str(log_dir))
    with writer.as_default(step=step):
        yield
    writer.close()

"""Where the curves, pictures and texts of a run go: to TensorBoard and to Weights & Biases, under the same names."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .batches import Array
from .errors import UsageError

NAMES = ("tensorboard", "wandb")
LOSS = "Loss/train"
"""What `kopt.tensorboard.OptimizerStats` calls the loss by step."""
COLUMNS = ("loss", "accuracy", "macro_f1", "micro_f1", "pearson", "rmse", "mae", "ndcg_at_10", "recall_at_10")
"""Metrics on the HParams page, which has the same columns for all runs below a folder, whatever their recipe."""


def read_names(text: str) -> tuple[str, ...]:
    """Returns the names in `--track`, a list with commas.

    Raises:
        UsageError: one is unknown, or its package is not installed.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if names == ("none",):
        return ()
    for name in names:
        if name not in NAMES:
            raise UsageError(f"--track {text}: expected none, or {' and '.join(NAMES)} with a comma between.")
    if "wandb" in names and importlib.util.find_spec("wandb") is None:
        raise UsageError("--track wandb: the package is not installed. pip install wandb")
    return names


def epoch_tags(row: Mapping[str, float]) -> dict[str, float]:
    """Returns the metrics of an epoch by tag, as "Loss/test"; without the training loss, which is shown by step."""
    tags = {}
    for key, value in row.items():
        split, _, name = key.partition("_")
        if name and key != "train_loss":
            split = {"val": "validation"}.get(split, split)
            tags[f"Loss/{split}" if name == "loss" else f"Metrics/{split}_{name}"] = value
    return tags


class Tracking:
    """The trackers of a run. Steps are updates of the weights.

    Args:
        names: of the trackers.
        project: what Weights & Biases calls the runs of a recipe.
        run_name: of the run.
        logs: folder of the event file.
        settings: the flags of the run.

    Raises:
        UsageError: Weights & Biases cannot be reached.
    """

    def __init__(
        self, names: Sequence[str], project: str, run_name: str, logs: Path, settings: Mapping[str, Any]
    ) -> None:
        self.run_name = run_name
        self.log_dir = str(logs) if "tensorboard" in names else None
        self.losses: list[tuple[int, float]] = []
        """Training loss by step."""
        self._step = 0
        self._wandb = _start_wandb(project, run_name, settings) if "wandb" in names else None
        self._file: Any = None

    def open(self) -> None:
        """Opens the event file, so that all that is written until the end of the run is in this one."""
        from kopt.tensorboard import EventFile

        self._file = EventFile(self.log_dir)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Takes a point of the curves that a callback has already written to the event file."""
        self._step = max(self._step, step)
        if LOSS in values:
            self.losses.append((step, values[LOSS]))
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def images(self, pictures: Mapping[str, Path]) -> None:
        """Shows PNG files by title."""
        for title, path in pictures.items():
            self._file.image(title, path.read_bytes(), self._step)
            if self._wandb is not None:
                import wandb

                self._wandb.log({title: wandb.Image(str(path))}, step=self._step)

    def texts(self, texts: Mapping[str, str]) -> None:
        """Shows Markdown by title, in TensorBoard alone."""
        for title, markdown in texts.items():
            self._file.text(title, markdown, self._step)

    def pr_curves(self, y: Array, probabilities: Array, names: Sequence[str]) -> None:
        """Shows curves of precision over recall: of the second of two classes, or of each class or label.

        Args:
            y: true classes [n], or which of the labels each has [n, label], which TensorBoard alone shows.
            probabilities: [n, class].
            names: of the classes.
        """
        from tensorboard.plugins.pr_curve import summary

        several = y.ndim == 2
        shown = [i for i in range(len(names)) if len(names) > 2 or several or i == 1]
        if self.log_dir is not None:
            for i in shown:
                true = y[:, i] > 0 if several else y == i
                curve = summary.pb(f"pr_curve/{names[i]}", true, probabilities[:, i].astype(np.float32))
                self._file.write(curve, self._step)
        if self._wandb is not None and not several:
            import wandb

            curves = wandb.plot.pr_curve(y, probabilities, list(names), classes_to_plot=shown)
            self._wandb.log({"pr_curve": curves}, step=self._step)

    def vectors(self, vectors: Array, columns: Mapping[str, Sequence[object]]) -> None:
        """Shows vectors [n, dim] in the projector of TensorBoard, which labels and colours them by columns.

        Args:
            vectors: the points.
            columns: at least two, with a value for each vector; the first one is the label.
        """
        if self.log_dir is None:
            return
        from tensorboard.plugins import projector

        folder = Path(self.log_dir)
        np.savetxt(folder / "embeddings.tsv", vectors, "%.5g", delimiter="\t")
        rows = [tuple(columns), *zip(*columns.values(), strict=True)]
        lines = "".join("\t".join(" ".join(str(cell).split()) for cell in row) + "\n" for row in rows)
        (folder / "labels.tsv").write_text(lines, encoding="utf-8")
        config = projector.ProjectorConfig()
        config.embeddings.add(tensor_name="items", tensor_path="embeddings.tsv", metadata_path="labels.tsv")
        projector.visualize_embeddings(str(folder), config)

    def close(self, failed: bool = False) -> None:
        """Ends the run for the trackers."""
        if self._file is not None:
            self._file.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(failed))
            self._wandb = None


def _start_wandb(project: str, run_name: str, settings: Mapping[str, Any]) -> Any:
    import wandb

    try:
        return wandb.init(project=project, name=run_name, config=dict(settings), reinit="create_new")
    except (wandb.errors.Error, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"--track wandb: {reason} Call `wandb login`, or set WANDB_MODE=offline.") from error

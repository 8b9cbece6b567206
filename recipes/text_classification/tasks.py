"""What follows from a task: targets, loss, metrics, pictures, and how predictions are written."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from scipy.stats import rankdata

from ..run import plots
from ..run.batches import Array, one_hot
from ..run.errors import UsageError
from ..run.fit import Run
from ..run.scores import predict_outputs, predict_probabilities, score_probabilities
from . import batches
from .card import samples, tabulate_samples
from .corpus import Split
from .labels import Labels

LIKELY = 0.5
"""Probability from which on a text is taken to have a label, where it may have several."""


class SingleLabel:
    """One of several classes.

    Args:
        labels: of the texts.
    """

    metric: ClassVar[str] = "accuracy"
    """What is shown beside the loss."""
    figures: ClassVar[dict[str, str]] = {"accuracy": "accuracy", "macro_f1": "macro-F1", "loss": "loss"}
    """What the model card and the summary call the metrics, by name."""

    def __init__(self, labels: Labels) -> None:
        self.labels, self.names = labels, list(labels.names)

    def targets(self, y: Array) -> Array:
        """Returns what the outputs should be, [n, output]."""
        return one_hot(y, len(self.names))

    def compile(self, model: Any, optimizer: Any, jit: bool | str) -> None:
        """Compiles the model."""
        import keras

        metrics = ["accuracy", keras.metrics.F1Score("macro", name="macro_f1")]
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=optimizer, loss=loss, metrics=metrics, jit_compile=jit)

    def predict(self, model: Any, encoded: batches.Encoded) -> Array:
        """Returns the predictions [n, output] in the order of the texts: probabilities, or numbers."""
        return batches.predict(model, encoded, self.labels.outputs, read=predict_probabilities)

    def validate(self, model: Any, encoded: batches.Encoded, y: Array) -> dict[str, float]:
        """Returns what the model cannot measure batch by batch."""
        return {}

    def measure(self, found: Array, y: Array) -> dict[str, Any]:
        """Returns the metrics of predictions."""
        scores = score_probabilities(found, y)
        recall = dict(zip(self.names, scores.recall, strict=True))
        return {"loss": scores.loss, "accuracy": scores.accuracy, "macro_f1": scores.macro_f1, "recall": recall}

    def draw(self, run: Run, part: Split, found: Array) -> None:
        """Draws the predictions of the test set, and logs them with samples for TensorBoard."""
        scores, picture = score_probabilities(found, part.y), run.folder / "confusion.png"
        title = f"{scores.accuracy:.2%} of {len(part):,} test texts"
        plots.plot_confusion(picture, scores.confusion, self.names, title)
        run.tracking.images({"confusion": picture})
        run.tracking.pr_curves(part.y, found, self.names)
        run.tracking.texts({"samples": tabulate_samples(part, self.names, found)})

    def cells(self, row: Array, top: int, threshold: float) -> list[str]:
        """Returns what `predict` prints after a text: the most probable labels, or the number."""
        best = row.argsort(kind="stable")[::-1][:top]
        return [cell for k in best for cell in (self.names[k], f"{row[k]:.4f}")]

    def notes(self, metrics: Mapping[str, Any]) -> str:
        """Returns what the model card says of the outputs, and of each class."""
        recall = list(metrics["test_recall"].items())[:20]
        return (
            f"The classes, in the order of the logits, are in `labels.json`: {_list(self.names)}.\n\n"
            f"Recall on the test set: {', '.join(f'{name} {share:.1%}' for name, share in recall)}.\n"
            "The errors by class are in `confusion.png`."
        )


class MultiLabel(SingleLabel):
    """Any number of labels: each has a probability of its own."""

    metric = "micro_f1"
    figures = {
        "micro_f1": "micro-F1",
        "macro_f1": "macro-F1",
        "exact_match": "texts with all labels right",
        "loss": "loss",
    }

    def targets(self, y: Array) -> Array:
        """Returns 1 for the labels that a text has, [n, label]."""
        return y

    def compile(self, model: Any, optimizer: Any, jit: bool | str) -> None:
        """Compiles the model."""
        import keras

        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        model.compile(optimizer=optimizer, loss=loss, jit_compile=jit)

    def predict(self, model: Any, encoded: batches.Encoded) -> Array:
        """Returns the probability of each label."""
        with np.errstate(over="ignore"):  # exp of a large logit: the probability is 0
            return 1 / (1 + np.exp(-batches.predict(model, encoded, self.labels.outputs, read=predict_outputs)))

    def validate(self, model: Any, encoded: batches.Encoded, y: Array) -> dict[str, float]:
        """Returns F1, which is no mean over batches."""
        found = self.measure(self.predict(model, encoded), y)
        return {name: found[name] for name in self.figures if name != "loss"}

    def measure(self, found: Array, y: Array) -> dict[str, Any]:
        """Returns F1 over all decisions (micro), its mean over the labels that occur or are predicted, and more."""
        tiny, likely, has = np.finfo(np.float64).tiny, found >= LIKELY, y > 0
        right, either = (likely & has).sum(axis=0), likely.sum(axis=0) + has.sum(axis=0)
        of_label = 2 * right / np.maximum(either, 1)
        return {
            "loss": float(-np.log(np.maximum(np.where(has, found, 1 - found), tiny)).mean()),
            "micro_f1": float(2 * right.sum() / max(either.sum(), 1)),
            "macro_f1": float(of_label[either > 0].mean()) if either.any() else 0.0,
            "exact_match": float((likely == has).all(axis=1).mean()),
            "f1": dict(zip(self.names, map(float, of_label), strict=True)),
        }

    def draw(self, run: Run, part: Split, found: Array) -> None:
        """Draws F1 by label, and logs it with curves of precision over recall and samples."""
        scores, picture = self.measure(found, part.y), run.folder / "scores.png"
        title = f"F1 of {len(part):,} test texts: micro {scores['micro_f1']:.3f}, macro {scores['macro_f1']:.3f}"
        counts = (part.y > 0).sum(axis=0)
        plots.plot_bars(picture, list(scores["f1"].values()), self.names, [f"{n:,}" for n in counts], title)
        run.tracking.images({"scores": picture})
        run.tracking.pr_curves(part.y, found, self.names)
        lost = -np.log(np.maximum(np.where(part.y > 0, found, 1 - found), np.finfo(np.float64).tiny)).sum(axis=1)

        def cells(i: int) -> list[str]:
            true, likely = (self._among(row) or "none" for row in (part.y[i] > 0, found[i] >= LIKELY))
            return [true, likely, f"{lost[i]:.4f}"]

        wrong = ((found >= LIKELY) != (part.y > 0)).any(axis=1)
        worst = [i for i in np.argsort(-lost, kind="stable").tolist() if wrong[i]]
        run.tracking.texts({"samples": samples(part, worst, ("true", "predicted", "loss"), cells)})

    def _among(self, chosen: Array) -> str:
        return ", ".join(name for name, has in zip(self.names, chosen, strict=True) if has)

    def cells(self, row: Array, top: int, threshold: float) -> list[str]:
        """Returns the labels of at least that probability, the most probable first."""
        best = [k for k in row.argsort(kind="stable")[::-1] if row[k] >= threshold][:top]
        return [cell for k in best for cell in (self.names[k], f"{row[k]:.4f}")]

    def notes(self, metrics: Mapping[str, Any]) -> str:
        """Returns what the model card says of the outputs, and of each label."""
        shares = list(metrics["test_f1"].items())[:20]
        return (
            f"The labels, in the order of the logits, are in `labels.json`: {_list(self.names)}. A text may have "
            "several, or none: each label has a probability of its own, the sigmoid of its logit.\n\n"
            f"F1 on the test set, from a probability of {LIKELY} on: "
            f"{', '.join(f'{name} {share:.3f}' for name, share in shares)}. All are in `scores.png`."
        )


class Regression(SingleLabel):
    """A number."""

    metric = "pearson"
    figures = {
        "pearson": "Pearson correlation",
        "spearman": "Spearman correlation",
        "mae": "MAE",
        "rmse": "RMSE",
        "loss": "loss",
    }

    def targets(self, y: Array) -> Array:
        """Returns the numbers, [n, 1]."""
        return y.astype(np.float32)[:, None]

    def compile(self, model: Any, optimizer: Any, jit: bool | str) -> None:
        """Compiles the model; the loss is in units of the variance of the labels, so that rates suit any scale."""
        import keras

        metrics = [keras.metrics.MeanAbsoluteError(name="mae"), keras.metrics.RootMeanSquaredError(name="rmse")]
        loss, weight = keras.losses.MeanSquaredError(), self.labels.deviation**-2
        model.compile(optimizer=optimizer, loss=loss, loss_weights=weight, metrics=metrics, jit_compile=jit)

    def predict(self, model: Any, encoded: batches.Encoded) -> Array:
        """Returns the numbers [n, 1]."""
        return batches.predict(model, encoded, 1, read=predict_outputs)

    def validate(self, model: Any, encoded: batches.Encoded, y: Array) -> dict[str, float]:
        """Returns the correlations, which are no means over batches."""
        found = self.measure(self.predict(model, encoded), y)
        return {name: found[name] for name in ("pearson", "spearman")}

    def measure(self, found: Array, y: Array) -> dict[str, Any]:
        """Returns correlations and errors; those of a model that always says the mean of the training set beside."""
        predicted, of_mean = found[:, 0], self.labels.mean - y
        error = predicted - y
        return {
            "loss": float((error**2).mean() / self.labels.deviation**2),
            "pearson": correlation(predicted, y),
            "spearman": correlation(rankdata(predicted), rankdata(y)),
            "mae": float(np.abs(error).mean()),
            "rmse": float(np.sqrt((error**2).mean())),
            "mae_of_mean": float(np.abs(of_mean).mean()),
            "rmse_of_mean": float(np.sqrt((of_mean**2).mean())),
        }

    def draw(self, run: Run, part: Split, found: Array) -> None:
        """Draws predictions over labels, and logs them with samples."""
        scores, picture = self.measure(found, part.y), run.folder / "scores.png"
        title = f"{len(part):,} test texts: Pearson {scores['pearson']:.3f}, MAE {scores['mae']:.3g}"
        plots.plot_numbers(picture, part.y, found[:, 0], title)
        run.tracking.images({"scores": picture})
        error = np.abs(found[:, 0] - part.y)

        def cells(i: int) -> list[str]:
            return [f"{part.y[i]:.6g}", f"{found[i, 0]:.6g}", f"{error[i]:.3g}"]

        worst = np.argsort(-error, kind="stable").tolist()
        run.tracking.texts({"samples": samples(part, worst, ("true", "predicted", "error"), cells)})

    def cells(self, row: Array, top: int, threshold: float) -> list[str]:
        """Returns the number."""
        return [f"{row[0]:.6g}"]

    def notes(self, metrics: Mapping[str, Any]) -> str:
        """Returns what the model card says of the output."""
        return (
            "The output is a number in the scale of the labels; the loss is the mean squared error in units of their "
            f"variance. A model that always says the mean of the training set, {self.labels.mean:.6g}, has an MAE of "
            f"{metrics['test_mae_of_mean']:.4f} and an RMSE of {metrics['test_rmse_of_mean']:.4f}.\n\n"
            "Predictions over labels are in `scores.png`."
        )


def correlation(x: Array, y: Array) -> float:
    """Returns Pearson's coefficient; 0 where one side is constant or not finite."""
    with np.errstate(invalid="ignore", over="ignore"):  # of a run that ignores what is not finite
        x, y = x - x.mean(), y - y.mean()
        size = float(np.sqrt((x**2).sum() * (y**2).sum()))
        return float((x * y).sum() / size) if np.isfinite(size) and size > 0 else 0.0


def task_of(labels: Labels) -> SingleLabel:
    """Returns the task of labels."""
    return {"single-label": SingleLabel, "multi-label": MultiLabel, "regression": Regression}[labels.task](labels)


def check_class_weights(labels: Labels) -> None:
    """Checks that a text has one class, whose frequency can weigh it.

    Raises:
        UsageError: it has not.
    """
    if labels.task != "single-label":
        raise UsageError(f"--class-weights has no effect with --task {labels.task}. Leave it out.")


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + ", ..." * (len(names) > 20)

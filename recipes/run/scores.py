"""How well a classifier tells classes apart."""

from typing import Any, NamedTuple

import numpy as np

from .batches import Array


class Scores(NamedTuple):
    """Metrics of a classifier on a test set."""

    loss: float
    accuracy: float
    macro_f1: float
    """Mean over the classes that occur in the labels or the predictions."""
    recall: list[float]
    confusion: Array
    """[true class, predicted class]."""
    probabilities: Array
    """[example, class]."""


def score(model: Any, x: Any, y: Any, classes: int, batch_size: int = 500) -> Scores:
    """Returns the scores of a classifier whose outputs are logits; ValueError if they have another shape."""
    return score_probabilities(predict_probabilities(model, x, classes, batch_size), y)


def score_probabilities(probabilities: Array, y: Any) -> Scores:
    """Returns the scores of predictions [example, class]."""
    from sklearn.metrics import confusion_matrix

    classes = probabilities.shape[1]
    of_true_class = probabilities[np.arange(len(y)), y]
    confusion = confusion_matrix(y, probabilities.argmax(axis=1), labels=range(classes))
    recall = np.diag(confusion) / np.maximum(confusion.sum(axis=1), 1)
    seen = confusion.sum(axis=0) + confusion.sum(axis=1)
    return Scores(
        loss=float(-np.log(np.maximum(of_true_class, np.finfo(np.float64).tiny)).mean()),
        accuracy=float(np.diag(confusion).sum() / len(y)),
        macro_f1=float((2 * np.diag(confusion)[seen > 0] / seen[seen > 0]).mean()),
        recall=[float(share) for share in recall],
        confusion=confusion,
        probabilities=probabilities,
    )


def predict_probabilities(model: Any, x: Any, classes: int, batch_size: int = 500) -> Array:
    """Returns [example, class]; ValueError if the model does not give `classes` logits for each x.

    Args:
        model: whose outputs are logits.
        x: an array of examples, or a `tf.data.Dataset` of batches.
        classes: how many there are.
        batch_size: of an array.
    """
    logits = predict_outputs(model, x, classes, batch_size)
    with np.errstate(invalid="ignore"):  # of a run that ignores what is not finite
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def predict_outputs(model: Any, x: Any, outputs: int, batch_size: int = 500) -> Array:
    """Returns what a model gives [example, output], in float64; ValueError if it gives another number of outputs."""
    whole = isinstance(x, np.ndarray)
    found = np.asarray(model.predict(x, batch_size=batch_size if whole else None, verbose=0), np.float64)
    n = len(x) if whole else len(found)
    if found.shape != (n, outputs):
        raise ValueError(f"outputs of shape {found.shape}, expected ({n}, {outputs})")
    return found

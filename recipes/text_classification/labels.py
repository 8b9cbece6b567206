"""What the labels of texts are: one class of several, any number of labels, or a number."""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..readers.files import read_json
from ..run.batches import Array
from ..run.errors import DataError, UsageError
from ..run.folder import atomic

Task = Literal["single-label", "multi-label", "regression"]
Wanted = Literal["auto", "single-label", "multi-label", "regression"]
Label = str | tuple[str, ...]
"""Of a text, as it was read; several are a tuple."""
FILE = "labels.json"
SEPARATOR = "|"
FINEST = 2.0**-17
"""Deviation of numbers, in units of their mean, below which float32 keeps too little of what they differ by."""
LARGEST_TARGETS = 2**31
"""Bytes of the targets, one number for each text and output."""
NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,3})?")


def is_number(label: Label) -> bool:
    """Returns whether a label is a finite number as text."""
    return isinstance(label, str) and NUMBER.fullmatch(label) is not None and math.isfinite(float(label))


def parts_of(label: Label) -> tuple[str, ...]:
    """Returns the names in a label: one, or several."""
    return (label,) if isinstance(label, str) else label


def find_task(labels: Sequence[Label]) -> Task:
    """Returns what labels say by themselves: lists are several, numbers with fractions a regression."""
    if any(not isinstance(label, str) for label in labels):
        return "multi-label"
    if labels and all(map(is_number, labels)) and any(not float(str(label)).is_integer() for label in labels):
        return "regression"
    return "single-label"


@dataclasses.dataclass(frozen=True)
class Labels:
    """What the outputs of a model mean."""

    task: Task
    names: Sequence[str] = ()
    """Of the classes, or of the labels that a text may have, in the order of the outputs; none for a regression."""
    mean: float = 0.0
    """Of the numbers that were trained on: what a head that says 0 stands for."""
    deviation: float = 1.0
    """Standard deviation of these numbers."""

    @property
    def outputs(self) -> int:
        """Returns how many numbers the model gives for a text."""
        return len(self.names) or 1

    @functools.cached_property
    def _number(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    def flaw(self, label: Label) -> str | None:
        """Returns what is wrong with a label; `None` if nothing is."""
        if self.task == "regression":
            return None if is_number(label) else f"the label {label!r} is no number"
        unknown = [part for part in parts_of(label) if part not in self._number]
        return f"the label {unknown[0]!r} is not in the training set" if unknown else None

    def targets(self, labels: Sequence[Label]) -> Array:
        """Returns classes [n], which of the labels each text has [n, label], or numbers [n]."""
        if self.task == "regression":
            return np.array([float(str(label)) for label in labels], np.float64)
        if self.task == "single-label":
            return np.array([self._number[str(label)] for label in labels], np.int64)
        found = np.zeros((len(labels), len(self.names)), np.float32)
        for row, label in zip(found, labels, strict=True):
            row[[self._number[part] for part in parts_of(label)]] = 1
        return found

    def scaled_to(self, y: Array) -> "Labels":
        """Returns the same with the mean and the deviation of the numbers that are trained on.

        Raises:
            DataError: they are all the same, or nearly so for the size that they have.
        """
        if self.task != "regression":
            return self
        mean, deviation = float(y.mean()), float(y.std())
        if not deviation > 0:
            raise DataError(f"every label of the training set is {mean:g}; there is nothing to learn.")
        if deviation < abs(mean) * FINEST:
            raise DataError(
                f"the labels of the training set, {mean:g} ± {deviation:.1g}, differ by too little for numbers of 32 "
                "bits. Take away what they have in common."
            )
        return dataclasses.replace(self, mean=mean, deviation=deviation)

    def write(self, folder: Path) -> None:
        """Writes what the outputs mean: of classes a list of their names, else an object."""
        meaning: Any = list(self.names)
        if self.task == "multi-label":
            meaning = {"task": self.task, "labels": meaning}
        elif self.task == "regression":
            meaning = {"task": self.task, "mean": self.mean, "deviation": self.deviation}
        with atomic(folder / FILE) as path:
            path.write_text(json.dumps(meaning, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Labels":
        """Returns what `write` has written.

        Raises:
            DataError: the file is missing or holds something else.
        """
        path = folder / FILE
        content = read_json(path)
        if isinstance(content, Mapping) and content.get("task") == "regression":
            mean: Any = content.get("mean")
            deviation: Any = content.get("deviation")
            numbers = isinstance(mean, (int, float)) and isinstance(deviation, (int, float))
            if numbers and math.isfinite(mean) and math.isfinite(deviation) and deviation > 0:
                return cls("regression", (), float(mean), float(deviation))
        several = isinstance(content, Mapping) and content.get("task") == "multi-label"
        names = content.get("labels") if several else content
        if isinstance(names, list) and len(names) > 1 and all(isinstance(name, str) for name in names):
            return cls("multi-label" if several else "single-label", names)
        raise DataError(
            f"{path}: expected a list of at least two names, or an object with one of {get_args(Task)[1:]}."
        )

    def __str__(self) -> str:
        """Returns what tells these labels from others."""
        return ", ".join(self.names) or "numbers"

    def same_as(self, other: "Labels") -> bool:
        """Returns whether the outputs have the same meaning, whatever the scale of numbers."""
        return (self.task, list(self.names)) == (other.task, list(other.names))


def describe(labels: Iterable[Label], wanted: Wanted, source: str) -> Labels:
    """Returns what the labels of a training set are.

    Args:
        labels: of the texts.
        wanted: the task; "auto" is what the labels say.
        source: of the texts.

    Raises:
        DataError: they are none, all the same, or too many to be classes.
    """
    found = list(labels)
    task = find_task(found) if wanted == "auto" else wanted
    if not found:
        raise DataError(f"{source}: no labels.")
    if wanted == "auto" and task == "single-label":
        _check_classes([str(label) for label in found], source)
    if task == "regression":
        return Labels(task)
    names = sort_names({part for label in found for part in parts_of(label)})
    if task == "multi-label" and len(names) == 1:
        raise DataError(
            f"{source}: the only label is {names[0]!r}. Give the texts without it a label too, and --task single-label."
        )
    if len(names) < 2:
        raise DataError(
            f"{source}: every label is {names[0]!r}; a classifier needs at least two classes."
            if names
            else f"{source}: no text has a label."
        )
    size = len(found) * len(names) * np.dtype(np.float32).itemsize
    if (task == "single-label" and len(names) == len(found) > 2) or size > LARGEST_TARGETS:
        numbers = " For numbers that are no classes give --task regression." if all(map(is_number, found)) else ""
        raise DataError(f"{source}: {len(names):,} labels for {len(found):,} texts. Is --label-column right?{numbers}")
    return Labels(task, names)


def _check_classes(labels: Sequence[str], source: str) -> None:
    """Refuses to make classes of numbers with fractions some of which cannot be read.

    Raises:
        DataError: most labels are numbers, some with fractions, or would be with a point for their comma.
    """
    numbers = [text for label in labels if is_number(text := label.replace(",", ".", 1))]
    if 2 * len(numbers) > len(labels) and find_task(numbers) == "regression":
        other = next(label for label in labels if not is_number(label))
        advice = "Write numbers with a point, or give" if "," in other else "Mend it, or give"
        raise DataError(
            f"{source}: most labels are numbers with fractions, but {other!r} is none. {advice} --task single-label if "
            "they are names of classes, --task regression --on-bad-row skip to leave such texts out."
        )


def sort_names(names: Iterable[str]) -> list[str]:
    """Returns the names in order; whole numbers are sorted as numbers."""
    found = set(names)
    number = {name: int(name) for name in found if re.fullmatch(r"-?[0-9]{1,18}", name)}
    return sorted(found, key=lambda name: number[name]) if len(number) == len(found) else sorted(found)


def rename(entries: Sequence[str]) -> dict[str, str]:
    """Returns the names that `--label-names` gives, by label.

    Raises:
        UsageError: an entry is malformed, or names a label again.
    """
    names: dict[str, str] = {}
    for entry in entries:
        label, _, name = (part.strip() for part in entry.partition("="))
        if not label or not name or label in names:
            raise UsageError(f"--label-names {entry}: expected LABEL=NAME, once for each label.")
        names[label] = name
    return names


def renamed(label: Label, names: Mapping[str, str]) -> Label:
    """Returns a label under its other name; one that is not among `names` stays."""
    if isinstance(label, str):
        return names.get(label, label)
    return tuple(names.get(part, part) for part in label)

"""Examples of a text classifier: splits, labels, token ids, and batches of texts of similar length."""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro

from recipes import _data, _docstrings, _run
from recipes._cli import DataError, UsageError
from recipes._run import OptionalInt, OptionalPath
from recipes._tables import SPLITS, BadRows, Columns, OnBadRow, Texts, read_dataset, read_table

Word = Annotated[str | None, tyro.conf.arg(metavar="NAME")]
Array = np.ndarray[Any, Any]
STEP = 8
"""Batches are padded to a multiple of it, so that there are few shapes for XLA to compile."""
POOL = 64
"""Batches that are sorted by length together: more give less padding, fewer more chance."""
PER_PACKAGE = 200
LABELS = "labels.json"


class Encoded(NamedTuple):
    """Texts as token ids."""

    ids: list[Array]
    segments: list[Array] | None
    """Of each token, 1 in the second text of a pair; `None` if the model does not ask."""
    limit: int
    """Tokens that a text may have, which batches are not padded beyond."""

    @property
    def lengths(self) -> Array:
        """Returns the number of tokens of each."""
        return np.array([len(ids) for ids in self.ids], np.int64)


Encode = Callable[[Sequence[str], Sequence[str] | None, int], Encoded]
"""Function of texts, their second texts, and the largest number of tokens."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples with their classes as numbers."""

    texts: Texts
    y: Array

    def __len__(self) -> int:
        """Returns how many there are."""
        return len(self.y)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What is learnt from, what is watched meanwhile, and what is tested on."""

    train: Split
    validation: Split
    test: Split
    """The same object as `validation` if there is no set for the test alone."""
    names: list[str]
    """Of the classes."""
    source: str


@dataclasses.dataclass(frozen=True)
class TextFlags:
    """What is learnt from; without files the docstrings of installed packages, with the packages as classes."""

    train_file: OptionalPath = None
    """CSV, TSV, JSONL or Parquet with a text and a label in each row."""
    validation_file: OptionalPath = None
    """Watched while training; None holds out a part of the training set."""
    test_file: OptionalPath = None
    """What the result is measured on; None takes the validation set."""
    dataset: Word = None
    """Name, or name:configuration, for the `datasets` library, instead of files."""
    text_column: str = "text"
    """Column of the text."""
    text_pair_column: Word = None
    """Column of a second text, where the class is that of a pair."""
    label_column: str = "label"
    """Column of the label."""
    on_bad_row: OnBadRow = "error"
    """A row that cannot be used ends the run, or is left out and counted."""
    validation_split: float = 0.1
    """Share of the training set to hold out, where there is no set for validation."""
    max_train_examples: OptionalInt = None
    """Train on so many examples, the same ones whatever the seed."""
    max_eval_examples: OptionalInt = None
    """Validate and test on so many examples each."""

    @property
    def columns(self) -> Columns:
        """Returns where the parts of an example stand."""
        return Columns(self.text_column, self.text_pair_column, self.label_column)


def check(flags: TextFlags) -> None:
    """Checks the numbers that a type cannot, and that the files go together.

    Raises:
        UsageError: one is out of range, or files contradict each other.
    """
    _run.at_least("--max-train-examples", flags.max_train_examples, 1)
    _run.at_least("--max-eval-examples", flags.max_eval_examples, 1)
    if not 0 < flags.validation_split < 1:
        raise UsageError(f"--validation-split {flags.validation_split}: expected more than 0 and less than 1.")
    given = [f"--{split}-file" for split in SPLITS if getattr(flags, f"{split}_file") is not None]
    if flags.dataset is not None and given:
        raise UsageError(f"--dataset {flags.dataset}: leave it out, or {given[0]}.")
    if given and flags.train_file is None:
        raise UsageError(f"{given[0]}: give --train-file too.")


def load(flags: TextFlags, seed: int) -> Corpus:
    """Returns the examples; `seed` draws what is held out.

    Raises:
        UsageError: so little cannot be held out.
        DataError: something cannot be read, or there are no two classes to tell apart.
    """
    found, source = _read(flags)
    train = found["train"]
    names = _names(train)
    parts = {"train": train} | {
        name: known_labels(part, names, flags.on_bad_row) for name, part in found.items() if name != "train"
    }
    most_train, most = flags.max_train_examples, flags.max_eval_examples
    splits = {
        # The same texts whatever the seed, so that runs with several seeds compare.
        name: _some(split(part, names), most_train if name == "train" else most)
        for name, part in parts.items()
    }
    if "validation" not in splits:
        splits["train"], held = _hold_out(splits["train"], flags.validation_split, seed)
        splits["validation"] = _some(held, most)
    validation = splits["validation"]
    return Corpus(splits["train"], validation, splits.get("test", validation), names, source)


def _read(flags: TextFlags) -> tuple[dict[str, Texts], str]:
    if flags.dataset is not None:
        return read_dataset(flags.dataset, flags.columns, flags.on_bad_row), flags.dataset
    files = {"train": flags.train_file, "validation": flags.validation_file, "test": flags.test_file}
    if flags.train_file is not None:
        given = {split: path for split, path in files.items() if path is not None}
        found = {split: read_table(path, flags.columns, flags.on_bad_row) for split, path in given.items()}
        return found, flags.train_file.name
    texts, labels = _docstrings.read_docstrings(PER_PACKAGE)
    source = f"docstrings of {', '.join(dict.fromkeys(labels))}"
    return {"train": Texts(texts, None, labels, list(range(1, len(texts) + 1)), source)}, source


def _names(train: Texts) -> list[str]:
    names = set(train.labels or [])
    if len(names) < 2:
        raise DataError(
            f"{train.source}: every label is {next(iter(names))!r}; a classifier needs at least two classes."
            if names
            else f"{train.source}: no labels."
        )
    number = {
        name: int(name) for name in names if name.removeprefix("-").isascii() and name.removeprefix("-").isdigit()
    }
    return sorted(names, key=lambda name: number[name]) if len(number) == len(names) else sorted(names)


def known_labels(texts: Texts, names: Sequence[str], on_bad_row: OnBadRow) -> Texts:
    """Returns the texts whose label is one of the names.

    Raises:
        DataError: one is not, and that is an error, or none is.
    """
    bad = BadRows(texts.source, texts.unit, on_bad_row)
    rows = []
    for i, label in enumerate(texts.labels or []):
        if label in names:
            rows.append(i)
        else:
            bad.add(texts.places[i], f"the label {label!r} is not in the training set")
    bad.report(len(texts))
    if not rows:
        raise DataError(f"{texts.source}: no label is one of {', '.join(names)}.")
    return texts.take(rows)


def split(texts: Texts, names: Sequence[str]) -> Split:
    """Returns the texts with the numbers of their labels."""
    number = {name: i for i, name in enumerate(names)}
    return Split(texts, np.array([number[label] for label in texts.labels or []], np.int64))


def _pick(part: Split, rows: Array) -> Split:
    return Split(part.texts.take(rows), part.y[rows])


def _some(part: Split, most: int | None) -> Split:
    if most is None or most >= len(part):
        return part
    return _pick(part, np.sort(np.random.default_rng(0).permutation(len(part))[:most]))


def _hold_out(part: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    kept, _, held, _ = _data.hold_out(np.arange(len(part)), part.y, fraction, seed)
    return _pick(part, kept), _pick(part, held)


# ----------------------------------------------------------------------------------------------------------- batches


def plan(lengths: Array, batch_size: int, rng: np.random.Generator | None) -> list[Array]:
    """Returns which examples make each batch: every example once, those of similar length together.

    Args:
        lengths: tokens of each example.
        batch_size: examples a batch; one batch may be smaller.
        rng: what draws the order; `None` goes from the shortest to the longest.
    """
    if rng is None:
        order = np.argsort(lengths, kind="stable")
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    order, chunk, found = rng.permutation(len(lengths)), POOL * batch_size, list[Array]()
    for i in range(0, len(order), chunk):
        pool = order[i : i + chunk]
        pool = pool[np.argsort(lengths[pool] // STEP, kind="stable")]
        found += [pool[j : j + batch_size] for j in range(0, len(pool), batch_size)]
    return [found[i] for i in rng.permutation(len(found))]


def pad(encoded: Encoded, rows: Array) -> dict[str, Array]:
    """Returns some of the texts as the inputs of a model, padded to the longest, rounded up to a multiple of STEP."""
    width = min(-(-max(len(encoded.ids[i]) for i in rows) // STEP) * STEP, encoded.limit)
    inputs = {name: np.zeros((len(rows), width), np.int32) for name in ("token_ids", "padding_mask")}
    if encoded.segments is not None:
        inputs["segment_ids"] = np.zeros((len(rows), width), np.int32)
    for at, i in enumerate(rows):
        n = len(encoded.ids[i])
        inputs["token_ids"][at, :n], inputs["padding_mask"][at, :n] = encoded.ids[i], 1
        if encoded.segments is not None:
            inputs["segment_ids"][at, :n] = encoded.segments[i]
    return inputs


def batches(
    encoded: Encoded,
    targets: Array | None,
    batch_size: int,
    shuffle_seed: int | None = None,
    weights: Array | None = None,
) -> Any:
    """Returns a `tf.data.Dataset` of batches of texts of similar length.

    Args:
        encoded: the texts.
        targets: [n, class]; `None` gives the inputs alone.
        batch_size: examples a batch.
        shuffle_seed: seed of a new order in each epoch; `None` goes from the shortest to the longest text.
        weights: how much each example counts.
    """
    import tensorflow as tf

    lengths, epoch = encoded.lengths, iter(range(sys.maxsize))

    def generate() -> Iterator[Any]:
        rng = None if shuffle_seed is None else np.random.default_rng([shuffle_seed, next(epoch)])
        for rows in plan(lengths, batch_size, rng):
            rest = [part[rows] for part in (targets, weights) if part is not None]
            yield (pad(encoded, rows), *rest)

    names = ["token_ids", "padding_mask"] + ([] if encoded.segments is None else ["segment_ids"])
    signature: list[Any] = [{name: tf.TensorSpec((None, None), tf.int32) for name in names}]
    signature += [tf.TensorSpec((None, *p.shape[1:]), tf.float32) for p in (targets, weights) if p is not None]
    dataset = tf.data.Dataset.from_generator(generate, output_signature=tuple(signature))
    size = -(-len(lengths) // batch_size)
    return dataset.apply(tf.data.experimental.assert_cardinality(size)).prefetch(2)


def predict(model: Any, encoded: Encoded, classes: int, batch_size: int = 64) -> Array:
    """Returns [example, class], in the order of the texts.

    Raises:
        ValueError: the model does not give logits of so many classes.
    """
    order = np.concatenate(plan(encoded.lengths, batch_size, None))
    found = _run.predict_probabilities(model, batches(encoded, None, batch_size), classes)
    probabilities = np.empty_like(found)
    probabilities[order] = found
    return probabilities


def class_weights(y: Array, classes: int) -> Array:
    """Returns for each example the inverse frequency of its class; their mean is 1."""
    return (len(y) / (classes * np.maximum(np.bincount(y, minlength=classes), 1)))[y].astype(np.float32)


# ------------------------------------------------------------------------------------------------------------- names


def write_names(folder: Path, names: Sequence[str]) -> None:
    """Writes the names of the classes, in the order of the logits."""
    with _run.atomic(folder / LABELS) as path:
        path.write_text(json.dumps(list(names), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_names(folder: Path) -> list[str]:
    """Returns the names of the classes.

    Raises:
        DataError: the file is missing or holds something else.
    """
    path = folder / LABELS
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}. Give the folder of a run.") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON.") from error
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: expected a list of at least two names.")
    return names

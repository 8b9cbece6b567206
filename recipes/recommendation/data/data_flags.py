"""The flags that say where the interactions are, what their columns mean, and how they are split."""

import dataclasses
import datetime
import re
from typing import Annotated, Literal

from ...readers import formats
from ...readers.formats import Format
from ...readers.records import OnBadRow
from ...run.errors import UsageError
from ...run.flags import (
    Count,
    CountOrZero,
    Fraction,
    OpenFraction,
    OptionalName,
    OptionalNumber,
    OptionalPath,
    optional,
    refuse,
)
from . import movielens
from .interactions import Columns

Split = Literal["random", "temporal", "leave-one-out"]
Source = Literal["auto", "movielens-100k", "synthetic"]


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The data: a file of interactions, or what --data names."""

    data: Source = "auto"
    """Without --interactions: movielens-100k (in the package recbole), synthetic, or the first that is there (auto)."""
    interactions: OptionalPath = None
    """CSV, TSV, JSON, JSONL or Parquet with a user and an item in each row; may be packed with gzip."""
    user_column: str = "user"
    """Column of the user, also in --users-file."""
    item_column: str = "item"
    """Column of the item, also in --items-file."""
    label_column: OptionalName = None
    """Column of the rating, a number; --task rating needs it."""
    time_column: OptionalName = None
    """Column of the time, in seconds or ISO 8601. Default: the rows are in the order of time."""
    time_format: OptionalName = None
    """How times are written otherwise, such as %d/%m/%Y, in the codes of Python's strptime."""
    items_file: OptionalPath = None
    """Features of the items: one row for each item; several values in one cell are separated by |."""
    users_file: OptionalPath = None
    """Features of the users, in the same form."""
    title_column: str = "title"
    """Column of --items-file with the title that is shown for an item; it is not used as a feature."""
    on_bad_row: OnBadRow = "error"
    """error stops at the first row that cannot be used; skip leaves such rows out and counts them."""
    form: Format = dataclasses.field(default_factory=Format)
    test_interactions: OptionalPath = None
    """Test set with the columns of --interactions, for a split that is given."""
    split: Annotated[Split | None, optional("{random,temporal,leave-one-out}")] = None
    """Test set: random interactions (default for rating), the latest, or the last one of each user (default else)."""
    test_share: OpenFraction = 0.1
    """Share of the interactions in the test set, for random and temporal."""
    validation_share: Fraction = 0.1
    """Share of the rest in the validation set, split off in the same way (one of each user for leave-one-out); with 0
    there is none."""
    folds: CountOrZero = 0
    """Cross-validation of ratings: as many trainings, each with another part as its test set; 0 is one training."""
    deduplicate: bool = False
    """Leave pairs of user and item out of the training set that are also in the validation or test set."""
    min_interactions: Count = 1
    """Leave out users and items with fewer interactions than this."""
    implicit_threshold: OptionalNumber = None
    """For retrieval and sequential, use only interactions with at least this rating. Default: use all."""

    @property
    def columns(self) -> Columns:
        """Returns the columns of an interaction."""
        if self.interactions is None and self.data == "movielens-100k":
            return movielens.COLUMNS
        return Columns(self.user_column, self.item_column, self.label_column, self.time_column)


FOR_FILES = (
    "test_interactions",
    "items_file",
    "users_file",
    "user_column",
    "item_column",
    "label_column",
    "time_column",
    "title_column",
    "time_format",
    "on_bad_row",
    "form",
)
"""The flags that say something about the files."""


def check(flags: DataFlags) -> None:
    """Checks the flags against each other.

    Raises:
        UsageError: one is given without another that it needs, or is malformed.
    """
    plain = DataFlags()
    for flag in FOR_FILES:
        if flags.interactions is None and getattr(flags, flag) != getattr(plain, flag):
            raise UsageError(f"--{flag.replace('_', '-')}: give --interactions too.")
    if flags.interactions is not None and flags.data != "auto":
        raise UsageError(f"--data {flags.data}: leave it out, or --interactions.")
    _check_columns(flags)
    if flags.items_file is None and flags.title_column != plain.title_column:
        raise UsageError("--title-column: give --items-file too.")
    if flags.time_format is not None:
        _check_time_format(flags.time_format)
        if flags.time_column is None:
            raise UsageError("--time-format: give --time-column too.")
    formats.check(flags.form, (flags.interactions, flags.test_interactions, flags.items_file, flags.users_file))
    ways = ("split", "test_share", "folds")
    refuse(flags, ways, flags.test_interactions is not None and "with --test-interactions")
    if flags.folds == 1:
        raise UsageError("--folds 1: expected 0, for one training, or at least 2.")
    refuse(flags, ways[:2], flags.folds and "with --folds")
    refuse(flags, ways[1:2], flags.split == "leave-one-out" and "with --split leave-one-out")
    if flags.implicit_threshold is not None and flags.interactions is not None and flags.label_column is None:
        raise UsageError("--implicit-threshold: give --label-column too.")


def _check_time_format(pattern: str) -> None:
    moment = datetime.datetime(2001, 2, 3, 4, 5, 6)
    try:
        found = datetime.datetime.strptime(moment.strftime(pattern), pattern)
    except (ValueError, re.error) as error:
        raise UsageError(f"--time-format {pattern}: not a format of times ({error}).") from error
    if found.year != moment.year:
        raise UsageError(f"--time-format {pattern}: has no year. Give one such as %d/%m/%Y.")


def _check_columns(flags: DataFlags) -> None:
    """Checks that no column is used for two things.

    Raises:
        UsageError: one is.
    """
    meanings: dict[str, str] = {}
    for name, column in flags.columns._asdict().items():
        if column in meanings:
            raise UsageError(
                f"--{meanings[column]}-column and --{name}-column are both {column!r}: a column has one meaning."
            )
        if column is not None:
            meanings[column] = name
    if flags.items_file is not None and flags.title_column == flags.item_column != DataFlags().title_column:
        raise UsageError(
            f"--item-column and --title-column are both {flags.title_column!r}: a column has one meaning. Leave out "
            "--title-column, and ids are shown."
        )

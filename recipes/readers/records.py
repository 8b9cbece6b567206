"""What the readers of tables give: records, and an account of those that cannot be used."""

import collections
import difflib
import sys
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from ..run.errors import DataError
from ..run.flags import optional

SHOWN = 5
"""How many line numbers of skipped rows are printed."""
NAMES_SHOWN = 20
"""How many names of columns a message lists."""
LONGEST_NAME = 60
"""A name of a column with more characters looks like a text."""

MOST_WORDS = 4
"""A name with more words does, too."""

Record = Mapping[str, Any] | str
"""The cells of a row by column, or a text that says what is wrong with the row."""
OnBadRow = Literal["error", "skip"]
OptionalPolicy = Annotated[OnBadRow | None, optional("error|skip")]


class Tokens(str):
    """A cell of several values with blanks between them."""


class FlawError(ValueError):
    """What is wrong with a row, and what follows it where rows are not counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason + detail)
        self.reason, self.detail = reason, detail


class BadRows:
    """Rows that cannot be used: an error at the first one, or one line at the end that counts them."""

    def __init__(self, source: str, unit: str, policy: OnBadRow) -> None:
        self._source, self._unit, self._policy = source, unit, policy
        self._count = collections.Counter[str]()
        self._places: dict[str, list[int]] = {}

    def add(self, place: int, reason: str, detail: str = "") -> None:
        """Notes a bad row.

        Args:
            place: its line or row.
            reason: what is wrong; rows of one reason are counted together.
            detail: follows the reason in an error.

        Raises:
            DataError: bad rows are errors.
        """
        if self._policy == "error":
            place_name = f"{self._source}, {self._unit} {place}"
            raise DataError(f"{place_name}: {reason}{detail}. Fix the row, or pass --on-bad-row skip.")
        self._count[reason] += 1
        places = self._places.setdefault(reason, [])
        if len(places) < SHOWN:
            places.append(place)

    def report(self, rows: int) -> None:
        """Prints how many of the rows were skipped, if any were, and where the first of them are."""
        if not self._count:
            return
        parts = []
        for reason, count in self._count.most_common(SHOWN):
            shown = ", ".join(map(str, self._places[reason])) + (", ..." if count > SHOWN else "")
            parts.append(f"{count} x {reason} ({self._unit} {shown})")
        parts += ["..."] if len(self._count) > SHOWN else []
        skipped = self._count.total()
        print(f"data: {self._source}: skipped {skipped} of {rows} rows: {'; '.join(parts)}.", file=sys.stderr)


def check_text(value: str, name: str) -> str:
    """Returns the text in a cell without the blanks around it.

    Raises:
        FlawError: its bytes were no text.
    """
    text = value.strip()
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise FlawError(f"{name!r} is not UTF-8", " (is all of the file in cp1252? Then pass --encoding cp1252)")
    if "\0" in text:
        raise FlawError(f"{name!r} holds a NUL byte")
    return text


def list_names(names: Iterable[str]) -> str:
    """Returns the names of columns for a message."""
    shown = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..." for name in names]
    return ", ".join(shown[:NAMES_SHOWN]) + (", ..." if len(shown) > NAMES_SHOWN else "")


def missing_column(source: str, name: str, names: Iterable[str], advice: str) -> DataError:
    """Returns the error that a file has no column `name`, with what is probably the cause.

    Args:
        source: the file.
        name: of the column.
        names: of the columns that there are.
        advice: what to do if none of the causes that are known fits.
    """
    found = list(names)
    lower = {other.lower(): other for other in found}
    near = [other for other in found if other.lower().rstrip("s") == name.lower()] or [
        lower[key] for key in difflib.get_close_matches(name.lower(), lower, n=1)
    ]
    if any(len(other) > LONGEST_NAME or len(other.split()) > MOST_WORDS or _is_number(other) for other in found):
        advice = "Its first line seems to hold cells, not names: give the names as --columns FIRST,SECOND,..."
    elif len(found) == 1 and not source.endswith((".parquet", ".json", ".jsonl", ".ndjson")):
        advice = "If that is more than one name, say what is between them, with --delimiter."
    elif near:
        advice = f"Did you mean {near[0]!r}? {advice}"
    return DataError(f"{source}: no column {name!r} (it has {list_names(found)}). {advice}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

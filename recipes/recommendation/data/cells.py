"""Ids, ratings, times, titles and features in the cells of a row."""

import datetime
import math
import reprlib
from decimal import Decimal
from typing import Any

import numpy as np

from ...readers.records import FlawError, Tokens, check_text

MAX_VALUES_PER_ROW = 8
"""Values of a feature that are read from one row; more are left out."""
LARGEST = float(np.finfo(np.float32).max)


def write_number(value: int | float | Decimal) -> str:
    """Returns a number as text, alike for 5 and 5.0: a column of whole numbers with gaps is read as floats."""
    return str(int(value) if value % 1 == 0 else value)


def read_key(value: Any, name: str) -> str:
    """Returns an id.

    Raises:
        FlawError: it is empty, or neither text nor number.
    """
    if isinstance(value, str):
        key = check_text(value, name)
    elif isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        if isinstance(value, float) and math.isinf(value):
            raise FlawError(f"{name!r} is no id", f" but {value}")
        key = "" if value != value else write_number(value)
    elif value is None:
        key = ""
    else:
        raise FlawError(f"{name!r} is no id", f" but {type(value).__name__}")
    if not key:
        raise FlawError(f"empty {name!r}")
    return key


def read_number(value: Any) -> float | None:
    """Returns a finite number, or `None`."""
    if isinstance(value, str):
        if "_" in value:  # Python's own way of grouping digits
            return None
    elif isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def read_label(value: Any, name: str) -> float:
    """Returns a rating.

    Raises:
        FlawError: it is no finite number.
    """
    number = read_number(value)
    if number is None or abs(number) > LARGEST:
        if _is_empty(value):
            raise FlawError(f"empty {name!r}")
        comma = isinstance(value, str) and "," in value and read_number(value.replace(",", ".")) is not None
        detail = f" but {reprlib.repr(value)}" + (" (write a point instead of the comma)" if comma else "")
        raise FlawError(f"{name!r} is no finite number", detail)
    return number


def read_time(value: Any, name: str, pattern: str | None) -> float:
    """Returns a time in seconds, written as `pattern` says, or else as a number or in ISO 8601.

    Raises:
        FlawError: it is written otherwise.
    """
    if pattern is not None and not _is_empty(value):
        try:
            return _seconds(datetime.datetime.strptime(str(value).strip(), pattern))
        except ValueError:
            raise FlawError(f"{name!r} is not as in --time-format", f" but {reprlib.repr(value)}") from None
    number = read_number(value)
    if number is not None:
        return number
    if _is_empty(value):
        raise FlawError(f"empty {name!r}")
    try:
        # Parquet has times and days of its own, which write themselves as ISO 8601.
        return _seconds(datetime.datetime.fromisoformat(str(value).strip()))
    except ValueError:
        hint = " (set --time-format, such as %d/%m/%Y)" if isinstance(value, str) else ""
        raise FlawError(
            f"{name!r} is neither a finite number nor an ISO 8601 time", f" but {reprlib.repr(value)}{hint}"
        ) from None


def _seconds(moment: datetime.datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()


def read_title(value: Any, name: str) -> str:
    """Returns a title in one line.

    Raises:
        FlawError: it is neither text nor number.
    """
    if isinstance(value, (list, dict)):
        raise FlawError(f"{name!r} is no title but {type(value).__name__}")
    return " ".join(read_text(value, name).split())


def read_cell(value: Any, name: str) -> list[str]:
    """Returns the first values in a cell, each once."""
    if isinstance(value, Tokens):
        value = value.split()
    parts = value.split("|") if isinstance(value, str) else value if isinstance(value, list) else [value]
    return [text for text in dict.fromkeys(read_text(part, name) for part in parts) if text][:MAX_VALUES_PER_ROW]


def read_text(value: Any, name: str) -> str:
    """Returns a value as text, "" if there is none."""
    if isinstance(value, str):
        return check_text(value, name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, (bool, datetime.date)):
        return str(value)
    if not isinstance(value, (int, float, Decimal)):
        raise FlawError(f"{name!r} is no text or number but {type(value).__name__}")
    return write_number(value)

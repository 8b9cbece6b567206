"""Kinds of arguments: annotations that carry bounds, and what they accept."""

import dataclasses
import enum
import math
import numbers
import pathlib
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers in [low, high), in (above, high), or with `closed` up to and with `high`; always finite."""

    low: float = -math.inf
    high: float = math.inf
    above: float | None = None
    closed: bool = False

    def __contains__(self, number: float) -> bool:
        begun = number >= self.low if self.above is None else number > self.above
        ended = number < self.high or (self.closed and number == self.high)
        return begun and ended and math.isfinite(number)

    def __str__(self) -> str:
        left = f"[{self.low}" if self.above is None else f"({self.above}"
        return f"{left}, {self.high}{']' if self.closed else ')'}"


@dataclasses.dataclass(frozen=True)
class Convert:
    """In an annotation, for what is no number: returns the value in its plain form, or raises ValueError(expected)."""

    function: Callable[[Any], Any]


Fraction = Annotated[float, Range(0, 1)]
"""A number in [0, 1)."""
OpenFraction = Annotated[float, Range(high=1, above=0)]
"""A number in (0, 1)."""
Share = Annotated[float, Range(0, 1, closed=True)]
"""A number in [0, 1]."""
Positive = Annotated[float, Range(above=0)]
"""A number in (0, inf)."""
NonNegative = Annotated[float, Range(0)]
"""A number in [0, inf)."""
Count = Annotated[int, Range(1)]
"""A whole number in [1, inf)."""


def accept(kind: Any, value: Any) -> Any:
    """Returns `value` as a plain Python value of a kind (see `Field`).

    Raises:
        ValueError: it is none; the message says what was expected.
    """
    expected = []
    for member, notes in members(kind):
        try:
            return _accept(member, notes, value)
        except ValueError as error:
            expected.append(str(error))
    raise ValueError(" or ".join(expected))


def _accept(kind: Any, notes: tuple[Any, ...], value: Any) -> Any:
    convert = next((note.function for note in notes if isinstance(note, Convert)), None)
    if convert is not None:
        return convert(value)
    if get_origin(kind) is Literal:
        plain = value.item() if isinstance(value, np.generic) else value
        for choice in get_args(kind):
            if type(choice) is type(plain) and choice == plain:
                return choice
        raise ValueError("one of " + ", ".join(map(repr, get_args(kind))))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return value if isinstance(value, kind) else kind(value)
        except ValueError:
            raise ValueError("one of " + ", ".join(repr(member.value) for member in kind)) from None
    if isinstance(kind, type) and issubclass(kind, pathlib.PurePath):
        return kind(value)
    if kind is types.NoneType:
        if value is not None:
            raise ValueError("None")
    elif kind is bool:
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError("True or False")
        return bool(value)
    elif kind is str:
        if not isinstance(value, str):
            raise ValueError("a string")
        return str(value)
    elif kind in (int, float):
        span = range_of(notes)
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number or _as_float(value) not in span or (kind is int and value != int(value)):
            raise ValueError(f"{'an integer' if kind is int else 'a finite number'} in {span}")
        return kind(value)
    return value


def _as_float(number: Any) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


def members(kind: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yields the members of a union, each with the notes of its `Annotated`."""
    notes: tuple[Any, ...] = ()
    if get_origin(kind) is Annotated:
        kind, *rest = get_args(kind)
        notes = tuple(rest)
    if get_origin(kind) in (Union, types.UnionType) and not any(isinstance(note, Convert) for note in notes):
        for member in get_args(kind):
            yield from members(member)
    else:
        yield kind, notes


def range_of(notes: tuple[Any, ...]) -> Range:
    """Returns the range among the notes of an `Annotated`, or that of all finite numbers."""
    return next((note for note in notes if isinstance(note, Range)), Range())

"""Rows of JSON: an object in each line, or an array of objects."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..run.errors import DataError
from .files import LONGEST_LINE, read_lines
from .formats import plain_suffix
from .records import Record

PART = 2**16
"""Characters of an array that are read at once."""
BLANKS = " \t\r\n"


def read_json_rows(path: Path, encoding: str | None) -> Iterator[tuple[int, Record]]:
    """Yields the number and the cells of each row: of the line, or of the object in an array.

    Raises:
        DataError: the file cannot be read, or is neither.
    """
    lines = read_lines(path, encoding, cut=True)  # an array is often one long line
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if line.lstrip()[0] == "[" and _is_array(line.strip()):
            yield from _read_array(path, line.lstrip(), lines)
        else:
            yield from _read_object_lines(path, line, number, lines)
        return


def _is_array(text: str) -> bool:
    """Returns whether a line begins an array of rows: as a row of its own an array is a mistake."""
    return text == "[" or text[1:].lstrip(BLANKS)[:1] in ("{", "]", "") or not text.endswith("]")


def _read_object_lines(path: Path, first: str, number: int, lines: Iterator[str]) -> Iterator[tuple[int, Record]]:
    record, advice = (
        _read_object(path, number, first),
        "Give an array of objects, or JSONL; pandas writes it with orient='records'.",
    )
    start = first.strip()
    if start == "{" or (isinstance(record, str) and start[0] == "{" and plain_suffix(path) == ".json"):
        raise DataError(f"{path.name}: one object over several lines, not rows. {advice}")
    waiting = [(number, record)]  # until it is known whether there is another one
    for line in lines:
        number += 1
        if line.strip():
            yield from waiting
            waiting = []
            yield number, _read_object(path, number, line)
    if waiting and isinstance(record, dict) and any(_holds_objects(value) for value in record.values()):
        raise DataError(f"{path.name}: one object that holds others, not rows. {advice}")
    yield from waiting


def _holds_objects(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(part, dict) for part in value))


def _read_object(path: Path, number: int, line: str) -> Record:
    if len(line) > LONGEST_LINE:
        raise DataError(f"{path.name}: line {number} has more than {LONGEST_LINE:,} characters.")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return "not valid JSON"
    return record if isinstance(record, dict) else "no JSON object"


def _read_array(path: Path, buffer: str, lines: Iterator[str]) -> Iterator[tuple[int, Record]]:
    """Yields the elements of an array, which need not fit in memory, as soon as they are complete."""
    decoder, at, number, wanted = json.JSONDecoder(), 1, 0, PART

    def fail(what: str) -> DataError:
        return DataError(f"{path.name}, row {number + 1}: {what}. Repair the file.")

    ended = False
    while True:
        rest = buffer[at:].lstrip(BLANKS)
        while not ended and len(rest) < wanted:  # what is added grows with what is there, so that no time is lost
            parts, size = [rest], len(rest)
            for line in lines:
                parts.append(line)
                size += len(line)
                if size >= wanted:
                    break
            else:
                ended = True
            rest = "".join(parts).lstrip(BLANKS)
        buffer, at = rest, 0
        while at < len(buffer):
            if buffer[at] == "]":
                if buffer[at + 1 :].strip() or any(line.strip() for line in lines):
                    raise fail("more after the end of the array")
                return
            try:
                record, end = decoder.raw_decode(buffer, at)
            except json.JSONDecodeError as error:
                if ended or len(buffer) - at > LONGEST_LINE:
                    raise fail(f"not valid JSON ({error.msg})") from error
                break
            except (ValueError, RecursionError) as error:
                raise fail("not valid JSON: too deep, or a number too long") from error
            while end < len(buffer) and buffer[end] in BLANKS:
                end += 1
            if end == len(buffer) and not ended:
                break
            if buffer[end : end + 1] not in (",", "]"):
                raise fail("not valid JSON (expected a comma)" if end < len(buffer) else "the array is cut short")
            number += 1
            yield number, record if isinstance(record, dict) else "no JSON object"
            at = end + (buffer[end] == ",")
            while at < len(buffer) and buffer[at] in BLANKS:
                at += 1
        if ended:
            raise fail("the array is cut short")
        if len(buffer) - at > LONGEST_LINE:
            raise fail(f"more than {LONGEST_LINE:,} characters")
        wanted = max(PART, 2 * (len(buffer) - at))

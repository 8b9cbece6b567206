"""JSON that others wrote: read as `json` does, but nothing in it is left to chance, and every fault names the file."""

import json
import pathlib
from collections.abc import Iterable
from typing import Any

MOST_BYTES, DEEPEST = 64 * 2**20, 20
"""The longest file that is read, and the most lists and objects within each other: more than any real file has."""


def read_json(path: pathlib.Path) -> Any:
    """Returns what a file of JSON in UTF-8 says.

    Raises:
        ValueError: it is no regular file, is longer than `MOST_BYTES`, or is not JSON as `parse_json` reads it.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file.")
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"{path} is longer than {MOST_BYTES // 2**20} MiB, so it is no JSON of a model.")
    return parse_json(content, str(path))


def parse_json(content: str | bytes, where: str) -> Any:
    """Returns what JSON says.

    Args:
        content: the text, or its bytes in UTF-8.
        where: where it stands, for errors.

    Raises:
        ValueError: it is no JSON, has NaN or infinite numbers, one key twice, or more than `DEEPEST` levels.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON: {error}") from None
    level, depth = [value], 0
    while level := [x for each in level for x in _inner(each)]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"{where} is no JSON of a model: it has more than {DEEPEST} levels.")
    return value


def _inner(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _finite(text: str) -> float:
    value = float(text)
    return value if abs(value) < float("inf") else _refuse(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has the key {next(key for key in found if keys.count(key) > 1)!r} twice")
    return found

"""Which layers an adapter goes to: names as in Hugging Face peft, on Keras paths."""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from kopt.declare import accept
from kopt.declare.patterns import check_pattern, matches_end, matches_whole

ALL_LINEAR = "all-linear"
MOST, LONGEST = 10_000, 1_000
"""Entries that a list or a mapping may have, and characters of a name."""


def parse_names(value: Any) -> str | list[str] | None:
    """Returns `value` if it can name layers: None, a list of names, or a regular expression."""
    if value is None:
        return None
    if isinstance(value, str):
        return parse_pattern(value)
    if isinstance(value, Iterable):
        items = list(value)
        if all(isinstance(item, str) for item in items):
            return _named(items)
    raise ValueError("a list of layer names or a regular expression of a whole path")


def parse_targets(value: Any) -> str | list[str] | None:
    """Returns `value` if it can name layers and is not an empty list."""
    if (named := parse_names(value)) == []:
        raise ValueError("a list of at least one layer name or a regular expression of a whole path")
    return named


def parse_pattern(value: str) -> str:
    """Returns `value` if it is a regular expression."""
    return check_pattern(value)


def parse_name_list(value: Any) -> list[str] | None:
    """Returns `value` as a list of names, or None."""
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Iterable) or not all(isinstance(v, str) for v in value):
        raise ValueError("a list of layer names")
    return _named(list(value))


def _named(names: list[str]) -> list[str]:
    """Returns the names, each once, as peft takes them."""
    if len(names) > MOST:
        raise ValueError(f"a list of at most {MOST} layer names; this one has {len(names)}")
    if any(not name or len(name) > LONGEST for name in names):
        raise ValueError(f"a list of layer names of 1 to {LONGEST} characters")
    return list(dict.fromkeys(names))


def parse_prefixes(value: Any) -> list[str] | None:
    """Returns `value` as a list of names; one alone may be given as it is."""
    return parse_name_list([value] if isinstance(value, str) else value)


def parse_indices(value: Any) -> list[int] | None:
    """Returns the numbers of layers as a list, or None."""
    if value is None:
        return None
    if (items := _whole_numbers(value, MOST)) is None:
        raise ValueError(f"a number or a list of numbers, from 0 to {MOST - 1}")
    return items


def _whole_numbers(value: object, limit: int) -> list[int] | None:
    """Returns one number or several, NumPy's too, as a list; None unless all are whole, and from 0 to below a limit."""
    value = value.tolist() if isinstance(value, np.ndarray) else value
    items: list[Any] = list(value) if isinstance(value, Iterable) else [value]
    whole = all(isinstance(item, (int, np.integer)) and not isinstance(item, bool) for item in items)
    fits = whole and len(items) <= MOST and all(0 <= item < limit for item in items)
    return [int(item) for item in items] if fits else None


def parse_tokens(value: Any) -> list[int]:
    """Returns the numbers of tokens as a list."""
    if (items := _whole_numbers(value, 2**24)) is None:
        raise ValueError(f"a list of at most {MOST} numbers of tokens, from 0 to {2**24 - 1}")
    if len(set(items)) < len(items):
        raise ValueError("a list of numbers of tokens, each once")
    return items


def parse_token_table(value: Any) -> list[int] | dict[str, list[int]] | None:
    """Returns the numbers of tokens as a list, or as lists by the names of embeddings; None if there are none."""
    if not isinstance(value, dict):
        return (parse_tokens(value) or None) if value is not None else None
    if len(value) > MOST or any(not isinstance(name, str) or not 0 < len(name) <= LONGEST for name in value):
        raise ValueError(f"a mapping of at most {MOST} names of embeddings to lists of numbers of tokens")
    tokens = {name: parse_tokens(own) for name, own in value.items()}
    return {name: own for name, own in tokens.items() if own} or None


def parse_numbers(kind: Any) -> Callable[[Any], dict[str, Any]]:
    """Returns a function that reads a mapping from regular expressions to numbers of a kind."""

    def parse(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) > MOST:
            raise ValueError(f"a mapping of at most {MOST} regular expressions to numbers")
        numbers = {}
        for pattern, number in value.items():
            try:
                numbers[parse_pattern(pattern)] = accept(kind, number)
            except ValueError as error:
                raise ValueError(f"a mapping from regular expressions to numbers; for {pattern!r} {error}") from None
        return numbers

    return parse


def matches(spec: str | Sequence[str] | None, path: str) -> bool:
    """Returns whether `spec` names the layer at `path` or, as a list, a layer that contains it."""
    if spec is None:
        return False
    if isinstance(spec, str):
        return matches_whole(spec, path)
    parts = path.split(".")
    prefixes = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(prefix == name or prefix.endswith(f".{name}") for prefix in prefixes for name in spec)


def is_called(name: str, path: str) -> bool:
    """Returns whether `name` is the path of a layer or its end."""
    return path == name or path.endswith(f".{name}")


def by_pattern(patterns: dict[str, float], path: str, default: float) -> float:
    """Returns the value of the first pattern that is the path or its tail after a dot."""
    return next((v for k, v in patterns.items() if matches_end(k, path)), default)


def layer_number(path: str, prefixes: Sequence[str] | None) -> int | None:
    """Returns the number of the block that `path` lies in, as 3 in "transformer_layer_3.query" or "blocks.3.query".

    Args:
        path: path of a layer.
        prefixes: names of the lists of blocks, as "transformer_layer"; None takes the first number.
    """
    name = "|".join(map(re.escape, prefixes)) if prefixes else r"[^.]*?"
    found = re.search(rf"(?:^|\.)(?:{name})[._](\d+)(?:\.|$)", path)
    return int(found[1]) if found else None


def nearest(spec: str | Sequence[str] | None, paths: Sequence[str]) -> str:
    """Returns the paths that are spelled most like those in `spec`, to show in an error."""
    wanted = [spec] if isinstance(spec, str) else list(spec or ())
    tails = {path.rpartition(".")[2]: path for path in reversed(paths)}
    near = [tails[t] for w in wanted for t in difflib.get_close_matches(w.rpartition(".")[2], tails, n=3, cutoff=0.4)]
    return ", ".join(dict.fromkeys(near or paths[:8]))

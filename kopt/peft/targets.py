"""Which layers an adapter goes to: names as in Hugging Face peft, on Keras paths."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

ALL_LINEAR = "all-linear"


def parse_names(value: Any) -> str | list[str] | None:
    """Returns `value` if it can name layers: None, a list of names, or a regular expression."""
    if value is None:
        return None
    if isinstance(value, str):
        return parse_pattern(value)
    if isinstance(value, Iterable):
        items = list(value)
        if all(isinstance(item, str) for item in items):
            return items
    raise ValueError("a list of layer names or a regular expression of a whole path")


def parse_targets(value: Any) -> str | list[str] | None:
    """Returns `value` if it can name layers and is not an empty list."""
    if (named := parse_names(value)) == []:
        raise ValueError("a list of at least one layer name or a regular expression of a whole path")
    return named


def parse_pattern(value: str) -> str:
    """Returns `value` if it is a regular expression."""
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"a regular expression ({error})") from None
    return value


def parse_name_list(value: Any) -> list[str] | None:
    """Returns `value` as a list of names, or None."""
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Iterable) or not all(isinstance(v, str) for v in value):
        raise ValueError("a list of layer names")
    return list(value)


def parse_indices(value: Any) -> list[int] | None:
    """Returns the numbers of layers as a list, or None."""
    if value is None:
        return None
    items = [value] if isinstance(value, int) else list(value)
    if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in items):
        raise ValueError("a number or a list of numbers, from 0")
    return items


def parse_numbers(value: Any) -> dict[str, float]:
    """Returns positive numbers by regular expression."""
    if not isinstance(value, dict) or not all(
        isinstance(k, str) and isinstance(v, (int, float)) and v > 0 for k, v in value.items()
    ):
        raise ValueError("a mapping from regular expressions to positive numbers")
    return {parse_pattern(k): v for k, v in value.items()}


def matches(spec: str | Sequence[str] | None, path: str) -> bool:
    """Returns whether `spec` names the layer at `path` or, as a list, a layer that contains it."""
    if spec is None:
        return False
    if isinstance(spec, str):
        return re.fullmatch(spec, path) is not None
    parts = path.split(".")
    prefixes = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(prefix == name or prefix.endswith(f".{name}") for prefix in prefixes for name in spec)


def by_pattern(patterns: dict[str, float], path: str, default: float) -> float:
    """Returns the value of the first pattern that is the path or its tail after a dot."""
    return next((v for k, v in patterns.items() if re.fullmatch(rf"(?:.*\.)?(?:{k})", path)), default)


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

"""Values by the path of a weight: ordered (pattern, value) pairs, the first match wins.

Patterns are regular expressions, searched anywhere in the path. Prefer the tail of a path (`r"bias$"`,
`r"embedding/"`): Keras renames the front of it when a model is nested or loaded from a file.
"""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

Rules = Sequence[tuple[str, float]]


def check_rules(owner: str, rules: Iterable[Any]) -> tuple[tuple[str, float], ...]:
    """Returns `rules` as (pattern, factor) pairs.

    Raises:
        ValueError: an entry is no pair, a pattern is no regular expression, a factor is negative or not finite.
    """
    checked = []
    for rule in rules:
        try:
            pattern, factor = rule
            re.compile(pattern)
            factor = float(factor)
            if not 0 <= factor < math.inf:
                raise ValueError("the factor must be finite and not negative")
        except (TypeError, ValueError, re.error) as error:
            raise ValueError(
                f"{owner} takes pairs (regular expression, factor), as in [(r'bias$', 0.0)]. "
                f"Received: {rule!r} ({error})"
            ) from None
        checked.append((pattern, factor))
    return tuple(checked)


def resolve(owner: str, rules: Rules, paths: Sequence[str], default: float = 1.0) -> list[float]:
    """Returns one value for every path: that of the first rule whose pattern is found in it, else `default`.

    Raises:
        ValueError: a pattern is found in no path, which is a typing error more often than not.
    """
    for pattern, _ in rules:
        if paths and not any(re.search(pattern, path) for path in paths):
            near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.0)
            raise ValueError(
                f"{owner}: the pattern {pattern!r} is found in none of the {len(paths)} weights. "
                f"Nearest: {', '.join(near)}. Correct the pattern or leave it out."
            )
    return [next((value for pattern, value in rules if re.search(pattern, path)), default) for path in paths]

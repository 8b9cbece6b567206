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


def check_rules(rules: Iterable[Any]) -> tuple[tuple[str, float], ...]:
    """Returns `rules` as (pattern, factor) pairs.

    Raises:
        ValueError: an entry is no pair, a pattern is no regular expression, a factor is negative or not finite.
    """
    checked, wanted = [], "pairs (regular expression, factor), as in [(r'bias$', 0.0)]"
    if isinstance(rules, str) or not isinstance(rules, Iterable):
        raise ValueError(wanted)
    for rule in rules:
        try:
            pattern, factor = rule
            re.compile(pattern)
            factor = float(factor)
            if not 0 <= factor < math.inf:
                raise ValueError("the factor must be finite and not negative")
        except (TypeError, ValueError, re.error) as error:
            raise ValueError(f"{wanted}; {rule!r} is none ({error})") from None
        checked.append((pattern, factor))
    return tuple(checked)


def check_places(places: Iterable[Any]) -> tuple[int | str, ...]:
    """Returns numbers of weights, from 0, or their paths.

    Raises:
        ValueError: there is another thing among them.
    """
    found = tuple(places) if isinstance(places, Iterable) and not isinstance(places, str) else (None,)
    if not all(isinstance(i, str) or (isinstance(i, int) and not isinstance(i, bool) and i >= 0) for i in found):
        raise ValueError("numbers of weights, from 0, or their paths")
    return found


def find_places(owner: str, places: Iterable[int | str], paths: Sequence[str]) -> list[int]:
    """Returns the number of each weight that a number or a path names.

    Raises:
        ValueError: there is no such weight, or a path is that of several.
    """
    found = []
    for place in places:
        pattern = re.compile(exactly(place) if isinstance(place, str) else "$^")
        fitting = [i for i, path in enumerate(paths) if i == place or pattern.search(path)]
        if len(fitting) != 1:
            raise ValueError(
                f"{owner}: {place!r} is found in {len(fitting)} of the {len(paths)} weights, not in one. Where paths "
                "do not tell weights apart, call optimizer.build(model.trainable_weights) before it is saved."
            )
        found += fitting
    return found


def exactly(path: str) -> str:
    """Returns a pattern of one path, also where a model that was loaded leaves out the name of the model."""
    front, _, rest = path.partition("/")
    return f"^({re.escape(front)}/)?{re.escape(rest)}$" if "/" in rest else f"^{re.escape(path)}$"


def unique(paths: Sequence[str]) -> list[str]:
    """Returns the paths with a number behind those that an earlier weight has, as "kernel #2"."""
    seen: dict[str, int] = {}
    labels = []
    for path in paths:
        seen[path] = seen.get(path, 0) + 1
        labels.append(path if seen[path] == 1 else f"{path} #{seen[path]}")
    return labels


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

"""Values by the path of a weight: ordered (pattern, value) pairs, the first match wins.

Patterns are regular expressions, searched anywhere in the path. Prefer the tail of a path (`r"bias$"`,
`r"embedding/"`): Keras renames the front of it when a model is nested or loaded from a file.
"""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from kopt.declare.patterns import check_pattern, is_found

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
            pattern = check_pattern(pattern)
            factor = float(factor)
            if not 0 <= factor < math.inf:
                raise ValueError("the factor must be finite and not negative")
        except (TypeError, ValueError) as error:
            raise ValueError(f"{wanted}; {rule!r} is none ({error})") from None
        checked.append((pattern, factor))
    return tuple(checked)


def check_places(places: Iterable[Any]) -> tuple[Any, ...]:
    """Returns weights, each as its path or as (number from 0, path).

    Raises:
        ValueError: there is another thing among them.
    """
    if isinstance(places, str) or not isinstance(places, Iterable):
        raise ValueError("a list of paths")
    found = tuple(place if isinstance(place, str) else tuple(place) if _is_pair(place) else None for place in places)
    if None in found:
        raise ValueError("a list of paths, or of (number of the weight, path)")
    return found


def _is_pair(place: Any) -> bool:
    return isinstance(place, (tuple, list)) and [type(x) for x in place] == [int, str]


def find_places(owner: str, places: Iterable[Any], paths: Sequence[str]) -> list[int]:
    """Returns the number of each weight that is named: by its number, if it has the path there, else by its path.

    Raises:
        ValueError: there is no such weight, or there are several.
    """
    found = []
    for place in places:
        number, path = (-1, place) if isinstance(place, str) else place
        pattern = re.compile(exactly(path))
        fitting = [i for i, each in enumerate(paths) if pattern.search(each)]
        fitting = [number] if number in fitting else fitting
        if len(fitting) != 1:
            raise ValueError(
                f"{owner}: the weight {path!r} that exclude_from_weight_decay was given is found {len(fitting)} times "
                f"among {len(paths)} weights. Exclude it anew; where paths do not tell weights apart, call "
                "optimizer.build(model.trainable_weights) before the optimizer is saved."
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
        if paths and not any(is_found(pattern, path) for path in paths):
            near = difflib.get_close_matches(pattern, paths, n=3, cutoff=0.0)
            raise ValueError(
                f"{owner}: the pattern {pattern!r} is found in none of the {len(paths)} weights. "
                f"Nearest: {', '.join(near)}. Correct the pattern or leave it out."
            )
    return [next((value for pattern, value in rules if is_found(pattern, path)), default) for path in paths]

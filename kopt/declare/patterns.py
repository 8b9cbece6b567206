"""Regular expressions that may come from files of strangers: they cannot hang.

`re` may take years for `(a+)+$`. To refuse patterns by their form is too strict and too lax at once: repetitions within
repetitions are common and harmless where paths are short, and `.*.*.*.*.*x` has none. Engines in linear time, as RE2,
lack the lookaheads that files of peft use. So patterns keep the syntax of `re` and are matched by the package `regex`,
which can be stopped: all matches together have an allowance of processor time, far more than names ever need.
"""

import functools
import math
import re
import time
from typing import Any

LONGEST = 20_000
"""Characters that a pattern may have: enough for one that lists a thousand layers."""
_MOST, _EACH = 0.5, 1e-3
"""Seconds of processor time in reserve, and those that every match adds to it again."""
_PLAIN = re.compile(r"(?:[\w/ \-]|\\[^\w\s])*")
"""A pattern in which every character stands for itself."""
_UNROLLED = 200_000
"""Characters that a pattern may have when its counted repetitions are written out, as `regex` does."""


class _Allowance:
    """The processor time that is left for matching."""

    def __init__(self) -> None:
        self.seconds = _MOST


_allowance = _Allowance()


def check_pattern(pattern: Any) -> str:
    """Returns the text of a regular expression, which may be compiled.

    Raises:
        ValueError: it is none, is longer than `LONGEST`, or has flags beside the text.
    """
    text = pattern.pattern if isinstance(pattern, re.Pattern) else pattern
    if not isinstance(text, str):
        raise ValueError("a regular expression as text")
    _compiled(text)
    if text is not pattern and pattern.flags != re.compile(text).flags:
        raise ValueError("a regular expression with its flags inside, as in '(?i)bias$'")
    return text


def matches_whole(pattern: str, text: str) -> bool:
    """Returns whether the whole text matches.

    Raises:
        ValueError: the pattern takes too long, or is none.
    """
    compiled = _compiled(pattern)
    return compiled == text if isinstance(compiled, str) else _run(compiled, compiled.fullmatch, text)


def matches_end(pattern: str, path: str) -> bool:
    """Returns whether the whole path matches, or its end after a dot.

    Raises:
        ValueError: the pattern takes too long, or is none.
    """
    compiled = _compiled(pattern)
    if isinstance(compiled, str):
        return path == compiled or path.endswith(f".{compiled}")
    return matches_whole(rf"(?:.*\.)?(?:{pattern})", path)


def is_found(pattern: str, text: str) -> bool:
    """Returns whether the pattern is found anywhere in the text.

    Raises:
        ValueError: the pattern takes too long, or is none.
    """
    compiled = _compiled(pattern)
    return compiled in text if isinstance(compiled, str) else _run(compiled, compiled.search, text)


def _run(compiled: Any, match: Any, text: str) -> bool:
    left = min(_MOST, _allowance.seconds + _EACH)
    began = time.thread_time()
    try:
        found = match(text, timeout=left) is not None
    except TimeoutError:
        found, left = False, 0.0
    _allowance.seconds = left - (time.thread_time() - began)
    if _allowance.seconds <= 0:
        _allowance.seconds = _MOST
        raise ValueError(
            f"The pattern {_shown(compiled.pattern)} takes too long to match. Write it without repetitions within "
            "repetitions, or name the layers in a list."
        )
    return found


@functools.lru_cache(maxsize=4096)
def _compiled(pattern: str) -> Any:
    """Returns the pattern compiled, or as the one text that it matches."""
    if len(pattern) > LONGEST:
        raise ValueError(f"a regular expression of at most {LONGEST} characters; this one has {len(pattern)}")
    if _PLAIN.fullmatch(pattern):
        return re.sub(r"\\(.)", r"\1", pattern)
    if math.prod(max(1, int(n)) for n in re.findall(r"\{(\d{1,9})", pattern)) * len(pattern) > _UNROLLED:
        raise ValueError(f"a regular expression whose repetitions are fewer: {_shown(pattern)}")
    import regex

    try:
        re.compile(pattern)
        return regex.compile(pattern, cache_pattern=False)
    except (re.error, regex.error, RecursionError, OverflowError) as error:
        raise ValueError(f"a regular expression ({error}): {_shown(pattern)} is none") from None


def _shown(pattern: str) -> str:
    return repr(pattern) if len(pattern) <= 100 else f"{pattern[:100]!r}..."

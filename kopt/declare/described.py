"""Docstrings that describe every argument: those of the bases are added by a line each."""

import functools
import inspect
import re
from typing import Any

SECTION = re.compile(r"^(?:Args|Attributes):\n((?:[ \t]+\S.*\n?|\n(?=[ \t]))*)", re.MULTILINE)
"""A section of a docstring that describes arguments."""


@functools.cache
def own_arguments(doc: str) -> dict[str, str]:
    """Returns what the sections "Args:" and "Attributes:" of a docstring say, by the name of the argument."""
    found: dict[str, str] = {}
    for section in SECTION.findall(inspect.cleandoc(doc)):
        lines = inspect.cleandoc("\n" + section).split("\n")
        names: list[str] = []
        for line in lines:
            entry = re.match(r"(\w+(?:, \w+)*): (.*)", line)
            if entry:
                names = entry[1].split(", ")
                found |= dict.fromkeys(names, entry[2])
            elif line.startswith(" ") and names:
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def first_sentence(text: str) -> str:
    """Returns a text up to its first full stop that ends a sentence."""
    return re.split(r"(?<=[^.\d])\.(?:\s|$)|\. (?=[A-Z`\"])", text, maxsplit=1)[0].rstrip(".") + "."


def complete_doc(cls: Any) -> None:
    """Adds to the docstring of a class a line for every argument that it inherits and does not describe."""
    if not cls.__doc__:
        return
    doc = inspect.cleandoc(cls.__doc__)
    inherited: dict[str, str] = {}
    for base in reversed(cls.__mro__[1:]):
        if "fields" in vars(base) and base.__doc__:
            inherited |= own_arguments(base.__doc__)
    described = own_arguments(cls.__doc__)
    missing = [name for name in cls.fields if name not in described and name in inherited]
    lines = [f"    {name}: {first_sentence(inherited[name])}\n" for name in missing]
    if not lines:
        return
    if section := SECTION.search(doc):
        cls.__doc__ = doc[: section.end()].rstrip("\n") + "\n" + "".join(lines) + doc[section.end() :]
    else:  # before the last paragraph, which says what differs and where it is from
        before, blank, last = doc.rpartition("\n\n")
        parts = [before, "Args:\n" + "".join(lines), last] if blank else [doc, "Args:\n" + "".join(lines)]
        cls.__doc__ = "\n\n".join(part.rstrip("\n") for part in parts) + "\n"

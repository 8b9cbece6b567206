"""Docstrings that describe every argument: those of the bases are added by a line each."""

import inspect
import re
from typing import Any

HEADER = "Arguments of all of its kind:"


def own_arguments(doc: str) -> dict[str, str]:
    """Returns what the sections "Args:" and "Attributes:" of a docstring say, by the name of the argument."""
    found: dict[str, str] = {}
    for section in re.findall(r"^(?:Args|Attributes):\n((?:[ \t]+\S.*\n?|\n(?=[ \t]))*)", doc, re.MULTILINE):
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
    """Appends to the docstring of a class a line for every argument that it inherits and does not describe."""
    if not cls.__doc__ or HEADER in cls.__doc__:
        return
    described = own_arguments(inspect.cleandoc(cls.__doc__))
    lines = []
    for name in cls.fields:
        if name not in described:
            texts = (own_arguments(inspect.cleandoc(b.__doc__)).get(name) for b in cls.__mro__[1:] if b.__doc__)
            if text := next((text for text in texts if text), None):
                lines.append(f"    {name}: {first_sentence(text)}")
    if lines:
        cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__), "", HEADER, *lines, ""])

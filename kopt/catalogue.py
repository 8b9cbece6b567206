"""What there is, out of the registries: tables of optimizers, adapters and schedules, and all about one of them."""

import difflib
import inspect
import math
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_origin

from kopt import board
from kopt.declare import Field
from kopt.declare.described import SECTION, own_arguments
from kopt.declare.fields import REQUIRED, as_code
from kopt.declare.kinds import Range, members
from kopt.declare.registry import ADAPTERS, OPTIMIZERS, SCHEDULES, Registry
from kopt.optimizers import Optimizer, Slot, memory
from kopt.peft import Adapter
from kopt.schedules.schedule import Schedule

Row = dict[str, Any]
FAMILIES: dict[str, tuple[Registry, Any, Any]] = {
    "optimizer": (OPTIMIZERS, Optimizer, "kopt"),
    "adapter": (ADAPTERS, Adapter, "kopt.peft"),
    "schedule": (SCHEDULES, Schedule, "kopt.schedules"),
}
"""Registry, base class and public module of each family."""


def classes(family: str) -> dict[str, Any]:
    """Returns the public classes of kopt of a family by lower-case name, sorted."""
    known = FAMILIES[family][0].classes()
    return {k: cls for k, cls in known.items() if cls.__module__.startswith("kopt.") and not k.startswith("_")}


def about(cls: type) -> str:
    """Returns the first line of a docstring without the name in front and the full stop at the end."""
    first = inspect.getdoc(cls).splitlines()[0]  # type: ignore[union-attr]  # every class has one
    rest = "" if issubclass(cls, Schedule) else first.partition(": ")[2]
    text = (rest or first).rstrip(".")
    return text[:1].upper() + text[1:]


def reference(cls: type) -> str:
    """Returns the reference in a docstring as one line."""
    return " ".join((cls.__doc__ or "").split("Reference: ")[1].split()).removesuffix(".")


def slots_of(optimizer: Any) -> Mapping[str, Slot]:
    """Returns the slots of a weight, those of the first rule."""
    return next(iter(optimizer.rules_by_key().values())).slots


def state_bytes(optimizer: Any, shape: tuple[int, ...] = (1024, 1024)) -> float:
    """Returns the bytes of the slots for each element of a float32 weight of that shape."""
    return memory.state_bytes(optimizer, [shape]) / math.prod(shape)


# ------------------------------------------------------------------------------------------------- tables


def optimizers() -> list[Row]:
    """Returns what the defaults of each optimizer keep and can do; wrappers are around AdamW."""
    return [_optimizer_row(cls) for cls in classes("optimizer").values()]


def _optimizer_row(cls: Any) -> Row:
    optimizer = cls()
    return {
        "name": cls.__name__,
        "slots": list(slots_of(optimizer)),
        "bytes_per_parameter": round(state_bytes(optimizer), 2),
        "row_wise": optimizer.row_wise,
        "about": about(cls),
        "reference": reference(cls),
    }


def adapters() -> list[Row]:
    """Returns whether each adapter can be merged, and what its file is called in Hugging Face peft."""
    return [
        {
            "name": cls.__name__,
            "merges": cls.mergeable,
            "peft_file": cls.peft_type if cls.in_peft else None,
            "about": about(cls),
            "reference": reference(cls),
        }
        for cls in classes("adapter").values()
    ]


def schedules() -> list[Row]:
    """Returns the arguments of each schedule."""
    return [
        {"name": cls.__name__, "arguments": list(cls.fields), "about": about(cls), "reference": reference(cls)}
        for cls in classes("schedule").values()
    ]


def as_text(rows: Sequence[Row], width: int | None = None) -> str:
    """Returns rows as a table for a terminal, with a line of headings and without the references.

    Args:
        rows: of equal keys.
        width: columns of the terminal; longer lines are cut. None cuts nothing.
    """
    columns = [key for key in rows[0] if key != "reference"]
    cells = [[_heading(key) for key in columns], *([_cell(row[key]) for key in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [isinstance(rows[0][key], float) for key in columns]
    lines = []
    for row in cells:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        line = "  ".join(padded).rstrip()
        lines.append(line if width is None or len(line) <= width else line[: width - 1] + "…")
    return "\n".join(lines)


def _heading(key: str) -> str:
    return {"bytes_per_parameter": "bytes/parameter", "row_wise": "row-wise", "peft_file": "file of peft"}.get(key, key)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


# ------------------------------------------------------------------------------------------------- one of them


def info(name: str, width: int = 100) -> str:
    """Returns all about an optimizer, an adapter or a schedule: equations, slots, arguments, reference.

    Args:
        name: of its class; upper and lower case are equal.
        width: columns that lines are wrapped to.

    Raises:
        LookupError: nothing has that name. The message says the near ones.
    """
    known = {key: (family, cls) for family in FAMILIES for key, cls in classes(family).items()}
    if name.lower() not in known:
        near = [known[key][1].__name__ for key in difflib.get_close_matches(name.lower(), known, n=3)]
        lists = "`kopt optimizers`, `kopt adapters` and `kopt schedules` list the names."
        hint = f"Did you mean {' or '.join(near)}?" if near else lists
        raise LookupError(f"No optimizer, adapter or schedule is called {name!r}. {hint}")
    family, cls = known[name.lower()]
    _, base, module = FAMILIES[family]
    head = [f"{module}.{cls.__name__}, {'an' if family[0] in 'aeiou' else 'a'} {family}"]
    if family == "optimizer":
        head.append(f"State with the defaults: {state_bytes(cls()):g} bytes for each float32 parameter")
        if (row := board.row(name)) is not None:
            head.append(f"Passes {row.passed} of {len(row.verdicts)} small problems: docs/board.md")
    doc = inspect.cleandoc(cls.__doc__)
    before, after = SECTION.split(doc)[0], SECTION.split(doc)[-1]
    own = [field for field in cls.fields.values() if field.name not in base.fields]
    others = [field for field in cls.fields.values() if field.name in base.fields]
    described = own_arguments(cls.__doc__)
    parts = ["\n".join(head), before]
    for above in cls.__mro__[1:]:  # what the text speaks of is read beside it
        if f"`{above.__name__}`" in before and above not in base.__mro__:
            text = SECTION.split(inspect.cleandoc(above.__doc__))[0].strip("\n")
            parts.append(f"About `{above.__name__}`:\n\n{textwrap.indent(text, '    ')}")
    if own:
        parts.append("\n".join(["Arguments:", *_arguments(own, described, width)]))
    parts += ["\n".join([f"Arguments of every {family}:", *_arguments(others, described, width)]), after]
    return "\n\n".join(part.strip("\n") for part in parts)


def _arguments(fields: Sequence[Field], described: Mapping[str, str], width: int) -> Iterator[str]:
    for field in fields:
        default = "" if field.default is REQUIRED else f" = {as_code(field.default)}"
        kind = kind_of(field)
        yield f"    {field.name}{': ' if kind else ''}{kind}{default}"
        yield textwrap.fill(described[field.name], width, initial_indent=" " * 8, subsequent_indent=" " * 8)


def kind_of(field: Field) -> str:
    """Returns what an argument can be; nothing where a function checks it, which the description speaks of."""
    return "" if field.converted else " or ".join(_member(kind, notes, field) for kind, notes in members(field.kind))


def _member(kind: Any, notes: tuple[Any, ...], field: Field) -> str:
    if kind is types.NoneType:
        return "None"
    if kind in (int, float):
        span = next((note for note in notes if isinstance(note, Range)), None)
        return ("whole number" if kind is int else "number") + (f" in {span}" if span else "")
    if get_origin(kind) is not None and field.choices:
        return " or ".join(map(repr, field.choices))
    return {bool: "True or False", str: "text"}.get(kind, getattr(kind, "__name__", str(kind)))

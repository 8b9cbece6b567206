"""The pages from-optax.md, from-pytorch-optimizer.md and from-torch.md, from the tables in docs/names.

A table has, for every public name of a library, what takes its place in kopt (`kopt`, an expression), an expression of
the library that is equal to it (`peer`, or `schedule`), and a remark. `want` names what the row has as soon as kopt has
it, and nothing else before. docs/names/measured.json has how far the two are apart: `python -m benchmarks.names`.
"""

import functools
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import keras
import yaml

import kopt

FOLDER = pathlib.Path(__file__).parent / "names"
LIBRARIES = ("optax", "pytorch_optimizer", "torch")
MEASURED = FOLDER / "measured.json"
NOT_HERE = "not here"
NOTE = """\
The names are those of {library} {version}. Both columns of code can be run: *difference* is that of the weights after
20 steps in float64 with the same gradients, relative to the largest weight, or that of the rates of 20 steps, as
`python -m benchmarks.names` measures it. Rows without it differ as they say. The page is made by
`python docs/generate.py`, which makes sure that kopt has all that is named here."""
Row = dict[str, Any]


def path_of(library: str) -> pathlib.Path:
    """Returns the page of a library."""
    return FOLDER.parent / f"from-{library.replace('_', '-')}.md"


@functools.cache
def table(library: str) -> dict[str, Any]:
    """Returns the table of a library."""
    return yaml.safe_load((FOLDER / f"{library}.yaml").read_text(encoding="utf-8"))


def measured() -> dict[str, dict[str, float]]:
    """Returns the differences by library and name."""
    return json.loads(MEASURED.read_text(encoding="utf-8"))


def rows(library: str) -> Iterator[tuple[str, Row]]:
    """Yields the names that have a row of their own."""
    for part in table(library)["sections"]:
        yield from part.get("names", {}).items()


def names(library: str) -> list[str]:
    """Returns all names of a table."""
    found = [name for name, _ in rows(library)]
    for part in table(library)["sections"]:
        found += part.get("parts", {})
        found += [name for line in part.get("rest", {}) for name in line.split(", ")]
    return found


def made(expression: str) -> Any:
    """Returns what an expression of the page makes."""
    return eval(expression, {"kopt": kopt, "keras": keras})


def resolved(name: str) -> Any:
    """Returns what a dotted name below kopt stands for; None if there is no such thing."""
    return functools.reduce(lambda x, part: getattr(x, part, None), name.split("."), kopt)


def check(library: str, page: str) -> None:
    """Makes sure that kopt has all that the page names.

    Raises:
        ValueError: an expression fails, or a name is not there. The message has the row.
    """
    for name, row in rows(library):
        if "kopt" in row:
            try:
                made(row["kopt"])
            except Exception as error:
                raise ValueError(f"{library}.yaml, {name}: {row['kopt']} fails: {error}") from error
    for name in re.findall(r"kopt\.([A-Za-z][\w.]*\w)", "\n".join(re.findall(r"`[^`]+`", page))):
        if resolved(name) is None:
            raise ValueError(f"{library}.yaml names kopt.{name}, which does not exist.")


def page(library: str) -> str:
    """Returns the page of a library."""
    known, found = table(library), measured()[library]
    lines = [f"# {known['title']}", "", known["intro"]]
    lines += [NOTE.format(library=library, version=known["version"]), ""]
    for part in known["sections"]:
        lines += [f"## {part['title']}", ""]
        if "intro" in part:
            lines += [part["intro"], ""]
        if part.get("names"):
            lines += [f"| {library} | kopt | difference | remark |", "|---|---|---:|---|"]
            lines += [_line(name, row, found) for name, row in part["names"].items()]
            lines.append("")
        rest = {name: f"the rule is `kopt.{rule}`" for name, rule in part.get("parts", {}).items()}
        if rest or part.get("rest"):
            lines += [f"| {library} | in its place |", "|---|---|"]
            for line, place in (rest | part.get("rest", {})).items():
                lines.append(f"| {', '.join(f'`{name}`' for name in line.split(', '))} | {place} |")
            lines.append("")
    text = "\n".join(lines).rstrip("\n") + "\n"
    check(library, text)
    return text


def _line(name: str, row: Row, found: dict[str, float]) -> str:
    there = row.get("peer") or row.get("schedule")
    here, remark = row.get("kopt"), row.get("remark", "")
    if "want" in row:
        here = f"kopt.{row['want']}" if resolved(row["want"]) is not None else None
        remark = "; ".join(filter(None, ["" if here else NOT_HERE, remark]))
    cells = [
        f"`{name}`" + (f"<br>`{there}`" if there else ""),
        f"`{here}`" if here else "",
        f"{found[name]:.0e}" if name in found else "",
        remark,
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

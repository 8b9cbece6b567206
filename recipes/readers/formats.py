"""How a file of rows is written, as far as its name and content do not say it: flags and their checks."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from ..run.errors import UsageError
from ..run.flags import OptionalName
from .files import PACKED, check_encoding

DELIMITED = (".csv", ".tsv", ".tab", ".txt", ".dat", ".data", ".inter", ".item", ".user")
JSON = (".jsonl", ".ndjson", ".json")
PARQUET = (".parquet",)
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".json", *DELIMITED[2:], JSON[1])
NAMES = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|", "space": " "}


@dataclasses.dataclass(frozen=True)
class Format:
    """How tables are written."""

    encoding: OptionalName = None
    """Encoding of the files, such as cp1252 or utf-16. Default: UTF-8, or what a byte order mark says."""
    delimiter: OptionalName = None
    """What is between cells: comma, semicolon, tab, pipe, space, or the characters themselves. Default: found."""
    columns: OptionalName = None
    """Names of the columns, separated by commas, of files whose first line does not have them."""

    @property
    def separator(self) -> str:
        """Returns what is between cells; "" if it is to be found."""
        return NAMES.get(self.delimiter or "", self.delimiter or "")

    @property
    def names(self) -> list[str]:
        """Returns the names of the columns; none if the first line has them."""
        return [name.strip() for name in self.columns.split(",")] if self.columns else []


def plain_suffix(path: Path) -> str:
    """Returns what the name of a file ends in, without the ending that says how it is packed."""
    name = Path(path.stem) if path.suffix.lower() in PACKED else path
    return name.suffix.lower()


def unit_of(path: Path) -> str:
    """Returns what the row numbers of a file count: "row" or "line"."""
    return "row" if plain_suffix(path) in (".parquet", ".json") else "line"


def check(form: Format, paths: Iterable[Path | None]) -> None:
    """Checks the flags by themselves, and against the files that they are for.

    Raises:
        UsageError: one is malformed, or has no effect on any of the files.
    """
    files = [path for path in paths if path is not None]
    kinds = {plain_suffix(path) for path in files}
    given = {name: value for name, value in dataclasses.asdict(form).items() if value is not None}
    for name, value in given.items():
        if not files:
            raise UsageError(f"--{name}: has no effect without a file.")
        if kinds <= set(PARQUET) or (name != "encoding" and kinds <= {*PARQUET, *JSON}):
            raise UsageError(f"--{name} {value}: has no effect on {', '.join(path.name for path in files)}.")
    check_encoding(form.encoding)
    if form.delimiter is not None and (not form.separator or any(c in '\r\n"' for c in form.separator)):
        raise UsageError(f"--delimiter {form.delimiter!r}: expected {', '.join(NAMES)}, or the characters themselves.")
    names = form.names
    if not all(names) or len(set(names)) < len(names):
        raise UsageError(f"--columns {form.columns}: expected different names, separated by commas.")

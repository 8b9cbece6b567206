"""The texts to learn from: files of texts, answers, chats or preferences, and what is held out of them."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..readers import formats
from ..readers.files import read_lines
from ..readers.formats import Format, plain_suffix
from ..readers.records import FlawError, OnBadRow, check_text
from ..readers.rows import good_rows
from ..run.errors import DataError, UsageError
from ..run.flags import Fraction, OpenFraction, OptionalCount, OptionalName, OptionalPath, refuse
from . import python_texts

Kind = Literal["text", "response", "chat", "preference"]
COLUMNS: dict[Kind, tuple[str, ...]] = {
    "preference": ("prompt", "chosen", "rejected"),
    "chat": ("messages",),
    "response": ("prompt", "response"),
    "text": ("text",),
}
"""The columns of a file, by what it holds."""
ROLES = ("system", "user", "assistant")
PAGES, SHORTEST_PAGE, LONGEST_PAGE = 50, 500, 20_000
"""Into how many pages a .txt file is cut, and how many characters they have where its paragraphs allow it."""
WITHIN = 2
"""A page with so many times these characters ends within a paragraph."""
TOPICS = "topics"

Example = str | list[dict[str, str]] | tuple[str, str, str]
"""A text, the messages of a chat, or prompt, chosen and rejected answer."""


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The data."""

    data: OptionalName = None
    """File of rows (prompt and response; messages; text; prompt, chosen and rejected), .txt file, or topics."""
    validation_data: OptionalPath = None
    """File that is measured after each epoch. Default: a part of the data is held out."""
    test_data: OptionalPath = None
    """File that is measured before and after the training. Default: a part of the data is held out."""
    validation_split: Fraction = 0.05
    """Share of the data that is held out if there is no --validation-data; with 0 there is none."""
    test_split: OpenFraction = 0.1
    """Share of the data that is held out if there is no --test-data."""
    form: Format = dataclasses.field(default_factory=Format)
    on_bad_row: OnBadRow = "error"
    """error stops at the first row that cannot be used; skip leaves such rows out and counts them."""
    max_train_examples: OptionalCount = None
    """Train on at most this many examples. Neither they nor what is held out depend on the seed."""
    max_eval_examples: OptionalCount = None
    """Validate and test on at most this many examples each."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Training, validation and test set."""

    kind: Kind
    train: list[Example]
    validation: list[Example]
    """Empty if none is wanted."""
    test: list[Example]
    source: str
    """Of the training set."""
    origins: dict[str, str]
    """Where "validation" and "test" are from."""


def check(flags: DataFlags, objective: str) -> None:
    """Checks the flags against each other.

    Raises:
        UsageError: they contradict each other.
    """
    own = flags.data in (None, TOPICS)
    files = [None if own else Path(str(flags.data)), flags.validation_data, flags.test_data]
    formats.check(flags.form, files)
    if own and objective == "dpo":
        raise UsageError("--objective dpo: give --data too, a file of rows with prompt, chosen and rejected.")
    for name in ("validation_data", "test_data"):
        refuse(flags, (name,), own and "without a file as --data")
        refuse(flags, (name.replace("data", "split"),), getattr(flags, name) and f"with --{name.replace('_', '-')}")
    refuse(flags, ("on_bad_row",), own and "without a file as --data")


def load(flags: DataFlags, objective: str) -> Data:
    """Returns the examples; which are held out is always the same.

    Raises:
        DataError: a file cannot be read, or holds something else than the objective needs, or too little.
    """
    if flags.data in (None, TOPICS):
        kind: Kind = "text"
        parts: dict[str, list[Example]] = {"train": [*python_texts.read_topics()]}
        source = "pages of Python's language reference, which come with Python"
    else:
        place = Path(str(flags.data))
        kind, found = read(place, objective, flags.on_bad_row, flags.form)
        parts, source = {"train": found}, place.name
    origins = {}
    for i, (name, path, share) in enumerate(
        (("test", flags.test_data, flags.test_split), ("validation", flags.validation_data, flags.validation_split))
    ):
        if path is not None:
            other, parts[name] = read(path, objective, flags.on_bad_row, flags.form)
            if other != kind:
                raise DataError(f"{path.name}: holds {other}, but {source} {kind}.")
            origins[name] = path.name
        else:
            parts["train"], parts[name] = _hold_out(parts["train"], share, i, f"--{name}-split", source)
            if parts[name]:
                origins[name] = f"held out of {source}"
    limits = {"train": flags.max_train_examples, "validation": flags.max_eval_examples, "test": flags.max_eval_examples}
    cut = {name: _limit(part, limits[name]) for name, part in parts.items()}
    return Data(kind, cut["train"], cut["validation"], cut["test"], source, origins)


def _hold_out(
    part: list[Example], share: float, seed: int, flag: str, source: str
) -> tuple[list[Example], list[Example]]:
    count = round(share * len(part)) or (1 if share else 0)
    if count >= len(part):
        raise DataError(f"{source}: too few for {flag} {share} ({len(part)} in all). Give more, or a file for it.")
    chosen = set(np.random.default_rng(seed).permutation(len(part))[:count].tolist())
    return [x for i, x in enumerate(part) if i not in chosen], [x for i, x in enumerate(part) if i in chosen]


def _limit(part: list[Example], count: int | None) -> list[Example]:
    if count is None or count >= len(part):
        return part
    return [part[i] for i in np.sort(np.random.default_rng(0).permutation(len(part))[:count])]


# -------------------------------------------------------------------------------------------------------------- files


def read(path: Path, objective: str, on_bad_row: OnBadRow, form: Format | None = None) -> tuple[Kind, list[Example]]:
    """Returns what a file holds, and its examples; a .txt file is a plain text unless `form` makes it a table.

    Raises:
        DataError: it cannot be read, a row is bad, or it holds something else than the objective needs.
    """
    form = form or Format()
    if plain_suffix(path) == ".txt" and form.delimiter is None and form.columns is None:
        if objective == "dpo":
            raise DataError(f"{path.name}: plain text, but --objective dpo needs rows of prompt, chosen and rejected.")
        return "text", [*_pages(path, form.encoding)]
    kinds: dict[Kind, None] = {}

    def convert(record: Mapping[str, Any]) -> Example:
        kind = _kind_of(record, objective)
        kinds[kind] = None
        if len(kinds) > 1:
            raise FlawError(f"it holds {kind}, the rows before {next(iter(kinds))}")
        if kind == "chat":
            return _messages(record["messages"])
        cells = [_text(record[name], name) for name in COLUMNS[kind]]
        if kind == "text":
            return cells[0]
        if kind == "preference":
            return cells[0], cells[1], cells[2]
        return [{"role": "user", "content": cells[0]}, {"role": "assistant", "content": cells[1]}]

    found = [example for _, example in good_rows(path, convert, {}, on_bad_row, form)]
    return next(iter(kinds)), found


def _kind_of(record: Mapping[str, Any], objective: str) -> Kind:
    for kind, columns in COLUMNS.items():
        if set(columns) <= set(record) and (kind == "preference") == (objective == "dpo"):
            return kind
    wanted = "prompt, chosen and rejected" if objective == "dpo" else "prompt and response, messages, or text"
    raise FlawError(f"no {wanted}", f" (it has {', '.join(map(str, list(record)[:8]))})")


def _text(cell: Any, name: str) -> str:
    if not isinstance(cell, str):
        raise FlawError(f"{name!r} is no text")
    text = check_text(cell, name)
    if not text:
        raise FlawError(f"{name!r} is empty")
    return text


def _messages(cell: Any) -> list[dict[str, str]]:
    if not isinstance(cell, list) or not cell or not all(isinstance(message, dict) for message in cell):
        raise FlawError("'messages' is no list of objects with role and content")
    found = []
    for message in cell:
        if message.get("role") not in ROLES:
            raise FlawError(f"the role of a message is none of {', '.join(ROLES)}", f": {message.get('role')!r}")
        found.append({"role": message["role"], "content": _text(message.get("content"), "content")})
    if not any(message["role"] == "assistant" for message in found):
        raise FlawError("no message is of the role assistant, so there is nothing to learn")
    return found


def _pages(path: Path, encoding: str | None) -> list[str]:
    """Returns a plain text in about PAGES pages, so that some can be held out.

    They end where a paragraph does; where none ends for long, with a line, and within a line that long, with a word.
    """
    lines = list[str]()
    for number, line in enumerate(read_lines(path, encoding), 1):
        try:
            check_text(line, "the text")
        except FlawError as flaw:
            raise DataError(f"{path.name}, line {number}: {flaw}.") from flaw
        lines.append(line.rstrip("\r\n"))
    size = min(max(sum(map(len, lines)) // PAGES, SHORTEST_PAGE), LONGEST_PAGE)
    words = re.compile(rf".{{1,{size}}}(?:\s|$)|.{{1,{size}}}")
    pages, page, count = list[str](), list[str](), 0
    for line in lines:
        parts = words.findall(line) if len(line) > WITHIN * size else [line]
        for part in parts:
            page.append(part)
            count += len(part)
            if len(parts) > 1 or (count >= size and (not part.strip() or count >= WITHIN * size)):
                pages.append("\n".join(page).strip())
                page, count = [], 0
    found = [text for text in (*pages, "\n".join(page).strip()) if text]
    if not found:
        raise DataError(f"{path.name}: is empty.")
    return found

"""The Python blocks of a page: runs them one after the other, and writes what they print below them.

    python docs/page_blocks.py docs/copied-adam.md      # runs the blocks, and brings the figures of the page up to date

The blocks of a page share their names. A block of ```text right below one of ```python is what that one prints; the
tests run every page, and compare.
"""

import contextlib
import io
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```$(?:\n\n^```text\n(?P<printed>.*?)^```$)?", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """Code, what the page says that it prints (None: nothing is said), and what it has printed."""

    code: str
    expected: str | None
    printed: str


def has_blocks(page: pathlib.Path) -> bool:
    """Returns whether a page has Python blocks."""
    return BLOCK.search(page.read_text(encoding="utf-8")) is not None


def run(page: pathlib.Path, names: dict[str, Any]) -> Iterator[Block]:
    """Runs the blocks of a page in the working directory, with `names` as their globals, and yields each."""
    for found in BLOCK.finditer(text := page.read_text(encoding="utf-8")):
        printed = io.StringIO()
        line = text[: found.start()].count("\n") + 1  # so that a traceback names the line of the page
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + found["code"], str(page), "exec"), names)
        yield Block(found["code"], found["printed"], printed.getvalue())


def main() -> None:
    """Writes what the blocks print into the pages that are named."""
    for page in map(pathlib.Path, sys.argv[1:]):
        text, page = page.read_text(encoding="utf-8"), page.resolve()
        before = os.getcwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            blocks = list(run(page, {"__name__": page.stem}))
            os.chdir(before)
        for block in blocks:
            if block.expected is not None:
                old = f"```python\n{block.code}```\n\n```text\n{block.expected}```"
                text = text.replace(old, f"```python\n{block.code}```\n\n```text\n{block.printed}```")
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

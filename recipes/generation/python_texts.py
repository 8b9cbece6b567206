"""English texts that every machine with Python has: its documentation by topic, and its docstrings."""

import random
import sysconfig
from pathlib import Path

from ..readers import docstrings
from ..run.errors import DataError

APART = ("test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages")
"""Folders that are left out."""
SHORTEST = 400
"""Characters of the shortest docstring that is taken."""


def read_topics() -> list[str]:
    """Returns the pages of Python's language reference that `help("topics")` shows, in the order of their names.

    Raises:
        DataError: this Python came without them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError("--data topics: this Python has no pydoc_data. Give a file as --data.") from error
    pages: dict[str, str] = topics
    return [pages[name].strip() for name in sorted(pages)]


def read_docstrings() -> list[str]:
    """Returns the longer docstrings of the modules of the standard library, in an order that is always the same."""
    home = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in (*home.glob("*.py"), *home.glob("*/*.py")) if path.parent.name not in APART)
    texts = dict.fromkeys(text for path in files for text in docstrings.read_file(path) if len(text) >= SHORTEST)
    found = list(texts)
    random.Random(0).shuffle(found)
    return found

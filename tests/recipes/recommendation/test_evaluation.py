"""What is measured, and on which interactions."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from rating_data import ITEMS, USERS, folder, interactions, read_metrics
from row_files import write

from recipes.recommendation.data import splits
from recipes.recommendation.data.data_flags import DataFlags
from recipes.recommendation.data.interactions import Vocabulary
from recipes.recommendation.saved_run import restore
from recipes.run.errors import DataError


def test_splits():
    whole = interactions([1, 1, 1, 2, 2, 3], [1, 2, 3, 1, 2, 1], time=[5, 9, 7, 2, 1, 3])
    assert splits.test_mask(whole, "leave-one-out", 0.1, 0).tolist() == [False, True, False, True, False, False]
    assert splits.test_mask(whole, "temporal", 0.34, 0).tolist() == [False, True, True, False, False, False]
    draws = [splits.test_mask(whole, "random", 0.5, seed) for seed in range(4)]
    assert all(draw.sum() == 3 for draw in draws) and len({tuple(d) for d in draws}) > 1
    np.testing.assert_array_equal(draws[1], splits.test_mask(whole, "random", 0.5, 1))


@pytest.mark.parametrize("way", ["random", "temporal", "leave-one-out"])
def test_validation_stands_between_training_and_test(way):
    rng = np.random.default_rng(0)
    whole = interactions(rng.integers(1, 9, 200), rng.integers(1, 20, 200), rng.normal(size=200), np.arange(200))
    source = splits.Pool(whole, None, None, None, None)
    data = splits.split(source, DataFlags(split=way, test_share=0.2, validation_share=0.25), True, 3)
    times = [set(part.time) for part in (data.train, data.validation, data.test)]
    assert len(set.union(*times)) == sum(map(len, times)) == 200 and set(data.known.time) == times[0] | times[1]
    assert [len(part) for part in times] == ([184, 8, 8] if way == "leave-one-out" else [120, 40, 40])
    if way == "temporal":
        assert max(times[0]) < min(times[1]) and max(times[1]) < min(times[2])
    if way == "leave-one-out":
        for user in range(1, 9):
            last = [part.time[part.user == user].max() for part in (data.train, data.validation, data.test)]
            assert last == sorted(last)
    without = splits.split(source, DataFlags(split=way, validation_share=0.0), True, 3)
    assert without.validation is None and len(without.known) == len(without.train)


def test_every_interaction_is_tested_in_one_fold():
    whole = interactions([1] * 10, range(1, 11), range(10), range(10))
    source = splits.Pool(whole, None, None, None, None)
    tests = [splits.split(source, DataFlags(folds=5), True, 0, fold).test.time.tolist() for fold in range(5)]
    assert sorted(i for part in tests for i in part) == list(range(10)) and all(len(part) == 2 for part in tests)


def test_rare_users_and_items_are_left_out_until_none_is():
    whole = interactions([1, 1, 2, 2, 3, 3, 3], [1, 2, 1, 2, 1, 2, 3])
    left = splits.keep_frequent(whole, 2)
    assert list(zip(left.user, left.item, strict=True)) == [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)]
    assert len(splits.keep_frequent(whole, 4)) == 0


@pytest.mark.slow
def test_folds_and_what_each_figure_is_from(train, quick):
    out = train("run", "--folds", "3", "--l2", "0.1")
    metrics = read_metrics("run")
    found = metrics["folds"]["test_rmse"]
    assert len(found) == 3 and len(set(found)) == 3 and metrics["test_rmse"] == found[0]
    assert metrics["folds_test_rmse_mean"] == pytest.approx(np.mean(found))
    assert metrics["folds_test_rmse_deviation"] == pytest.approx(np.std(found, ddof=1))
    assert f"3 folds rmse {np.mean(found):.4f} ± {np.std(found, ddof=1):.4f}" in out
    assert (metrics["train_examples"], metrics["validation_examples"], metrics["test_examples"]) == (240, 24, 120)
    card = (folder("run") / "README.md").read_text()
    assert f"| rmse on the test set | {metrics['test_rmse']:.4f} |" in card
    assert f"| rmse on the validation set | {metrics['validation_rmse']:.4f} |" in card
    assert f"after {metrics['refit_epochs']} epochs it was best" in card


@pytest.mark.slow
def test_refit_and_the_scale_of_the_labels(train, call, files, quick):
    train("both", "--learning-rate", "1", "--l2", "0")
    train("alone", "--no-refit", "--learning-rate", "1", "--l2", "0")
    both, alone = read_metrics("both"), read_metrics("alone")
    assert (both["train_examples"], alone["train_examples"]) == (324, 292) and alone["refit_epochs"] is None
    assert both["validation_rmse"] == alone["validation_rmse"] and both["test_rmse"] != alone["test_rmse"]
    _, saved = restore(folder("both"))
    users, items = (part.ravel().astype(np.int32) for part in np.meshgrid(range(1, USERS + 1), range(1, ITEMS + 1)))
    rated = saved.rate(users, items)
    assert (rated.min(), rated.max()) == (2.0, 4.5)  # a rate this high shoots over both ends
    code, out, _ = call("evaluate", "--model", str(folder("both")), "--interactions", str(files / "ratings.csv"))
    assert code == 0 and json.loads(out)["examples_learnt_from"] == 324
    code, out, _ = call("evaluate", "--model", str(folder("alone")), "--interactions", str(files / "ratings.csv"))
    assert code == 0 and json.loads(out)["examples_learnt_from"] == 292


@pytest.mark.slow
def test_a_given_split(call, files, quick):
    rows = (files / "ratings.csv").read_text().splitlines(keepends=True)
    Path("base.csv").write_text("".join(rows[:301]))
    Path("test.csv").write_text("".join([rows[0], *rows[301:], "u1,new,4,9999\n", rows[1]]))
    flags = "--interactions base.csv --test-interactions test.csv --label-column stars --epochs 1 --run-name run"
    code, _, err = call(*flags.split())
    user, item = rows[1].split(",")[:2]
    assert code == 0 and f"set are also in the test set ('{user}' with '{item}'); leave them out" in err
    metrics = read_metrics("run")
    assert (metrics["train_examples"], metrics["test_examples"], metrics["items"]) == (300, 62, ITEMS + 1)
    code, out, _ = call("evaluate", "--model", str(folder("run")))
    found = json.loads(out)
    assert found["examples_learnt_from"] == 1 and found["test_rmse"] == pytest.approx(metrics["test_rmse"], abs=1e-5)
    code, _, err = call(*flags.split(), "--overwrite", "--deduplicate")
    assert code == 0 and "they are left out there" in err and read_metrics("run")["train_examples"] == 299
    code, out, err = call("evaluate", "--model", str(folder("run")))
    assert json.loads(out)["examples_learnt_from"] == 0
    assert call(*flags.split(), "--overwrite", "--split", "random")[0] == 2


def test_the_threshold_counts_in_every_file():
    users, items = Vocabulary("ab"), Vocabulary("xy")
    path = write("new.csv", "user,item,r\na,x,5\nb,x,1\nb,y,4\n")
    flags = DataFlags(label_column="r", interactions=path, implicit_threshold=4)
    assert splits.read_test(flags, path, False, users, items).item.tolist() == [1, 2]
    assert len(splits.read_test(flags, path, True, users, items)) == 3
    with pytest.raises(DataError, match=r"new\.csv: no interaction has a label of at least 6"):
        splits.read_test(dataclasses.replace(flags, implicit_threshold=6), path, False, users, items)


def test_a_feature_that_is_called_as_a_label_is_named(capsys):
    path, films = write("new.csv", "user,item,r\na,x,5\nb,y,4\n"), write("films.csv", "item,r,user\nx,1,a\ny,2,b\n")
    splits.read(DataFlags(label_column="r", interactions=path, items_file=films, title_column="item"), True)
    err = capsys.readouterr().err
    assert "films.csv: the column 'r' is a feature here, and among the interactions what --label-column says" in err
    assert "films.csv: the column 'user' is a feature here, and among the interactions what --user-column says" in err

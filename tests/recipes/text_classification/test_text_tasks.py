"""Several labels a text, and numbers: what is read, learnt, measured and printed."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from text_data import command, fails, sentences, write_csv

from recipes.run.errors import DataError, UsageError
from recipes.text_classification import corpus, labelled_texts
from recipes.text_classification.labels import Labels, describe, find_task
from recipes.text_classification.tasks import MultiLabel, Regression, correlation, task_of


def load(path, **flags):
    flags = corpus.TextFlags(train_file=Path(path), **flags)
    corpus.check(flags)
    return corpus.load(flags)


@pytest.mark.parametrize(
    "labels, task",
    [
        (["1", "0"], "single-label"),
        (["2.0", "3.0"], "single-label"),
        (["2.5", "3"], "regression"),
        (["-1e-3", "+.5"], "regression"),
        (["2.5", "good"], "single-label"),
        (["2.5", "nan"], "single-label"),
        (["1_0.5", "2"], "single-label"),
        (["a", ("a", "b")], "multi-label"),
        ([()], "multi-label"),
    ],
)
def test_labels_say_what_the_task_is(labels, task):
    assert find_task(labels) == task


def test_what_is_asked_for_wins():
    assert describe(["1", "2"], "regression", "x").names == ()
    assert describe(["1.5", "2"], "single-label", "x").names == ["1.5", "2"]
    with pytest.raises(DataError, match="For numbers that are no classes give --task regression"):
        describe(["1", "2", "3"], "auto", "x")
    for other, advice in (("n/a", "Mend it"), ("nan", "Mend it"), ("3,5", "Write numbers with a point")):
        with pytest.raises(
            DataError, match=f"x: most labels are numbers with fractions, but '{other}' is none. {advice}"
        ):
            describe(["1.5", "2", other, "3.25"], "auto", "x")
    assert describe(["1.5", "2", "a", "b", "a"], "auto", "x").names == ["1.5", "2", "a", "b"]
    assert describe(["1", "2", "n/a", "1", "2"], "auto", "x").names == ["1", "2", "n/a"]
    with pytest.raises(DataError, match="no text has a label"):
        describe([(), ()], "auto", "x")


@pytest.mark.parametrize(
    "labels",
    [Labels("single-label", ["no", "yes"]), Labels("multi-label", ["a", "b", "c"]), Labels("regression", (), 2.5, 0.7)],
)
def test_labels_come_back_from_their_file(labels):
    labels.write(Path())
    assert Labels.read(Path()) == labels and labels.outputs == max(len(labels.names), 1)


@pytest.mark.parametrize(
    "content", ["[]", "[1, 2]", '{"task": "regression"}', '{"task": "regression", "mean": 0, "deviation": 0}', "3"]
)
def test_a_file_of_labels_that_holds_something_else(content):
    Path("labels.json").write_text(content)
    with pytest.raises(DataError, match=r"labels\.json: expected"):
        Labels.read(Path())


def test_several_labels_are_read_from_cells_and_lists():
    write_csv(Path("a.csv"), [("x", "red | blue"), ("y", ""), ("z", "blue|blue|")])
    columns = labelled_texts.Columns("text", None, "label", "multi-label")
    read = labelled_texts.read_table(Path("a.csv"), columns, "error")
    assert read.labels == [("red", "blue"), (), ("blue",)]
    Path("a.jsonl").write_text('{"text": "x", "label": ["red", 1]}\n{"text": "y", "label": []}\n')
    read = labelled_texts.read_table(Path("a.jsonl"), columns._replace(task="auto"), "error")
    assert read.labels == [("red", "1"), ()]
    Path("a.jsonl").write_text('{"text": "x", "label": ["red", [1]]}\n')
    with pytest.raises(DataError, match="no label but list"):
        labelled_texts.read_table(Path("a.jsonl"), columns, "error")


def test_a_corpus_with_several_labels():
    write_csv(Path("a.csv"), [(f"text {i}", ";".join(["a"] * (i % 2) + ["b"] * (i % 3 == 0))) for i in range(60)])
    found = load("a.csv", label_separator=";", test_split=0.25, validation_split=0.0, label_names=("b=late",))
    assert found.labels.task == "multi-label" and found.names == ["a", "late"]
    assert (len(found.train), len(found.test)) == (45, 15) and found.train.y.shape == (45, 2)
    both = sum(int(text.split()[1]) % 6 == 3 for text in found.train.texts.texts)
    assert (found.train.y.sum(axis=1) == 2).sum() == both > 0
    write_csv(Path("t.csv"), [("x", "a;new")])
    with pytest.raises(DataError, match=r"t\.csv, line 2: the label 'new' is not in the training set"):
        load("a.csv", label_separator=";", test_file=Path("t.csv"))


def test_a_corpus_of_numbers(capsys):
    write_csv(Path("a.csv"), [(f"text {i}", str(i / 4)) for i in range(40)])
    found = load("a.csv", test_split=0.25, validation_split=0.0)
    assert found.labels.task == "regression" and found.names == []
    assert found.labels.mean == found.train.y.mean() and found.labels.deviation == found.train.y.std() > 2
    write_csv(Path("t.csv"), [("x", "1.5"), ("y", "much")])
    with pytest.raises(DataError, match=r"t\.csv, line 3: the label 'much' is no number"):
        load("a.csv", test_file=Path("t.csv"))
    assert len(load("a.csv", test_file=Path("t.csv"), on_bad_row="skip").test) == 1
    write_csv(Path("same.csv"), [(f"text {i}", "3") for i in range(40)])
    with pytest.raises(DataError, match="every label of the training set is 3"):
        load("same.csv", task="regression")


@pytest.mark.parametrize(
    "flags, says",
    [
        ("--task regression --label-names 1=a", "--label-names has no effect with --task regression"),
        ("--task regression --class-weights", "--class-weights has no effect with --task regression"),
        ("--task multi-label --class-weights", "--class-weights has no effect with --task multi-label"),
        ("--task single-label --label-separator ;", "--label-separator has no effect with --task single-label"),
    ],
)
def test_usage_errors(flags, says, made, capsys):
    write_csv(Path("a.csv"), [(f"text {i}", str(i % 5)) for i in range(60)])
    assert says in fails(capsys, 2, "--train-file", "a.csv", "--model", made / "bert", *flags.split())
    with pytest.raises(UsageError, match="is empty"):
        corpus.check(corpus.TextFlags(train_file=Path("a.csv"), label_separator=""))


# ----------------------------------------------------------------------------------------------------------- metrics


def test_measures_of_several_labels():
    task = MultiLabel(Labels("multi-label", ["a", "b", "never"]))
    y = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], np.float32)
    found = np.array([[0.9, 0.2, 0.1], [0.8, 0.4, 0.1], [0.6, 0.7, 0.1], [0.1, 0.1, 0.1]])
    scores = task.measure(found, y)
    assert scores["f1"] == pytest.approx({"a": 4 / 5, "b": 2 / 3, "never": 0})
    assert scores["micro_f1"] == pytest.approx(6 / 8)  # three right, one too many, one missed
    assert scores["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert scores["exact_match"] == 0.5
    assert scores["loss"] == pytest.approx(float(keras.losses.BinaryCrossentropy()(y, found)), rel=1e-5)
    assert task.cells(found[1], 5, 0.5) == ["a", "0.8000"]
    assert task.cells(found[1], 5, 0.3) == ["a", "0.8000", "b", "0.4000"]
    assert task.cells(found[3], 5, 0.5) == []


def test_measures_of_numbers():
    rng = np.random.default_rng(0)
    y, labels = rng.normal(3, 2, 50), Labels("regression", (), 2.5, 2.0)
    found = (y + rng.normal(0, 1, 50))[:, None]
    scores = task_of(labels).measure(found, y)
    assert scores["pearson"] == pytest.approx(pearsonr(found[:, 0], y).statistic)
    assert scores["spearman"] == pytest.approx(spearmanr(found[:, 0], y).statistic)
    assert scores["mae"] == pytest.approx(np.abs(found[:, 0] - y).mean())
    assert scores["loss"] == pytest.approx(scores["rmse"] ** 2 / 4)
    assert scores["rmse_of_mean"] == pytest.approx(np.sqrt(((y - 2.5) ** 2).mean()))
    assert correlation(np.ones(3), np.arange(3.0)) == correlation(np.array([np.inf, 0, 0]), np.arange(3.0)) == 0


def test_numbers_that_float32_cannot_tell_apart():
    labels = Labels("regression")
    assert labels.scaled_to(np.array([1000.0, 1000.1])).deviation == pytest.approx(0.05)
    with pytest.raises(DataError, match=r"1e\+09 ± 5e\+01, differ by too little"):
        labels.scaled_to(1e9 + np.array([0.0, 100.0]))


def test_labels_that_are_never_learnt():
    texts = labelled_texts.Texts(["a", "b", "c"], None, [("x",), ("x", "y"), ("z",)], [1, 2, 3], "t")
    labels = Labels("multi-label", ("x", "y", "z"))
    part = corpus.number_labels(texts.take([0, 1]), labels)
    assert corpus.Corpus(part, None, part, labels, "t", {}).unseen == ["z"]
    part = corpus.number_labels(labelled_texts.Texts(["a"], None, ["v"], [1], "t"), Labels("single-label", ("u", "v")))
    assert corpus.Corpus(part, None, part, Labels("single-label", ("u", "v")), "t", {}).unseen == ["u"]
    numbers = Labels("regression")
    part = corpus.number_labels(labelled_texts.Texts(["a"], None, ["2.5"], [1], "t"), numbers)
    assert corpus.Corpus(part, None, part, numbers, "t", {}).unseen == []
    with pytest.raises(DataError, match="the only label is 'x'"):
        describe([("x",), ()], "multi-label", "t")


def test_the_loss_of_numbers_has_no_unit():
    task = Regression(Labels("regression", (), 100.0, 20.0))
    model = keras.Sequential([keras.Input((1,)), keras.layers.Rescaling(1.0)])
    task.compile(model, "sgd", False)
    found = model.evaluate(np.array([[90.0], [140.0]]), np.array([[100.0], [120.0]]), verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx((100 + 400) / 2 / 400) and found["mae"] == pytest.approx(15)


# -------------------------------------------------------------------------------------------------------------- runs


def rated(n, seed):
    """Texts whose number is how good they are, in a scale of its own."""
    return [(text, str(250 + 40 * (label == "good") + len(text.split()) / 4)) for text, label in sentences(n, seed)]


@pytest.mark.slow
def test_a_run_on_numbers(made, capsys):
    write_csv(Path("a.csv"), rated(240, 0))
    flags = f"--train-file a.csv --model {made}/bert --max-length 32 --batch-size 8 --learning-rate 1e-2 --epochs 8"
    out = command(capsys, *flags.split(), "--output-dir", "run", "--merge")
    assert "data: the labels are numbers, some with fractions: --task regression; " in out
    assert "validation pearson: " in out and "with numbers of 27" in out and "test Pearson correlation" in out
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["task"] == "regression" and metrics["test_pearson"] > 0.8
    assert metrics["test_mae"] < metrics["test_mae_of_mean"] and metrics["test_rmse"] < metrics["test_rmse_of_mean"]
    header = Path("run/history.csv").read_text().splitlines()[0]
    assert {"val_pearson", "val_spearman", "val_mae", "val_rmse"} <= set(header.split(","))
    card = Path("run/README.md").read_text()
    assert f"| Pearson correlation on the test set | {metrics['test_pearson']:.4f} |" in card
    assert "a number for each text" in card and "plus 2" in card and Path("run/scores.png").exists()
    printed = json.loads(command(capsys, "evaluate", "--model", "run"))
    assert printed["test_rmse"] == pytest.approx(metrics["test_rmse"], rel=1e-4)
    whole = command(capsys, "predict", "--model", "run", "--text", "a good film")
    assert 240 < float(whole.split("\t")[1]) < 320
    Path("run/model.keras").unlink()  # then the adapter is put into the base
    assert float(command(capsys, "predict", "--model", "run", "--text", "a good film").split("\t")[1]) == pytest.approx(
        float(whole.split("\t")[1]), abs=0.01
    )
    assert "--top has no effect" in fails(capsys, 2, "predict", "--model", "run", "--text", "a", "--top", "2")


@pytest.mark.slow
def test_a_run_on_several_labels(made, capsys):
    rows = [(text, [label, *(["long"] if len(text.split()) > 11 else [])]) for text, label in sentences(240, 0)]
    Path("a.jsonl").write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    flags = f"--train-file a.jsonl --model {made}/bert --max-length 32 --batch-size 8 --learning-rate 1e-2 --epochs 8"
    out = command(capsys, *flags.split(), "--output-dir", "run")
    assert "data: some labels are lists: --task multi-label" in out and "with 3 labels" in out
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["test_micro_f1"] > 0.8 and set(metrics["test_f1"]) == {"bad", "good", "long"}
    assert json.loads(Path("run/adapter/labels.json").read_text())["labels"] == ["bad", "good", "long"]
    printed = json.loads(command(capsys, "evaluate", "--model", "run"))
    assert printed["test_f1"] == pytest.approx(metrics["test_f1"])
    text = ["--text", "a good film"]
    assert command(capsys, "predict", "--model", "run", *text).split("\t")[1] == "good"
    assert len(command(capsys, "predict", "--model", "run", *text, "--threshold", "0").split("\t")) == 7
    assert "made for other labels" in fails(
        capsys, 3, "--train-file", made / "train.csv", *flags.split()[2:6], "--adapter", "run"
    )

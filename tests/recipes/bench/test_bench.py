"""The board: how rules are judged, which rows are made and made again, how rows differ, tables and pictures."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from kopt import board
from recipes import bench
from recipes.bench import adapters, recipe, rows, tasks
from recipes.run.errors import DataError

EASY = recipe._listed()[0]


class Pretended:
    """Runs that end with an error that depends on the rate and on the seed."""

    def __init__(self, errors):
        self.errors, self.made = errors, []

    def error(self, problem, rate, seed):
        self.made.append((rate, seed))
        return self.errors(rate, seed)


def test_the_best_rate_is_judged_by_other_seeds():
    found = Pretended(lambda rate, seed: abs(rate - 8) + (2 if seed == 9 else 0.5))
    errors = rows.runs(EASY, found, 2.0, 7)
    assert found.made[: len(rows.FACTORS)] == [(2 * factor, 7) for factor in rows.FACTORS]
    assert found.made[len(rows.FACTORS) :] == [(8, 8), (8, 9), (8, 10)]
    assert errors == {"trials": [8.38, 8, 6.5, 0.5, 24.5, 120, 504], "errors": [0.5, 2, 0.5]}


def row(threshold=1.0, **errors):
    """A row of problems whose runs with the best rate, the second of two, end with these errors."""
    known = {name: {"threshold": threshold} for name in errors}
    about = {"factors": [1.0, 4.0], "problems": known}
    found = {name: {"trials": [None, 0.5], "errors": list(errors[name])} for name in errors}
    facts = {"rule": "some", "class": "Some", "own_rate": 1, "arguments": {}, "seconds": 1, "protocol": ""}
    return board.reader.as_row({**facts, "first_seed": 0, "problems": found}, about)


def test_a_verdict_is_that_of_most_seeds():
    verdicts = row(a=(0.1, 3.0, 0.2), b=(2.0, 0.5, None), c=(1.0, 1.0, 1.0), d=(None, None, 0.1)).verdicts
    assert [v.passed for v in verdicts.values()] == [True, False, True, False]
    assert [v.is_close for v in verdicts.values()] == [True, True, False, True]
    assert [v.error for v in verdicts.values()] == [0.2, 2.0, 1.0, math.inf]
    assert verdicts["a"].factor == 4 and verdicts["a"].rates_passed == 1


def test_what_diverges_is_null():
    errors = rows.runs(EASY, Pretended(lambda rate, seed: math.inf), 1.0, 0)
    assert errors == {"trials": [None] * len(rows.FACTORS), "errors": [None] * rows.SEEDS}


def test_rows_differ_within_their_noise_or_beyond():
    ours = row(a=(0, 0, 0), b=(0, 0, 0), c=(0, 0, 9), d=(9, 9, 9), e=(0, 9, 9))
    theirs = row(a=(0, 0, 0), b=(9, 9, 9), c=(0, 9, 9), d=(0, 0, 0), e=(9, 9, 9))
    assert rows.differences(ours, theirs) == {"within": ["c"], "beyond": ["b", "d"]}


# ---------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def pretended(monkeypatch):
    """Pretends to run rules; lists them."""
    made = []

    def make_row(name, cls, problems, functions, first_seed):
        made.append(name)
        errors = {"trials": [0.0] * len(rows.FACTORS), "errors": [0.0] * rows.SEEDS}
        facts = {"rule": name, "class": cls.__name__, "own_rate": 0.1, "arguments": {}, "first_seed": first_seed}
        found = {p.name: errors for p in problems}
        return {**facts, "seconds": 9.0, "protocol": rows.protocol(problems), "problems": found}

    monkeypatch.setattr(rows, "make_row", make_row)
    monkeypatch.setattr("kopt.catalogue.classes", lambda family: {k: board.Row for k in ("lion", "sgd", "sophiag")})
    return made


def test_rows_are_made_once_and_again_by_other_problems(pretended, monkeypatch, capsys):
    argv = ["--part", "problems", "--output-dir", "out"]
    with pytest.raises(SystemExit):
        bench.main(["--part", "problem"])
    assert bench.main(["--check", "--output-dir", "out"]) == 1
    assert "2 of 2 rows are not there: lion (missing), sgd (missing)" in capsys.readouterr().err
    assert bench.main(argv) == 0 and pretended == ["lion", "sgd"]
    assert "lion: passes 40 of 40" in capsys.readouterr().out
    assert bench.main(argv) == 0 and pretended == ["lion", "sgd"]
    assert bench.main(["--check", "--output-dir", "out"]) == 0
    assert board.rows(Path("out"))["sgd"].by_family(board.problems(Path("out")))["noise"] == (5, 5)
    assert Path("out/board.png").read_bytes()[:4] == b"\x89PNG"
    assert bench.main([*argv, "--seed", "9"]) == 0 and len(pretended) == 4
    Path("out/rows/sgd.json").unlink()
    assert bench.main([*argv, "--seed", "9"]) == 0 and pretended[4:] == ["sgd"]
    monkeypatch.setattr(rows, "protocol", lambda problems: "other")
    assert bench.main(["--check", "--output-dir", "out"]) == 1
    assert "made by other problems" in capsys.readouterr().err
    assert bench.main([*argv, "--seed", "9"]) == 0 and len(pretended) == 7
    Path("out/rows/sgd.json").write_text("{")
    assert bench.main(argv) == DataError.code and "Remove it" in capsys.readouterr().err


def test_one_row_is_made_anew_and_compared(pretended, capsys):
    argv = ["--part", "problems", "--output-dir", "out", "--rule", "Lion"]
    assert bench.main(argv) == 0
    assert bench.main(argv) == 0 and pretended == ["lion", "lion"]
    told = capsys.readouterr().out
    assert "within its noise" in told and "beyond its noise" in told and "Noise: " in told
    missed = [name for name, verdict in board.row("lion").verdicts.items() if not verdict.passed]
    assert all(name in told for name in missed)


@pytest.mark.parametrize(
    "flags, said",
    [
        ("--rule lyon", "Did you mean lion"),
        ("--rule keras.adam", "kopt's optimizers"),
        ("--rule sophiag --part problems", "has no row, because"),
        ("--rule sgd --part tasks", "not one of the twelve"),
        ("--check --rule lion", "has no effect with --check"),
        ("--seed -1", "expected at least 0"),
        ("--method lora", "has no effect with --part all"),
        ("--part adapters --method qlora", "not one of lora"),
        ("--part adapters --rule lion", "has no effect with --part adapters"),
        ("--part adapters --adapter-task language --data .", "has no effect with --adapter-task language"),
    ],
)
def test_usage_errors(flags, said, capsys):
    assert bench.main(flags.split()) == 2
    assert said in capsys.readouterr().err and not list(Path.cwd().iterdir())


# ---------------------------------------------------------------------------------------------------- the tasks


def test_tasks_are_trained_by_compare_and_put_together(monkeypatch, capsys):
    asked = []

    def run(words, check):
        asked.append(words)
        given = dict(zip(words[4::2], words[5::2], strict=True))
        listed = [
            {"optimizer": name, "learning_rate": 0.1, "seeds": 2, "reached": 2, "steps": 10.0 * (i + 1), "seconds": 1.0,
             "last": 0.5}
            for i, name in enumerate(given["--optimizers"].split(","))
        ]  # fmt: skip
        metrics = {"rows": listed, "about": "some", "metric": "loss", "target": float(given["--target"])}
        metrics |= {"steps": 100, "batch_size": 8, "trials": 5, "span": 1000.0}
        folder = Path(given["--output-dir"])
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        return SimpleNamespace(returncode=0 if given["--task"] != "text" else 4)

    monkeypatch.setattr("subprocess.run", run)
    argv = ["--part", "tasks", "--output-dir", "out", "--progress", "none"]
    assert bench.main(argv) == 1 and "kopt compare --task text" in capsys.readouterr().err
    found = board.tasks(Path("out"))
    assert list(found) == ["digits", "tabular"] and list(found["digits"]) == list(tasks.RULES)
    assert found["digits"]["nadamw"].steps == 20 and found["digits"]["nadamw"].solved
    assert asked[0][1:4] == ["-m", "kopt", "compare"]


def test_one_rule_is_put_beside_the_others(tmp_path):
    def metrics(**steps):
        facts = {"about": "", "metric": "loss", "target": 1.0, "steps": 9, "batch_size": 1, "trials": 5, "span": 10.0}
        known = {"learning_rate": 1.0, "seeds": 2, "reached": 2, "seconds": 1.0, "last": 1.0}
        return facts | {"rows": [{"optimizer": name, "steps": n, **known} for name, n in steps.items()]}

    tasks.write(tmp_path / tasks.FILE, "digits", metrics(lion=4.0, adamw=5.0), minutes=2.0)
    tasks.write(tmp_path / tasks.FILE, "text", metrics(lion=4.0))
    tasks.write(tmp_path / tasks.FILE, "digits", metrics(lion=3.0), minutes=3.0)
    found = {task: {k: v.steps for k, v in rows.items()} for task, rows in board.tasks(tmp_path).items()}
    assert found == {"digits": {"adamw": 5.0, "lion": 3.0}, "text": {"lion": 4.0}}
    assert board.reader.facts_of_tasks(tmp_path)["digits"]["minutes"] == 5.0


# ---------------------------------------------------------------------------------------------------- the adapters


@pytest.fixture
def trained(monkeypatch):
    """Pretends to train; lists the arguments of the recipes."""
    asked = []

    def run(words, check):
        asked.append(words)
        folder = Path(words[words.index("--output-dir") + 1])
        (folder / "adapter").mkdir(parents=True)
        method = words[words.index("--method") + 1]
        if method not in ("head", "full"):
            (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"12345")
        metrics = {"model": "some", "data": "train.tsv", "trained_parameters": 7, "peak_memory_mb": None}
        metrics |= {"train_seconds": 1.5, "learning_rate": 0.1, "versions": {}, "test_accuracy": 0.5}
        metrics |= {"test_perplexity": 9.0, "test_perplexity_before": 11.0}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        return SimpleNamespace(returncode=4 if method == "oft" and words[3] == "generation" else 0)

    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setattr(adapters, "missing", lambda task: [])
    return asked


def test_methods_are_trained_by_the_recipes_once(trained, capsys):
    argv = ["--part", "adapters", "--output-dir", "out"]
    assert bench.main(argv) == 1 and "kopt generation --method oft" in capsys.readouterr().err
    found = board.adapters(Path("out"))
    assert set(found["sentences"]) == set(adapters.TASKS["sentences"].methods) and "oft" not in found["language"]
    row = found["language"]["lora"]
    assert (row.value, row.before, row.file_bytes, row.seconds) == (9.0, 11.0, 5, 1.5)
    assert found["sentences"]["full"].file_bytes is None and found["sentences"]["full"].value == 0.5
    count = len(trained)
    assert bench.main([*argv, "--adapter-task", "sentences"]) == 0 and len(trained) == count
    assert Path("out/board-adapters.png").read_bytes()[:4] == b"\x89PNG"
    assert bench.main([*argv, "--adapter-task", "sentences", "--method", "lora"]) == 0 and len(trained) == count + 1
    for name in ("train.tsv", "dev.tsv"):
        Path(name).touch()
    assert bench.main([*argv, "--adapter-task", "sentences", "--data", "."]) == 0
    of_language = adapters.TASKS["language"].methods.index("oft") + 1
    assert len(trained) == 2 * count + 1 - of_language
    assert "--train-file" in trained[-1] and board.adapters(Path("out"))["sentences"]["lora"].data == Path.cwd().name


def test_tasks_without_their_packages_are_told(monkeypatch, capsys):
    monkeypatch.setattr(adapters, "missing", lambda task: ["some-package"])
    argv = ["--part", "adapters", "--output-dir", "out"]
    assert bench.main(argv) == 0 and "sentences: not run. It needs some-package" in capsys.readouterr().out
    assert bench.main([*argv, "--adapter-task", "language"]) == 2


def test_the_board_of_adapters_is_of_what_the_command_runs():
    for name, found in board.adapters().items():
        for method, row in found.items():
            told = json.loads((board.reader.FOLDER / "adapters" / name / f"{method}.json").read_text())["arguments"]
            data = Path("sst2") if name == "sentences" else None
            assert told == [Path(w).name if "sst2" in w else w for w in adapters.arguments(name, method, data)]
            assert (row.task, row.method) == (name, method) and method in adapters.TASKS[name].methods

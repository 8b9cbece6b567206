"""A comparison: its rules, which runs are made and made again, its tables and pictures, and whole ones."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import kopt
from recipes import compare
from recipes.compare import contestants, descriptions, functions, protocol, results, runs, tasks, training
from recipes.run.errors import UsageError

SETTING = training.Setting("digits", "auto", 100, 32, "constant", "0")
TASK = """
import keras, numpy as np

x = np.random.default_rng(0).normal(size=(200, 3)).astype("float32")
y = x.sum(1, keepdims=True)


def line():
    return {
        "model": lambda: keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]),
        "loss": "mse", "train": (x, y), "test": (x[:50], y[:50]), "steps": 60, "target": 0.05,
    }


def other():
    return {"model": 1}
"""


def points(rate, steps=100):
    """The curve of an optimizer that is the faster the closer its rate is to 0.01."""
    slow = abs(math.log10(rate / 0.01))
    return [
        {"step": t, "seconds": t / 50, "value": 2 * 0.1 ** (t / 50 / (1 + slow)), "train_loss": 1.0}
        for t in range(0, steps + 1, 10)
    ]


@pytest.fixture
def pretended(monkeypatch):
    """Pretends to train; lists the runs."""
    made = []

    def run(job):
        made.append(job)
        diverged = job.rate > 0.5
        found = points(job.rate)[: 2 if diverged else None]
        for point in found:
            point["value"] *= 1 + job.seed / 100
        known = {"milliseconds": 2.0, "bytes": 80, "parameters": 10, "error": None}
        return {"points": found, "diverged": diverged, **known}

    monkeypatch.setattr(training, "run", run)
    return made


def some(folder, target=0.3, entries=("adamw", "sgd"), trials=4, seeds=2, setting=SETTING, trial_seeds=1):
    return runs.Runs(folder, setting, entries, trials, seeds, 100.0, target, 1, trial_seeds=trial_seeds)


def make(found):
    for kind in ("trial", "seed"):
        found.make(kind, 1, lambda job, run: None)


# ------------------------------------------------------------------------------------------------------ the rules


def test_rates_cover_the_space_around_the_own_rate_evenly():
    rates = [job.rate for job in some(Path("x")).jobs("trial") if job.entry == "adamw"]
    cells = np.floor(4 * np.log(np.array(rates) / 1e-4) / np.log(100.0))
    assert sorted(cells) == [0, 1, 2, 3]
    sgd = [job.rate for job in some(Path("x")).jobs("trial") if job.entry == "sgd"]
    np.testing.assert_allclose(np.array(sgd) / rates, 10.0)  # the same places around 0.01


def test_a_target_is_reached_between_two_evaluations():
    assert protocol.steps_to(2.5, [(0, 5.0), (10, 3.0), (20, 2.0)]) == 15
    assert protocol.steps_to(1.0, [(0, 5.0), (10, 3.0)]) == math.inf
    run = {"points": [{"step": 0, "seconds": 0, "value": 0.5}, {"step": 10, "seconds": 4, "value": 0.9}]}
    assert protocol.steps_to(-0.8, protocol.curve(run, -1)) == pytest.approx(7.5)
    assert protocol.steps_to(-0.8, protocol.curve(run, -1, "seconds")) == pytest.approx(3.0)


def test_the_first_step_counts_as_others():
    timed = training.timed([{"step": 0}, {"step": 1}, {"step": 3}], [9.0, 1.0, 1.0])
    assert [point["seconds"] for point in timed] == [0, 1, 3]


def test_the_best_trial_gets_the_seeds(pretended, tmp_path):
    found = some(tmp_path)
    make(found)
    assert len(pretended) == 2 * 4 + 2 * 2
    trials = [job for job in pretended if job.kind == "trial" and job.entry == "adamw"]
    nearest = min((job.rate for job in trials), key=lambda rate: abs(math.log10(rate / 0.01)))
    assert {job.rate for job in pretended if job.kind == "seed" and job.entry == "adamw"} == {nearest}
    assert sorted(job.seed for job in pretended if job.kind == "seed") == [1, 1, 2, 2]


def test_runs_are_made_once_and_again_by_other_rules(pretended, tmp_path):
    make(some(tmp_path))
    make(some(tmp_path))
    assert len(pretended) == 12
    make(some(tmp_path, seeds=3))  # only the third seeds
    assert len(pretended) == 14
    make(some(tmp_path, entries=("adamw", "sgd", "lion")))
    assert len(pretended) == 14 + 6
    make(some(tmp_path, trials=5))
    assert len(pretended) == 20 + 2 * (5 + 2)
    found = some(tmp_path, trials=5)
    found.file(found.jobs("seed")[0]).write_text("{")  # what a full disk may have left
    make(found)
    assert len(pretended) == 34 + 1


@pytest.mark.parametrize("target", [0.3, None])
def test_a_rate_is_chosen_by_the_mean_of_its_seeds(target, pretended, tmp_path, monkeypatch):
    make(some(tmp_path, target))
    first = some(tmp_path, target).best("adamw").rate
    found = some(tmp_path, target, trial_seeds=3)
    lucky, real = {"rate": first}, training.run

    def run(job):
        made = real(job)
        if job.rate == lucky["rate"] and job.seed == 2:  # fast with seeds 0 and 1 alone
            made["points"] = [point | {"value": 2.0} for point in made["points"]]
        return made

    monkeypatch.setattr(training, "run", run)
    make(found)
    trials = [job for job in pretended if job.kind == "trial" and job.entry == "adamw"]
    assert len(trials) == 4 * 3 and {job.seed for job in trials} == {0, 1, 2}
    assert len({found.file(job) for job in trials}) == 12
    assert found.best("adamw").rate != first
    assert [job.seed for job in found.jobs("seed")] == [3, 4, 3, 4]
    assert found.end([run(trials[0]), {"diverged": True, "error": None}]) == math.inf
    task = tasks.Task("a line", lambda: None, None, (None, None), (None, None), 1, 9)
    page = results.page(found, task, [], "kopt compare", [])
    assert "each with seeds 0 to 2, whose mean counts" in " ".join(page.split())


def test_without_a_target_it_is_what_the_first_one_ends_with(pretended, tmp_path):
    found = some(tmp_path, target=None)
    make(found)
    ends = [found.read(job)["points"][-1]["value"] for job in found.jobs("trial") if job.entry == "adamw"]
    assert found.target == min(ends)


def test_rows_tell_who_was_first_and_what_failed(pretended, tmp_path):
    found = some(tmp_path, entries=("sgd", "momentum", "adamw", "prodigy"))
    make(found)
    rows = {row["optimizer"]: row for row in results.rows(found)}
    best = rows["sgd"]
    assert best["reached"] == 2 and best["failures"] == 0 and best["bytes_per_parameter"] == 8
    assert best["seconds"] == pytest.approx(best["steps"] / 50, rel=0.02) and best["p"] is None
    assert rows["prodigy"]["failures"] > 0 and rows["prodigy"]["runs"] >= 4
    table = results.table(list(rows.values()), "loss")
    assert table.count("\n") == 5 and "| `sgd` |" in table
    assert rows["prodigy"]["at_end"] and not best["at_end"]
    task = tasks.Task("a line", lambda: None, None, (None, None), (None, None), 1, 9)
    page = results.page(found, task, list(rows.values()), "kopt compare", ["curves.png"])
    assert (
        "lie beyond it: `adamw`, `prodigy`" in page and table in page and page.endswith("\n\n![curves](curves.png)\n")
    )
    assert max(len(line) for line in page.splitlines() if "|" not in line and "beyond" not in line) <= 120


# ---------------------------------------------------------------------------------------------- the contestants


def test_arguments_may_be_lists():
    text = ' adamw  beta_2=0.9,route routes=[[image, muon], ["a, b", sgd]] clipnorm=1, switch first=sgd after=3,'
    found = contestants.given(text, "digits")
    assert found == [
        "adamw beta_2=0.9",
        'route routes=[[image, muon], ["a, b", sgd]] clipnorm=1',
        "switch first=sgd after=3",
    ]
    assert contestants.words(found[1]) == ["route", 'routes=[[image, muon], ["a, b", sgd]]', "clipnorm=1"]
    assert training.flags_of(found[1], SETTING).opt[0].startswith("routes=")
    with pytest.raises(UsageError, match="] is missing"):
        contestants.given("adam, route routes=[[image, muon]", "digits")
    assert any(entry.startswith("route") for entry in contestants.given(None, "multimodal"))


def test_folders_of_long_names_differ():
    entries = [f"route routes=[[{'a' * 100}, sgd], [{end}, adam]]" for end in ("x", "y")]
    found = some(Path("x"), entries=entries)
    names = {found.file(job).parent.name for job in found.jobs("trial")}
    assert len(names) == 2 and all(len(name) < 100 for name in names)


def test_a_switch_to_a_rule_of_whole_losses_gets_all_examples():
    assert training.minibatches(kopt.Switch("adam", second="lbfgs", after=7)) == 7
    assert training.minibatches(kopt.Switch("adam", second="sgd", after=7)) is None
    assert training.minibatches(kopt.LBFGS()) is None
    kinds = [0, 0, 0, 1, 1, 2]
    timed = training.timed([{"step": 2}, {"step": 4}, {"step": 6}], [9.0, 1.0, 1.0, 30.0, 2.0, 40.0], kinds)
    assert [point["seconds"] for point in timed] == [2, 5, 8]


def test_rates_of_another_task_are_tried_with_the_same_seeds(pretended, tmp_path):
    (tmp_path / "before").mkdir()
    rows = [{"optimizer": "sgd", "learning_rate": 0.04}, {"optimizer": "lion", "learning_rate": 0.1}]
    rows.append({"optimizer": "muon", "learning_rate": None})
    (tmp_path / "before/metrics.json").write_text(json.dumps({"task": "text", "rows": rows}))
    task, carried = compare.recipe.rates_of(tmp_path / "before")
    assert (task, carried) == ("text", {"sgd": 0.04, "lion": 0.1})
    flags = compare.Compare(transfer=tmp_path / "before")
    assert compare.recipe.entries(flags, carried) == ["sgd", "lion"]
    with pytest.raises(UsageError, match="has rates of sgd, lion alone"):
        compare.recipe.entries(compare.Compare(transfer=tmp_path, optimizers="adam"), carried)
    found = runs.Runs(tmp_path, SETTING, ["adamw", "sgd"], 4, 2, 100.0, 0.3, 1, carried)
    for kind in ("trial", "seed", "carried"):
        found.make(kind, 1, lambda job, run: None)
    assert [(job.rate, job.seed) for job in pretended if job.kind == "carried"] == [(0.04, 1), (0.04, 2)]
    rows = {row["optimizer"]: row for row in results.rows(found)}
    assert "carried" not in rows["adamw"]
    slow = rows["sgd"]["carried"]
    assert slow["steps"] > rows["sgd"]["steps"] and slow["reached"] == 2
    table = results.table_of_carried(list(rows.values()), "loss")
    assert table.count("\n") == 2 and f"| {slow['steps'] / rows['sgd']['steps']:.2f} |" in table


@pytest.mark.parametrize("content", [None, "{", '{"task": "text"}'])
def test_what_is_no_comparison_carries_nothing_over(tmp_path, content, capsys):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    assert compare.main(["--transfer", str(tmp_path)]) == 2
    assert "no comparison that has ended" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------- the tasks


def test_descriptions_tell_what_is_true():
    rng, digits = np.random.default_rng(0), np.arange(10).repeat(30)
    images = rng.random((300, 4, 4)) * np.linspace(0.1, 1, 300)[:, None, None]
    texts = descriptions.describe(digits, images, rng)
    for digit, text in zip(digits, texts, strict=True):
        words = text.split()
        assert sum(word in pair for word in words for pair, _ in descriptions.FACTS.values()) == 1
        assert "even" not in words or digit % 2 == 0
        assert "straight" not in words or digit in (1, 4, 7)
    assert len(set(texts)) > 30
    codes = descriptions.encode(texts)
    words = descriptions.vocabulary()
    assert [" ".join(words[i] for i in row if i) for row in codes] == texts
    one, again = (descriptions.pairs(images, digits, 3) for _ in range(2))
    assert all((one[key] == again[key]).all() for key in one)


def test_tasks_are_found(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(TASK)
    task = tasks.load(f"{path}:line", "1")
    assert (task.steps, task.batch_size, task.target, task.sign) == (60, 32, 0.05, 1)
    with pytest.raises(UsageError, match="must return a dictionary with model, loss, train, test"):
        tasks.load(f"{path}:other", "1")
    with pytest.raises(UsageError, match="no function none"):
        tasks.load(f"{path}:none", "1")
    for name in ("mnst", "mine.py", "mine.txt:line"):
        with pytest.raises(UsageError, match="Give one of mnist"):
            tasks.check_name(name)


def test_functions_are_zero_at_their_minimum_and_not_where_they_begin():
    for function in functions.FUNCTIONS.values():
        assert function.value(np, *np.array(function.minimum)) == pytest.approx(0, abs=1e-5)
        assert function.value(np, *np.array(function.start)) > 0.5
        left, right, low, high = function.window
        assert left < function.start[0] < right and low < function.start[1] < high


@pytest.mark.parametrize(
    "flags",
    [
        "--task mnst",
        "--optimizers adamv",
        "--optimizers adamw,adamw",
        "--optimizers adamw,,lion,adamw  beta_3=1",
        "--span 1",
        "--target nan",
        "--trials 0",
        "--warmup 200%",
    ],
)
def test_usage_errors(flags, capsys):
    assert compare.main(["--task", "digits", *flags.split(maxsplit=1)]) == 2
    assert capsys.readouterr().err.startswith("error: --")
    assert not list(Path.cwd().iterdir())


# ---------------------------------------------------------------------------------------------------- whole ones


@pytest.mark.slow
def test_a_comparison_of_a_task_of_ones_own(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(TASK)
    argv = f"--task {tmp_path / 'mine.py'}:line --trials 2 --seeds 2 --output-dir out --progress plain".split()
    argv += ["--optimizers", "momentum, adamw beta_2=0.9, keras.sgd"]
    assert compare.main(argv) == 0
    metrics = json.loads(Path("out/metrics.json").read_text())
    rows = {row["optimizer"]: row for row in metrics["rows"]}
    assert rows["momentum"]["reached"] == 2 and 0 < rows["momentum"]["steps"] < 60
    assert rows["adamw beta_2=0.9"]["bytes_per_parameter"] >= 8
    assert list(rows) == [line.split("`")[1] for line in capsys.readouterr().out.splitlines() if "| `" in line]
    page = Path("out/README.md").read_text()
    for name in ("curves.png", "sensitivity.png", "times.png"):
        assert f"({name})" in page and (Path("out") / name).read_bytes()[:4] == b"\x89PNG"
    assert len(list(Path("out/logs").rglob("events*"))) == 3 * 4
    stamps = {path: path.stat().st_mtime_ns for path in Path("out/runs").rglob("*.json")}
    assert compare.main([*argv, "--processes", "2"]) == 0  # nothing to do
    assert stamps == {path: path.stat().st_mtime_ns for path in Path("out/runs").rglob("*.json")}
    Path("out/runs/momentum/seed-2.json").unlink()
    Path("out/runs/momentum/seed-1.json").unlink()
    assert compare.main([*argv, "--processes", "2"]) == 0
    again = {row["optimizer"]: row for row in json.loads(Path("out/metrics.json").read_text())["rows"]}
    assert again["momentum"]["steps_of_seeds"] == pytest.approx(rows["momentum"]["steps_of_seeds"], abs=0.1)


@pytest.mark.slow
def test_a_rule_of_whole_losses_sees_every_example_at_each_update(tmp_path):
    (tmp_path / "mine.py").write_text(TASK)
    setting = training.Setting(f"{tmp_path / 'mine.py'}:line", "auto", 56, 30, "constant", "0")  # 7 batches of 200 rows
    run = training.run(training.Job(setting, "lbfgs", "seed", 1, 1.0, 1))
    assert run["error"] is None and run["points"][-1]["value"] < 1e-6  # a line, after 8 evaluations
    assert run["points"][-1]["seconds"] < 56 * 10 * run["milliseconds"] / 1e3  # without the compilation


@pytest.mark.slow
def test_ways_on_functions(tmp_path):
    argv = ["--task", "test-functions", "--trials", "2", "--seeds", "1", "--steps", "40", "--output-dir", "out"]
    assert compare.main([*argv, "--optimizers", "adam, lbfgs"]) == 0
    run = json.loads(Path("out/runs/lbfgs/seed-1.json").read_text())
    assert len(run["ways"]["Rosenbrock"]) == 41 and run["points"][-1]["value"] < run["points"][0]["value"]
    assert Path("out/ways.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in tasks.TASKS if name != "mnist"])
def test_every_task_is_learnt(name):
    setting = training.Setting(name, "auto", 30, tasks.load(name, "auto").batch_size, "constant", "0")
    run = training.run(training.Job(setting, "adamw", "trial", 0, 3e-3, 0))
    curve = protocol.curve(run, tasks.load(name, "auto").sign)
    assert run["error"] is None and curve[-1][1] < curve[0][1]


# ------------------------------------------------------------------------------------------------- GPUs


@pytest.mark.parametrize(("processes", "trains"), [("1", True), ("2", False)])
def test_the_gpus_are_for_the_processes_that_train(processes, trains, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr("recipes.run.command_line._import_quietly", lambda devices, trains: seen.append(trains))
    assert compare.main(["--task", "nothing", "--processes", processes]) == 2
    assert seen == [trains]


def test_processes_share_the_memory_of_a_gpu(monkeypatch):
    import tensorflow as tf

    grown = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", lambda *given: grown.append(given))
    for name in ("intra", "inter"):
        monkeypatch.setattr(tf.config.threading, f"set_{name}_op_parallelism_threads", lambda threads: None)
    monkeypatch.setattr("signal.signal", lambda *given: None)
    runs._begin(1)
    assert grown == [("GPU", True)]

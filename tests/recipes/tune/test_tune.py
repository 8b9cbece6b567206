"""A search: what its flags mean, which trials are made, given up and made again, and a whole one."""

import json
import math
import shlex
from pathlib import Path

import pytest
import yaml

from recipes import mnist, tune
from recipes.run import progress, signals
from recipes.run.errors import UsageError
from recipes.tune import process, results, spaces, study
from recipes.tune.tuned import Tuned

EPOCHS = 4
SEARCH = ["learning_rate=log(1e-4, 1.0)", "optimizer=choice(adam, lion)"]


class Pretended:
    """A run that is the better the closer its learning rate is to 0.01; above 0.3 it diverges."""

    polls = 1
    """Looks from one epoch to the next."""
    begun = list[tuple[list[str], Path]]()
    ends = dict[int, int]()
    """Exit codes by trial, where they are others."""

    def __init__(self, tuned, words, folder, threads):
        self.begun.append((list(words), folder))
        folder.mkdir(parents=True, exist_ok=True)
        self.rate = float(words[words.index("--learning-rate") + 1])
        self.number, self.epoch, self.killed = int(folder.name), 0, False

    def history(self):
        far = abs(math.log10(self.rate / 0.01))
        done = min(self.epoch, 1 if self.rate > 0.3 else EPOCHS)
        return [{"epoch": epoch, "val_loss": far + 1 / epoch} for epoch in range(1, done + 1)]

    def metrics(self):
        return {"validation_loss": self.history()[-1]["val_loss"]}

    def code(self):
        self.epoch += 1
        if self.number in self.ends:
            return self.ends[self.number]
        if self.rate > 0.3:
            return 4
        return 0 if self.epoch > EPOCHS else None

    def error(self):
        return "--dropout 2.0: expected 0 or more and less than 1."

    def kill(self):
        self.killed = True

    def tidy(self):
        pass


@pytest.fixture
def pretended(monkeypatch):
    monkeypatch.setattr(study, "Process", Pretended)
    monkeypatch.setattr(study, "WAIT", 0)
    monkeypatch.setattr(Pretended, "begun", [])
    monkeypatch.setattr(Pretended, "ends", {})
    return Pretended


def some(folder, search=SEARCH, metric="val_loss", words=("--epochs", str(EPOCHS)), pruner="none"):
    tuned = Tuned("mnist", words)
    folder.mkdir(exist_ok=True)
    return study.Study(folder, tuned, spaces.Space(tuned, spaces.read(search)), metric, True, pruner, 0)


def make(found, trials, processes=1):
    told = []
    found.make(trials, processes, told.append)
    return told


# ------------------------------------------------------------------------------------------------------ the flags


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("mnst", "expected one of"),
        ("compare", "expected one of"),
        ("mnist --metric test_accuracy", "as val_accuracy"),
        ("mnist --search learning_rate", "NAME=log"),
        ("mnist --search learning_rate=log(0,1)", "Give float"),
        ("mnist --search learning_rate=log(1,0.1)", "then a higher one"),
        ("mnist --search learning_rate=log(1,inf)", "then a higher one"),
        ("mnist --search batch_size=int(1.5,8)", "two whole numbers"),
        ("mnist --search batch_size=float(1,8)", "does not take --batch-size 1.0"),
        ("mnist --search batch_size=int(0,8)", "--batch-size 0: expected at least 1"),
        ("mnist --search dropout=float(0,1)", "--dropout 1.0: expected"),
        ("mnist --search model=choice(mlp,rnn)", "does not take --model"),
        ("mnist --search optimizer=choice(adam,adamv)", "--optimizer adamv: unknown"),
        ("mnist --search opt.beta_3=float(0,1)", "beta_3"),
        ("mnist --search augment=choice(yes,no)", "choice(true, false)"),
        ("mnist --search optimizer=choice(adam)", "two or more"),
        ("mnist --search learning-rat=log(1,2)", "Did you mean learning_rate?"),
        ("mnist --search run_name=choice(a,b)", "cannot be searched"),
        ("mnist --search dropout=float(0,0.5) --search dropout=float(0,0.4)", "is there twice"),
        ("mnist --search epochs=int(1,3) -- --epochs 2", "all trials have --epochs"),
        ("mnist --search batch_size=int(8,9) -- --batch_size=8", "all trials have --batch-size"),
        ("mnist -- --run-name a", "--run-name: is not for"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(flags, told, capsys, monkeypatch):
    monkeypatch.setattr("recipes.run.command_line._import_quietly", lambda *_: pytest.fail("too late"))
    assert tune.main(flags.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and told in err
    assert not list(Path.cwd().iterdir())


def test_spaces_become_flags():
    tuned = Tuned("mnist", ["--epochs", "2"])
    search = ["learning-rate=log(1e-4,0.1)", "augment=choice(true,false)", "opt.beta_1=float(0.8,0.9)"]
    space = spaces.Space(tuned, spaces.read([*search, "batch_size=log_int(16,64)", "optimizer=choice(adam,adamw)"]))
    values = {"learning_rate": 1e-5, "augment": "false", "opt.beta_1": 0.85, "batch_size": 20, "optimizer": "adamw"}
    assert space.arguments(values)[:5] == ["--learning-rate", "1e-05", "--no-augment", "--opt", "beta_1=0.85"]
    flags = space.flags(values)
    assert (flags.optim.learning_rate, flags.optim.opt, flags.batch_size) == (1e-5, ("beta_1=0.85",), 20)
    assert flags.epochs == 2 and not flags.augment and flags.optim.optimizer == "adamw"


def test_what_is_searched_when_nothing_is_said():
    rate, decay = spaces.usual(Tuned("mnist", ["--optimizer", "adamw"]))
    assert rate.name == "learning_rate" and math.isclose(math.prod(rate.values) ** 0.5, 1e-3, rel_tol=1e-6)
    assert decay.name == "weight_decay" and math.isclose(decay.values[1] / decay.values[0], spaces.SPAN)
    only = spaces.usual(Tuned("recommendation", ["--learning-rate=0.1", "--optimizer", "adam"]))
    assert [axis.name for axis in only] == ["weight_decay"] and only[0].values == spaces.DECAYS
    with pytest.raises(UsageError, match="give at least one"):
        spaces.usual(Tuned("mnist", ["--learning-rate", "0.1", "--weight-decay", "0"]))


# ----------------------------------------------------------------------------------------------------- the trials


def test_the_best_trial_is_found_and_what_diverges_is_no_end(pretended, tmp_path):
    found = some(tmp_path / "s")
    told = make(found, 12)
    assert [trial.number for trial in told] == list(range(1, 13))
    ends = {trial.number: trial.ended for trial in told}
    rates = {trial.number: trial.values["learning_rate"] for trial in told}
    assert {number for number, end in ends.items() if end == "diverged"} == {n for n in rates if rates[n] > 0.3}
    assert set(ends.values()) == {"complete", "diverged"}
    complete = [trial for trial in told if trial.ended == "complete"]
    best = found.best()
    assert best.value == min(trial.value for trial in complete)
    assert math.isclose(best.value, abs(math.log10(best.values["learning_rate"] / 0.01)) + 1 / EPOCHS)
    assert found.ranked()[0] == best and found.ranked()[-1].ended == "diverged"
    shares = found.importances()
    assert next(iter(shares)) == "learning_rate" and math.isclose(sum(shares.values()), 1)


def test_what_is_behind_the_others_is_given_up(pretended, tmp_path):
    told = make(some(tmp_path / "s", pruner="median"), 14, processes=2)
    pruned = [trial for trial in told if trial.ended == "pruned"]
    assert pruned and all(0 < trial.epochs < EPOCHS for trial in pruned)
    complete = [trial.value for trial in told if trial.ended == "complete"]
    assert min(complete) < min(trial.value for trial in pruned)


def test_a_search_goes_on_where_it_was_interrupted(pretended, tmp_path, monkeypatch):
    def interrupt(self, one):
        if one.number == 3:
            raise signals.Interrupted(2)
        return ended(self, one)

    ended = study.Study._has_ended
    monkeypatch.setattr(study.Study, "_has_ended", interrupt)
    with pytest.raises(signals.Interrupted):
        make(some(tmp_path / "s"), 6)
    monkeypatch.setattr(study.Study, "_has_ended", ended)
    before = pretended.begun[-1]
    assert [trial.number for trial in some(tmp_path / "s").trials()] == [1, 2]
    told = make(some(tmp_path / "s"), 6)
    assert [trial.number for trial in told] == [3, 4, 5, 6]
    assert pretended.begun[3] == before  # with the same flags, in the same folder
    assert make(some(tmp_path / "s"), 6) == []
    assert [trial.number for trial in make(some(tmp_path / "s"), 7)] == [7]
    values = [tuple(trial.values.values()) for trial in some(tmp_path / "s").trials()]
    assert len(set(values)) == 7


def test_another_study_is_refused_and_one_that_never_began_replaced(pretended, tmp_path):
    with pytest.raises(UsageError, match="val_accuracy: is not measured"):
        make(some(tmp_path / "s", metric="val_accuracy"), 2)
    make(some(tmp_path / "s"), 2)
    for change in ({"metric": "val_accuracy"}, {"search": SEARCH[:1]}, {"words": ("--epochs", "5")}):
        with pytest.raises(UsageError, match="has another study"):
            some(tmp_path / "s", **change)


def test_wrong_flags_end_the_search_at_the_first_trial_alone(pretended, tmp_path, monkeypatch):
    monkeypatch.setattr(pretended, "ends", {1: 2})
    with pytest.raises(UsageError, match="the first trial: --dropout"):
        make(some(tmp_path / "a"), 3)
    monkeypatch.setattr(pretended, "ends", {2: 2, 3: -9})
    told = make(some(tmp_path / "b"), 4)
    assert {2, 3} <= {trial.number for trial in told if trial.ended == "failed"} and told[1].error.startswith("--drop")


def test_all_that_is_written(pretended, tmp_path, capsys):
    argv = ["mnist", "--trials", "8", *(word for text in SEARCH for word in ("--search", text)), "--output-dir", "out"]
    command = tune.recipe.Tuning([*argv, "--pruner", "none", "--", "--epochs", str(EPOCHS)])
    flags = tune.Tune("mnist", search=tuple(SEARCH), trials=8, output_dir=tmp_path / "an out", pruner="none")
    command.check(flags)
    found = some(tmp_path / "an out")
    make(found, 8)
    for number in range(1, 9):
        (found.place(number) / "metrics.json").write_text('{"validation_loss": 0.5, "test_loss": 0.6}')
    assert command.run(flags) == 0
    metrics = json.loads((tmp_path / "an out/metrics.json").read_text())
    assert metrics["best"]["number"] == found.best().number and len(metrics["trials"]) == 8
    best = yaml.safe_load((tmp_path / "an out/best.yaml").read_text())
    assert best["epochs"] == EPOCHS and float(best["learning_rate"]) == found.best().values["learning_rate"]
    assert set(best) == {"epochs", "learning_rate", "optimizer"}
    page = (tmp_path / "an out/README.md").read_text()
    for name in ("history.png", "slices.png"):
        assert f"({name})" in page and (tmp_path / "an out" / name).read_bytes()[:4] == b"\x89PNG"
    assert page.count("\n| ") == 8 + 2 and "python -m recipes.tune mnist" in page
    told = shlex.split(capsys.readouterr().out)
    assert str(tmp_path / "an out/best.yaml") in told and str(tmp_path / "an out/logs") in told, "to be copied"


def test_a_line_for_each_end():
    def line(ended, value, epochs):
        return results.described(study.Trial(7, {"learning_rate": 0.012345678}, ended, value, epochs, "why", ()), "m")

    assert line("complete", 0.5, 3) == "trial 7: learning_rate 0.01235: m 0.5000"
    assert line("pruned", 0.5, 1) == "trial 7: learning_rate 0.01235: given up after 1 epoch, m 0.5000"
    assert line("diverged", None, 2).endswith("diverged after 2 epochs")
    assert line("failed", None, 0).endswith("failed: why")


# -------------------------------------------------------------------------------------------------- a whole one


@pytest.mark.slow
def test_a_search_of_mnist(tmp_path, capsys):
    argv = [
        "mnist",
        "--trials",
        "3",
        "--metric",
        "val_accuracy",
        "--search",
        "learning_rate=log(1e-3,1e-1)",
        "--output-dir",
        "out",
    ]
    fixed = ["--", "--data", "digits", "--model", "mlp", "--epochs", "2", "--optimizer", "adam"]
    assert tune.main([*argv, *fixed]) == 0
    out = capsys.readouterr().out
    metrics = json.loads(Path("out/metrics.json").read_text())
    assert (
        metrics["best"]["validation_accuracy"]
        == metrics["best"]["value"]
        == max(trial["value"] for trial in metrics["trials"] if trial["ended"] == "complete")
    )
    assert all(len(trial["history"]) == 2 for trial in metrics["trials"])
    assert len(list(Path("out/logs").rglob("events*"))) == 3 and "best: trial" in out
    assert not list(Path("out").rglob("checkpoints"))
    assert mnist.main(["--config", "out/best.yaml", "--dry-run"]) == 0


def test_a_run_is_watched_through_its_history(tmp_path):
    report = progress.Report("none", folder=tmp_path)
    report.params = {"steps": 1}
    report.on_train_begin()
    watched = process.Process.__new__(process.Process)  # without a process
    watched.folder = tmp_path
    assert watched.history() == []
    for epoch in range(2):
        report.on_epoch_begin(epoch)
        report.on_epoch_end(epoch, {"loss": 1.0, "val_loss": 0.5 / (epoch + 1)})
        assert [row["val_loss"] for row in watched.history()] == [0.5, 0.25][: epoch + 1]
    assert process.kept_value({"validation_loss": 0.25}, "val_loss") == 0.25
    assert math.isnan(process.kept_value({"validation_loss": None}, "val_loss"))


def test_a_trial_that_an_earlier_search_has_left_is_waited_for(tmp_path):
    import filelock

    (tmp_path / "1").mkdir()
    assert not process.is_taken(tmp_path / "1")
    with filelock.FileLock(tmp_path / "1" / ".lock"):
        assert process.is_taken(tmp_path / "1")
    assert not process.is_taken(tmp_path / "1")

"""The trainings beside that of a run, and a run that is killed within them."""

import gc
from pathlib import Path

import keras
import numpy as np
import pytest
from rating_data import folder, interactions, make_model, read_metrics

from recipes.recommendation import training, trial
from recipes.recommendation.flags import Train
from recipes.recommendation.saved_run import restore
from recipes.run.flags import RunFlags
from recipes.run.progress import Report


class Killed(BaseException):
    """Ends a process where nothing can be saved any more."""


@pytest.fixture
def kill(monkeypatch):
    """Lets the process be killed after a number of steps, and counts them; 0 lets it live."""
    end, steps = Report.on_train_batch_end, []

    def at(count):
        steps.clear()

        def ended(self, batch, logs=None):
            steps.append(batch)
            if len(steps) == count:
                raise Killed
            end(self, batch, logs)

        monkeypatch.setattr(Report, "on_train_batch_end", ended)
        return steps

    return at


@pytest.mark.slow
def test_a_run_that_is_killed_in_a_refit_or_a_fold_goes_on_there(train, kill, quick, monkeypatch):
    monkeypatch.setattr(trial, "best_epoch", lambda *_: 2)
    flags = ["--dropout", "0.2", "--folds", "3", "--save-every", "3s", "--resume", "auto", "--batch-size", "64"]
    steps = kill(0)
    train("whole", *flags)
    whole, beside = read_metrics("whole"), folder("killed") / "trials"
    assert len(steps) == 6 * 2 * 4 and whole["refit_epochs"] == 2
    # In the refit, the second fold, its refit, and the third fold, each after what was left of the one before.
    for left in ((), ("fold-2",), ("fold-2", "fold-2-refit"), ("fold-3",)):
        kill(8 + 5)
        with pytest.raises(Killed):
            train("killed", *flags)
        gc.collect()  # Python 3.11 cannot do so while it parses, and what a kill leaves is much
        assert {path.name for path in beside.iterdir()} == {"folds.json", "refit", *left}
    steps = kill(0)
    train("killed", *flags)
    assert len(steps) == 8 + 8  # of the last fold; what was done of its epoch is read only
    killed = read_metrics("killed")
    names = [name for name in whole if "test" in name or "validation" in name or "folds" in name]
    assert len(names) > 10 and {n: killed[n] for n in names} == {n: whole[n] for n in names}
    weights = [restore(folder(name))[1].model.get_weights() for name in ("whole", "killed")]
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
    assert not beside.exists() and not (folder("whole") / "trials").exists()


def test_what_is_kept_of_folds_is_of_runs_as_long_as_this_one():
    flags = Train(epochs=3)
    trials = trial.Trials(Path(), flags)
    for name in ("fold-2", "fold-3"):
        trials.place(name).mkdir()
    trials.add({"test_rmse": 0.1 + 0.2}, "fold-2", "fold-2-refit")
    again = trial.Trials(Path(), flags)
    assert again.folds == [{"test_rmse": 0.1 + 0.2}]
    assert not again.place("fold-2").exists() and again.place("fold-3").is_dir()
    longer = trial.Trials(Path(), Train(epochs=4))
    assert longer.folds == [] and not longer.place("fold-3").exists()
    Path("trials/folds.json").write_text("{")
    assert trial.Trials(Path(), flags).folds == []


@pytest.mark.usefixtures("quick")
def test_folds_end_with_the_weights_that_early_stopping_chose():
    saved, _ = make_model("mf", hidden=0)
    flags = Train(epochs=3, batch_size=256, run=RunFlags(early_stopping=3))
    training.compile_model(saved.model, keras.optimizers.SGD(0.1), True, False)
    fold = training.Trial(saved, training.make_batches(flags, saved.train, saved.model, 1))
    other = interactions(saved.train.user, saved.train.item, 6 - saved.train.label, users=4, items=5)
    held = training.make_batches(flags, other, saved.model)
    history = trial.fit(flags, fold, 3, Path("fold"), held)
    losses = [row["val_loss"] for row in history]
    assert losses[0] == min(losses) < losses[-1]
    assert saved.model.evaluate(held, verbose=0, return_dict=True)["loss"] == pytest.approx(losses[0], rel=1e-5)

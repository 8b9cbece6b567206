"""Trainings beside that of a run: on training and validation set together, and on the other folds.

Each has checkpoints of its own in the folder of the run, so that a run that was killed goes on within them.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..run import signals
from ..run.folder import TRIALS, atomic
from ..run.progress import ProgressKind, Report, choosers, make_checkpoint, restore
from . import growth, training
from .data import splits
from .data.splits import Data
from .flags import Train
from .training import Trial

ENDING = "interrupted: testing the model that was saved before; a second signal quits at once."


def best_epoch(history: Sequence[Mapping[str, float]], watched: str) -> int:
    """Returns the epoch, from 1 up, whose watched metric is best; the last one if it was not measured."""
    values = [row[watched] for row in history if watched in row]
    if not values:
        return len(history)
    return int(np.argmin(values) if "loss" in watched else np.argmax(values)) + 1


class Trials:
    """What the trainings beside that of a run have come to, in a folder of its own inside of that of the run.

    Args:
        folder: of the run. What runs of another length have left there is removed.
        flags: of the run.
    """

    def __init__(self, folder: Path, flags: Train) -> None:
        self._folder = folder / TRIALS
        self._plan = {"epochs": flags.epochs, "max_steps": flags.run.max_steps}
        self.folds: list[dict[str, float]] = []
        """Test metrics of the folds that are done, from the second one up."""
        try:
            found = json.loads((self._folder / "folds.json").read_text(encoding="utf-8"))
            if found["plan"] == self._plan:
                self.folds = found["folds"]
                return
        except (OSError, ValueError, KeyError, TypeError):
            pass
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        self._write()

    def place(self, name: str) -> Path:
        """Returns the folder for the checkpoints of a training."""
        return self._folder / name

    def add(self, metrics: Mapping[str, float], *done: str) -> None:
        """Notes the test metrics of the next fold, and removes the checkpoints of its trainings."""
        self.folds.append(dict(metrics))
        self._write()
        for name in done:
            shutil.rmtree(self.place(name), ignore_errors=True)

    def _write(self) -> None:
        with atomic(self._folder / "folds.json") as path:
            path.write_text(json.dumps({"plan": self._plan, "folds": self.folds}) + "\n", encoding="utf-8")


def fit(
    flags: Train, trial: Trial, epochs: int, place: Path, validation: Any = None, progress: ProgressKind = "none"
) -> list[dict[str, float]]:
    """Trains a model, from its last checkpoint if there is one, and returns one row an epoch; a signal ends it.

    Args:
        flags: of the run.
        trial: the model and its batches.
        epochs: how many, of those that the learning rate is planned for.
        place: folder of the checkpoints.
        validation: batches to measure the model on after each epoch.
        progress: how much is printed.
    """
    report = Report(progress, flags.run.max_steps, "rmse", stops=flags.optim.on_nonfinite == "stop")
    callbacks = [report, *choosers(flags, None if validation is None else "val_loss")]
    model = trial.saved.model
    checkpoint = make_checkpoint(flags, place, 1, callbacks, trial.batches)
    options: dict[str, Any] = {"shuffle": False, "verbose": 0, "validation_data": validation}
    try:
        with signals.held(ENDING):
            first = restore(checkpoint, model)
            model.fit(trial.batches, epochs=epochs, initial_epoch=first, callbacks=[*callbacks, checkpoint], **options)
    finally:
        report.close()
    growth.settle_unseen(model, trial.saved.train)
    return report.history


def refit(flags: Train, data: Data, epochs: int, jit: bool | str, place: Path) -> Trial | None:
    """Returns a model that is trained on training and validation set; `None` if that was interrupted."""
    trial = training.start(flags, data, data.known, jit)
    fit(flags, trial, epochs, place)
    return None if signals.received() is not None else trial


def cross_validate(
    flags: Train, source: splits.Pool, first: Mapping[str, float], jit: bool | str, trials: Trials
) -> dict[str, Any]:
    """Returns the test metrics of each fold, their means and standard deviations; nothing after a signal.

    In each fold the number of epochs is chosen on a validation set of its own, as in the run.

    Args:
        flags: of the run.
        source: all interactions.
        first: test metrics of the first fold, which are those of the run.
        jit: as `compile` takes it.
        trials: where the folds are noted; those that are done are not trained again.
    """
    for fold in range(1 + len(trials.folds), flags.data.folds):
        data = splits.split(source, flags.data, True, flags.run.seed, fold)
        trial, seen = training.start(flags, data, data.train, jit), data.train
        held, names = data.validation, (f"fold-{fold + 1}", f"fold-{fold + 1}-refit")
        validation = None if held is None else training.make_batches(flags, held, trial.saved.model)
        history = fit(flags, trial, flags.epochs, trials.place(names[0]), validation)
        if flags.refit and held is not None and signals.received() is None:
            epochs, place = best_epoch(history, "val_loss"), trials.place(names[1])
            trial, seen = refit(flags, data, epochs, jit, place) or trial, data.known
        if signals.received() is not None:
            return {}
        trials.add(training.measure(flags, trial.saved, data.test, seen), *names)
        if flags.run.progress != "none":
            rmse = trials.folds[-1]["test_rmse"]
            print(f"Fold: {fold + 1} of {flags.data.folds} | test rmse: {rmse:.4f}", flush=True)
    found = [dict(first), *trials.folds]
    values = {name: [fold[name] for fold in found] for name in first}
    means = {f"folds_{name}_mean": float(np.mean(part)) for name, part in values.items()}
    deviations = {f"folds_{name}_deviation": float(np.std(part, ddof=1)) for name, part in values.items()}
    return means | deviations | {"folds": values}

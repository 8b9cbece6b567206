"""Trainings beside that of a run: on training and validation set together, and on the other folds."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from ..run import signals
from ..run.progress import ProgressKind, Report
from . import training
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


def fit(
    flags: Train, trial: Trial, epochs: int, validation: Any = None, progress: ProgressKind = "none"
) -> list[dict[str, float]]:
    """Trains a model, and returns one row an epoch; a signal ends it.

    Args:
        flags: of the run.
        trial: the model and its batches.
        epochs: how many, of those that the learning rate is planned for.
        validation: batches to measure the model on after each epoch.
        progress: how much is printed.
    """
    report = Report(progress, flags.run.max_steps, "rmse", stops=flags.optim.on_nonfinite == "stop")
    callbacks: list[Any] = [report]
    if flags.optim.ema is not None:
        callbacks.append(keras.callbacks.SwapEMAWeights())
    if validation is not None and flags.run.early_stopping is not None:
        callbacks.append(keras.callbacks.EarlyStopping("val_loss", patience=flags.run.early_stopping))
    options: dict[str, Any] = {"shuffle": False, "verbose": 0, "validation_data": validation, "callbacks": callbacks}
    try:
        with signals.held(ENDING):
            trial.saved.model.fit(trial.batches, epochs=epochs, **options)
    finally:
        report.close()
    return report.history


def refit(flags: Train, data: Data, epochs: int, jit: bool | str) -> Trial | None:
    """Returns a model that is trained on training and validation set; `None` if that was interrupted."""
    trial = training.start(flags, data, data.known, jit)
    fit(flags, trial, epochs)
    return None if signals.received() is not None else trial


def cross_validate(flags: Train, source: splits.Pool, first: Mapping[str, float], jit: bool | str) -> dict[str, Any]:
    """Returns the test metrics of each fold, their means and standard deviations; nothing after a signal.

    In each fold the number of epochs is chosen on a validation set of its own, as in the run.

    Args:
        flags: of the run.
        source: all interactions.
        first: test metrics of the first fold, which are those of the run.
        jit: as `compile` takes it.
    """
    found = [dict(first)]
    for fold in range(1, flags.data.folds):
        data = splits.split(source, flags.data, True, flags.run.seed, fold)
        trial, seen = training.start(flags, data, data.train, jit), data.train
        held = data.validation
        validation = None if held is None else training.make_batches(flags, held, trial.saved.model)
        history = fit(flags, trial, flags.epochs, validation)
        if flags.refit and held is not None and signals.received() is None:
            trial, seen = refit(flags, data, best_epoch(history, "val_loss"), jit) or trial, data.known
        if signals.received() is not None:
            return {}
        found.append(training.measure(flags, trial.saved, data.test, seen))
        if flags.run.progress != "none":
            print(f"Fold: {fold + 1} of {flags.data.folds} | test rmse: {found[-1]['test_rmse']:.4f}", flush=True)
    values = {name: [fold[name] for fold in found] for name in first}
    means = {f"folds_{name}_mean": float(np.mean(part)) for name, part in values.items()}
    deviations = {f"folds_{name}_deviation": float(np.std(part, ddof=1)) for name, part in values.items()}
    return means | deviations | {"folds": values}

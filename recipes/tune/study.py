"""The study: which values are tried next, what each trial has come to, and when one is given up, kept in a file."""

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import optuna

from ..run import signals
from ..run.errors import DataError, DivergedError, UsageError
from ..run.flags import settings
from .process import Process, is_taken, kept_value
from .spaces import Space
from .tuned import Tuned

Pruner = Literal["median", "halving", "none"]
Ended = Literal["complete", "pruned", "diverged", "failed"]
NAME, JOURNAL = "tune", "study.journal"
TRIALS = "trials"
"""Folder of the runs in that of a study."""
WAIT = 0.2
"""Seconds from one look at the processes to the next."""
ASKED_TOO_MUCH = {UsageError.code: UsageError, DataError.code: DataError}


@dataclasses.dataclass(frozen=True)
class Trial:
    """A trial that has ended."""

    number: int
    values: dict[str, Any]
    """Of the flags that are searched, by name."""
    ended: Ended
    value: float | None
    """Of the metric: of the model that was kept, or when the trial was given up."""
    epochs: int
    error: str
    """Why it failed, if it did."""
    history: tuple[float, ...]
    """The metric after each epoch."""


class Study:
    """A search for the flags with which a recipe is best on its validation set.

    Args:
        folder: of the study.
        tuned: the recipe.
        space: what is searched.
        metric: column of `history.csv` that is to be made best.
        minimize: whether it is to be small.
        pruner: what gives up trials.
        seed: of the values that are tried.

    Raises:
        UsageError: the folder has another study.
    """

    def __init__(
        self, folder: Path, tuned: Tuned, space: Space, metric: str, minimize: bool, pruner: Pruner, seed: int
    ) -> None:
        self.folder, self.metric, self.minimize = folder, metric, minimize
        self.tuned, self.space = tuned, space
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._states = optuna.trial.TrialState
        self._axes = {axis.name: axis.distribution() for axis in space.axes}
        journal = str(folder / JOURNAL)
        lock = optuna.storages.journal.JournalFileOpenLock(journal)
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(journal, lock))
        pruners = {
            "median": optuna.pruners.MedianPruner,
            "halving": optuna.pruners.SuccessiveHalvingPruner,
            "none": optuna.pruners.NopPruner,
        }
        options = {
            "storage": storage,
            "study_name": NAME,
            "load_if_exists": True,
            "direction": "minimize" if minimize else "maximize",
            "pruner": pruners[pruner](),
        }
        self.optuna = optuna.create_study(**options)
        if self._differs() and not self.trials():  # one that never got anywhere
            optuna.delete_study(study_name=NAME, storage=storage)
            shutil.rmtree(folder / TRIALS, ignore_errors=True)
            self.optuna = optuna.create_study(**options)
        if differ := self._differs():
            raise UsageError(f"{folder}: has another study: {', '.join(differ)}. Choose another --output-dir.")
        self.optuna.set_user_attr("of", self._identity())
        # Another seed after each start: the same one would try the same values again.
        self.optuna.sampler = optuna.samplers.TPESampler(seed=seed + len(self.optuna.get_trials(deepcopy=False)))

    def _identity(self) -> dict[str, Any]:
        """Returns what all trials of a study have in common."""
        ours = {
            "recipe": self.tuned.name,
            "metric": self.metric,
            "direction": "min" if self.minimize else "max",
            "search": [str(axis) for axis in self.space.axes],
            **settings(self.tuned.flags),
        }
        found: dict[str, Any] = json.loads(json.dumps(ours))
        return found

    def _differs(self) -> list[str]:
        """Returns in what the study in the folder is another one, in words."""
        ours = self._identity()
        theirs = self.optuna.user_attrs.get("of", ours)
        return [f"{key} (was {theirs.get(key)}, is {ours[key]})" for key in ours if theirs.get(key) != ours[key]]

    def trials(self) -> list[Trial]:
        """Returns the trials that have ended, in their order."""
        found = []
        for one in self.optuna.get_trials(deepcopy=False):
            if (ended := one.user_attrs.get("ended")) is None:
                continue
            history = tuple(value for _, value in sorted(one.intermediate_values.items()))
            value = one.user_attrs.get("value")
            error = one.user_attrs.get("error", "")
            found.append(Trial(one.user_attrs["run"], dict(one.params), ended, value, len(history), error, history))
        return sorted(found, key=lambda trial: trial.number)

    def ranked(self) -> list[Trial]:
        """Returns the trials that have ended, the best complete one first; then those that were given up or failed."""
        sign = 1 if self.minimize else -1

        def place(trial: Trial) -> tuple[bool, float]:
            return trial.ended != "complete", math.inf if trial.value is None else sign * trial.value

        return sorted(self.trials(), key=place)

    def best(self) -> Trial | None:
        """Returns the best complete trial."""
        return next((trial for trial in self.ranked() if trial.ended == "complete"), None)

    def place(self, number: int) -> Path:
        """Returns the folder of the run of a trial."""
        return self.folder / TRIALS / f"{number:03d}"

    def importances(self) -> dict[str, float]:
        """Returns the share of each flag in the differences of the metric, most first; empty for too few trials.

        By fANOVA, of a forest over the complete trials (Hutter et al., 2014).
        """
        complete = [trial.value for trial in self.trials() if trial.ended == "complete"]
        if len(complete) < 4 or len(self.space.axes) < 2 or len(set(complete)) < 2:
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return dict(optuna.importance.get_param_importances(self.optuna, evaluator=evaluator))

    # ------------------------------------------------------------------------------------------------ making trials

    def make(self, trials: int, processes: int, report: Callable[[Trial], None]) -> None:
        """Makes the trials that are missing, and calls `report` with each when it has ended.

        Trials that were under way when an earlier search was interrupted go on first.

        Args:
            trials: how many the study is to have.
            processes: how many train at the same time.
            report: function of a trial.

        Raises:
            UsageError, DataError: no trial can begin.
        """
        self._take_up()
        missing = trials - len(self.trials())
        threads = None if processes == 1 else max(1, (os.cpu_count() or 1) // processes)
        running = list[_Running]()
        try:
            while missing > 0 or running:
                with signals.held(""):  # no signal comes between two notes of one event
                    while missing > 0 and len(running) < processes:
                        running.append(self._begin(threads))
                        missing -= 1
                    for one in [one for one in running if self._has_ended(one)]:
                        running.remove(one)
                        report(next(trial for trial in self.trials() if trial.number == one.number))
                signals.check()
                time.sleep(WAIT)
        finally:
            for one in running:
                one.process.kill()

    def _take_up(self) -> None:
        """Has the trials tried again that were under way."""
        for trial in self.optuna.get_trials(deepcopy=False, states=(self._states.RUNNING,)):
            known = trial.user_attrs
            if "ended" in known:  # killed between the two notes of an end
                self._tell(trial.number, known["ended"], known["value"])
                continue
            self.optuna.enqueue_trial(trial.params, {"run": known["run"]} if "run" in known else None)
            self.optuna.tell(trial.number, state=self._states.FAIL)

    def _begin(self, threads: int | None) -> "_Running":
        trial = self.optuna.ask(self._axes)
        taken = [one.user_attrs.get("run", 0) for one in self.optuna.get_trials(deepcopy=False)]
        number = trial.user_attrs.get("run") or max(taken) + 1
        trial.set_user_attr("run", number)
        while is_taken(self.place(number)):
            if (signal := signals.received()) is not None:
                raise signals.Interrupted(signal)
            time.sleep(WAIT)
        words = self.space.arguments(trial.params)
        epochs = self.space.flags(trial.params).epochs
        return _Running(trial, number, epochs, Process(self.tuned, words, self.place(number), threads))

    def _has_ended(self, one: "_Running") -> bool:
        """Looks at a process; returns whether the trial has ended, which is noted."""
        code, history = one.process.code(), one.process.history()
        for row in history[one.seen :]:
            if self.metric not in row:
                measured = ", ".join(name for name in row if name.startswith("val_")) or "none"
                raise UsageError(f"--metric {self.metric}: is not measured. On the validation set there is {measured}.")
            one.trial.report(row[self.metric], int(row["epoch"]))
        one.seen = len(history)
        if code is None:
            if one.seen and one.seen < one.epochs and one.trial.should_prune():
                one.process.kill()
                self._note(one, "pruned", history[-1][self.metric])
                return True
            return False
        if code == 0:
            value = kept_value(one.process.metrics(), self.metric)
            self._note(one, *(("complete", value) if math.isfinite(value) else ("diverged", None)))
        elif code == DivergedError.code:
            self._note(one, "diverged", None)
        elif code in ASKED_TOO_MUCH and not self.trials():
            raise ASKED_TOO_MUCH[code](f"the first trial: {one.process.error()}")
        else:
            self._note(one, "failed", None, one.process.error())
        return True

    def _note(self, one: "_Running", ended: Ended, value: float | None, error: str = "") -> None:
        """Keeps what a trial has come to."""
        for key, content in {"value": value, "error": error, "ended": ended}.items():
            one.trial.set_user_attr(key, content)
        self._tell(one.trial, ended, value)
        one.process.tidy()  # at last: without checkpoints and without these notes the run could not go on

    def _tell(self, trial: Any, ended: Ended, value: float | None) -> None:
        # The sampler learns from trials that are given up, and nothing from those that fail: where the loss diverges it
        # shall not go again.
        states = {"complete": self._states.COMPLETE, "failed": self._states.FAIL}
        self.optuna.tell(trial, value if ended == "complete" else None, states.get(ended, self._states.PRUNED))


@dataclasses.dataclass
class _Running:
    """A trial under way."""

    trial: Any
    """As Optuna has it."""
    number: int
    epochs: int
    """All of the run."""
    process: Process
    seen: int = 0
    """Epochs that Optuna knows of."""

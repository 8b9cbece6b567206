"""What happens during `fit`: epoch lines, the progress bar, the reasons to stop early; and the sweep before it."""

import json
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kopt import LearningRateFinder
from kopt.checkpoint import Checkpoint

from . import signals
from .errors import DataError, DivergedError, UsageError
from .flags import cadence
from .folder import atomic, write_history
from .tracking import epoch_tags

ProgressKind = Literal["auto", "rich", "plain", "none"]


def not_finite(model: Any) -> str | None:
    """Returns the path of the first weight with a NaN or an infinite value; `None` if there is none."""
    for weight in model.weights:
        if keras.backend.is_float_dtype(weight.dtype) and not bool(keras.ops.all(keras.ops.isfinite(weight))):
            return str(weight.path)
    return None


class FiniteCheckpoint(Checkpoint):
    """Writes only weights that are finite: what it has written is good to go on from."""

    def save(self) -> Path:
        """Writes a checkpoint of the training as it is now; returns its folder.

        Raises:
            DivergedError: a weight is not finite.
        """
        if found := not_finite(self.model):
            epoch, batch = self.place
            raise DivergedError(f"{found} is not finite after epoch {epoch}, batch {batch}.")
        return super().save()


def choosers(flags: Any, watched: str | None) -> list[Any]:
    """Returns the callbacks that say which weights a training ends with: `--ema` and `--early-stopping`.

    They come after what looks at the weights of the training.

    Args:
        flags: all flags of a recipe.
        watched: name of the metric that early stopping watches; `None` if there is none.
    """
    swap = flags.optim.ema is not None
    if flags.run.early_stopping is None or watched is None:
        return [keras.callbacks.SwapEMAWeights()] if swap else []
    mode, patience = "min" if "loss" in watched else "max", flags.run.early_stopping
    stopper = keras.callbacks.EarlyStopping(watched, patience=patience, restore_best_weights=True, mode=mode)
    # Early stopping keeps the weights it finds at the end of an epoch: those must be the averaged ones.
    return [keras.callbacks.SwapEMAWeights(swap_on_epoch=True), stopper] if swap else [stopper]


def make_checkpoint(flags: Any, folder: Path, keep: int, callbacks: Sequence[Any], data: Any) -> Checkpoint:
    """Returns what writes the checkpoints of a training.

    Args:
        flags: all flags of a recipe.
        folder: of the checkpoints.
        keep: how many stay.
        callbacks: whose states are kept.
        data: batches that are told the epoch.
    """
    kind = FiniteCheckpoint if flags.optim.on_nonfinite == "stop" else Checkpoint
    return kind(folder, every=cadence(flags.run.save_every), keep=keep, callbacks=callbacks, data=data)


def restore(checkpoint: Checkpoint, model: Any) -> int:
    """Puts a model where the last checkpoint is, and returns the epoch to go on with; 0 where there is none.

    Raises:
        DataError: the checkpoints are damaged, or of another model.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            epoch = checkpoint.restore(model)
        except ValueError as error:
            raise DataError(f"--resume: {error}") from error
    for warning in (w for w in caught if issubclass(w.category, UserWarning)):
        print(f"warning: {warning.message}", file=sys.stderr)
    return epoch


def find_rate(model: Any, training: Any, folder: Path, goes_on: bool, writes: bool) -> float:
    """Returns the learning rate that a sweep suggests; the model stays as it is.

    Args:
        model: compiled.
        training: batches to train on.
        folder: of the run, for curve and picture.
        goes_on: whether the run finds there what it has found before.
        writes: whether to write them.

    Raises:
        UsageError: no rate makes the loss fall.
    """
    picture, curve = folder / "learning_rate.png", folder / "learning_rate.json"
    if goes_on:
        return float(json.loads(curve.read_text(encoding="utf-8"))["suggestion"])
    finder = LearningRateFinder()
    try:
        rate = finder.find(model, training)
    except ValueError as error:
        raise UsageError(f"--lr-find: {error}") from error
    if writes:
        finder.plot(picture)
        with atomic(curve) as path:
            found = {"suggestion": rate, "rates": finder.rates, "losses": finder.losses}
            path.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return rate


def set_peak(optimizer: Any, rate: float) -> None:
    """Gives an optimizer that has not trained yet another learning rate, or its schedule another peak."""
    while hasattr(optimizer, "inner_optimizer"):  # within Keras' loss scaling
        optimizer = optimizer.inner_optimizer
    schedule = optimizer.get_config()["learning_rate"]
    if isinstance(schedule, dict):
        peak = "peak_learning_rate" if "peak_learning_rate" in schedule["config"] else "warmup_target"  # of Keras
        schedule["config"][peak] = rate
        optimizer.learning_rate = keras.saving.deserialize_keras_object(schedule)
    else:
        optimizer.learning_rate = rate


class Report(keras.callbacks.Callback):
    """Shows progress, keeps the history, and stops on a non-finite loss, after `max_steps`, and on a signal.

    Args:
        progress: "rich" draws a bar, "plain" prints the epoch lines alone, "none" nothing; "auto" is rich on a
            terminal and plain elsewhere.
        max_steps: batches after which training ends.
        metric: the name of what is shown beside the loss.
        log: function of the metrics of an epoch, by the names that trackers show.
        losses: training losses by step, which another callback adds to; a checkpoint keeps them.
        stops: whether to stop on a loss that is not finite.
        asked: function of the number of steps that says whether a signal has asked to stop.
        folder: where `history.csv` is written after each epoch, for whoever watches the run; `None` writes none.
    """

    def __init__(
        self,
        progress: ProgressKind = "auto",
        max_steps: int | None = None,
        metric: str = "accuracy",
        log: Callable[[Mapping[str, float]], None] | None = None,
        losses: list[tuple[int, float]] | None = None,
        stops: bool = True,
        asked: Callable[[int], bool] = lambda _: signals.received() is not None,
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        self.history: list[dict[str, float]] = []
        self.steps_done = 0
        self.seconds = 0.0
        """Of all calls of `fit`, those before a checkpoint included."""
        self._kind = progress
        self._max_steps, self._metric = max_steps, metric
        self._log, self._losses = log, losses if losses is not None else []
        self._stops, self._asked, self._folder = stops, asked, folder
        self._bar: Progress | None = None
        self._clock = 0.0

    def get_state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps."""
        own = {"history": self.history, "steps_done": self.steps_done, "seconds": self._tick()}
        return own | {"losses": self._losses}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        self.history, self.steps_done, self.seconds = state["history"], state["steps_done"], state["seconds"]
        self._losses[:] = state["losses"]
        if self._max_steps is not None and self.steps_done >= self._max_steps:
            if self.steps_done > self._max_steps:
                raise UsageError(f"--max-steps {self._max_steps}: the run that goes on has {self.steps_done} already.")
            self.model.stop_training = True

    def _tick(self) -> float:
        now = time.perf_counter()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        return self.seconds

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Opens the bar."""
        self._clock = time.perf_counter()
        terminal = sys.stdout.isatty()
        if self._kind == "rich" or (self._kind == "auto" and terminal):
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            console = Console(force_terminal=True if self._kind == "rich" else None)
            self._bar = Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}"), console=console, transient=True)
            self._bar.start()

    def close(self) -> None:
        """Closes the bar and stops the clock, however `fit` ended."""
        self._tick()
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Starts the clock and the bar of the epoch."""
        self._began = time.perf_counter()
        if self._bar is not None:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._task = self._bar.add_task(f"Epoch {epoch + 1:03d}", total=self.params["steps"], loss=math.nan)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Advances the bar, and stops the training if there is a reason to."""
        loss = (logs or {})["loss"]  # a mean since the epoch began: once not finite, always not finite
        self.steps_done += 1
        if self._stops and not math.isfinite(loss):
            found = not_finite(self.model)
            where = f"of weights the first that is not finite is {found}" if found else "all weights are finite"
            raise DivergedError(f"the loss is {loss} at step {self.steps_done}; {where}.")
        if self._bar is not None:
            self._bar.update(self._task, completed=batch + 1, loss=loss)
        if self._asked(self.steps_done) or self.steps_done == self._max_steps:
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Prints the line of the epoch and keeps its figures."""
        logs = logs if logs is not None else {}
        seconds = time.perf_counter() - self._began
        shown = {k: v for k, v in logs.items() if k.startswith("val_")}
        train = {f"train_{k}": logs[k] for k in ("loss", self._metric) if k in logs}
        self.history.append({"epoch": epoch + 1, **train, **shown, "seconds": round(seconds, 3)})
        if self._folder is not None:
            write_history(self._folder, self.history)
        if self._log is not None:
            self._log(epoch_tags(self.history[-1]))
        found = {name: shown.get(f"val_{name}") for name in ("loss", self._metric)}
        parts = [f"validation {k.replace('_', ' ')}: {v:.4f}" for k, v in found.items() if v is not None]
        self._print(" | ".join([f"Epoch: {epoch + 1:03d}", f"train loss: {logs['loss']:.4f}", *parts]))

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif self._kind != "none":
            print(line, flush=True)

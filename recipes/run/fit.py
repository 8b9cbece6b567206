"""A training run from its first check to its last file: `Run`."""

import contextlib
import dataclasses
import math
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

from . import facts, plots, signals
from .errors import DivergedError, UsageError
from .flags import RunFlags, check_rate, settings
from .folder import CHECKPOINTS, TRIALS, checkpoints, save_model, save_results
from .optimizer_flags import make_optimizer, peak_learning_rate, scaled
from .tracking import COLUMNS, Tracking, read_names
from .workers import Workers

MANY = 10**9
"""Batches, more than any warm-up."""
ENDING = "interrupted: saving a checkpoint, testing and saving the model; a second signal quits at once."
JIT: dict[str, bool | str] = {"auto": "auto", "on": True, "off": False}


def prepare(flags: RunFlags) -> None:
    """Sets seeds, precision and determinism of the process."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(flags.seed)
    random.seed(flags.seed)
    keras.config.set_dtype_policy("float32" if flags.precision == "tf32" else flags.precision)
    # TensorFlow rounds to TF32 unless told otherwise: float32 has to be asked for.
    tf.config.experimental.enable_tensor_float_32_execution(flags.precision == "tf32")
    if flags.deterministic:
        tf.config.experimental.enable_op_determinism()


class Outcome(NamedTuple):
    """How `fit` went."""

    history: list[dict[str, float]]
    """One row an epoch."""
    seconds: float
    interrupted: int | None
    """The number of the signal that ended it, if one did."""
    best_epoch: int | None
    """The epoch whose weights the model has, if early stopping restored them."""
    validation: dict[str, float]
    """What the model that is kept has on the validation set, as `validation_loss`; empty if there is none."""
    stats: Any
    """The `kopt.tensorboard.OptimizerStats` that waits for the final metrics."""


class Run:
    """A training run: its folder, `fit` with its callbacks, and its results.

    Used as `with Run(...) as run:`, in this order: `begin`, `fit`, `save_model`, `facts`, `finish`. It ends with a
    complete run, or with what `--resume` goes on from.

    Args:
        recipe: name of the recipe.
        flags: all flags of the recipe; `epochs`, `optim` and `run` among them.
        arguments: those that the user typed, for the model card; `None` if the flags were made in Python.
        label: what the name of the run begins with if it is not given; `None` takes the optimizer.

    Raises:
        UsageError: the folder cannot be used.
        AlreadyDoneError: the run is complete, and `--resume` has nothing to add.
        LostError: another worker has not come.
    """

    def __init__(self, recipe: str, flags: Any, arguments: Sequence[str] | None, label: str | None = None) -> None:
        self.recipe, self.flags = recipe, flags
        self._trackers = read_names(flags.run.track)
        check_rate(flags)
        self.workers = Workers(flags.run)
        """The devices and processes that train it."""
        prepare(flags.run)
        # A wrong value is found before the folder is made and the data are read.
        scaled(make_optimizer(flags.optim, MANY), self.workers.replicas)
        self.learning_rate = peak_learning_rate(flags.optim)
        """The highest one, for the model card; a recipe that has defaults of its own sets it."""
        self._place = self.workers.place(flags, recipe, label or flags.optim.optimizer)
        self.folder = self._place.path
        """Where the files of the run are written."""
        self.logs = self.folder / "logs"
        self._saved = False
        self._skipped: int | None = None
        self.command = facts.command(recipe, flags, arguments)
        self.jit = JIT[flags.run.jit]
        self.tracking: Any = None
        """Where curves and pictures are shown, once the run has begun."""
        self.outcome: Outcome
        """How `fit` went, once it has."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, signals.Interrupted):
            error.left = self._left()
        if self.tracking is not None:
            self.tracking.close(failed=error is not None)
        self._place.close()
        self.workers.close(error)

    def _left(self) -> str:
        """Returns what stands on the disk when a signal ends the run."""
        if not checkpoints(self.folder):
            return "nothing was saved."
        model = "the model is saved; " if self._saved else ""
        return f"{model}{self.folder} has the last checkpoint, from which --resume goes on."

    def count_steps(self, training: Any) -> int:
        """Returns how many of the batches `fit` will see, in all epochs together."""
        steps: int = self.flags.epochs * len(training)
        return min(steps, self.flags.run.max_steps or steps)

    def points(self, steps: int) -> int:
        """Returns the number of updates from one point of a curve to the next: as given, or for about 100 points."""
        return self.flags.run.log_every or max(1, -(-steps // self.flags.optim.grad_accum // 100))

    def print(self, line: str) -> None:
        """Prints a line, unless `--progress none` is given."""
        if self.flags.run.progress != "none" and self.workers.writes:
            print(line, flush=True)

    def begin(self, model: Any, training: Any, about: str, trials: int = 0) -> bool:
        """Opens the folder and prints what is trained; with `--dry-run`, trains on one batch and writes no files.

        `--lr-find` has its sweep here: the model, `learning_rate` and `flags` then have what it suggests.

        Args:
            model: compiled Keras model.
            training: batches to train on.
            about: what is trained, in one line.
            trials: trainings beside this one whose checkpoints are on the disk together.

        Returns:
            Whether to go on.

        Raises:
            DivergedError: the loss of that batch is not finite.
            DiskError: there is no room for what the run writes.
        """
        if not self.flags.run.dry_run:
            if model.optimizer is not None and not model.optimizer.built:
                with self.workers.scope():
                    model.optimizer.build(model.trainable_variables)
            if self.workers.writes:
                self._place.check_room(model, trials)
            self._start_tracking()
            self._place.open()
            self.print(about)
            self._find_rate(model, training)
            return True
        self._find_rate(model, training)
        loss = float(model.train_on_batch(*next(iter(training)), return_dict=True)["loss"])
        if not math.isfinite(loss):
            raise DivergedError(f"the loss of the first step is {loss}.")
        if self.workers.writes:
            print(f"dry run: {about}; loss of one step {loss:.4f}")
        return False

    def _find_rate(self, model: Any, training: Any) -> None:
        if not self.flags.optim.lr_find:
            return
        from .progress import find_rate, set_peak

        writes = not self.flags.run.dry_run
        self.learning_rate = rate = find_rate(model, training, self.folder, self._place.resumes, writes)
        set_peak(model.optimizer, rate)
        self.flags = dataclasses.replace(self.flags, optim=dataclasses.replace(self.flags.optim, learning_rate=rate))
        self.print(f"learning rate {rate:g}, as a sweep suggests")

    def _start_tracking(self) -> None:
        home = self._place.home
        in_place = home.parts[:-1] == ("saved_models", self.recipe)
        name = f"{home.name} ({self.recipe})" if in_place else home.as_posix()
        chosen = settings(self.flags) | {"learning_rate": self.learning_rate}
        trackers = self._trackers if self.workers.writes else ()
        self.tracking = Tracking(trackers, f"kopt-{self.recipe}", name, self.logs, chosen)

    def _restore(self, checkpoint: Any, model: Any) -> int:
        """Puts the model where the last checkpoint is, if the run goes on, and returns the epoch to begin with."""
        from .progress import restore

        if not self._place.resumes:
            return 0
        epoch: int = restore(checkpoint, model)
        done, batches = checkpoint.place
        if done > self.flags.epochs:
            raise UsageError(f"--epochs {self.flags.epochs}: the run that goes on has {done} already.")
        self.print(f"goes on after {done} epochs{f' and {batches} batches' if batches else ''}.")
        return epoch

    def fit(
        self,
        model: Any,
        training: Any,
        validation: Any,
        *,
        measure: Callable[[], Mapping[str, float]] | None = None,
        callbacks: Sequence[Any] = (),
        metric: str = "accuracy",
        watched: str = "val_loss",
        settle: Callable[[], None] | None = None,
    ) -> None:
        """Trains a compiled model and sets `outcome`.

        After each epoch the model is measured on the validation set, which is never the test set. With `--ema` the
        averaged weights are measured and are what the model ends with. The last row of the history says what the
        model has at the end: some optimizers put an earlier point back when `fit` ends.

        Args:
            model: compiled Keras model.
            training: batches to train on.
            validation: batches that the model is measured on; `None` if there are none.
            measure: gives more figures of the validation set, by name.
            callbacks: more callbacks.
            metric: name of the metric that is shown beside the loss.
            watched: name of the metric that early stopping watches.
            settle: called once after the last epoch: sets what is not trained and follows from the weights.

        Raises:
            DivergedError: the loss is not finite.
        """
        import keras

        from kopt.tensorboard import OptimizerStats

        from .progress import ProgressKind, Report, choosers, make_checkpoint

        run, stops = self.flags.run, self.flags.optim.on_nonfinite == "stop"
        self.tracking.open()
        stats = OptimizerStats(
            self.tracking.log_dir,
            self.points(self.count_steps(training)),
            text={"settings": facts.table(settings(self.flags))},
            run_name=self.tracking.run_name,
            log=self.tracking.log,
        )
        shown: ProgressKind = run.progress if self.workers.writes else "none"
        asked, home = self.workers.stopped, self.folder if self.workers.writes else None
        report = Report(shown, run.max_steps, metric, stats.add, self.tracking.losses, stops, asked, home)
        measure = self.workers.measured(measure)
        logged = [] if measure is None else [_logger(measure)]
        # The order matters: stats sees the weights before a swap, early stopping after it.
        chosen = choosers(self.flags, watched)
        remembering = [report, *chosen]
        place = self.folder / CHECKPOINTS
        own, joining = [c for c in callbacks if hasattr(c, "get_state")], self.workers.callbacks
        checkpoint = make_checkpoint(self.flags, place, run.keep, [*joining, stats, *own, *remembering], training)
        epoch = self._restore(checkpoint, model)
        batches, held = self.workers.share(model, training, validation)
        try:
            with signals.held(ENDING), self._diverging(checkpoint):
                model.fit(
                    batches,
                    epochs=self.flags.epochs,
                    initial_epoch=epoch,
                    shuffle=False,  # the pipeline shuffles
                    verbose=0,
                    validation_data=held,
                    callbacks=[*joining, stats, *callbacks, *logged, *remembering, checkpoint],
                )
        finally:
            report.close()
        self._writing = checkpoint.seconds
        if self.flags.optim.on_nonfinite == "skip":
            optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # within Keras' loss scaling
            self._skipped = int(keras.ops.convert_to_numpy(optimizer.nonfinite_steps))
        stopper = next((c for c in chosen if isinstance(c, keras.callbacks.EarlyStopping)), None)
        best = None if stopper is None else stopper.best_epoch + 1
        if settle is not None:
            settle()
        found = self._measure(model, held, measure)
        if report.history and best in (None, len(report.history)):
            report.history[-1] |= {f"val_{name}": value for name, value in found.items()}
        found = {f"validation_{name}": value for name, value in found.items()}
        self.outcome = Outcome(report.history, report.seconds, signals.received(), best, found, stats)
        self._updates_per_epoch = len(training) / self.flags.optim.grad_accum
        self.workers.part(model)

    def _check_signals(self) -> None:
        """Interrupts where a library has swallowed what a signal raised."""
        if self.outcome.interrupted is None:
            signals.check()

    @contextlib.contextmanager
    def _diverging(self, checkpoint: Any) -> Iterator[None]:
        """Adds to the error what can be done."""
        try:
            yield
        except DivergedError as error:
            last = f"{checkpoint.folder} has the last checkpoint from before." if checkpoints(self.folder) else ""
            advice = "Try a smaller --learning-rate, --clip-norm 1 or --on-nonfinite skip."
            raise DivergedError(f"{error} {last} {advice}".replace("  ", " ")) from error

    def _measure(self, model: Any, validation: Any, measure: Callable[[], Mapping[str, float]] | None) -> Any:
        """Returns what the model has on the validation set."""
        found: dict[str, float] = {}
        if validation is not None:
            found |= model.evaluate(validation, verbose=0, return_dict=True)
        return found | dict(measure() if measure is not None else {})

    def save_model(self, model: Any) -> None:
        """Writes `model.keras`, before anything is drawn.

        Args:
            model: to save; `None` if its trained weights are saved otherwise.
        """
        self._check_signals()
        (self.folder / "metrics.json").unlink(missing_ok=True)  # of a run that went on: what it says is no longer so
        if model is not None:
            save_model(self.folder, model)
        self._saved = True

    def draw_curves(self) -> None:
        """Draws how the training went."""
        losses = [(step / self._updates_per_epoch, loss) for step, loss in self.tracking.losses]
        path = self.folder / "curves.png"
        plots.plot_curves(path, self.outcome.history, losses, self.tracking.run_name)
        sweep = self.folder / "learning_rate.png"
        self.tracking.images({"curves": path} | ({"learning rate": sweep} if sweep.exists() else {}))

    def facts(
        self,
        about: Mapping[str, Any],
        results: Mapping[str, Any],
        data: Mapping[str, Any],
        versions: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Returns the content of `metrics.json`: what is given, and what every run has.

        Args:
            about: which model was trained and how large it is.
            results: metrics of the trained model.
            data: what it was trained and tested on.
            versions: of more libraries.
        """
        outcome = self.outcome
        return {
            "recipe": self.recipe,
            **about,
            "optimizer": self.flags.optim.optimizer.lower(),
            "learning_rate": self.learning_rate,
            "batch_size": self.flags.batch_size,
            "epochs": len(outcome.history),
            **outcome.validation,
            **results,
            "train_seconds": round(outcome.seconds, 2),
            "checkpoint_seconds": round(self._writing, 2),
            **data,
            "seed": self.flags.run.seed,
            "best_epoch": outcome.best_epoch,
            **({} if self._skipped is None else {"skipped_updates": self._skipped}),
            "interrupted": outcome.interrupted is not None,
            "versions": facts.versions() | dict(versions or {}),
            "revision": facts.revision(),
            "command": self.command,
        }

    def finish(self, metrics: Mapping[str, Any], card: str, summary: str) -> int:
        """Writes the results and the model card, prints the summary, and returns the exit code.

        Args:
            metrics: those of `facts`.
            card: the model card.
            summary: the results in one line.
        """
        self.draw_curves()
        self._check_signals()
        numbers = {k.replace("_", "/", 1): v for k, v in metrics.items() if k.startswith("test_")}
        names = ("optimizer", "learning_rate", "model", "seed", "batch_size")
        self.outcome.stats.finish(
            {name: value for name, value in numbers.items() if isinstance(value, float)},
            {name: metrics[name] for name in names},
            [f"test/{name}" for name in COLUMNS],
        )
        self.tracking.close()
        self._place.write_flags()
        save_results(self.folder, metrics, self.outcome.history, card)
        if self.outcome.interrupted is None:
            shutil.rmtree(self.folder / TRIALS, ignore_errors=True)
        self._place.publish()
        ended = self.outcome.interrupted
        self.print(f"{summary}; saved in {self._place.path}{'' if ended is None else ', from where --resume goes on'}")
        return 0 if ended is None else signals.exit_code(ended)


def _logger(measure: Callable[[], Mapping[str, float]]) -> Any:
    """Returns a callback that adds figures of the validation set to the logs of each epoch."""
    import keras

    def add(epoch: int, logs: dict[str, float]) -> None:
        logs.update({f"val_{name}": value for name, value in measure().items()})

    return keras.callbacks.LambdaCallback(on_epoch_end=add)

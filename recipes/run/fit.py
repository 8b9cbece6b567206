"""A training run from its first check to its last file: `Run`."""

import math
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from . import facts
from .errors import DivergedError
from .flags import RunFlags, settings
from .folder import choose_folder, open_folder, save_run

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
    interrupted: bool
    best_epoch: int | None
    """The epoch whose weights the model has, if early stopping restored them."""
    stats: Any
    """The `kopt.tensorboard.OptimizerStats` that waits for the final metrics."""


class Run:
    """A training run: its folder, `fit` with its callbacks, and its results.

    Used in this order: `Run(...)`, `begin`, `fit`, `facts`, `finish`.

    Args:
        recipe: name of the recipe.
        flags: all flags of the recipe; `epochs`, `optim` and `run` among them.
        arguments: the arguments that the user typed, for the model card.
        label: what the name of the run begins with if it is not given; `None` takes the optimizer.

    Raises:
        UsageError: the folder cannot be used.
    """

    def __init__(self, recipe: str, flags: Any, arguments: Sequence[str], label: str | None = None) -> None:
        self.recipe, self.flags = recipe, flags
        self.folder = choose_folder(flags.run, recipe, label or flags.optim.optimizer)
        self.logs = self.folder / "logs"
        self.command = facts.command(recipe, arguments)
        self.jit = JIT[flags.run.jit]
        self.outcome: Outcome
        """How `fit` went, once it has."""
        prepare(flags.run)

    def count_steps(self, training: Any) -> int:
        """Returns how many of the batches `fit` will see, in all epochs together."""
        steps: int = self.flags.epochs * len(training)
        return min(steps, self.flags.run.max_steps or steps)

    def print(self, line: str) -> None:
        """Prints a line, unless `--progress none` is given."""
        if self.flags.run.progress != "none":
            print(line, flush=True)

    def begin(self, model: Any, training: Any, about: str) -> bool:
        """Opens the folder and prints what is trained; with `--dry-run`, trains on one batch and writes no files.

        Args:
            model: compiled Keras model.
            training: batches to train on.
            about: what is trained, in one line.

        Returns:
            Whether to go on.

        Raises:
            DivergedError: the loss of that batch is not finite.
        """
        if not self.flags.run.dry_run:
            open_folder(self.folder, self.flags)
            self.print(about)
            return True
        loss = float(model.train_on_batch(*next(iter(training)), return_dict=True)["loss"])
        if not math.isfinite(loss):
            raise DivergedError(f"the loss of the first step is {loss}.")
        print(f"dry run: {about}; loss of one step {loss:.4f}")
        return False

    def fit(
        self,
        model: Any,
        training: Any,
        test: Any,
        *,
        validation: Any = None,
        callbacks: Sequence[Any] = (),
        metric: str = "accuracy",
        watched: str = "val_loss",
    ) -> None:
        """Trains a compiled model and sets `outcome`.

        With `--ema` the averaged weights are tested and are what the model ends with.

        Args:
            model: compiled Keras model.
            training: batches to train on.
            test: batches whose loss and metric are shown after each epoch; `None` if a callback adds them to the logs.
            validation: batches that early stopping watches; `None` takes the test set.
            callbacks: more callbacks.
            metric: name of the metric that is shown beside the loss.
            watched: name of the metric that early stopping watches.

        Raises:
            DivergedError: the loss is not finite.
        """
        import keras

        from kopt.tensorboard import OptimizerStats

        from .progress import Report

        run = self.flags.run
        stopper = swap = None
        if self.flags.optim.ema is not None:
            # Early stopping keeps the weights it finds at the end of an epoch: those must be the averaged ones.
            swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=run.early_stopping is not None)
        if run.early_stopping is not None:
            mode = "min" if "loss" in watched else "max"
            stopper = keras.callbacks.EarlyStopping(
                watched, patience=run.early_stopping, restore_best_weights=True, mode=mode
            )
        report = Report(run.progress, run.max_steps, None if validation is None else test, swap, metric)
        chosen = settings(self.flags)
        stats = OptimizerStats(str(self.logs), hparams=chosen, text={"settings": facts.table(chosen)})
        # The order matters: stats sees the weights before a swap, early stopping after it, TensorBoard all logs.
        board = keras.callbacks.TensorBoard(str(self.logs), write_graph=False)
        order = [stats, *callbacks, report, *(c for c in (swap, stopper) if c is not None), board]
        began = time.perf_counter()
        try:
            model.fit(
                training,
                epochs=self.flags.epochs,
                shuffle=False,  # the pipeline shuffles
                verbose=0,
                validation_data=test if validation is None else validation,
                callbacks=order,
            )
        finally:
            report.close()
        best = None if stopper is None else stopper.best_epoch + 1
        self.outcome = Outcome(report.history, time.perf_counter() - began, report.interrupted, best, stats)

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
            "epochs": len(outcome.history),
            **results,
            "train_seconds": round(outcome.seconds, 2),
            **data,
            "seed": self.flags.run.seed,
            "best_epoch": outcome.best_epoch,
            "interrupted": outcome.interrupted,
            "versions": facts.versions() | dict(versions or {}),
        }

    def finish(self, model: Any, metrics: Mapping[str, Any], card: str, summary: str) -> int:
        """Writes the results, the model and its card, prints the summary, and returns the exit code.

        Args:
            model: to save; `None` if its trained weights are saved otherwise.
            metrics: those of `facts`.
            card: the model card.
            summary: the results in one line.
        """
        numbers = {name: value for name, value in metrics.items() if name.startswith("test_")}
        self.outcome.stats.finish({k: v for k, v in numbers.items() if isinstance(v, float)})
        save_run(self.folder, model, metrics, self.outcome.history, card)
        self.print(f"{summary}; saved in {self.folder}")
        return 130 if self.outcome.interrupted else 0

"""What every training run does: seed, precision, the run folder and its files, `fit` with its callbacks."""

import contextlib
import csv
import dataclasses
import json
import math
import os
import platform
import random
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro
import yaml

from recipes._cli import DivergedError, UsageError, flatten

FILES = ("model.keras", "config.yaml", "metrics.json", "history.csv", "README.md", "confusion.png", "errors.png")
OTHERS = ("labels.json", "vocabulary.json", "interactions.npz")
"""Files that not every recipe leaves."""
FOLDERS = ("logs", "adapter")
JIT: dict[str, bool | str] = {"auto": "auto", "on": True, "off": False}

OptionalInt = Annotated[int | None, tyro.conf.arg(metavar="INT")]
OptionalPath = Annotated[Path | None, tyro.conf.arg(metavar="PATH")]


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """How the run goes and what it leaves."""

    max_steps: OptionalInt = None
    """End after this many batches, wherever in an epoch that is."""
    early_stopping: OptionalInt = None
    """End when the loss has not improved for this many epochs, and return to the best weights."""
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16", "tf32"] = "float32"
    """Arithmetic of the layers; tf32 lets a GPU round the factors of float32 products."""
    jit: Literal["auto", "on", "off"] = "auto"
    """Compile the train step with XLA; auto does so on a GPU."""
    seed: int = 42
    """Seed of weights, order, dropout and augmentation."""
    deterministic: bool = False
    """Use deterministic kernels alone: slower, and a run repeats bit for bit on a GPU too."""
    progress: Literal["auto", "rich", "plain", "none"] = "auto"
    """rich draws a bar above the epoch lines, auto does so on a terminal; none prints no lines."""
    output_dir: OptionalPath = None
    """Folder of the run; None is saved_models/<recipe>/<run-name>."""
    run_name: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Name of the run; None is <optimizer>-<UTC time>."""
    overwrite: bool = False
    """Replace the run that is in the folder."""
    dry_run: bool = False
    """Read the data, build the model, make one step, leave nothing."""
    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """YAML file of these flags, as config.yaml of a run; flags win."""


def check_run_flags(flags: RunFlags) -> None:
    """Checks the numbers that a type cannot.

    Raises:
        UsageError: one is out of range.
    """
    at_least("--max-steps", flags.max_steps, 1)
    at_least("--early-stopping", flags.early_stopping, 1)
    at_least("--seed", flags.seed, 0)


def at_least(flag: str, value: float | None, low: float) -> None:
    """Raises UsageError if `value` is given and less than `low`."""
    if value is not None and not value >= low:
        raise UsageError(f"{flag} {value}: expected at least {low}.")


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


def run_folder(flags: RunFlags, recipe: str, optimizer: str) -> Path:
    """Returns the folder of the run, which may not exist yet.

    Raises:
        UsageError: it is not empty, and not a run that `--overwrite` lets go.
    """
    name = flags.run_name or f"{optimizer.lower()}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    if Path(name).name != name:
        raise UsageError(f"--run-name {name}: expected a plain name. Use --output-dir for a path.")
    folder = flags.output_dir or Path("saved_models") / recipe / name
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file. Choose another --output-dir.")
    if folder.is_dir() and any(folder.iterdir()):
        if not flags.overwrite:
            raise UsageError(f"{folder} is not empty. Choose another --run-name or --output-dir, or add --overwrite.")
        if not (folder / "config.yaml").is_file():
            raise UsageError(f"{folder} is not a run (it has no config.yaml), so --overwrite leaves it alone.")
    return folder


def open_folder(folder: Path, flags: Any) -> None:
    """Creates the folder, removes the run that was in it, and writes `config.yaml`."""
    for name in (*FILES, *OTHERS):
        (folder / name).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}. Choose another --output-dir.") from error
    with atomic(folder / "config.yaml") as file:
        file.write_text(yaml.safe_dump(settings(flags), sort_keys=False), encoding="utf-8")


def settings(flags: Any) -> dict[str, Any]:
    """Returns the flags that say what is trained, without those that say where it is put."""
    places = ("config", "output_dir", "run_name", "overwrite", "dry_run")
    return {key: value for key, value in flatten(flags).items() if key not in places}


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Gives a path to write to; `path` appears, or is replaced, when all is written."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Gives a new folder to write to; it becomes `path`, which may be an empty folder, when all is written."""
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class Outcome(NamedTuple):
    """How `fit` went."""

    history: list[dict[str, float]]
    """One row an epoch."""
    seconds: float
    interrupted: bool
    best_epoch: int | None
    """Whose weights the model has, if early stopping chose them."""
    stats: Any
    """The `kopt.tensorboard.OptimizerStats` that waits for the final metrics."""


def fit(
    model: Any,
    train: Any,
    test: Any,
    log_dir: Path,
    flags: Any,
    *,
    epochs: int,
    run: RunFlags,
    validation: Any = None,
    ema: bool = False,
    callbacks: Sequence[Any] = (),
    metric: str = "accuracy",
    watched: str = "val_loss",
) -> Outcome:
    """Trains a compiled model.

    Args:
        model: compiled Keras model.
        train: batches to learn from.
        test: batches whose loss and metric are shown after each epoch; `None` where a callback adds them to the logs.
        log_dir: folder for TensorBoard.
        flags: all flags of the recipe, for TensorBoard.
        epochs: how often to see the batches.
        run: flags of the run.
        validation: batches that early stopping watches; `None` takes the test set.
        ema: whether the optimizer averages the weights. The average is tested and is what the model ends with.
        callbacks: more of them.
        metric: the name of what is shown beside the loss.
        watched: what early stopping watches.

    Raises:
        DivergedError: the loss is not finite.
    """
    import keras

    from kopt.tensorboard import OptimizerStats
    from recipes._callbacks import Report

    stopper = swap = None
    if ema:
        # Early stopping keeps the weights it finds at the end of an epoch: those must be the averaged ones.
        swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=run.early_stopping is not None)
    if run.early_stopping is not None:
        stopper = keras.callbacks.EarlyStopping(
            watched, patience=run.early_stopping, restore_best_weights=True, mode="min" if "loss" in watched else "max"
        )
    report = Report(run.progress, run.max_steps, None if validation is None else test, swap, metric)
    chosen = settings(flags)
    stats = OptimizerStats(str(log_dir), hparams=chosen, text={"settings": table(chosen)})
    # The order matters: stats sees the weights before a swap, early stopping after it, TensorBoard all logs.
    board = keras.callbacks.TensorBoard(str(log_dir), write_graph=False)
    order = [stats, *callbacks, report, *(c for c in (swap, stopper) if c is not None), board]
    began = time.perf_counter()
    try:
        model.fit(
            train,
            epochs=epochs,
            shuffle=False,  # the pipeline shuffles
            verbose=0,
            validation_data=test if validation is None else validation,
            callbacks=order,
        )
    finally:
        report.close()
    best = None if stopper is None else stopper.best_epoch + 1
    return Outcome(report.history, time.perf_counter() - began, report.interrupted, best, stats)


def begin(folder: Path, flags: Any, run: RunFlags, about: str, model: Any, train: Any) -> bool:
    """Opens the folder and says what is trained; or, for `--dry-run`, trains on one batch and leaves nothing.

    Returns:
        Whether to go on.

    Raises:
        DivergedError: the loss of that batch is not finite.
    """
    if not run.dry_run:
        open_folder(folder, flags)
        if run.progress != "none":
            print(about, flush=True)
        return True
    loss = float(model.train_on_batch(*next(iter(train)), return_dict=True)["loss"])
    if not math.isfinite(loss):
        raise DivergedError(f"the loss of the first step is {loss}.")
    print(f"dry run: {about}; loss of one step {loss:.4f}")
    return False


def save_run(
    folder: Path, model: Any, metrics: Mapping[str, Any], history: Sequence[Mapping[str, float]], card: str
) -> None:
    """Writes `model.keras`, `metrics.json`, `history.csv` and `README.md`, each at once or not at all.

    Args:
        folder: of the run.
        model: to save; `None` if what it learnt is saved otherwise.
        metrics: of the run.
        history: one row an epoch.
        card: the model card.
    """
    if model is not None:
        with atomic(folder / "model.keras") as path:
            model.save(path)
    with atomic(folder / "history.csv") as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(history[0]) if history else ["epoch"])
        writer.writeheader()
        writer.writerows({key: float(f"{value:.6g}") for key, value in row.items()} for row in history)
    with atomic(folder / "README.md") as path:
        path.write_text(card, encoding="utf-8")
    # The last file: a folder with metrics.json is complete.
    with atomic(folder / "metrics.json") as path:
        path.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


class Scores(NamedTuple):
    """How well classes were told apart."""

    loss: float
    accuracy: float
    macro_f1: float
    """Mean over the classes that occur, in truth or prediction."""
    recall: list[float]
    confusion: np.ndarray[Any, Any]
    """[true class, predicted class]."""
    probabilities: np.ndarray[Any, Any]
    """[example, class]."""


def score(model: Any, x: Any, y: Any, classes: int, batch_size: int = 500) -> Scores:
    """Returns the scores of a classifier whose outputs are logits, or raises ValueError if it is none for x."""
    return score_probabilities(predict_probabilities(model, x, classes, batch_size), y)


def score_probabilities(probabilities: np.ndarray[Any, Any], y: Any) -> Scores:
    """Returns the scores of predictions [example, class]."""
    from sklearn.metrics import confusion_matrix

    classes = probabilities.shape[1]
    of_truth = probabilities[np.arange(len(y)), y]
    confusion = confusion_matrix(y, probabilities.argmax(axis=1), labels=range(classes))
    recall = np.diag(confusion) / np.maximum(confusion.sum(axis=1), 1)
    seen = confusion.sum(axis=0) + confusion.sum(axis=1)
    return Scores(
        loss=float(-np.log(np.maximum(of_truth, np.finfo(np.float64).tiny)).mean()),
        accuracy=float(np.diag(confusion).sum() / len(y)),
        macro_f1=float((2 * np.diag(confusion)[seen > 0] / seen[seen > 0]).mean()),
        recall=[float(share) for share in recall],
        confusion=confusion,
        probabilities=probabilities,
    )


def predict_probabilities(model: Any, x: Any, classes: int, batch_size: int = 500) -> np.ndarray[Any, Any]:
    """Returns [example, class], or raises ValueError if the model does not give `classes` logits for each x.

    Args:
        model: whose outputs are logits.
        x: an array of examples, or a `tf.data.Dataset` of batches.
        classes: how many there are.
        batch_size: of an array.
    """
    whole = isinstance(x, np.ndarray)
    logits = np.asarray(model.predict(x, batch_size=batch_size if whole else None, verbose=0), np.float64)
    n = len(x) if whole else len(logits)
    if logits.shape != (n, classes):
        raise ValueError(f"outputs of shape {logits.shape}, expected ({n}, {classes})")
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def peak_memory() -> float | None:
    """Returns the most memory that the process has held, in MB, where the system tells."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return round(kilobytes / 1024, 1)


def versions() -> dict[str, str]:
    """Returns the versions that a result depends on."""
    import keras
    import tensorflow as tf

    import kopt

    return {
        "kopt": kopt.__version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "python": platform.python_version(),
    }


def command_line(recipe: str) -> str:
    """Returns the command that the user typed, or as good as."""
    return shlex.join(["python", "-m", f"recipes.{recipe}", *sys.argv[1:]])


def table(rows: Mapping[str, Any]) -> str:
    """Returns a Markdown table of two columns."""
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def load_model(path: Path) -> Any:
    """Returns the model in a run folder or `.keras` file, without its optimizer.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    import keras

    from recipes._cli import DataError

    file = path / "model.keras" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{file}: no such file. Give a run folder or a .keras file as --model.")
    try:
        return keras.models.load_model(file, compile=False)
    except Exception as error:  # Keras raises whatever zipfile, json, h5py and the layers raise
        raise DataError(f"{file}: not a model that Keras can load ({type(error).__name__}).") from error

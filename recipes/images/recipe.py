"""Pictures: fine-tune a backbone to classify them, evaluate it, use it, export it.

python -m recipes.images --data pictures --method lora --epochs 5
python -m recipes.images evaluate --model saved_models/images/RUN
python -m recipes.images predict --model saved_models/images/RUN a.jpg b.png
python -m recipes.images export --model saved_models/images/RUN --to adapter
"""

import dataclasses
import functools
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from ..fine_tuning import adapter_files, methods
from ..fine_tuning.class_names import read_names, write_names
from ..readers import leakage
from ..readers.records import OptionalPolicy
from ..run import plots
from ..run.batches import Array, class_weights, one_hot
from ..run.command_line import Commands, run_command
from ..run.errors import DataError, UsageError
from ..run.facts import peak_memory
from ..run.fit import Run, prepare
from ..run.flags import Count, Fraction, OptionalCount, OptionalPath, RunFlags, RunPath, optional, refuse
from ..run.folder import check_empty, load_model, new_folder, read_flags
from ..run.optimizer_flags import OptimizerFlags, make_optimizer, scaled
from ..run.scores import Scores, predict_probabilities, score_probabilities
from . import album, backbones, classifier
from .album import Album, PictureFlags
from .backbones import LITE, SMALL
from .card import card
from .classifier import Augment, TuneFlags

MOST_CURVES = 20
"""Classes that have a curve of precision over recall."""


@dataclasses.dataclass(frozen=True)
class Train:
    """Fine-tune a backbone to classify pictures, or train a small one from scratch."""

    backbone: str = "auto"
    """small, efficientnet-lite0, one of keras.applications in lower case (mobilenetv2, resnet50, ...), a preset of
    KerasHub or the folder of one; auto is efficientnet-lite0 where its package is installed, else small."""
    weights: Annotated[str | None, optional("FILE|RUN|none")] = None
    """Weights of the backbone: a file, a run of this recipe whose backbone is taken, or none for random ones."""
    image_size: OptionalCount = None
    """Pixels of a side, to which the middle of each picture is scaled. Default: what suits the backbone."""
    augment: Augment = "none"
    """move shifts, turns and scales the training pictures at random; photo also mirrors them and changes the light."""
    class_weights: bool = False
    """Weight the examples by the inverse frequency of their class."""
    dropout: Fraction = 0.2
    """Dropout rate before the head."""
    label_smoothing: Fraction = 0.0
    """Share of each training target that is spread over all classes."""
    epochs: Count = 5
    """Passes over the training set."""
    batch_size: Count = 32
    """Pictures per step."""
    data: PictureFlags = dataclasses.field(default_factory=PictureFlags)
    tune: TuneFlags = dataclasses.field(default_factory=TuneFlags)
    optim: OptimizerFlags = dataclasses.field(
        default_factory=lambda: OptimizerFlags(optimizer="adamw", lr_schedule="cosine", warmup="6%")
    )
    run: RunFlags = dataclasses.field(default_factory=RunFlags)


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Print the test metrics of a run as JSON."""

    model: RunPath
    """Folder of a run."""
    test_data: OptionalPath = None
    """Test set, as for train. Default: the test set of the run."""
    on_bad_row: OptionalPolicy = None
    """As for train, of --test-data. Default: as the run."""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Print each picture with its most probable classes and their probabilities, separated by tabs."""

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Pictures, or folders of pictures."""
    model: RunPath
    """Folder of a run."""
    top: Count = 3
    """At most this many classes, the most probable first."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Copy the adapter of a run to a folder, or the whole model as model.keras if the run has no adapter."""

    model: RunPath
    """Folder of a run."""
    to: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder to write, which must be empty or new."""
    merge: bool = False
    """Write the model with the adapter merged into it instead."""


def train(flags: Train, arguments: Sequence[str] | None = None) -> int:
    """Trains and saves a model; returns the exit code. `arguments` are those of the command line, for the card."""
    album.check(flags.data)
    backbone = backbones.choose(flags.backbone, flags.weights)
    tune = classifier.choose(flags.tune, backbones.is_trained(backbone, flags.weights))
    flags = dataclasses.replace(flags, backbone=backbone, tune=tune, data=album.choose(flags.data))
    with Run("images", flags, arguments, f"{tune.method}-{flags.optim.optimizer}") as run:
        return train_in(run, flags)


def train_in(run: Run, flags: Train) -> int:
    """Trains and saves a model in the folder of a run; returns the exit code."""
    methods.keep_start(run, "--weights", flags.weights)
    with run.workers.scope():
        base = backbones.load(flags.backbone, flags.weights, flags.image_size, run.workers.replicas > 1)
    run.learning_rate = rate = classifier.method_of(flags.tune, base.trained).rate(flags.optim)
    optim = dataclasses.replace(flags.optim, learning_rate=rate)
    data = load(flags, base.side)
    if flags.run.early_stopping is not None and "validation" not in data.rows:
        raise UsageError("--early-stopping: needs a --validation-split of more than 0 to watch.")
    training, validation = make_batches(flags, data)
    factors = classifier.multipliers(flags.tune, optim, base.trained)
    sizes: dict[str, Any] = {"examples": len(data.rows["train"]), "batch_size": flags.batch_size}
    with run.workers.scope():
        optimizer = scaled(make_optimizer(optim, run.count_steps(training), factors, **sizes))
        model = build(flags, base, data.names)
        compile_model(model, optimizer, run.jit)
    trained, everything = methods.count_parameters(model)
    about = (
        f"{flags.backbone} ({base.source}), {flags.tune.method}: {trained:,} of {everything:,} parameters are trained, "
        f"{flags.optim.optimizer}; {len(data.rows['train']):,} pictures of {base.side} x {base.side} in "
        f"{len(data.names)} classes"
    )
    if not run.begin(model, training, about):
        return 0

    run.fit(model, training, validation, callbacks=methods.adapter_stats(run, training) if flags.tune.adapts else [])
    memory = peak_memory()
    save(run, flags, model, data)
    rows = data.rows["test"]
    scores = score_probabilities(predict_rows(model, data.x, rows, len(data.names)), data.y[rows])
    about_model = {"model": flags.backbone, "weights": base.source, "method": flags.tune.method, "side": base.side}
    size = {"peak_memory_mb": memory, "trained_parameters": trained, "parameters": everything}
    metrics = run.facts(about_model | size, measure(data.names, scores), describe_data(data))
    draw(run, data, scores)
    summary = f"test loss {scores.loss:.4f}, test accuracy {scores.accuracy:.4f}, macro-F1 {scores.macro_f1:.4f}"
    return run.finish(metrics, card(run.folder, run.command, flags.tune, metrics, data.names), summary)


def load(flags: Train, side: int) -> Album:
    """Returns the pictures that the flags name; prints where they come from if no folder was given."""
    found = album.load(flags.data, side)
    if flags.run.progress != "none":
        if flags.data.data in ("mnist5k", "digits"):
            print(f"data: {found.source}, as pictures.")
        if found.origins["test"].startswith("held out"):
            print(f"data: no test set; {len(found.rows['test']):,} pictures are held out of the training set for it.")
    return found


def make_batches(flags: Train, data: Album) -> tuple[Any, Any]:
    """Returns the batches for training and for validation, `None` if there are none."""
    rows, classes = data.rows["train"], len(data.names)
    weights = class_weights(data.y[rows], classes) if flags.class_weights else None
    targets = one_hot(data.y[rows], classes, flags.label_smoothing)
    seed, augment = flags.run.seed, flags.augment
    training = classifier.batches(data.x, rows, targets, flags.batch_size, seed, augment, weights)
    if "validation" not in data.rows:
        return training, None
    held = data.rows["validation"]
    return training, classifier.batches(data.x, held, one_hot(data.y[held], classes), flags.batch_size)


def build(flags: Train, base: backbones.Backbone, names: Sequence[str]) -> Any:
    """Returns the model that the flags describe, untrained, or with the adapter to start from."""
    adapter = flags.tune.adapter
    if adapter is not None:
        folder = adapter_files.folder_of(adapter)
        place = next((p for p in (folder, folder.parent) if (p / "labels.json").is_file()), None)
        if place is not None and read_names(place) != list(names):
            raise DataError(f"--adapter {adapter}: made for other labels, {', '.join(read_names(place))}.")
    return classifier.build(base, len(names), flags.dropout, flags.tune)


def compile_model(model: Any, optimizer: Any, jit: bool | str) -> None:
    """Compiles the classifier."""
    import keras

    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    metrics = ["accuracy", keras.metrics.F1Score("macro", name="macro_f1")]
    model.compile(optimizer=optimizer, loss=loss, metrics=metrics, jit_compile=jit)


def predict_rows(model: Any, x: Array, rows: Array, classes: int, batch_size: int = 64) -> Array:
    """Returns the probabilities [row, class] of some of the pictures."""
    found = [
        predict_probabilities(model, np.asarray(x[rows[i : i + 16 * batch_size]], np.float32), classes, batch_size)
        for i in range(0, len(rows), 16 * batch_size)
    ]
    return np.concatenate(found)


def measure(names: Sequence[str], scores: Scores) -> dict[str, Any]:
    """Returns the test metrics."""
    results = {"test_loss": scores.loss, "test_accuracy": scores.accuracy, "test_macro_f1": scores.macro_f1}
    return {**results, "test_recall": dict(zip(names, scores.recall, strict=True))}


def describe_data(data: Album) -> dict[str, Any]:
    """Returns where the three sets are from, and how large they are."""
    sizes = {f"{name}_examples": len(data.rows.get(name, ())) for name in ("train", "validation", "test")}
    origins = {f"{name}_data": data.origins.get(name) for name in ("validation", "test")}
    return {"data": data.source, **origins, **sizes}


def draw(run: Run, data: Album, scores: Scores) -> None:
    """Draws the confusion matrix and the worst errors on the test set, as files and for TensorBoard."""
    pictures = {"confusion": run.folder / "confusion.png", "errors": run.folder / "errors.png"}
    x, y = data.part("test")
    title = f"{scores.accuracy:.2%} of {len(y):,} test pictures"
    plots.plot_confusion(pictures["confusion"], scores.confusion, data.names, title)
    plots.plot_errors(pictures["errors"], x, y, scores.probabilities, data.names, "Worst test errors")
    run.tracking.images(pictures)
    if len(data.names) <= MOST_CURVES:
        run.tracking.pr_curves(y, scores.probabilities, data.names)


def save(run: Run, flags: Train, model: Any, data: Album) -> None:
    """Writes the names of the classes, which pictures the model has learnt from, adapter and model."""
    write_names(run.folder, data.names)
    leakage.write_rows(run.folder, album.fingerprints(data.x, data.rows["train"]))
    if flags.tune.adapts:
        adapter_files.save(model, run.folder / "adapter")
        write_names(run.folder / "adapter", data.names)
    run.save_model(whole_model(flags, model))


def whole_model(flags: Train, model: Any) -> Any:
    """Returns the model to save as model.keras, the adapter merged into it; `None` if the adapter alone is saved."""
    if not flags.tune.adapts:
        return model
    from kopt import peft

    return peft.merge_and_unload(model) if flags.tune.merge else None


def restore(folder: Path) -> tuple[Train, list[str], Any]:
    """Returns flags, classes and classifier of a run.

    Raises:
        DataError: the folder holds no complete run, or not what it should.
    """
    flags: Train = read_flags(folder, Train)
    flags = dataclasses.replace(flags, run=dataclasses.replace(flags.run, progress="none"))
    names = read_names(folder)
    prepare(flags.run)
    if (folder / "model.keras").is_file():
        if flags.backbone not in (SMALL, LITE):
            backbones.import_keras_hub()
        return flags, names, load_model(folder)
    base = backbones.load(flags.backbone, flags.weights, flags.image_size)
    start = dataclasses.replace(flags, tune=dataclasses.replace(flags.tune, adapter=folder))
    return flags, names, build(start, base, names)


def evaluate(flags: Evaluate) -> int:
    """Prints the test metrics of a run as JSON; returns the exit code."""
    refuse(flags, ("on_bad_row",), flags.test_data is None and "without --test-data")
    trained, names, model = restore(flags.model)
    side = model.input_shape[1]
    if flags.test_data is None:
        found = load(trained, side)
        if found.names != names:
            raise DataError(f"{flags.model}: its data has other labels now: {', '.join(found.names)}.")
        x, rows, y, source = found.x, found.rows["test"], found.y, found.origins["test"]
    else:
        data = dataclasses.replace(trained.data, on_bad_row=flags.on_bad_row or trained.data.on_bad_row)
        x, y, source = album.read_test(flags.test_data, data, names, side)
        rows = np.arange(len(x))
    scores = score_probabilities(_predict(model, x, rows, names), y[rows])
    learnt = leakage.count_learnt(flags.model, album.fingerprints(x, rows))
    facts = {"data": source, "test_examples": len(rows), "examples_learnt_from": learnt}
    print(json.dumps(measure(names, scores) | facts, indent=2))
    return 0


def predict(flags: Predict) -> int:
    """Prints each picture with its most probable classes; returns the exit code."""
    files = [file for path in flags.files for file in album.pictures_in(path)]
    if not files:
        raise UsageError("predict: give at least one picture, or a folder of pictures.")
    _, names, model = restore(flags.model)
    side = model.input_shape[1]
    for start in range(0, len(files), 64):
        part = files[start : start + 64]
        x = np.stack([album.read_picture(file, side) for file in part])
        for file, row in zip(part, _predict(model, x, np.arange(len(x)), names), strict=True):
            best = row.argsort(kind="stable")[::-1][: flags.top]
            print("\t".join([str(file), *(f"{names[k]}\t{row[k]:.4f}" for k in best)]))
    return 0


def _predict(model: Any, x: Array, rows: Array, names: Sequence[str]) -> Array:
    try:
        return predict_rows(model, x, rows, len(names))
    except ValueError as error:
        raise DataError(f"the model does not fit labels.json ({str(error).splitlines()[0]}).") from error


def export(flags: Export) -> int:
    """Writes the adapter of a run, or its whole model, to a folder; returns the exit code."""
    check_empty(flags.to)
    trained, names, model = restore(flags.model)
    if flags.merge:
        methods.check(TuneFlags(method=trained.tune.method, merge=True), classifier.METHODS, classifier.OWN)
    with new_folder(flags.to) as folder:
        if trained.tune.adapts and not flags.merge:
            shutil.copytree(flags.model / "adapter", folder, dirs_exist_ok=True)
        elif (flags.model / "model.keras").is_file():
            shutil.copy(flags.model / "model.keras", folder)
        else:
            from kopt import peft

            peft.merge_and_unload(model).save(folder / "model.keras")
        write_names(folder, names)
        shutil.copy(flags.model / "README.md", folder)
    print(f"exported to {flags.to}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv` (default: the program's arguments) and returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    start = functools.partial(train, arguments=arguments)
    commands: Commands = {Train: start, Evaluate: evaluate, Predict: predict, Export: export}
    return run_command("images", arguments, commands)

"""Text classification: fine-tune a pretrained language model, evaluate it, use it, export it.

python -m recipes.text_classification --train-file reviews.csv --method lora --epochs 3
python -m recipes.text_classification evaluate --model saved_models/text_classification/RUN
python -m recipes.text_classification predict --model saved_models/text_classification/RUN --text "Well made."
python -m recipes.text_classification export --model saved_models/text_classification/RUN --to adapter
"""

import dataclasses
import functools
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..readers import leakage
from ..readers.pretrained import Pretrained, library_versions
from ..run import plots
from ..run.batches import Array, one_hot
from ..run.command_line import Commands, run_command
from ..run.errors import DataError, UsageError
from ..run.facts import peak_memory
from ..run.fit import Run, prepare
from ..run.flags import Count, Fraction, OptionalFraction, OptionalPath, Range, RunFlags, RunPath
from ..run.folder import check_empty, load_model, new_folder, read_flags
from ..run.optimizer_flags import OptimizerFlags, make_optimizer, scaled
from ..run.scores import Scores, score_probabilities
from . import batches, corpus, labelled_texts, language_model, methods
from .card import card, tabulate_samples
from .corpus import Corpus, Split, TextFlags
from .labelled_texts import Texts
from .methods import AdapterFlags


@dataclasses.dataclass(frozen=True)
class Train:
    """Fine-tune a pretrained language model to classify texts."""

    model: str = "minilm"
    """minilm, the folder of a Hugging Face model, or a preset of KerasHub."""
    pooling: language_model.Pooling = "mean"
    """Input of the head: the mean over the tokens, or the model's own pooled output, as in Hugging Face's classes."""
    dropout: Fraction = 0.1
    """Dropout rate before the head, and before the low-rank products of lora and dora."""
    backbone_dropout: OptionalFraction = None
    """Dropout rate within the pretrained model. Default: its own."""
    max_length: Annotated[int, Range(3)] = 128
    """Largest number of tokens of a text; longer texts are truncated."""
    class_weights: bool = False
    """Weight the examples by the inverse frequency of their class."""
    epochs: Count = 3
    """Passes over the training set."""
    batch_size: Count = 16
    """Texts per step."""
    data: TextFlags = dataclasses.field(default_factory=TextFlags)
    tune: AdapterFlags = dataclasses.field(default_factory=AdapterFlags)
    optim: OptimizerFlags = dataclasses.field(
        default_factory=lambda: OptimizerFlags(optimizer="adamw", lr_schedule="linear", warmup="6%")
    )
    run: RunFlags = dataclasses.field(default_factory=RunFlags)


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Print the test metrics of a run as JSON."""

    model: RunPath
    """Folder of a run."""
    test_file: OptionalPath = None
    """Test file with the columns of the training file. Default: the test set of the run."""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Print each text with its most probable labels and their probabilities, separated by tabs."""

    model: RunPath
    """Folder of a run."""
    text: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A text; can be repeated."""
    text_pair: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """The second text for each --text, for a run on pairs of texts."""
    file: OptionalPath = None
    """More texts: a file of rows, as for train, with the columns of the run, or a .txt file with a text a line."""
    top: Count = 5
    """At most this many labels, the most probable first."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Copy the adapter of a run to a folder, or the whole model as model.keras if the run has no adapter."""

    model: RunPath
    """Folder of a run."""
    to: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder to write, which must be empty or new."""
    merge: bool = False
    """Write the model with the adapter merged into it instead."""


def load(flags: Train) -> Corpus:
    """Returns the examples that the flags name; prints where they come from if no file was given."""
    found = corpus.load(flags.data)
    if flags.run.progress != "none":
        if flags.data.train_file is None and flags.data.dataset is None:
            print(f"data: no --train-file; {found.source}.")
        if found.origins["test"].startswith("held out"):
            print(f"data: no test set; {len(found.test):,} texts are held out of the training set for it.")
    return found


def build(flags: Train, pretrained: Pretrained, names: Sequence[str]) -> Any:
    """Returns the model that the flags describe, untrained, or with the adapter to start from."""
    adapter = flags.tune.adapter
    if adapter is not None:
        place = methods.labels_of(adapter)
        if place is not None and corpus.read_names(place) != list(names):
            raise DataError(f"--adapter {adapter}: made for other labels, {', '.join(corpus.read_names(place))}.")
    length = flags.max_length + methods.virtual_tokens(flags.tune)
    backbone = language_model.load_backbone(pretrained, length, flags.backbone_dropout)
    model = language_model.build(backbone, len(names), flags.dropout, flags.pooling)
    if adapter is not None:
        methods.load_adapter(model, adapter, flags.tune.method, pretrained)
    else:
        methods.add_adapter(model, flags.tune, flags.dropout, pretrained)
    return model


def train(flags: Train, arguments: Sequence[str] | None = None) -> int:
    """Trains and saves a model; returns the exit code. `arguments` are those of the command line, for the card."""
    corpus.check(flags.data)
    methods.check(flags.tune)
    if flags.run.early_stopping is not None and not flags.data.validates:
        raise UsageError("--early-stopping: needs a --validation-split of more than 0 to watch.")
    flags = dataclasses.replace(flags, data=corpus.choose(flags.data))
    label = f"{flags.tune.method}-{flags.optim.optimizer}"
    with Run("text_classification", flags, arguments, label) as run:
        return train_in(run, flags)


def train_in(run: Run, flags: Train) -> int:
    """Trains and saves a model in the folder of a run; returns the exit code."""
    run.learning_rate = rate = methods.learning_rate(flags.tune, flags.optim)
    optim = dataclasses.replace(flags.optim, learning_rate=rate)
    multipliers = methods.multipliers(flags.tune, optim)
    pretrained = language_model.find_model(flags.model)
    data = load(flags)
    tokenizer, classes = language_model.Tokenizer(pretrained), len(data.names)
    training, validation = make_batches(flags, data, tokenizer)
    sizes: dict[str, Any] = {"examples": len(data.train), "batch_size": flags.batch_size}
    with run.workers.scope():
        optimizer = scaled(make_optimizer(optim, run.count_steps(training), multipliers, **sizes))
        model = build(flags, pretrained, data.names)
        compile_model(model, optimizer, run.jit)
    trained, everything = methods.count_parameters(model)
    about = (
        f"{flags.model}, {flags.tune.method}: {trained:,} of {everything:,} parameters are trained, "
        f"{flags.optim.optimizer}; {len(data.train):,} texts in {classes} classes"
    )
    if not run.begin(model, training, about):
        return 0

    run.fit(model, training, validation, callbacks=make_callbacks(run, training))
    memory = peak_memory()
    save(run, model, pretrained, data)
    run.save_model(whole_model(flags, model))
    test = tokenizer(data.test.texts.texts, data.test.texts.pairs, flags.max_length)
    scores = score_probabilities(batches.predict(model, test, classes), data.test.y)
    size = {"peak_memory_mb": memory, "trained_parameters": trained, "parameters": everything}
    about_model = {"model": flags.model, "base": methods.base_name(pretrained), "method": flags.tune.method}
    metrics = run.facts(
        about_model | size,
        measure(data.names, scores),
        describe_data(data),
        library_versions(pretrained),
    )
    draw(run, data, scores)
    summary = f"test loss {scores.loss:.4f}, test accuracy {scores.accuracy:.4f}, macro-F1 {scores.macro_f1:.4f}"
    text = card(run.folder, run.command, flags, metrics, data.names)
    return run.finish(metrics, text, summary)


def describe_data(data: Corpus) -> dict[str, Any]:
    """Returns where the three sets are from, and how large they are."""
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    sizes = {f"{name}_examples": 0 if part is None else len(part) for name, part in parts.items()}
    origins = {f"{name}_data": data.origins.get(name) for name in ("validation", "test")}
    return {"data": data.source, **origins, **sizes}


def make_batches(flags: Train, data: Corpus, tokenizer: batches.Encode) -> tuple[Any, Any]:
    """Returns the batches for training and for validation, `None` if there are none."""

    def encode(part: Split) -> tuple[batches.Encoded, Array]:
        texts = part.texts
        return tokenizer(texts.texts, texts.pairs, flags.max_length), one_hot(part.y, len(data.names))

    weights = batches.class_weights(data.train.y, len(data.names)) if flags.class_weights else None
    training = batches.batches(*encode(data.train), flags.batch_size, shuffle_seed=flags.run.seed, weights=weights)
    return training, None if data.validation is None else batches.batches(*encode(data.validation), 64)


def compile_model(model: Any, optimizer: Any, jit: bool | str) -> None:
    """Compiles the classifier."""
    import keras

    model.compile(
        optimizer=optimizer,
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy", keras.metrics.F1Score("macro", name="macro_f1")],
        jit_compile=jit,
    )


def make_callbacks(run: Run, training: Any) -> list[Any]:
    """Returns the callback that logs the adapter, if there is one."""
    from kopt.tensorboard import AdapterStats

    every, tracking = run.points(run.count_steps(training)), run.tracking
    return [AdapterStats(tracking.log_dir, every, log=tracking.log)] if run.flags.tune.adapts else []


def measure(names: Sequence[str], scores: Scores) -> dict[str, Any]:
    """Returns the test metrics."""
    results = {"test_loss": scores.loss, "test_accuracy": scores.accuracy, "test_macro_f1": scores.macro_f1}
    return {**results, "test_recall": dict(zip(names, scores.recall, strict=True))}


def draw(run: Run, data: Corpus, scores: Scores) -> None:
    """Draws the confusion matrix, and logs it, curves of precision over recall and samples for TensorBoard."""
    picture = run.folder / "confusion.png"
    title = f"{scores.accuracy:.2%} of {len(data.test):,} test texts"
    plots.plot_confusion(picture, scores.confusion, data.names, title)
    run.tracking.images({"confusion": picture})
    run.tracking.pr_curves(data.test.y, scores.probabilities, data.names)
    run.tracking.texts({"samples": tabulate_samples(data.test, data.names, scores.probabilities)})


def save(run: Run, model: Any, pretrained: Pretrained, data: Corpus) -> None:
    """Writes the names of the classes, which texts the model has learnt from, and the adapter if there is one."""
    names = data.names
    corpus.write_names(run.folder, names)
    leakage.write_rows(run.folder, corpus.fingerprints(data.train.texts))
    if run.flags.tune.adapts:
        methods.save_adapter(model, run.folder / "adapter", pretrained, run.flags.tune.method)
        corpus.write_names(run.folder / "adapter", names)


def whole_model(flags: Train, model: Any) -> Any:
    """Returns the model to save as model.keras; `None` if the adapter alone is saved."""
    if not flags.tune.adapts:
        return language_model.flatten_backbone(model)
    return methods.merge(model) if flags.tune.merge else None


def restore(folder: Path) -> tuple[Train, list[str], Pretrained, Any]:
    """Returns flags, classes, language model and classifier of a run.

    Raises:
        DataError: the folder holds no complete run, or not what it should.
    """
    flags: Train = read_flags(folder, Train)
    flags = dataclasses.replace(flags, run=dataclasses.replace(flags.run, progress="none"))
    names = corpus.read_names(folder)
    prepare(flags.run)
    pretrained = language_model.find_model(flags.model)
    if (folder / "model.keras").is_file():
        import keras_hub  # noqa: F401  # Keras asks for its layers

        return flags, names, pretrained, load_model(folder)
    start = dataclasses.replace(flags, tune=dataclasses.replace(flags.tune, adapter=folder))
    return flags, names, pretrained, build(start, pretrained, names)


def evaluate(flags: Evaluate) -> int:
    """Prints the test metrics of a run as JSON; returns the exit code."""
    trained, names, pretrained, model = restore(flags.model)
    if flags.test_file is None:
        found = load(trained)
        if found.names != names:
            raise DataError(f"{flags.model}: its data has other labels now: {', '.join(found.names)}.")
        split, source = found.test, found.origins["test"]
    else:
        data = trained.data
        texts = labelled_texts.read_table(flags.test_file, data.columns, data.on_bad_row, data.form)
        texts = corpus.rename_labels(texts, corpus.rename(data))
        texts = corpus.keep_known_labels(texts, names, trained.data.on_bad_row)
        split, source = corpus.number_labels(texts, names), texts.source
    scores = score_probabilities(_predict(trained, pretrained, model, split.texts, names), split.y)
    learnt = leakage.count_learnt(flags.model, corpus.fingerprints(split.texts))
    facts = {"data": source, "test_examples": len(split), "examples_learnt_from": learnt}
    print(json.dumps(measure(names, scores) | facts, indent=2))
    return 0


def predict(flags: Predict) -> int:
    """Prints each text with its most probable labels; returns the exit code."""
    if not flags.text and flags.file is None:
        raise UsageError("predict: give at least one --text, or a --file.")
    if not all(text.strip() for text in (*flags.text, *flags.text_pair)):
        raise UsageError("--text: is empty.")
    trained, names, pretrained, model = restore(flags.model)
    texts = read_texts(flags, trained)
    probabilities = _predict(trained, pretrained, model, texts, names)
    for i, row in enumerate(probabilities):
        best = row.argsort(kind="stable")[::-1][: flags.top]
        parts = [texts.texts[i], *([] if texts.pairs is None else [texts.pairs[i]])]
        cells = [" ".join(part.split()) for part in parts] + [f"{names[k]}\t{row[k]:.4f}" for k in best]
        print("\t".join(cells))
    return 0


def read_texts(flags: Predict, trained: Train) -> Texts:
    """Returns the texts to classify.

    Args:
        flags: which texts.
        trained: flags of the run.

    Raises:
        UsageError: a second text is missing, or given although the run takes none.
        DataError: the file cannot be read.
    """
    paired = trained.data.text_pair_column is not None
    if len(flags.text_pair) != (len(flags.text) if paired else 0):
        wanted = "one for each --text" if paired else "none, as the run has no --text-pair-column"
        raise UsageError(f"--text-pair: given {len(flags.text_pair)} times; expected {wanted}.")
    texts = Texts(list(flags.text), list(flags.text_pair) if paired else None, None, [], "--text")
    if flags.file is None:
        return texts
    columns = trained.data.columns._replace(label=None)
    more = labelled_texts.read_texts(flags.file, columns, trained.data.on_bad_row, trained.data.form)
    pairs = None if texts.pairs is None else texts.pairs + (more.pairs or [])
    return dataclasses.replace(texts, texts=texts.texts + more.texts, pairs=pairs)


def _predict(trained: Train, pretrained: Pretrained, model: Any, texts: Texts, names: Sequence[str]) -> Array:
    encoded = language_model.Tokenizer(pretrained)(texts.texts, texts.pairs, trained.max_length)
    try:
        return batches.predict(model, encoded, len(names))
    except ValueError as error:
        raise DataError(f"the model does not fit labels.json ({str(error).splitlines()[0]}).") from error


def export(flags: Export) -> int:
    """Writes the adapter of a run, or its whole model, to a folder; returns the exit code."""
    check_empty(flags.to)
    trained, names, _, model = restore(flags.model)
    if flags.merge:
        methods.check(AdapterFlags(method=trained.tune.method, merge=True))
    with new_folder(flags.to) as folder:
        if trained.tune.adapts and not flags.merge:
            shutil.copytree(flags.model / "adapter", folder, dirs_exist_ok=True)
        elif (flags.model / "model.keras").is_file():
            shutil.copy(flags.model / "model.keras", folder)
        else:
            methods.merge(model).save(folder / "model.keras")
        corpus.write_names(folder, names)
        shutil.copy(flags.model / "README.md", folder)
    print(f"exported to {flags.to}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv` (default: the program's arguments) and returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    start = functools.partial(train, arguments=arguments)
    commands: Commands = {Train: start, Evaluate: evaluate, Predict: predict, Export: export}
    return run_command("text_classification", arguments, commands)

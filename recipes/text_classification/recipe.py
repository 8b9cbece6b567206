"""Texts to classes, labels or numbers: fine-tune a pretrained language model, evaluate it, use it, export it.

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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..fine_tuning.methods import adapter_stats
from ..readers import leakage
from ..readers.pretrained import Pretrained, library_versions
from ..readers.records import OptionalPolicy
from ..run.batches import Array
from ..run.command_line import Commands, run_command
from ..run.errors import DataError, UsageError
from ..run.facts import peak_memory
from ..run.fit import Run, prepare
from ..run.flags import (
    Count,
    Fraction,
    OptionalFraction,
    OptionalNumber,
    OptionalPath,
    Range,
    RunFlags,
    RunPath,
    check_texts,
    refuse,
)
from ..run.folder import check_empty, load_model, new_folder, read_flags
from ..run.optimizer_flags import OptimizerFlags, make_optimizer, scaled
from . import batches, corpus, labelled_texts, language_model, methods, tasks
from .card import card
from .corpus import Corpus, Split, TextFlags
from .labelled_texts import Texts
from .labels import Labels, rename
from .methods import AdapterFlags
from .tasks import SingleLabel


@dataclasses.dataclass(frozen=True)
class Train:
    """Fine-tune a pretrained language model to classify texts, or to give them labels or a number."""

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
    on_bad_row: OptionalPolicy = None
    """As for train, of --test-file. Default: as the run."""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Print each text with its most probable labels and their probabilities, or its number, separated by tabs."""

    model: RunPath
    """Folder of a run."""
    text: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A text; can be repeated."""
    text_pair: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """The second text for each --text, for a run on pairs of texts."""
    file: OptionalPath = None
    """More texts: a file of rows, as for train, with the columns of the run, or a .txt file with a text a line."""
    on_bad_row: OptionalPolicy = None
    """As for train, of --file. Default: as the run."""
    top: Count = 5
    """At most this many labels, the most probable first."""
    threshold: Annotated[OptionalNumber, Range(0, 1)] = None
    """Where a text may have several labels: print those of at least this probability (default 0.5)."""


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
        if flags.data.wanted == "auto" and found.labels.task != "single-label":
            why = "some labels are lists" if found.names else "the labels are numbers, some with fractions"
            print(f"data: {why}: --task {found.labels.task}; --task single-label would make classes of them.")
        if found.origins["test"].startswith("held out"):
            print(f"data: no test set; {len(found.test):,} texts are held out of the training set for it.")
        if found.unseen:
            print(f"data: no text of the training set is labelled {', '.join(found.unseen[:5])}: it is never learnt.")
    return found


def build(flags: Train, pretrained: Pretrained, labels: Labels) -> Any:
    """Returns the model that the flags describe, untrained, or with the adapter to start from."""
    adapter = flags.tune.adapter
    if adapter is not None:
        place = methods.labels_of(adapter)
        if place is not None and not (made := Labels.read(place)).same_as(labels):
            raise DataError(f"--adapter {adapter}: made for other labels, {made}.")
    virtual = methods.virtual_tokens(flags.tune)
    backbone = language_model.load_backbone(pretrained, flags.max_length, flags.backbone_dropout, virtual)
    scale = (labels.deviation, labels.mean) if labels.task == "regression" else None
    model = language_model.build(backbone, labels.outputs, flags.dropout, flags.pooling, scale)
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
    if flags.class_weights:
        tasks.check_class_weights(data.labels)
    tokenizer, task = language_model.Tokenizer(pretrained), tasks.task_of(data.labels)
    training, validation = make_batches(flags, data, task, tokenizer)
    sizes: dict[str, Any] = {"examples": len(data.train), "batch_size": flags.batch_size}
    with run.workers.scope():
        optimizer = scaled(make_optimizer(optim, run.count_steps(training), multipliers, **sizes))
        model = build(flags, pretrained, data.labels)
        task.compile(model, optimizer, run.jit)
    trained, everything = methods.count_parameters(model)
    if not run.begin(model, training, describe(flags, data, trained, everything)):
        return 0

    run.fit(
        model,
        training,
        validation,
        measure=validator(flags, data.validation, task, tokenizer, model),
        callbacks=adapter_stats(run, training) if flags.tune.adapts else [],
        metric=task.metric,
    )
    memory = peak_memory()
    save(run, model, pretrained, data)
    run.save_model(whole_model(flags, model))
    found = task.predict(model, encode(flags, data.test, tokenizer))
    results = {f"test_{name}": value for name, value in task.measure(found, data.test.y).items()}
    size = {"peak_memory_mb": memory, "trained_parameters": trained, "parameters": everything}
    about = {"model": flags.model, "base": methods.base_name(pretrained), "method": flags.tune.method}
    metrics = run.facts(
        about | {"task": data.labels.task} | size,
        results,
        describe_data(data),
        library_versions(pretrained),
    )
    task.draw(run, data.test, found)
    text = card(run.folder, run.command, flags, metrics, data.labels, task.figures, task.notes(metrics))
    shown = ("loss", *(name for name in task.figures if name != "loss"))
    return run.finish(metrics, text, ", ".join(f"test {task.figures[n]} {results[f'test_{n}']:.4f}" for n in shown))


def describe(flags: Train, data: Corpus, trained: int, everything: int) -> str:
    """Returns in one line what is trained."""
    names = data.names
    of = {"single-label": f"in {len(names)} classes", "multi-label": f"with {len(names)} labels"}
    labels = data.labels
    range_of = f"with numbers of {labels.mean:.4g} ± {labels.deviation:.4g}"
    return (
        f"{flags.model}, {flags.tune.method}: {trained:,} of {everything:,} parameters are trained, "
        f"{flags.optim.optimizer}; {len(data.train):,} texts {of.get(labels.task, range_of)}"
    )


def describe_data(data: Corpus) -> dict[str, Any]:
    """Returns where the three sets are from, and how large they are."""
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    sizes = {f"{name}_examples": 0 if part is None else len(part) for name, part in parts.items()}
    origins = {f"{name}_data": data.origins.get(name) for name in ("validation", "test")}
    return {"data": data.source, **origins, **sizes}


def encode(flags: Train, part: Split, tokenizer: batches.Encode) -> batches.Encoded:
    """Returns the texts as token ids."""
    return tokenizer(part.texts.texts, part.texts.pairs, flags.max_length)


def make_batches(flags: Train, data: Corpus, task: SingleLabel, tokenizer: batches.Encode) -> tuple[Any, Any]:
    """Returns the batches for training and for validation, `None` if there are none."""

    def pair(part: Split) -> tuple[batches.Encoded, Array]:
        return encode(flags, part, tokenizer), task.targets(part.y)

    weights = batches.class_weights(data.train.y, len(data.names)) if flags.class_weights else None
    training = batches.batches(*pair(data.train), flags.batch_size, shuffle_seed=flags.run.seed, weights=weights)
    return training, None if data.validation is None else batches.batches(*pair(data.validation), 64)


def validator(
    flags: Train, part: Split | None, task: SingleLabel, tokenizer: batches.Encode, model: Any
) -> Callable[[], dict[str, float]] | None:
    """Returns what measures the model on the validation set beyond the means over batches; `None` if nothing does."""
    if part is None or task.labels.task == "single-label":
        return None
    return functools.partial(task.validate, model, encode(flags, part, tokenizer), part.y)


def save(run: Run, model: Any, pretrained: Pretrained, data: Corpus) -> None:
    """Writes what the outputs mean, which texts the model has learnt from, and the adapter if there is one."""
    data.labels.write(run.folder)
    leakage.write_rows(run.folder, corpus.fingerprints(data.train.texts))
    if run.flags.tune.adapts:
        methods.save_adapter(model, run.folder / "adapter", pretrained, run.flags.tune.method)
        data.labels.write(run.folder / "adapter")


def whole_model(flags: Train, model: Any) -> Any:
    """Returns the model to save as model.keras; `None` if the adapter alone is saved."""
    if not flags.tune.adapts:
        return language_model.flatten_backbone(model)
    return methods.merge(model) if flags.tune.merge else None


def restore(folder: Path) -> tuple[Train, Labels, Pretrained, Any]:
    """Returns flags, labels, language model and classifier of a run.

    Raises:
        DataError: the folder holds no complete run, or not what it should.
    """
    flags: Train = read_flags(folder, Train)
    labels = Labels.read(folder)
    flags = dataclasses.replace(
        flags,
        run=dataclasses.replace(flags.run, progress="none"),
        data=dataclasses.replace(flags.data, task=labels.task),  # what "auto" has come to
    )
    prepare(flags.run)
    pretrained = language_model.find_model(flags.model)
    if (folder / "model.keras").is_file():
        import keras_hub  # noqa: F401  # Keras asks for its layers

        return flags, labels, pretrained, load_model(folder)
    start = dataclasses.replace(flags, tune=dataclasses.replace(flags.tune, adapter=folder))
    return flags, labels, pretrained, build(start, pretrained, labels)


def evaluate(flags: Evaluate) -> int:
    """Prints the test metrics of a run as JSON; returns the exit code."""
    refuse(flags, ("on_bad_row",), flags.test_file is None and "without --test-file")
    trained, labels, pretrained, model = restore(flags.model)
    if flags.test_file is None:
        found = load(trained)
        if not found.labels.same_as(labels):
            raise DataError(f"{flags.model}: its data has other labels now: {found.labels}.")
        split, source = found.test, found.origins["test"]
    else:
        data, policy = trained.data, flags.on_bad_row or trained.data.on_bad_row
        texts = labelled_texts.read_table(flags.test_file, data.columns, policy, data.form)
        texts = corpus.rename_labels(texts, rename(data.label_names))
        texts = corpus.keep_known_labels(texts, labels, policy)
        split, source = corpus.number_labels(texts, labels), texts.source
    task = tasks.task_of(labels)
    results = task.measure(_predict(trained, pretrained, model, split.texts, task), split.y)
    learnt = leakage.count_learnt(flags.model, corpus.fingerprints(split.texts))
    facts = {"data": source, "test_examples": len(split), "examples_learnt_from": learnt}
    print(json.dumps({f"test_{name}": value for name, value in results.items()} | facts, indent=2))
    return 0


def predict(flags: Predict) -> int:
    """Prints each text with its most probable labels, or its number; returns the exit code."""
    if not flags.text and flags.file is None:
        raise UsageError("predict: give at least one --text, or a --file.")
    refuse(flags, ("on_bad_row",), flags.file is None and "without --file")
    check_texts("--text", flags.text)
    check_texts("--text-pair", flags.text_pair)
    trained, labels, pretrained, model = restore(flags.model)
    refuse(flags, ("threshold",), labels.task != "multi-label" and f"with --task {labels.task}")
    refuse(flags, ("top",), labels.task == "regression" and "with --task regression")
    texts, task = read_texts(flags, trained), tasks.task_of(labels)
    threshold = tasks.LIKELY if flags.threshold is None else flags.threshold
    for i, row in enumerate(_predict(trained, pretrained, model, texts, task)):
        parts = [texts.texts[i], *([] if texts.pairs is None else [texts.pairs[i]])]
        print("\t".join([" ".join(part.split()) for part in parts] + task.cells(row, flags.top, threshold)))
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
    policy = flags.on_bad_row or trained.data.on_bad_row
    more = labelled_texts.read_texts(flags.file, columns, policy, trained.data.form)
    pairs = None if texts.pairs is None else texts.pairs + (more.pairs or [])
    return dataclasses.replace(texts, texts=texts.texts + more.texts, pairs=pairs)


def _predict(trained: Train, pretrained: Pretrained, model: Any, texts: Texts, task: SingleLabel) -> Array:
    encoded = language_model.Tokenizer(pretrained)(texts.texts, texts.pairs, trained.max_length)
    try:
        return task.predict(model, encoded)
    except ValueError as error:
        raise DataError(f"the model does not fit labels.json ({str(error).splitlines()[0]}).") from error


def export(flags: Export) -> int:
    """Writes the adapter of a run, or its whole model, to a folder; returns the exit code."""
    check_empty(flags.to)
    trained, labels, _, model = restore(flags.model)
    if flags.merge:
        methods.check(AdapterFlags(method=trained.tune.method, merge=True))
    with new_folder(flags.to) as folder:
        if trained.tune.adapts and not flags.merge:
            shutil.copytree(flags.model / "adapter", folder, dirs_exist_ok=True)
        elif (flags.model / "model.keras").is_file():
            shutil.copy(flags.model / "model.keras", folder)
        else:
            methods.merge(model).save(folder / "model.keras")
        labels.write(folder)
        shutil.copy(flags.model / "README.md", folder)
    print(f"exported to {flags.to}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv` (default: the program's arguments) and returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    start = functools.partial(train, arguments=arguments)
    commands: Commands = {Train: start, Evaluate: evaluate, Predict: predict, Export: export}
    return run_command("text_classification", arguments, commands)

"""Texts in classes: fine-tune a pretrained language model, evaluate it, use it, pass it on.

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

from recipes import _adapters, _cli, _data, _language, _plots, _run, _tables, _text
from recipes._adapters import AdapterFlags
from recipes._cli import DataError, UsageError
from recipes._optimizer import OptimizerFlags, make_optimizer
from recipes._run import OptionalPath, RunFlags
from recipes._text import TextFlags
from recipes._text_card import card, samples

RECIPE = "text_classification"
RunPath = Annotated[Path, tyro.conf.arg(metavar="RUN")]


@dataclasses.dataclass(frozen=True)
class Train:
    """Fine-tune a pretrained language model to tell classes of texts apart.

    Without files the docstrings of installed packages are the texts and the packages are the classes.
    """

    model: str = "minilm"
    """minilm, the folder of a Hugging Face model, or a preset of KerasHub."""
    pooling: _language.Pooling = "mean"
    """What the head sees: the mean over the tokens, or the model's own pooled output, as in Hugging Face's classes."""
    dropout: float = 0.1
    """Share of the features dropped before the head, and before each product of lora and dora."""
    max_length: int = 128
    """Tokens of the longest text; more are cut off."""
    class_weights: bool = False
    """Weigh examples by the inverse frequency of their class."""
    epochs: int = 3
    """Passes over the training set."""
    batch_size: int = 16
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
    """File with the columns that the run was trained on; None is the test set of the run."""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Print each text, its likeliest labels and their probabilities, separated by tabs."""

    model: RunPath
    """Folder of a run."""
    text: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A text; can be repeated."""
    text_pair: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """The second text of each --text, for a run on pairs."""
    file: OptionalPath = None
    """More texts: CSV, TSV, JSONL or Parquet with the columns of the run, or another file with a text in each line."""
    top: int = 5
    """So many labels, the likeliest first."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Copy what a run learnt to a folder: the adapter, or the whole model as model.keras where there is none."""

    model: RunPath
    """Folder of a run."""
    to: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder to write, which must be empty or new."""
    merge: bool = False
    """Write the model with the adapter merged into it instead."""


def load(flags: Train) -> _text.Corpus:
    """Returns the examples that the flags name, and says where they come from if that is not plain."""
    corpus = _text.load(flags.data, flags.run.seed)
    if flags.run.progress != "none":
        if flags.data.train_file is None and flags.data.dataset is None:
            print(f"data: no --train-file; {corpus.source}, with the package as the label.")
        if corpus.test is corpus.validation:
            print(f"data: no test set; the {len(corpus.test):,} texts for validation are the test.")
    return corpus


def build(flags: Train, pretrained: _language.Pretrained, names: Sequence[str]) -> Any:
    """Returns the model that the flags describe, untrained, or with the adapter to start from."""
    adapter = flags.tune.adapter
    if adapter is not None:
        place = _adapters.labels_of(adapter)
        if place is not None and _text.read_names(place) != list(names):
            raise DataError(f"--adapter {adapter}: made for other labels, {', '.join(_text.read_names(place))}.")
    backbone = _language.load_backbone(pretrained, flags.max_length + _adapters.virtual_tokens(flags.tune))
    model = _language.build(backbone, len(names), flags.dropout, flags.pooling)
    if adapter is not None:
        _adapters.load(model, adapter, flags.tune.method, pretrained)
    else:
        _adapters.add(model, flags.tune, flags.dropout, pretrained)
    return model


def train(flags: Train) -> int:
    """Trains and saves a model; returns the exit code."""
    _run.check_run_flags(flags.run)
    check_flags(flags)
    folder = _run.run_folder(flags.run, RECIPE, f"{flags.tune.method}-{flags.optim.optimizer}")
    _run.prepare(flags.run)
    import keras

    method, rate = flags.tune.method, _adapters.learning_rate(flags.tune, flags.optim)
    optim = dataclasses.replace(flags.optim, learning_rate=rate)
    multipliers = _adapters.multipliers(flags.tune, optim)
    pretrained = _language.find(flags.model)
    corpus = load(flags)
    encode, classes = _language.Tokenizer(pretrained), len(corpus.names)
    encoded = {id(part): encode(part.texts.texts, part.texts.pairs, flags.max_length) for part in _parts(corpus)}
    training = _text.batches(
        encoded[id(corpus.train)],
        _data.one_hot(corpus.train.y, classes),
        flags.batch_size,
        shuffle_seed=flags.run.seed,
        weights=_text.class_weights(corpus.train.y, classes) if flags.class_weights else None,
    )
    test, validation = (
        _text.batches(encoded[id(part)], _data.one_hot(part.y, classes), 64)
        for part in (corpus.test, corpus.validation)
    )
    steps = flags.epochs * len(training)
    optimizer = make_optimizer(optim, min(steps, flags.run.max_steps or steps), multipliers)

    model = build(flags, pretrained, corpus.names)
    trained, everything = _adapters.count(model)
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy", keras.metrics.F1Score("macro", name="macro_f1")],
        jit_compile=_run.JIT[flags.run.jit],
    )
    about = (
        f"{flags.model}, {method}: {trained:,} of {everything:,} parameters learn, {flags.optim.optimizer}; "
        f"{len(corpus.train):,} texts in {classes} classes"
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
        validation=None if corpus.test is corpus.validation else validation,
        ema=flags.optim.ema is not None,
        callbacks=_watching(flags, logs),
    )
    memory = _run.peak_memory()
    probabilities = _text.predict(model, encoded[id(corpus.test)], classes)
    scores = _run.score_probabilities(probabilities, corpus.test.y)
    results = {"test_loss": scores.loss, "test_accuracy": scores.accuracy, "test_macro_f1": scores.macro_f1}
    metrics = {
        "recipe": RECIPE,
        "model": flags.model,
        "method": method,
        "optimizer": flags.optim.optimizer.lower(),
        "learning_rate": rate,
        "epochs": len(result.history),
        **results,
        "test_recall": dict(zip(corpus.names, scores.recall, strict=True)),
        "train_seconds": round(result.seconds, 2),
        "peak_memory_mb": memory,
        "trained_parameters": trained,
        "parameters": everything,
        "base": _adapters.base_name(pretrained),
        "data": corpus.source,
        "train_examples": len(corpus.train),
        "test_examples": len(corpus.test),
        "seed": flags.run.seed,
        "best_epoch": result.best_epoch,
        "interrupted": result.interrupted,
        "versions": _run.versions() | _language.versions(pretrained),
    }
    result.stats.finish(results)
    title = f"{scores.accuracy:.2%} of {len(corpus.test):,} test texts"
    _plots.plot_confusion(folder / "confusion.png", scores.confusion, corpus.names, title)
    step = len(result.history)
    _plots.log_images(logs / "validation", {"confusion": folder / "confusion.png"}, step)
    _plots.log_pr_curves(logs / "validation", corpus.test.y, probabilities, corpus.names, step)
    _plots.log_texts(logs / "validation", {"samples": samples(corpus.test, corpus.names, probabilities)}, step)
    _text.write_names(folder, corpus.names)
    if flags.tune.adapts:
        _adapters.save(model, folder / "adapter", pretrained, method)
        _text.write_names(folder / "adapter", corpus.names)
    _run.save_run(folder, _whole(flags, model), metrics, result.history, card(folder, flags, metrics, corpus.names))
    if flags.run.progress != "none":
        print(
            f"test loss {scores.loss:.4f}, test accuracy {scores.accuracy:.4f}, macro-F1 {scores.macro_f1:.4f}; "
            f"saved in {folder}"
        )
    return 130 if result.interrupted else 0


def _parts(corpus: _text.Corpus) -> list[_text.Split]:
    shared = corpus.test is corpus.validation
    return [corpus.train, corpus.validation] + ([] if shared else [corpus.test])


def _watching(flags: Train, logs: Path) -> list[Any]:
    from kopt.tensorboard import AdapterStats

    return [AdapterStats(str(logs / "adapters"))] if flags.tune.adapts else []


def _whole(flags: Train, model: Any) -> Any:
    """Returns the model to save as a whole, if it is."""
    if not flags.tune.adapts:
        return _language.flat(model)
    return _adapters.merged(model) if flags.tune.merge else None


def check_flags(flags: Train) -> None:
    """Checks the numbers that a type cannot, and that each flag means something.

    Raises:
        UsageError: one is out of range, or means nothing.
    """
    _run.at_least("--epochs", flags.epochs, 1)
    _run.at_least("--batch-size", flags.batch_size, 1)
    _run.at_least("--max-length", flags.max_length, 3)
    if not 0 <= flags.dropout < 1:
        raise UsageError(f"--dropout {flags.dropout}: expected 0 or more and less than 1.")
    _text.check(flags.data)
    _adapters.check(flags.tune)


def restore(folder: Path) -> tuple[Train, list[str], _language.Pretrained, Any]:
    """Returns flags, classes, language model and classifier of a run.

    Raises:
        DataError: the folder holds no complete run, or not what it should.
    """
    if not (folder / "config.yaml").is_file() or not (folder / "metrics.json").is_file():
        raise DataError(f"{folder}: no complete run. Give a folder that train has left, as --model.")
    flags = _cli.parse(["--config", str(folder / "config.yaml")], {"train": Train}, "config.yaml")
    flags = dataclasses.replace(flags, run=dataclasses.replace(flags.run, progress="none"))
    names = _text.read_names(folder)
    _run.prepare(flags.run)
    pretrained = _language.find(flags.model)
    if (folder / "model.keras").is_file():
        import keras_hub  # noqa: F401  # Keras asks for its layers

        return flags, names, pretrained, _run.load_model(folder)
    start = dataclasses.replace(flags, tune=dataclasses.replace(flags.tune, adapter=folder))
    return flags, names, pretrained, build(start, pretrained, names)


def evaluate(flags: Evaluate) -> int:
    """Prints the test metrics of a run as JSON; returns the exit code."""
    was, names, pretrained, model = restore(flags.model)
    if flags.test_file is None:
        corpus = load(was)
        if corpus.names != names:
            raise DataError(f"{flags.model}: its data has other labels now: {', '.join(corpus.names)}.")
        split, source = corpus.test, corpus.source
    else:
        texts = _tables.read_table(flags.test_file, was.data.columns, was.data.on_bad_row)
        split, source = _text.split(_text.known_labels(texts, names, was.data.on_bad_row), names), texts.source
    scores = _run.score_probabilities(_probabilities(was, pretrained, model, split.texts, names), split.y)
    metrics = {
        "test_loss": scores.loss,
        "test_accuracy": scores.accuracy,
        "test_macro_f1": scores.macro_f1,
        "test_recall": dict(zip(names, scores.recall, strict=True)),
        "data": source,
        "test_examples": len(split),
    }
    print(json.dumps(metrics, indent=2))
    return 0


def predict(flags: Predict) -> int:
    """Prints each text with its likeliest labels; returns the exit code."""
    _run.at_least("--top", flags.top, 1)
    if not flags.text and flags.file is None:
        raise UsageError("predict: give at least one --text, or a --file.")
    if not all(text.strip() for text in (*flags.text, *flags.text_pair)):
        raise UsageError("--text: is empty.")
    was, names, pretrained, model = restore(flags.model)
    texts = _given(flags, was)
    probabilities = _probabilities(was, pretrained, model, texts, names)
    for i, row in enumerate(probabilities):
        best = row.argsort(kind="stable")[::-1][: flags.top]
        parts = [texts.texts[i], *([] if texts.pairs is None else [texts.pairs[i]])]
        cells = [" ".join(part.split()) for part in parts] + [f"{names[k]}\t{row[k]:.4f}" for k in best]
        print("\t".join(cells))
    return 0


def _given(flags: Predict, was: Train) -> _tables.Texts:
    """Returns the texts to predict."""
    paired = was.data.text_pair_column is not None
    if len(flags.text_pair) != (len(flags.text) if paired else 0):
        wanted = "one for each --text" if paired else "none, as the run has no --text-pair-column"
        raise UsageError(f"--text-pair: given {len(flags.text_pair)} times; expected {wanted}.")
    found = _tables.Texts(list(flags.text), list(flags.text_pair) if paired else None, None, [], "--text")
    if flags.file is None:
        return found
    read = _tables.read_texts(flags.file, was.data.columns._replace(label=None), was.data.on_bad_row)
    pairs = None if found.pairs is None else found.pairs + (read.pairs or [])
    return dataclasses.replace(found, texts=found.texts + read.texts, pairs=pairs)


def _probabilities(
    was: Train, pretrained: _language.Pretrained, model: Any, texts: _tables.Texts, names: Sequence[str]
) -> Any:
    encoded = _language.Tokenizer(pretrained)(texts.texts, texts.pairs, was.max_length)
    try:
        return _text.predict(model, encoded, len(names))
    except ValueError as error:
        raise DataError(f"the model does not fit labels.json ({str(error).splitlines()[0]}).") from error


def export(flags: Export) -> int:
    """Writes the adapter of a run, or its whole model, to a folder; returns the exit code."""
    if flags.to.exists() and (not flags.to.is_dir() or any(flags.to.iterdir())):
        raise UsageError(f"--to {flags.to}: is not an empty folder.")
    was, names, _, model = restore(flags.model)
    if flags.merge:
        _adapters.check(AdapterFlags(method=was.tune.method, merge=True))
    try:
        flags.to.parent.mkdir(parents=True, exist_ok=True)
        with _run.atomic_folder(flags.to) as folder:
            if was.tune.adapts and not flags.merge:
                shutil.copytree(flags.model / "adapter", folder, dirs_exist_ok=True)
            elif (flags.model / "model.keras").is_file():
                shutil.copy(flags.model / "model.keras", folder)
            else:
                _adapters.merged(model).save(folder / "model.keras")
            _text.write_names(folder, names)
            shutil.copy(flags.model / "README.md", folder)
    except OSError as error:
        raise UsageError(f"--to {flags.to}: {error.strerror}.") from error
    print(f"exported to {flags.to}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv` (default: the program's arguments) and returns the exit code."""
    return _cli.exit_code(functools.partial(_main, sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    commands = {"train": Train, "evaluate": Evaluate, "predict": Predict, "export": Export}
    flags = _cli.parse(argv, commands, f"python -m recipes.{RECIPE}")
    _cli.import_quietly()
    if isinstance(flags, Train):
        return train(flags)
    if isinstance(flags, Evaluate):
        return evaluate(flags)
    return predict(flags) if isinstance(flags, Predict) else export(flags)


if __name__ == "__main__":
    sys.exit(main())

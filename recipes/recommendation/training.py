"""What the training of the recipe is made of: models, adapters, batches, optimizers, and metrics."""

import dataclasses
import zlib
from typing import Any, NamedTuple

import keras
import numpy as np

import kopt
from kopt import peft

from ..run.batches import Array
from ..run.errors import DataError, UsageError
from ..run.optimizer_flags import OptimizerFlags, make_optimizer, scaled
from . import growth, ranking
from .batches import batches, windows
from .data.features import Feature, Sides, Table
from .data.interactions import Interactions, Vocabulary, in_order
from .data.splits import Data
from .flags import Train
from .models import Rater, Recommender, Retriever
from .saved_run import Saved
from .scoring import Scorer

TABLES = r"(^|/)(table|user_bias|item_bias)/"
ENCODERS = r"(^|.*\.)(users|items)\.table"


class Trial(NamedTuple):
    """A compiled model, what belongs to it, and its batches."""

    saved: Saved
    batches: Any


def start(flags: Train, data: Data, part: Interactions, jit: bool | str) -> Trial:
    """Returns a model for a part of the interactions, untrained or from the run of --adapt, and its batches.

    Args:
        flags: of the run.
        data: whose features count.
        part: the interactions to learn from.
        jit: as `compile` takes it.
    """
    keras.utils.set_random_seed(flags.run.seed)
    if flags.adapt is None:
        saved = Saved(build(flags, data, part), part.users, part.items, data.items.titles, meanings(flags, data), part)
    else:
        saved = adapt(flags, data, part)
    ready = make_batches(flags, part, saved.model, flags.run.seed)
    steps = min(flags.epochs * len(ready), flags.run.max_steps or flags.epochs * len(ready))
    optimizer = scaled(build_optimizer(flags, steps, len(ready), len(part)))
    compile_model(saved.model, optimizer, flags.choose.task == "rating", jit)
    return Trial(saved, ready)


def adapt(flags: Train, data: Data, part: Interactions) -> Saved:
    """Returns the run of --adapt with new users and items and with adapters, of which nothing is trained yet."""
    assert flags.adapt is not None
    old = Saved.load(flags.adapt)
    sizes, hashed = (len(old.users), len(old.items)), flags.choose.hash_buckets
    model: Any = growth.grow(
        old.model,
        (part.users, data.users),
        (part.items, data.items),
    )
    titles = old.titles + data.items.titles[len(old.titles) :]
    saved = Saved(model, part.users, part.items, titles, old.features, append(old.train, part))
    sides = (model.users, part.users), (model.items, part.items)
    for (encoder, known), mask in zip(sides, growth.seen(saved.train), strict=True):
        growth.share_rows(encoder, mask, _hash_rows(known, hashed))
    if part.label is not None and flags.choose.task == "rating":
        model.include(part.label)
        growth.settle_biases(model, part, saved.rate(part.user, part.item), sizes)
    elif flags.choose.task != "rating":
        model.share.assign(ranking.popularity(part) / len(part))
    add_adapters(model, flags.rank)
    return saved


def meanings(flags: Train, data: Data) -> Sides:
    """Returns the features that the model uses, without their values."""
    users, items = ([_meaning(f) for f in side] for side in _features(flags, data))
    return users, items


def _features(flags: Train, data: Data) -> tuple[list[Feature], list[Feature]]:
    """Returns the features of users and items that the model reads."""
    of_users = [] if flags.choose.kind in ("mf", "sasrec") else data.users.features
    return of_users, [] if flags.choose.kind == "mf" else data.items.features


def _meaning(feature: Feature) -> Feature:
    return dataclasses.replace(feature, values=feature.values[:0])


def build(flags: Train, data: Data, part: Interactions) -> Recommender:
    """Returns the model that the flags describe, untrained except for the biases and frequencies in a part."""
    choose = flags.choose
    encoders: list[Any] = []
    for known, features in zip((part.users, part.items), _features(flags, data), strict=True):
        sizes = [[len(f.keys), f.values.shape[1]] for f in features]
        size = {"size": len(known), "dim": choose.embedding_dim, "features": sizes, "buckets": choose.hash_buckets}
        encoders.append(size)
    options: dict[str, Any] = {
        "hidden": choose.hidden,
        "dropout": choose.dropout,
        "l2": choose.l2,
        "name": "recommendation",
    }
    model: Any
    if choose.task == "rating":
        assert part.label is not None
        scale = [float(part.label.min()), float(part.label.max())]
        model = Rater(choose.kind, encoders[0], encoders[1], scale=scale, **options)
        model.build()
        mean, user, item = ranking.fit_biases(part)
        model.mean.assign(mean)
        model.user_bias.embeddings.assign(user[:, None])
        model.item_bias.embeddings.assign(item[:, None])
    else:
        model = Retriever(choose.kind, encoders[0], encoders[1], length=choose.history, **options)
        model.build()
        model.share.assign(ranking.popularity(part) / len(part))
    for encoder, features in zip((model.users, model.items), _features(flags, data), strict=True):
        if encoder.built:
            encoder.describe(features)
    growth.begin_unseen(model, part, [_hash_rows(known, choose.hash_buckets) for known in (part.users, part.items)])
    return model


def _hash_rows(known: Vocabulary, buckets: int) -> Array | None:
    """Returns the table row of each number if ids share rows, else `None`."""
    if not buckets:
        return None
    return np.array([0, *(1 + zlib.crc32(key.encode()) % buckets for key in known.keys)], np.int32)


def add_adapters(model: Recommender, rank: int) -> Recommender:
    """Puts low-rank adapters on the tables of the model, freezes everything else, and returns the model."""
    options: dict[str, Any] = {"r": rank, "lora_alpha": float(rank), "target_modules": ENCODERS}
    peft.get_peft_model(model, peft.LoRA(**options))
    return model


def append(old: Interactions, new: Interactions) -> Interactions:
    """Returns the interactions of both, the old ones first."""
    rows = in_order(new)
    user, item = np.append(old.user, new.user[rows]), np.append(old.item, new.item[rows])
    return Interactions(new.users, new.items, user, item, None, None, new.source)


def make_batches(flags: Train, part: Interactions, model: Any, seed: int | None = None) -> Any:
    """Returns batches to train on, in a new random order in each epoch, or without a seed those to validate on."""
    assert flags.batch_size is not None
    size = flags.batch_size if seed is not None else 8192
    x = {"user": part.user, "item": part.item}
    if flags.choose.task == "rating":
        if part.label is None:
            raise DataError(f"{part.source}: no ratings.")
        return batches(x, part.label, size, seed)
    if model.looks_back:
        x = windows(part, flags.choose.history)
    return batches(x, np.zeros(len(x["user"]), np.float32), size, seed)


def build_optimizer(flags: Train, steps: int, batches_per_epoch: int = 1, examples: int | None = None) -> Any:
    """Returns the optimizer, which with --embedding-optimizer has two parts: for the tables and for the rest.

    Args:
        flags: the flags.
        steps: batches of the whole training.
        batches_per_epoch: batches of an epoch.
        examples: interactions of an epoch; sequences are as many as fill the batches.

    Raises:
        UsageError: a name, option or value is wrong.
    """
    if flags.embedding_optimizer is None:
        if flags.choose.task != "rating":
            examples = batches_per_epoch * (flags.batch_size or 1)
        return make_optimizer(flags.optim, steps, examples=examples, batch_size=flags.batch_size)
    outer: dict[str, Any] = {
        "global_clipnorm": flags.optim.clip_norm,
        "gradient_accumulation_steps": flags.optim.grad_accum if flags.optim.grad_accum > 1 else None,
        "use_ema": flags.optim.ema is not None,
    }
    outer |= {} if flags.optim.ema is None else {"ema_momentum": flags.optim.ema}
    plain: OptimizerFlags = dataclasses.replace(flags.optim, clip_norm=None, ema=None, grad_accum=1)
    tables = dataclasses.replace(
        plain, optimizer=flags.embedding_optimizer, learning_rate=flags.embedding_learning_rate, opt=()
    )
    steps = max(1, steps // flags.optim.grad_accum)
    names = ("--embedding-optimizer", "--optimizer")
    pair = [make_optimizer(each, steps, flag=flag) for each, flag in zip((tables, plain), names, strict=True)]
    for each, flag in zip(pair, names, strict=True):
        if not isinstance(each, kopt.Optimizer):
            raise UsageError(f"{flag}: with --embedding-optimizer both must be optimizers of kopt.")
    try:
        return kopt.Route([(TABLES, pair[0]), ("", pair[1])], **outer)
    except ValueError as error:
        raise UsageError(f"--embedding-optimizer {flags.embedding_optimizer}: {error}") from error


def compile_model(model: Recommender, optimizer: Any, rated: bool, jit: bool | str) -> None:
    """Compiles the model with the loss and the metrics of its task."""
    if rated:
        metrics = [keras.metrics.RootMeanSquaredError(name="rmse"), keras.metrics.MeanAbsoluteError(name="mae")]
        model.compile(optimizer, "mse", metrics=metrics, jit_compile=jit)
    else:
        model.compile(optimizer, jit_compile=jit)


def count_parameters(model: Recommender) -> tuple[int, int]:
    """Returns the number of trainable parameters, and of all."""
    trained, everything = (
        sum(int(np.prod(v.shape)) for v in variables) for variables in (model.trainable_variables, model.weights)
    )
    return trained, everything


def rank(flags: Train, saved: Saved, test: Interactions) -> dict[str, float]:
    """Returns the metrics of the ranking of what the users of `test` have not seen in the training."""
    return ranking.rank(Scorer(saved, flags), test, saved.train, flags.ks)


def measure(flags: Train, saved: Saved, test: Interactions, train: Interactions | None = None) -> dict[str, float]:
    """Returns the metrics of the test set, and those of the baseline that needs no model.

    Args:
        flags: of the run.
        saved: the model and what belongs to it.
        test: the interactions to predict.
        train: interactions with labels for the baseline of ratings; `None` leaves that baseline out.

    Raises:
        DataError: ratings are missing.
    """
    if flags.choose.task != "rating":
        found = rank(flags, saved, test)
        plain = ranking.rank(ranking.score_by_popularity(saved.train), test, saved.train, flags.ks)
    else:
        if test.label is None:
            raise DataError(f"{test.source}: no ratings.")
        found, plain = ranking.rating_errors(saved.rate(test.user, test.item), test.label), {}
        if train is not None:
            mean, user, item = ranking.fit_biases(train)
            plain = ranking.rating_errors(mean + user[test.user] + item[test.item], test.label)
    return {f"test_{k}": v for k, v in found.items()} | {f"baseline_{k}": v for k, v in plain.items()}


def popular_items(saved: Saved, table: Table) -> tuple[Array, dict[str, list[Any]]]:
    """Returns the vectors [n, dim] of the most popular items, and what is known of them by the name of a column.

    Args:
        saved: the model.
        table: features that the model may not read.
    """
    items, model = np.argsort(-saved.popularity[1:], kind="stable")[:10_000] + 1, saved.model
    vectors = model.candidates(items)[:, : model.dim] if model.by_product else model.items(items)[0]
    columns: dict[str, list[Any]] = {
        "title": [saved.titles[i] for i in items],
        "popularity": saved.popularity[items].astype(int).tolist(),
    }
    features = [(f, np.asarray(v)) for f, v in zip(saved.features[1], model.items.values, strict=True)]
    for feature, values in features or [(f, f.values) for f in table.features]:
        texts = [[feature.keys[number - 1] for number in values[i] if number] for i in items]
        name = f"{feature.name} (feature)" if feature.name in columns else feature.name
        columns[name] = [row[0] if row else "" for row in texts]  # the projector has colours for few values
        if values.shape[1] > 1:
            columns[f"{name}, all"] = [", ".join(row) for row in texts]
    return keras.ops.convert_to_numpy(vectors), columns

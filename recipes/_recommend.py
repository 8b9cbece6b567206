"""What the recommendation recipe does with its flags: build, train, measure, save and load."""

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

import kopt
from kopt import peft
from recipes import _cli, _pairs, _plots, _ranking, _run
from recipes._cli import DataError, UsageError
from recipes._interactions import Interactions, Vocabulary
from recipes._optimizer import OptimizerFlags, make_optimizer
from recipes._recommend_flags import ModelFlags, Train, check
from recipes._recommenders import Rater, Retriever

TABLES = r"(^|/)(table|user_bias|item_bias)/"
ENCODERS = r"(^|.*\.)(users|items)\.table"
Array = np.ndarray[Any, Any]


@dataclasses.dataclass
class Saved:
    """What a run knows: its model, what the numbers stand for, and who chose what."""

    model: Any
    users: Vocabulary
    items: Vocabulary
    titles: list[str]
    train: Interactions

    @property
    def popularity(self) -> Array:
        """Returns how often each item [items] was chosen."""
        return _ranking.popularity(self.train)

    def scorer(self, flags: Train) -> _ranking.Scores:
        """Returns a function of numbers of users [n] that gives the scores [n, items] of all items."""
        items = np.arange(len(self.items), dtype=np.int32)
        if flags.choose.task == "rating":
            return lambda users: np.stack([self._rate(np.full_like(items, user), items) for user in users])
        vectors = keras.ops.convert_to_numpy(self.model.candidates(items)).T
        if not self.model.looks_back:
            return lambda users: np.asarray(keras.ops.convert_to_numpy(self.model.queries({"user": users})) @ vectors)
        chosen, begin = _pairs.by_user(self.train)

        def after_the_last(users: Array) -> Array:
            last = [_pairs.latest(chosen[begin[u] : begin[u + 1]], flags.choose.history) for u in users]
            states = self.model.queries({"user": users, "history": np.stack([history for history, _ in last])})
            places = np.array([place for _, place in last])
            return np.asarray(keras.ops.convert_to_numpy(states)[np.arange(len(users)), places] @ vectors)

        return after_the_last

    def _rate(self, users: Array, items: Array) -> Array:
        return np.asarray(self.model.predict({"user": users, "item": items}, batch_size=8192, verbose=0))

    def write(self, folder: Path) -> None:
        """Writes all but the model, each file at once or not at all."""
        known = {"users": self.users.keys, "items": self.items.keys, "titles": self.titles}
        with _run.atomic(folder / "vocabulary.json") as path:
            path.write_text(json.dumps(known, ensure_ascii=False) + "\n", encoding="utf-8")
        rows = _pairs.in_order(self.train)
        with _run.atomic(folder / "interactions.npz") as path, path.open("wb") as file:
            np.savez_compressed(file, user=self.train.user[rows], item=self.train.item[rows])

    @classmethod
    def load(cls, folder: Path) -> "Saved":
        """Returns what a run has left.

        Raises:
            DataError: a file is missing or damaged.
        """
        try:
            known = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
            with np.load(folder / "interactions.npz", allow_pickle=False) as arrays:
                user, item = arrays["user"], arrays["item"]
            users, items, titles = Vocabulary(known["users"]), Vocabulary(known["items"]), known["titles"]
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{folder}: vocabulary.json or interactions.npz cannot be read ({error!r}).") from error
        train = Interactions(users, items, user, item, None, None, str(folder))
        return cls(_run.load_model(folder), users, items, titles, train)


def restore(folder: Path) -> tuple[Train, Saved]:
    """Returns flags and what is saved of a run.

    Raises:
        DataError: the folder holds no complete run.
    """
    if not (folder / "config.yaml").is_file() or not (folder / "metrics.json").is_file():
        raise DataError(f"{folder}: no complete run. Give a folder that train has left, as --model.")
    flags = _cli.parse(["--config", str(folder / "config.yaml")], {"train": Train}, "config.yaml")
    return flags, Saved.load(folder)


def train(flags: Train, folder: Path) -> int:
    """Trains and saves a model; returns the exit code."""
    old: Saved | None = None
    if flags.adapt is not None:
        was, old = restore(flags.adapt)
        if flags.choose not in (ModelFlags(), was.choose):
            raise UsageError(
                f"--adapt {flags.adapt}: its model stays what it is. Leave out what describes another one."
            )
        flags = dataclasses.replace(flags, choose=was.choose)
        check(flags)
    rated = flags.choose.task == "rating"
    data = _pairs.load(flags.data, rated, flags.run.seed, *((None, None) if old is None else (old.users, old.items)))
    model = build(flags, data) if old is None else adapted(old.model, flags.rank)
    learnt = data.train if old is None else joined(old.train, data.train)
    saved = Saved(model, data.train.users, data.train.items, old.titles if old else data.items.titles, learnt)
    training, validation = _batches(flags, data, model)
    steps = flags.epochs * len(training)
    optimizer = _optimizer(flags, min(steps, flags.run.max_steps or steps))
    jit = _run.JIT[flags.run.jit]
    if rated:
        shown = [keras.metrics.RootMeanSquaredError(name="rmse"), keras.metrics.MeanAbsoluteError(name="mae")]
        model.compile(optimizer, "mse", metrics=shown, jit_compile=jit)
    else:
        model.compile(optimizer, jit_compile=jit)
    trained, everything = (sum(int(np.prod(v.shape)) for v in vs) for vs in (model.trainable_variables, model.weights))
    about = (
        f"{flags.choose.kind}, {trained:,} parameters learn, {flags.optim.optimizer}; {data.train.source}: "
        f"{len(data.train):,} interactions, {len(data.train.users) - 1:,} users, {len(data.train.items) - 1:,} items"
    )
    if not _run.begin(folder, flags, flags.run, about, model, training):
        return 0

    watched = "rmse" if rated else f"ndcg_at_{flags.ks[0]}"
    ranking = [] if rated else [_Ranking(flags, saved, data)]
    result = _run.fit(
        model,
        training,
        validation,
        folder / "logs",
        flags,
        epochs=flags.epochs,
        run=flags.run,
        ema=flags.optim.ema is not None,
        callbacks=ranking,
        metric=watched,
        watched="val_loss" if rated else f"val_{watched}",
    )
    found = measure(flags, saved, data.test, data.train)
    metrics = {
        "recipe": RECIPE,
        "task": flags.choose.task,
        "model": flags.choose.kind,
        "optimizer": flags.optim.optimizer.lower(),
        "epochs": len(result.history),
        **found,
        **({"floor_rmse": data.floor} if data.floor else {}),
        "train_seconds": round(result.seconds, 2),
        "peak_memory_mb": _run.peak_memory(),
        "trained_parameters": trained,
        "parameters": everything,
        "data": data.train.source,
        "users": len(data.train.users) - 1,
        "items": len(data.train.items) - 1,
        "train_examples": len(data.train),
        "test_examples": len(data.test),
        "seed": flags.run.seed,
        "best_epoch": result.best_epoch,
        "interrupted": result.interrupted,
        "versions": _run.versions(),
    }
    result.stats.finish({k: v for k, v in found.items() if k.startswith("test_")})
    most = np.argsort(-saved.popularity[1:], kind="stable")[:10_000] + 1
    vectors = model.items.table(most) if rated else model.candidates(most)
    labels = [saved.titles[i] for i in most]
    _plots.log_embeddings(folder / "logs" / "validation", keras.ops.convert_to_numpy(vectors), labels)
    saved.write(folder)
    if old is not None:
        peft.save_pretrained(model, folder / "adapter")
    _run.save_run(folder, model, metrics, result.history, card(metrics))
    if flags.run.progress != "none":
        print(f"{summary(metrics)}; saved in {folder}")
    return 130 if result.interrupted else 0


RECIPE = "recommendation"


def build(flags: Train, data: _pairs.Data) -> Any:
    """Returns the model that the flags describe, untrained but for what is known of the data."""
    choose = flags.choose
    encoders: list[Any] = []
    sides = []
    for known, table in ((data.train.users, data.users), (data.train.items, data.items)):
        features = [] if choose.kind == "mf" else table.features
        sizes = [[len(f.keys), f.values.shape[1]] for f in features]
        size = {"size": len(known), "dim": choose.embedding_dim, "features": sizes, "buckets": choose.hash_buckets}
        encoders.append(size)
        sides.append((features, _rows(known, choose.hash_buckets)))
    options: dict[str, Any] = {"hidden": choose.hidden, "dropout": choose.dropout, "l2": choose.l2, "name": RECIPE}
    model: Any
    if choose.task == "rating":
        assert data.train.label is not None
        model = Rater(choose.kind, encoders[0], encoders[1], **options)
        model.build()
        mean, user, item = _ranking.biases(data.train)
        model.mean.assign(mean)
        model.user_bias.embeddings.assign(user[:, None])
        model.item_bias.embeddings.assign(item[:, None])
    else:
        model = Retriever(choose.kind, encoders[0], encoders[1], length=choose.history, **options)
        model.build()
        model.share.assign(_ranking.popularity(data.train) / len(data.train))
    for encoder, side in zip((model.users, model.items), sides, strict=True):
        if encoder.built:
            encoder.describe(*side)
    return model


def _rows(known: Vocabulary, buckets: int) -> Array | None:
    """Returns the row of each number where ids share rows."""
    if not buckets:
        return None
    return np.array([0, *(1 + zlib.crc32(key.encode()) % buckets for key in known.keys)], np.int32)


def adapted(model: Any, rank: int) -> Any:
    """Returns the model with low-rank adapters on its tables, all else frozen."""
    options: dict[str, Any] = {"r": rank, "lora_alpha": float(rank), "target_modules": ENCODERS}
    peft.get_peft_model(model, peft.LoRA(**options))
    return model


def joined(old: Interactions, new: Interactions) -> Interactions:
    """Returns the interactions of both, the old ones first."""
    rows = _pairs.in_order(new)
    user, item = np.append(old.user, new.user[rows]), np.append(old.item, new.item[rows])
    return Interactions(old.users, old.items, user, item, None, None, new.source)


def _batches(flags: Train, data: _pairs.Data, model: Any) -> tuple[Any, Any]:
    """Returns the batches to learn from, and those to watch where the loss tells all."""
    part, seed = data.train, flags.run.seed
    if flags.choose.task != "rating":
        x = {"user": part.user, "item": part.item}
        if model.looks_back:
            x = _pairs.windows(part, flags.choose.history)
        return _pairs.batches(x, np.zeros(len(x["user"]), np.float32), flags.batch_size, seed), None
    x, x_test = ({"user": p.user, "item": p.item} for p in (part, data.test))
    assert part.label is not None and data.test.label is not None
    return _pairs.batches(x, part.label, flags.batch_size, seed), _pairs.batches(x_test, data.test.label, 8192)


def _optimizer(flags: Train, steps: int) -> Any:
    """Returns the optimizer, or one for the tables and one for the rest."""
    if flags.embedding_optimizer is None:
        return make_optimizer(flags.optim, steps)
    around: dict[str, Any] = {
        "global_clipnorm": flags.optim.clip_norm,
        "gradient_accumulation_steps": flags.optim.grad_accum if flags.optim.grad_accum > 1 else None,
        "use_ema": flags.optim.ema is not None,
    }
    around |= {} if flags.optim.ema is None else {"ema_momentum": flags.optim.ema}
    plain: OptimizerFlags = dataclasses.replace(flags.optim, clip_norm=None, ema=None, grad_accum=1)
    tables = dataclasses.replace(
        plain, optimizer=flags.embedding_optimizer, learning_rate=flags.embedding_learning_rate, opt=()
    )
    steps = max(1, steps // flags.optim.grad_accum)
    pair = [make_optimizer(each, steps) for each in (tables, plain)]
    for each, flag in zip(pair, ("--embedding-optimizer", "--optimizer"), strict=True):
        if not isinstance(each, kopt.Optimizer):
            raise UsageError(f"{flag}: with --embedding-optimizer both must be optimizers of kopt.")
    try:
        return kopt.Route([(TABLES, pair[0]), ("", pair[1])], **around)
    except ValueError as error:
        raise UsageError(f"--embedding-optimizer {flags.embedding_optimizer}: {error}") from error


class _Ranking(keras.callbacks.Callback):
    """Adds the ranks of the test to the logs of each epoch."""

    def __init__(self, flags: Train, saved: Saved, data: _pairs.Data) -> None:
        super().__init__()
        self._flags, self._saved, self._data = flags, saved, data

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Measures."""
        found = _ranks(self._flags, self._saved, self._data.test, self._saved.train)
        (logs if logs is not None else {}).update({f"val_{k}": v for k, v in found.items()})


def _ranks(flags: Train, saved: Saved, test: Interactions, seen: Interactions) -> dict[str, float]:
    return _ranking.rank(saved.scorer(flags), test, seen, flags.ks)


def measure(flags: Train, saved: Saved, test: Interactions, train: Interactions | None = None) -> dict[str, float]:
    """Returns the metrics of the test, and those of what needs no model.

    Args:
        flags: of the run.
        saved: what the run knows.
        test: the interactions to predict.
        train: those with labels that the baseline of ratings learns from; `None` leaves it out.

    Raises:
        DataError: ratings are missing.
    """
    if flags.choose.task != "rating":
        found = _ranks(flags, saved, test, saved.train)
        plain = _ranking.rank(_ranking.popular(saved.train), test, saved.train, flags.ks)
    else:
        if test.label is None:
            raise DataError(f"{test.source}: no ratings.")
        found, plain = _ranking.errors(saved._rate(test.user, test.item), test.label), {}
        if train is not None:
            mean, user, item = _ranking.biases(train)
            plain = _ranking.errors(mean + user[test.user] + item[test.item], test.label)
    return {f"test_{k}": v for k, v in found.items()} | {f"baseline_{k}": v for k, v in plain.items()}


def summary(metrics: Mapping[str, Any]) -> str:
    """Returns the metrics in one line, each beside its baseline."""
    parts = []
    for name in (k.removeprefix("test_") for k in metrics if k.startswith("test_") and k != "test_examples"):
        baseline = metrics.get(f"baseline_{name}")
        beside = "" if baseline is None else f" (baseline {baseline:.4f})"
        parts.append(f"test {name.replace('_', ' ')} {metrics[f'test_{name}']:.4f}{beside}")
    if "floor_rmse" in metrics:
        parts.append(f"best reachable rmse {metrics['floor_rmse']:.4f}")
    return ", ".join(parts)


def card(metrics: Mapping[str, Any]) -> str:
    """Returns the model card of a run."""
    baseline = "the biases alone" if metrics["task"] == "rating" else "the most popular items"
    rows = {
        **{
            part.rpartition(" ")[0]: part.rpartition(" ")[2] for part in summary(metrics).split(", ") if "(" not in part
        },
        "Epochs": f"{metrics['epochs']}{', interrupted' if metrics['interrupted'] else ''}",
        "Seconds of training": metrics["train_seconds"],
        "Parameters that learn": f"{metrics['trained_parameters']:,}",
        "Training data": f"{metrics['data']}, {metrics['train_examples']:,} interactions",
        "Test data": f"{metrics['test_examples']:,} interactions",
        "Versions": ", ".join(f"{name} {version}" for name, version in metrics["versions"].items()),
    }
    return f"""# Recommendation ({metrics["task"]}): {metrics["model"]} trained with {metrics["optimizer"]}

    {_run.command_line(RECIPE)}

{summary(metrics)}. The baseline is {baseline}, on the same split.

{_run.table(rows)}

    python -m recipes.recommendation predict --model RUN --user ID --k 10 --exclude-seen

`vocabulary.json` says what the numbers of `model.keras` stand for, `interactions.npz` who chose what, `config.yaml` the
settings. `import recipes._recommenders` before loading the model with Keras.
"""

"""How good the rates are that `kopt.LearningRateFinder` suggests: nine small models, against a grid of rates.

    python -m benchmarks.rate_finder [--models mlp cnn] [--seeds 0 1] [--plots FOLDER] [--write]

Each model has data and optimizer of its own, and is trained for 200 steps with each rate of a grid, a factor of √10
apart, and with the suggestion, from the same first weights and over the same batches. The target is the loss at which
the rate with the least last loss is after 100 steps, a mean over ten batches. The suggestion must reach it, without
diverging, within twice the steps of the best rate of the grid; else the exit code is 1. The linear model is known not
to: its loss is convex, and by plain SGD it learns fastest at rates at which the loss rises at first. `--write` puts the
table into benchmarks/README.md. Data come with scikit-learn, or are drawn, or are the source of Python's standard
library.
"""

import argparse
import itertools
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from sklearn import datasets

import kopt
from benchmarks import language_model

STEPS, EVERY, ALLOWED = 200, 10, 2.0
PAGE = Path(__file__).parent / "README.md"


class Problem(NamedTuple):
    """What is trained, on what, by what, and the exponents of the grid's ends."""

    model: Callable[[], Any]
    data: Callable[[], tuple[Any, Any]]
    loss: Any
    optimizer: Callable[[], Any]
    low: float = -4.0
    high: float = 0.0
    batch_size: int = 32
    beyond: bool = False
    """Whether the suggestion is known to be too low; it is shown, and does not fail."""


def network(shape: tuple[int, ...], *body: Any) -> Any:
    return keras.Sequential([keras.Input(shape), *body])


def digits(shape: tuple[int, ...]) -> tuple[Any, Any]:
    found = datasets.load_digits()
    return found.images.astype("float32").reshape(-1, *shape) / 16, found.target


def pixels() -> tuple[Any, Any]:
    x, _ = digits((64,))
    return x, x


def tabular() -> tuple[Any, Any]:
    x, y = datasets.make_friedman1(2000, noise=0.5, random_state=0)
    return x.astype("float32"), ((y - y.mean()) / y.std()).astype("float32")[:, None]


def ratings() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    users, items = rng.normal(size=(200, 3)), rng.normal(size=(100, 3))
    pairs = np.stack([rng.integers(200, size=8000), rng.integers(100, size=8000)], axis=1)
    noise = 0.3 * rng.normal(size=len(pairs))
    return pairs.astype("int32"), ((users[pairs[:, 0]] * items[pairs[:, 1]]).sum(1) + noise).astype("float32")[:, None]


def sequences(width: int) -> Any:
    text = language_model.text()[:200_000]
    return text[: len(text) // width * width].reshape(-1, width).astype("int32")


def bytes_ahead() -> tuple[Any, Any]:
    rows = sequences(33)
    return rows[:, :-1], rows[:, 1:]


def last_byte() -> tuple[Any, Any]:
    rows = sequences(25)
    return rows[:, :-1], rows[:, -1]


def convolutions() -> Any:
    body = [layers.Conv2D(8, 3, activation="relu"), layers.MaxPooling2D(), layers.Conv2D(16, 2, activation="relu")]
    return network((8, 8, 1), *body, layers.Flatten(), layers.Dense(10))


def factors() -> Any:
    pair = keras.Input((2,), dtype="int32")
    user, item = (layers.Embedding(200, 8)(pair[:, i]) for i in range(2))
    return keras.Model(pair, layers.Dot(axes=1)([user, item]))


def attention() -> Any:
    tokens = keras.Input((32,), dtype="int32")
    x = layers.Embedding(256, 32)(tokens)
    x = x + layers.MultiHeadAttention(2, 16)(layers.LayerNormalization()(x), x, use_causal_mask=True)
    x = x + layers.Dense(32)(layers.Dense(64, activation="gelu")(layers.LayerNormalization()(x)))
    return keras.Model(tokens, layers.Dense(256)(x))


def normalized() -> Any:
    body = [layer for width in (64, 32) for layer in (layers.Dense(width), layers.BatchNormalization(), layers.ReLU())]
    return network((64,), *body, layers.Dense(10))


def averaged() -> Any:
    body = [layers.Conv1D(32, 3, activation="relu"), layers.GlobalAveragePooling1D(), layers.Dense(256)]
    return network((24,), layers.Embedding(256, 16), *body)


CLASSES = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
PROBLEMS = {
    "linear": Problem(
        lambda: network((64,), layers.Dense(10)), lambda: digits((64,)), CLASSES, kopt.SGD, -3, 1, 32, True
    ),
    "mlp": Problem(
        lambda: network((64,), layers.Dense(64, "relu"), layers.Dropout(0.2), layers.Dense(10)),
        lambda: digits((64,)),
        CLASSES,
        kopt.AdamW,
    ),
    "cnn": Problem(convolutions, lambda: digits((8, 8, 1)), CLASSES, kopt.Momentum, -3.5, 0.5),
    "autoencoder": Problem(
        lambda: network((64,), layers.Dense(16, "relu"), layers.Dense(64)), pixels, "mse", kopt.RMSprop
    ),
    "regression": Problem(
        lambda: network((10,), layers.Dense(64, "relu"), layers.Dense(64, "relu"), layers.Dense(1)),
        tabular,
        "mse",
        kopt.Adam,
    ),
    "normalized": Problem(normalized, lambda: digits((64,)), CLASSES, kopt.AdaBound, -4, 0),
    "factors": Problem(factors, ratings, "mse", kopt.LazyAdam, -3, 1, 256),
    "attention": Problem(attention, bytes_ahead, CLASSES, kopt.Muon, -4, 0, 16),
    "convolution of text": Problem(averaged, last_byte, CLASSES, kopt.Lion, -5, -1, 64),
}


def train(model: Any, weights: list[Any], rate: float, x: Any, y: Any, size: int, seed: int) -> list[float]:
    """Returns the mean loss of each ten batches."""
    model.set_weights(weights)
    model.optimizer.reset()
    model.optimizer.learning_rate = rate
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x), seed=seed).repeat().batch(size)
    fit = model.fit(data, epochs=STEPS // EVERY, steps_per_epoch=EVERY, verbose=0)
    losses: list[float] = fit.history["loss"]
    return losses


def steps_to(target: float, losses: list[float]) -> float:
    """Returns the step at which the loss first is at the target, between two means in proportion; else `inf`."""
    return language_model.steps_to(target, [(EVERY * (i + 1), loss) for i, loss in enumerate(losses)])


def judge(name: str, seed: int, plots: Path | None) -> tuple[str, bool]:
    """Returns the row of the table, and whether the suggestion is good enough."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    problem = PROBLEMS[name]
    (x, y), model = problem.data(), problem.model()
    model.compile(problem.optimizer(), problem.loss)
    finder = kopt.LearningRateFinder(seed=seed)
    suggested = finder.find(model, x, y, batch_size=problem.batch_size)
    if plots is not None:
        plots.mkdir(exist_ok=True, parents=True)
        finder.plot(plots / f"{name}-{seed}.png")
        np.savez(plots / f"{name}-{seed}.npz", rates=finder.rates, losses=finder.losses)
    model.optimizer.build(model.trainable_variables)
    grid = [10**e for e in np.arange(problem.low, problem.high + 0.25, 0.5)]
    of_model = (model, model.get_weights())
    runs = {rate: train(*of_model, rate, x, y, problem.batch_size, seed) for rate in [*grid, suggested]}
    last = {rate: np.mean(losses[-3:]) for rate, losses in runs.items()}
    champion = min(grid, key=lambda rate: last[rate] if math.isfinite(last[rate]) else math.inf)
    target = min(runs[champion][: STEPS // EVERY // 2])
    needed = {rate: steps_to(target, losses) for rate, losses in runs.items()}
    best = min(grid, key=needed.__getitem__)
    ratio = needed[suggested] / needed[best]
    finite = all(map(math.isfinite, runs[suggested]))
    if plots is not None:
        print({f"{rate:.2g}": (round(needed[rate]) if needed[rate] < math.inf else "-") for rate in sorted(runs)})
    optimizer = type(model.optimizer).__name__
    cells = f"{suggested:.2g}", f"{best:.2g}", f"{needed[suggested]:.0f}", f"{needed[best]:.0f}", f"{ratio:.2f}"
    return f"| {name} | `{optimizer}` | {' | '.join(cells)} |", problem.beyond or (finite and ratio <= ALLOWED)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS), metavar="MODEL")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--plots", type=Path, help="folder for the pictures of the sweeps and their curves")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/README.md")
    flags = parser.parse_args(arguments)
    lines = ["| model | optimizer | suggested | best of the grid | its steps | those of the best | ratio |"]
    lines += ["|---|---|---:|---:|---:|---:|---:|"]
    print("\n".join(lines))
    good = True
    for name, seed in itertools.product(flags.models, flags.seeds):
        line, passed = judge(name, seed, flags.plots)
        print(line if passed else f"{line} FAILED", flush=True)
        lines, good = [*lines, line], good and passed
    if flags.write and good:
        start, end, page = "<!-- rates -->\n", "<!-- /rates -->", PAGE.read_text(encoding="utf-8")
        table = "\n".join(lines)
        PAGE.write_text(f"{page.split(start)[0]}{start}{table}\n{end}{page.split(end)[1]}", encoding="utf-8")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())

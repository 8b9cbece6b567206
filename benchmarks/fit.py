"""Times a training step inside of `fit` with kopt.Adam beside Keras' Adam, and Keras' beside itself.

    python -m benchmarks.fit [--rounds 10] [--models tiny mlp] [--modes graph XLA] [--options plain] [--write]

Every figure is the time of whole calls of `fit` on a model that was traced before, from arrays in memory: as many steps
as take a fifth of a second. Three equal models take turns, round after round, one with kopt.Adam and two with Keras';
the table gives the median over the rounds of the ratios within a round. The second model of Keras shows the noise.
"""

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers

import kopt
from benchmarks import _turns

Problem = tuple[keras.Model, str, Callable[[int], tuple[Any, Any]], int]
"""A model, its loss, a function from a number of examples to inputs and targets, and the size of a batch."""
SECONDS = 0.2
MODES = {"graph": False, "XLA": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip, EMA": {"global_clipnorm": 1.0, "use_ema": True},
    "accumulation": {"gradient_accumulation_steps": 4},
}


def dense(widths: list[int], inputs: int, batch: int) -> Problem:
    """Returns a net of layers of these widths, for regression."""
    hidden = [layers.Dense(n, "relu") for n in widths]
    model = keras.Sequential([keras.Input((inputs,)), *hidden, layers.Dense(1)])
    return model, "mse", lambda n: (numbers(n, inputs), numbers(n, 1)), batch


def cnn() -> Problem:
    """Returns a small convolutional net for pictures of 28 by 28."""
    convolutions = [
        layer for n in (16, 32) for layer in (layers.Conv2D(n, 3, activation="relu"), layers.MaxPooling2D())
    ]
    model = keras.Sequential([keras.Input((28, 28, 1)), *convolutions, layers.Flatten(), layers.Dense(10)])
    return model, "mse", lambda n: (numbers(n, 28, 28, 1), numbers(n, 10)), 32


def transformer() -> Problem:
    """Returns an encoder like MiniLM, with a quarter of its vocabulary: 12 million weights in 101 variables."""
    tokens, vocabulary, width, heads = 32, 8_000, 384, 12
    inputs = keras.Input((tokens,), dtype="int32")
    x = layers.Embedding(vocabulary, width)(inputs) + layers.Embedding(tokens, width)(keras.ops.arange(tokens))
    for _ in range(5):
        x = layers.LayerNormalization()(x + layers.MultiHeadAttention(heads, width // heads)(x, x))
        x = layers.LayerNormalization()(x + layers.Dense(width)(layers.Dense(4 * width, "gelu")(x)))
    model = keras.Model(inputs, layers.Dense(2)(x[:, 0]))
    return model, "mse", lambda n: (ids(n, tokens, vocabulary), numbers(n, 2)), 8


def embedding() -> Problem:
    """Returns a table of 100,000 rows, of which a batch reads 512, under a small net."""
    table = layers.Embedding(100_000, 32)
    model = keras.Sequential([keras.Input((2,), dtype="int32"), table, layers.Flatten(), layers.Dense(1)])
    return model, "mse", lambda n: (ids(n, 2, 100_000), numbers(n, 1)), 256


def numbers(*shape: int) -> Any:
    """Returns random numbers."""
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def ids(count: int, width: int, below: int) -> Any:
    """Returns random ids of rows."""
    return np.random.default_rng(1).integers(0, below, (count, width)).astype("int32")


MODELS: dict[str, Callable[[], Problem]] = {
    "tiny": functools.partial(dense, [16], 8, 32),
    "30 layers": functools.partial(dense, [64] * 30, 64, 32),
    "mlp": functools.partial(dense, [256, 256], 784, 64),
    "cnn": cnn,
    "transformer": transformer,
    "embedding": embedding,
}


def timer(name: str, optimizer: keras.optimizers.Optimizer, jit: bool) -> Callable[[int], float]:
    """Returns a function that trains for a number of steps, and returns the milliseconds of one."""
    model, loss, data, batch = MODELS[name]()
    model.compile(optimizer, loss, jit_compile=jit)
    arrays: dict[int, Any] = {}

    def fit(steps: int) -> float:
        if steps not in arrays:
            arrays[steps] = data(steps * batch)
        start = time.perf_counter()
        model.fit(*arrays[steps], batch_size=batch, shuffle=False, verbose=0)
        return (time.perf_counter() - start) / steps * 1e3

    fit(4)
    return fit


def measure(name: str, mode: str, option: str, rounds: int) -> _turns.Times:
    """Returns the milliseconds of a step by contestant and round."""
    keras.utils.clear_session()
    options, jit = OPTIONS[option], MODES[mode]
    makers = {"kopt": kopt.Adam, "keras": keras.optimizers.Adam, "again": keras.optimizers.Adam}
    fits = {contestant: timer(name, make(**options), jit) for contestant, make in makers.items()}
    steps = 4 * max(2, round(SECONDS * 250 / statistics.median(fits["keras"](8) for _ in range(3))))
    return _turns.take_turns({k: functools.partial(fit, steps) for k, fit in fits.items()}, rounds)


def table(models: list[str], modes: list[str], options: list[str], rounds: int) -> list[str]:
    """Returns the results as lines of Markdown."""
    lines = ["| model | mode | options | Keras, ms | kopt / Keras | Keras / Keras |", "|---|---|---|---:|---:|---:|"]
    for name in models:
        for mode in modes:
            for option in options:
                times = measure(name, mode, option, rounds)
                ratios = (_turns.ratio(times, k, "keras") for k in ("kopt", "again"))
                figures = [f"{statistics.median(times['keras']):.2f}", *(f"{r:.2f}" for r in ratios)]
                lines.append(f"| {name} | {mode} | {option} | {' | '.join(figures)} |")
                print(lines[-1], flush=True)
    return [*lines, "", f"{rounds} rounds; {_turns.machine('Keras', 'TensorFlow')}"]


def main() -> None:
    """Measures the cells that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="turns of each contestant")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--options", nargs="+", default=list(OPTIONS), choices=OPTIONS)
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/README.md")
    given = parser.parse_args()
    result = "\n".join(table(given.models, given.modes, given.options, given.rounds))
    if given.write:
        _turns.insert(result, "fit")


if __name__ == "__main__":
    main()

"""Times a training step of an embedding table of which a batch reads a few rows.

    python -m benchmarks.sparse [--rounds 10] [--write]

A batch of 1,024 random ids of a table of width 64: gather, a squared error, its gradient, an update by Adam. The
contestants take turns, round after round, those that update rows first; the table gives medians, the comparisons
medians of the ratios within a round. torch runs in a process of its own.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks import _turns

BATCH, WIDTH, MAIN = 1024, 64, 1_000_000
SMALL, LARGE = 100_000, 4_000_000
OPTIONS: dict[str, dict[str, Any]] = {
    "global clip": {"global_clipnorm": 1.0},
    "averages": {"use_ema": True},
    "accumulation of 4": {"gradient_accumulation_steps": 4},
    "skip": {"on_nonfinite": "skip"},
    "bfloat16 slots": {"state_dtype": "bfloat16"},
    "int8 slots": {"state_dtype": "int8"},
}
"""What Keras' optimizers make a dense update of, or cannot do."""


def problem(rows: int) -> tuple[Any, Any, Any]:
    """Returns the table, the ids of a batch, and its targets."""
    rng = np.random.default_rng(0)
    table = np.zeros((rows, WIDTH), np.float32)
    return table, rng.integers(0, rows, BATCH), rng.normal(size=(BATCH, WIDTH)).astype(np.float32)


def torch_step() -> Callable[[], Any]:
    """Returns a step of SparseAdam."""
    import torch

    table, ids, targets = map(torch.from_numpy, problem(MAIN))
    layer = torch.nn.Embedding.from_pretrained(table, freeze=False, sparse=True)
    optimizer = torch.optim.SparseAdam(layer.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        ((layer(ids) - targets) ** 2).mean().backward()
        optimizer.step()

    return step


def timer(optimizer: Any, rows: int, jit: bool) -> Callable[[], float]:
    """Returns a function that times a step, compiled and warm."""
    import keras
    import tensorflow as tf

    start, ids, targets = problem(rows)
    table = keras.Variable(start)
    optimizer.build([table])

    @tf.function(autograph=False, jit_compile=jit)
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((tf.gather(table.value, ids) - targets) ** 2)
        optimizer.apply(tape.gradient(loss, [table.value]), [table])
        return loss

    timed = functools.partial(_turns.clock, lambda: step().numpy())
    timed()
    return timed


def measure(rounds: int) -> _turns.Times:
    """Returns the milliseconds of every round by contestant."""
    import keras

    import kopt

    by_rows = {
        "kopt.Adam": timer(kopt.Adam(), MAIN, False),
        "kopt.Adam, XLA": timer(kopt.Adam(), MAIN, True),
        **{f"kopt.Adam, {name}": timer(kopt.Adam(**options), MAIN, False) for name, options in OPTIONS.items()},
        f"kopt.Adam, {SMALL:,} rows": timer(kopt.Adam(), SMALL, False),
        f"kopt.Adam, {LARGE:,} rows": timer(kopt.Adam(), LARGE, False),
    }
    dense = {
        "keras.optimizers.Adam": timer(keras.optimizers.Adam(), MAIN, False),
        "kopt.Adam beside it": by_rows["kopt.Adam"],
        "keras.optimizers.Adam, XLA": timer(keras.optimizers.Adam(), MAIN, True),
        "kopt.Adam, XLA beside it": by_rows["kopt.Adam, XLA"],
    }
    with _turns.apart(torch_step) as torch:
        times = _turns.take_turns(by_rows | {"torch.optim.SparseAdam": torch}, 4 * rounds)
    return times | _turns.take_turns(dense, rounds)  # apart, because a dense step leaves nothing in the caches


def table(rounds: int) -> list[str]:
    """Returns the results as lines of Markdown."""
    keras, adam = "keras.optimizers.Adam", "kopt.Adam"
    comparisons = [
        ("faster than keras.optimizers.Adam by", keras, f"{adam} beside it", "≥ 8 ×"),
        ("the same inside XLA", f"{keras}, XLA", f"{adam}, XLA beside it", "≥ 2 ×"),
        ("40 times the rows cost", f"{adam}, {LARGE:,} rows", f"{adam}, {SMALL:,} rows", "≤ 1.3 ×"),
        ("time of torch.optim.SparseAdam", adam, "torch.optim.SparseAdam", "≤ 1.5 ×"),
        *((f"with {name}", f"{adam}, {name}", adam, "≤ 1.5 ×" if "clip" in name else "") for name in OPTIONS),
    ]
    scope = f"{MAIN:,} rows of width {WIDTH} unless said otherwise, batch {BATCH:,}; {rounds} rounds"
    versions = _turns.machine("Keras", "TensorFlow", "torch")
    return [*_turns.compare(measure(rounds), comparisons, digits=2), "", f"{scope}; {versions}"]


if __name__ == "__main__":
    _turns.main(__doc__, "sparse", 10, table)

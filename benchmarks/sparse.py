"""Times a training step of an embedding table of which a batch reads a few rows.

    python -m benchmarks.sparse [--rounds 10] [--write]

A batch of 1,024 random ids of a table of width 64: gather, a squared error, its gradient, an update by Adam. The
contestants take turns, round after round, those that update rows first; the table gives medians, the comparisons
medians of the ratios within a round. torch runs in a process of its own.
"""

import argparse
import multiprocessing
import os
import platform
import statistics
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.step import clock, insert

START, END = "<!-- sparse -->", "<!-- /sparse -->"
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


def serve_torch(connection: Any) -> None:
    """Answers each message with the milliseconds of a step of SparseAdam."""
    import torch

    table, ids, targets = map(torch.from_numpy, problem(MAIN))
    layer = torch.nn.Embedding.from_pretrained(table, freeze=False, sparse=True)
    optimizer = torch.optim.SparseAdam(layer.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        ((layer(ids) - targets) ** 2).mean().backward()
        optimizer.step()

    clock(step)
    connection.send(torch.__version__)
    while connection.recv():
        connection.send(clock(step))


def stepper(optimizer: Any, rows: int, jit: bool) -> Callable[[], Any]:
    """Returns a function that makes a step, compiled and warm."""
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

    clock(lambda: step().numpy())
    return lambda: step().numpy()


def measure(rounds: int) -> tuple[dict[str, list[float]], str]:
    """Returns the milliseconds of every round by contestant, and the versions."""
    import keras
    import tensorflow as tf

    import kopt

    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(target=serve_torch, args=(theirs,), daemon=True)
    child.start()
    torch_version = ours.recv()
    made: dict[str, tuple[Any, int, bool]] = {
        "kopt.Adam": (kopt.Adam(), MAIN, False),
        "kopt.Adam, XLA": (kopt.Adam(), MAIN, True),
        **{f"kopt.Adam, {name}": (kopt.Adam(**options), MAIN, False) for name, options in OPTIONS.items()},
        f"kopt.Adam, {SMALL:,} rows": (kopt.Adam(), SMALL, False),
        f"kopt.Adam, {LARGE:,} rows": (kopt.Adam(), LARGE, False),
        "keras.optimizers.Adam": (keras.optimizers.Adam(), MAIN, False),
        "keras.optimizers.Adam, XLA": (keras.optimizers.Adam(), MAIN, True),
    }
    steps = {name: stepper(*given) for name, given in made.items()}
    times: dict[str, list[float]] = {}
    dense = [name for name in steps if name.startswith("keras")]
    for _ in range(4 * rounds):  # without Keras' steps between them, which leave nothing in the caches
        for name in [name for name in steps if name not in dense]:
            times.setdefault(name, []).append(clock(steps[name]))
        ours.send(True)
        times.setdefault("torch.optim.SparseAdam", []).append(ours.recv())
    ours.send(False)
    for _ in range(rounds):
        for name in dense:
            beside = name.replace("keras.optimizers", "kopt")
            times.setdefault(name, []).append(clock(steps[name]))
            times.setdefault(f"{beside} beside it", []).append(clock(steps[beside]))
    child.join()
    versions = f"Keras {keras.__version__}, TensorFlow {tf.__version__}, torch {torch_version}"
    return times, f"{versions}, Python {platform.python_version()}, {os.cpu_count()} cores, no GPU"


def table(times: dict[str, list[float]], versions: str, rounds: int) -> str:
    """Returns the results as Markdown."""

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))

    lines = ["| contestant | ms a step, median |", "|---|---:|"]
    lines += [f"| {name} | {statistics.median(t):.2f} |" for name, t in times.items()]
    lines += ["", "| comparison | measured | aim |", "|---|---:|---:|"]
    for text, a, b, aim in (
        ("faster than keras.optimizers.Adam by", "keras.optimizers.Adam", "kopt.Adam beside it", "≥ 8 ×"),
        ("the same inside XLA", "keras.optimizers.Adam, XLA", "kopt.Adam, XLA beside it", "≥ 2 ×"),
        ("40 times the rows cost", f"kopt.Adam, {LARGE:,} rows", f"kopt.Adam, {SMALL:,} rows", "≤ 1.3 ×"),
        ("time of torch.optim.SparseAdam", "kopt.Adam", "torch.optim.SparseAdam", "≤ 1.5 ×"),
        *((f"with {name}", f"kopt.Adam, {name}", "kopt.Adam", "≤ 1.5 ×" if "clip" in name else "") for name in OPTIONS),
    ):
        lines.append(f"| {text} | {ratio(a, b):.2f} × | {aim} |")
    scope = f"{MAIN:,} rows of width {WIDTH} unless said otherwise, batch {BATCH:,}; {rounds} rounds"
    return "\n".join([*lines, "", f"{scope}; {versions}."])


def main() -> None:
    """Measures, prints the table, and with --write puts it into README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/README.md")
    arguments = parser.parse_args()
    result = table(*measure(arguments.rounds), arguments.rounds)
    print(result)
    if arguments.write:
        insert(result, START, END)


if __name__ == "__main__":
    main()

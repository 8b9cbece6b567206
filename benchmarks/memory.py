"""Measures the memory that `fit` takes: its peak above what a built model holds.

    python -m benchmarks.memory [--width 4096 8192] [--only kopt.Adam "kopt.Adam int8"] [--runs 3] [--write]

Three square Dense layers, 201 MB of weights at a width of 4,096 and 805 MB at 8,192, trained on batches of 16 that a
generator makes. Every optimizer runs in a process of its own. Counted is resident memory from the call of `fit` on,
slots, gradients and the compiler included, up to its peak, as Linux tells it. The time is that of the fastest step.
Both are medians over a few processes: whether TensorFlow first computes another gradient or moves a weight is decided
by its threads, and the peak follows.
"""

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import _turns

BATCH, STEPS = 16, 6
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "keras.SGD": {},
    "kopt.SGD": {},
    "kopt.SGD unwatched": {"on_nonfinite": "ignore"},
    "keras.SGD momentum": {"momentum": 0.9},
    "kopt.Momentum": {},
    "keras.Adam": {},
    "kopt.Adam": {},
    "keras.AdamW": {},
    "kopt.AdamW": {},
    "kopt.Adam bfloat16": {"state_dtype": "bfloat16"},
    "kopt.Adam int8": {"state_dtype": "int8"},
    "keras.Adam clip, EMA": {"global_clipnorm": 1.0, "use_ema": True},
    "kopt.Adam clip, EMA": {"global_clipnorm": 1.0, "use_ema": True},
}
"""Arguments by name; the first word of a name says the class."""
COMPARISONS = [
    ("kopt.SGD", "keras.SGD", 1.0),
    ("kopt.SGD unwatched", "keras.SGD", 1.0),
    ("kopt.Momentum", "keras.SGD momentum", 1.0),
    ("kopt.Adam", "keras.Adam", 1.0),
    ("kopt.AdamW", "keras.AdamW", 1.0),
    ("kopt.Adam clip, EMA", "keras.Adam clip, EMA", 1.0),
    ("kopt.Adam bfloat16", "kopt.Adam", 0.8),
    ("kopt.Adam int8", "kopt.Adam", 0.65),
]
"""Two optimizers, and the aim for the peak of the first in units of that of the second."""


def resident(what: str) -> float:
    """Returns resident memory in MB: "VmRSS" now, "VmHWM" at its peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) * 1024 / 1e6


def train(name: str, width: int) -> tuple[float, float]:
    """Returns the MB at the peak of `fit` above the start, and the milliseconds of the fastest step."""
    import keras
    import numpy as np

    import kopt

    keras.utils.set_random_seed(0)
    library, cls = name.split()[0].split(".")
    optimizer = getattr(keras.optimizers if library == "keras" else kopt, cls)(**OPTIMIZERS[name])
    model = keras.Sequential([keras.Input((width,)), *(keras.layers.Dense(width, use_bias=False) for _ in range(3))])
    model.compile(optimizer, "mse")
    x = np.random.default_rng(0).normal(size=(BATCH, width)).astype("float32")
    times = [0.0]

    def batches() -> Iterator[tuple[Any, Any]]:
        while True:
            yield x, x

    watch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: times.append(time.perf_counter()))
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    start = resident("VmRSS")
    model.fit(batches(), steps_per_epoch=STEPS, verbose=0, callbacks=[watch])
    return resident("VmHWM") - start, min(b - a for a, b in itertools.pairwise(times[1:])) * 1e3


def measured(name: str, width: int, runs: int = 1) -> tuple[float, float]:
    """Returns the medians of what `train` does in fresh processes."""
    command = [sys.executable, "-m", "benchmarks.memory", "--width", str(width), "--here", name]
    outputs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(runs)]
    peaks, steps = zip(*(map(float, output.split()[-2:]) for output in outputs), strict=True)
    return statistics.median(peaks), statistics.median(steps)


def table(names: list[str], width: int, runs: int) -> list[str]:
    """Returns the results as lines of Markdown."""
    found: dict[str, tuple[float, float]] = {}
    lines = ["| optimizer | peak above the start, MB | ms a step |", "|---|---:|---:|"]
    for name in names:
        found[name] = measured(name, width, runs)
        lines.append(f"| {name} | {found[name][0]:.0f} | {found[name][1]:.0f} |")
        print(lines[-1], flush=True)
    lines += ["", "| comparison | memory | aim | time |", "|---|---:|---:|---:|"]
    for one, other, aim in COMPARISONS:
        if one in found and other in found:
            memory, speed = (a / b for a, b in zip(found[one], found[other], strict=True))
            lines.append(f"| {one} / {other} | {memory:.2f} | ≤ {aim} | {speed:.2f} |")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Measures the optimizers that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, nargs="+", default=[4096, 8192], help="of the layers")
    parser.add_argument("--only", nargs="+", default=list(OPTIMIZERS), choices=OPTIMIZERS)
    parser.add_argument("--runs", type=int, default=3, help="processes of each optimizer")
    parser.add_argument("--here", help="an optimizer to train in this process")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/README.md")
    given = parser.parse_args()
    if given.here:
        print(*train(given.here, *given.width))
        return
    lines = [
        line for width in given.width for line in (f"Width {width:,}:", "", *table(given.only, width, given.runs), "")
    ]
    result = "\n".join([*lines, f"{given.runs} runs; {_turns.machine('Keras', 'TensorFlow')}"])
    if given.write:
        _turns.insert(result, "memory")


if __name__ == "__main__":
    main()

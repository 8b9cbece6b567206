"""Bytes and seconds of a step of several workers on this machine.

    python -m benchmarks.workers

Trains a dense network on random images by 1, 2 and 4 workers and prints a table: what a step sends, by the counters of
the loopback interface, beside what a ring sends, 2(n-1)/n of the gradient for each worker, and how long it takes. On a
machine with fewer cores than workers the times say nothing about several machines.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from kopt import distribution

STEPS = 50
COUNTERS = Path("/proc/net/dev")


def sent() -> int:
    """Returns the bytes that the loopback interface has sent since the machine started."""
    lines = (line.split(":") for line in COUNTERS.read_text().splitlines() if ":" in line)
    return next(int(numbers.split()[8]) for name, numbers in lines if name.strip() == "lo")


def work(folder: Path) -> None:
    """Trains as one of several workers; the chief writes what it has measured."""
    strategy = distribution.strategy("multiworker")
    import keras
    import numpy as np

    import kopt

    with distribution.together(strategy):
        with strategy.scope():
            layers = [keras.layers.Dense(256, activation="relu"), keras.layers.Dense(10)]
            model = keras.Sequential([keras.Input((784,)), *layers])
            model.compile(kopt.AdamW(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        distribution.share_loss(model)
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(STEPS * 128, 784)).astype("float32"), rng.integers(0, 10, STEPS * 128)
        data = distribution.shard(kopt.checkpoint.ShuffledBatches(x, y, batch_size=128), strategy)
        model.fit(data, epochs=1, shuffle=False, verbose=0)
        bytes_before, began = sent(), time.perf_counter()
        model.fit(data, epochs=2, initial_epoch=1, shuffle=False, verbose=0)
        seconds = (time.perf_counter() - began) / STEPS
        bytes_of_step = (sent() - bytes_before) / STEPS
    if distribution.is_chief(strategy):
        found = {"bytes": bytes_of_step, "seconds": seconds, "gradient": 4 * model.count_params()}
        (folder / "found.json").write_text(json.dumps(found))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--as-worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    arguments = parser.parse_args()
    if arguments.as_worker is not None:
        work(arguments.as_worker)
        return 0
    print("| workers | bytes a step and worker | ring | ms a step |\n|---|---|---|---|")
    for count in arguments.workers:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.workers", "--as-worker", folder]
            if code := distribution.launch(command, count):
                return code
            found = json.loads(Path(folder, "found.json").read_text())
        ring = 2 * (count - 1) / count * found["gradient"]
        print(f"| {count} | {found['bytes'] / count:,.0f} | {ring:,.0f} | {1e3 * found['seconds']:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

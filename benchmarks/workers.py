"""Bytes and seconds of a step of several workers on this machine.

    python -m benchmarks.workers
    python -m benchmarks.workers --workers 2 --sync-every 4 16     # LocalSGD beside it

Trains a dense network on random images by 1, 2 and 4 workers and prints a table: what a step sends, by the counters of
the loopback interface, beside what a ring sends, 2(n-1)/n of the gradient for each worker, and how long it takes. On a
machine with fewer cores than workers the times say nothing about several machines.
"""

import argparse
import contextlib
import itertools
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


def work(folder: Path, sync_every: int) -> None:
    """Trains as one of several workers; the chief writes what it has measured."""
    strategy = distribution.strategy("multiworker")
    import keras
    import numpy as np

    import kopt

    local = distribution.LocalSGD(strategy, sync_every=sync_every) if sync_every else None
    with distribution.together(strategy):
        with contextlib.nullcontext() if local else strategy.scope():
            layers = [keras.layers.Dense(256, activation="relu"), keras.layers.Dense(10)]
            model = keras.Sequential([keras.Input((784,)), *layers])
            model.compile(kopt.AdamW(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        distribution.share_loss(model)  # of one replica, it stays as it is
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(STEPS * 128, 784)).astype("float32"), rng.integers(0, 10, STEPS * 128)
        batches = kopt.checkpoint.ShuffledBatches(x, y, batch_size=128)
        data = local.shard(batches) if local else distribution.shard(batches, strategy)
        options = {"shuffle": False, "verbose": 0, "callbacks": [local] if local else []}
        model.fit(data, epochs=1, **options)
        bytes_before, began = sent(), time.perf_counter()
        model.fit(data, epochs=2, initial_epoch=1, **options)
        seconds = (time.perf_counter() - began) / STEPS
        bytes_of_step = (sent() - bytes_before) / STEPS
    if distribution.is_chief(strategy):
        found = {"bytes": bytes_of_step, "seconds": seconds, "gradient": 4 * model.count_params()}
        (folder / "found.json").write_text(json.dumps(found))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--as-worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--sync-every", type=int, nargs="*", default=[], help="batches between averages of LocalSGD")
    arguments = parser.parse_args()
    if arguments.as_worker is not None:
        work(arguments.as_worker, *arguments.sync_every)
        return 0
    print("| workers | sent | bytes a step and worker | ring | ms a step |\n|---|---|---|---|---|")
    for count, every in itertools.product(arguments.workers, [0, *arguments.sync_every]):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.workers", "--as-worker", folder, "--sync-every", str(every)]
            if code := distribution.launch(command, count):
                return code
            found = json.loads(Path(folder, "found.json").read_text())
        ring = 2 * (count - 1) / count * found["gradient"]
        how = f"weights and slots, each {every} steps" if every else "gradients"
        figures = f"{found['bytes'] / count:,.0f} | {ring:,.0f} | {1e3 * found['seconds']:.1f}"
        print(f"| {count} | {how} | {figures} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Counts the updates to 98 % of MNIST's test digits, by fixed batches and by batches that follow the noise.

    python -m benchmarks.adaptive_batch --data mnist.npz [--seeds 5] [--epochs 10] [--write]

The `mlp` of the recipe `mnist` without dropout, by AdamW at a constant rate of 1e-3 √(examples of a batch / 128), all
by the same examples in the same order. `AdaptiveBatch` gathers batches of 32, two at first, up to the noise scale or a
quarter of it, and its rate follows the same root. The test digits are looked at every 6,000 examples. A run ends when
98 % are right, or after ten epochs.
"""

import argparse
import os
import statistics
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import kopt
from benchmarks import _turns
from recipes.mnist import build

FIXED = (32, 128, 512, 2048)
SMALL, START = 32, 2
"""Examples of one of the batches that are gathered, and how many of them make the first updates."""
RATE, AT = 1e-3, 128
SHARES = (1.0, 0.25)
"""Examples of an update in units of the noise scale."""
TARGET, EVERY = 0.98, 6000


class Watch(keras.callbacks.Callback):
    """Looks at the test digits every so many examples, and ends the training where enough of them are right.

    Args:
        x: [n, 28, 28], bytes.
        y: [n], classes.
        batch: examples of a step of `fit`.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, batch: int) -> None:
        super().__init__()
        self.x, self.y, self.batch = tf.constant(x, "float32"), y, batch
        self.examples, self.best, self.found = 0, 0.0, (0, 0)
        self.reached = False

    def on_train_begin(self, logs: Any = None) -> None:
        """Makes the function that predicts."""
        self.predicted = tf.function(lambda: tf.argmax(self.model(self.x, training=False), -1))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Looks, if it is time."""
        before, self.examples = self.examples, self.examples + self.batch
        if before // EVERY == self.examples // EVERY:
            return
        self.best = max(self.best, float(np.mean(self.predicted().numpy() == self.y)))
        if self.best >= TARGET:
            self.reached = self.model.stop_training = True
        self.found = (int(self.model.optimizer.iterations), self.examples)


def train(batch: int | float, seed: int, data: Any, epochs: int) -> tuple[int, int, float, list[float]]:
    """Trains once; returns updates and examples, the best accuracy, and the examples of each update if they vary.

    Args:
        batch: examples of an update, an integer, or their share of the noise scale.
        seed: of weights and order.
        data: images and classes to learn, and of the test.
        epochs: the longest training.
    """
    x, y, *test = data
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    fixed = isinstance(batch, int)
    size, model = (int(batch) if fixed else SMALL), build("mlp", 0.0)
    rate = RATE * ((size if fixed else SMALL * START) / AT) ** 0.5
    model.compile(kopt.AdamW(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    watch, sizes = Watch(*test, size), list[float]()
    callbacks = [watch]
    if not fixed:
        adaptive = kopt.distribution.AdaptiveBatch(
            start=START, share=batch, rule="square-root", log=lambda values, _: sizes.append(values["Batch/examples"])
        )
        callbacks.append(adaptive)
    batches = kopt.checkpoint.ShuffledBatches(x, y, batch_size=size, seed=seed)
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
    return *watch.found, watch.best, sizes


def draw(sizes: dict[tuple[float, int], list[float]]) -> None:
    """Draws the examples of each update, of all shares and seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((7, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for (share, seed), values in sizes.items():
        look = {"color": f"C{SHARES.index(share)}", "label": None if seed else f"{share:g} × the noise scale"}
        axes.plot(range(1, len(values) + 1), values, lw=0.8, **look)
    axes.set(xlabel="update", ylabel="examples of the update", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(Path(__file__).parents[1] / "docs" / "adaptive-batch.png", dpi=120)


def main() -> None:
    """Trains, prints the table, and writes it if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="mnist.npz, of Keras")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/README.md, and a picture")
    given = parser.parse_args()
    with np.load(given.data) as file:
        data = [file[name] for name in ("x_train", "y_train", "x_test", "y_test")]
    lines = [f"| batch | updates to {TARGET:.0%}, median | least to most | examples, median | reached |"]
    lines.append("|---|---:|---:|---:|---:|")
    sizes: dict[tuple[float, int], list[float]] = {}
    for batch in (*FIXED, *SHARES):
        runs = []
        for seed in range(given.seeds):
            updates, examples, best, found = train(batch, seed, data, given.epochs)
            runs.append((updates, examples, best >= TARGET))
            if found:
                sizes[batch, seed] = found
            print(f"batch {batch}, seed {seed}: {updates} updates, {examples} examples, {best:.4f}", flush=True)
        counts, seen, reached = zip(*runs, strict=True)
        name = f"{batch:,}" if isinstance(batch, int) else f"{batch:g} × the noise scale"
        span = f"{min(counts):,} to {max(counts):,}"
        figures = f"{statistics.median(counts):,.0f} | {span} | {statistics.median(seen):,.0f}"
        lines.append(f"| {name} | {figures} | {sum(reached)} of {len(reached)} |")
    lines += ["", f"At most {given.epochs} epochs of {len(data[0]):,}; {_turns.machine('Keras', 'TensorFlow')}"]
    print("\n".join(lines))
    if given.write:
        lines += ["", "![Examples of each update](../docs/adaptive-batch.png)"]
        _turns.insert("\n".join(lines), "adaptive-batch")
        draw(sizes)


if __name__ == "__main__":
    main()

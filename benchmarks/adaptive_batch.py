"""Updates that `AdaptiveBatch` needs, beside batches of one size, on equal examples.

    python -m benchmarks.adaptive_batch --data mnist.npz --seeds 5

Trains the mlp of `recipes.mnist` with AdamW until it has 98 % of the test images right, or has seen the images so often
as `--epochs` says, and prints the updates and examples up to each accuracy: medians over seeds. The learning rate of a
batch of B images is 1e-3 √(B/128), for the batches that grow, too.
"""

import argparse
import statistics
import sys
import time
from typing import Any

import keras
import numpy as np

import kopt
from recipes import mnist
from recipes.readers.digits import CLASSES, load
from recipes.run.batches import batches, one_hot

GOALS = (0.95, 0.97, 0.98)
FIXED = (32, 128, 512, 2048)
STEP = 10_000
"""Examples from one look at the test set to the next."""


class Look(keras.callbacks.Callback):
    """Notes updates and examples at which each accuracy is reached, and ends the training at the last one.

    Args:
        x: test images.
        y: their labels.
        batch_size: images a batch.
    """

    def __init__(self, x: Any, y: Any, batch_size: int) -> None:
        super().__init__()
        self._x, self._y, self._size = keras.ops.convert_to_tensor(x), y, batch_size
        self.found: dict[float, tuple[int, int]] = {}
        self._seen = self._next = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Looks now and then."""
        self._seen += self._size
        if self._seen < self._next:
            return
        self._next = self._seen + STEP
        right = float(np.mean(np.argmax(np.asarray(self.model(self._x)), -1) == self._y))
        for goal in GOALS:
            if right >= goal and goal not in self.found:
                self.found[goal] = int(self.model.optimizer.iterations), self._seen
        self.model.stop_training = GOALS[-1] in self.found


def train(data: Any, size: int, epochs: int, seed: int, rule: str | None = None) -> tuple[dict[float, Any], float]:
    """Returns what `Look` has found, and the last noise scale, NaN of a fixed batch.

    Args:
        data: the images.
        size: images a batch.
        epochs: passes over them at most.
        seed: of weights and order.
        rule: of `AdaptiveBatch` for the learning rate; None has all batches of one size.
    """
    keras.utils.set_random_seed(seed)
    model = mnist.build("mlp", 0.0)
    first = 2 * size if rule else size
    model.compile(kopt.AdamW(1e-3 * (first / 128) ** 0.5), keras.losses.CategoricalCrossentropy(from_logits=True))
    looks = Look(data.x_test, data.y_test, size)
    adaptive = [kopt.distribution.AdaptiveBatch(rule=rule)] if rule else []
    training = batches(data.x_train, one_hot(data.y_train, CLASSES), size, shuffle_seed=seed)
    model.fit(training, epochs=epochs, shuffle=False, verbose=0, callbacks=[*adaptive, looks])
    return looks.found, adaptive[0].noise_scale if adaptive else float("nan")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="auto", help="as of recipes.mnist")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    given = parser.parse_args()
    data = load(given.data)
    settings: list[tuple[str, int, str | None]] = [(f"{size} images", size, None) for size in FIXED]
    settings += [("AdaptiveBatch, 64 images and up", 32, "square-root")]
    heads = [f"{goal:.0%}: updates (examples)" for goal in GOALS]
    print(f"| batch | {' | '.join(heads)} | reached {GOALS[-1]:.0%} | s |\n|---|{'---:|' * (len(GOALS) + 2)}")
    for name, size, rule in settings:
        began = time.perf_counter()
        runs = [train(data, size, given.epochs, seed, rule) for seed in range(given.seeds)]
        cells = []
        for goal in GOALS:
            reached = [found[goal] for found, _ in runs if goal in found]
            middle = (
                [statistics.median(x) for x in zip(*reached, strict=True)] if 2 * len(reached) > len(runs) else None
            )
            cells.append("-" if middle is None else f"{middle[0]:,.0f} ({middle[1]:,.0f})")
        count = sum(GOALS[-1] in found for found, _ in runs)
        seconds = time.perf_counter() - began
        print(f"| {name} | {' | '.join(cells)} | {count} of {given.seeds} | {seconds:.0f} |", flush=True)
        if rule:
            print(f"noise scale at the end: {statistics.median(scale for _, scale in runs):,.0f} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())

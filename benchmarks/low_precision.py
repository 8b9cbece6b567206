"""Compares Adam with few bits to Adam in float32: at the end of trainings, and beside bitsandbytes.

    python -m benchmarks.low_precision [--data mnist5k] [--epochs 10] [--seeds 3] [--write]

The recipe `mnist` trains its cnn from the same seeds: in float32, with the state of Adam in int8, and with all of the
model in bfloat16, by Kahan's sums or rounding to the nearest. Then Adam in float32 and int8, and `AdamW8bit` if
`pip install bitsandbytes==0.50.1 torch==2.13.0` put it there, take one sequence of gradients: those of a weight of
1,024 × 1,024 have a mean of their own for each element, from 1e-4 to 1, and noise as large. What is told is how far the
weight ends from where float32 takes it, in units of the way, and the time of a step in units of float32's.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks import _turns

TRAININGS = {
    "float32": "",
    "int8 state": "--opt state_dtype=int8",
    "bfloat16, Kahan": "--precision bfloat16",
    "bfloat16, nearest": "--precision bfloat16 --opt rounding=nearest",
}
STATES = ("float32", "int8")
SIDE, STEPS, RATE = 1024, 100, 1e-3
Step = Callable[[np.ndarray], np.ndarray]
"""Takes a gradient; returns the weight after it."""


def trained(how: str, seed: int, data: str, epochs: int) -> dict[str, Any]:
    """Returns the metrics of a run of the recipe."""
    with tempfile.TemporaryDirectory() as folder:
        flags = f"--optimizer adam {TRAININGS[how]} --data {data} --epochs {epochs} --seed {seed}"
        place = f"--progress none --track none --save-every {epochs} --output-dir {folder}/run"
        command = [sys.executable, "-m", "recipes.mnist", *flags.split(), *place.split()]
        subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        return dict(json.loads(Path(folder, "run", "metrics.json").read_text(encoding="utf-8")))


def ends(data: str, epochs: int, seeds: int) -> list[str]:
    """Returns the test accuracies of all trainings as lines of Markdown."""
    lines = [f"| test accuracy, % | {' | '.join(TRAININGS)} |", "|---|" + "---:|" * len(TRAININGS)]
    found: list[list[float]] = []
    for seed in range(seeds):
        found.append([100 * trained(how, seed, data, epochs)["test_accuracy"] for how in TRAININGS])
        lines.append(f"| seed {seed} | {' | '.join(f'{x:.2f}' for x in found[-1])} |")
        print(lines[-1], flush=True)
    means = [statistics.mean(column) for column in zip(*found, strict=True)]
    lines.append(f"| mean | {' | '.join(f'{x:.2f}' for x in means)} |")
    return [*lines, f"| difference, points | | {' | '.join(f'{x - means[0]:+.2f}' for x in means[1:])} |"]


def tape() -> tuple[np.ndarray, list[np.ndarray]]:
    """Returns the first weight and the gradients."""
    rng = np.random.default_rng(0)
    scale = (10 ** rng.uniform(-4, 0, (SIDE, SIDE))).astype("float32")
    noise = (rng.standard_normal((SIDE, SIDE), "float32") for _ in range(STEPS))
    return 0.02 * rng.standard_normal((SIDE, SIDE), "float32"), [scale * (1 + x) for x in noise]


def kopt_step(state: str, first: np.ndarray) -> Step:
    """Returns the step of kopt.AdamW."""
    import keras
    import tensorflow as tf

    import kopt

    weight, optimizer = keras.Variable(first), kopt.AdamW(RATE, weight_decay=0.0, state_dtype=state)

    def step(g: np.ndarray) -> np.ndarray:
        optimizer.apply([tf.constant(g)], [weight])
        return np.asarray(weight)

    return step


def other_step(first: np.ndarray) -> Step:
    """Returns the step of bitsandbytes.optim.AdamW8bit, on a CPU."""
    import bitsandbytes
    import torch

    weight = torch.nn.Parameter(torch.tensor(first))
    optimizer = bitsandbytes.optim.AdamW8bit([weight], RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)

    def step(g: np.ndarray) -> np.ndarray:
        weight.grad = torch.from_numpy(g)
        optimizer.step()
        return np.asarray(weight.detach())

    return step


def beside() -> list[str]:
    """Returns distance and time of each on the same gradients, as lines of Markdown."""
    first, gradients = tape()
    steps = {f"kopt.AdamW, {state}": kopt_step(state, first) for state in STATES}
    if importlib.util.find_spec("bitsandbytes"):
        steps["bitsandbytes AdamW8bit"] = other_step(first)
    times: _turns.Times = {name: [] for name in steps}
    ended: dict[str, np.ndarray] = {}
    for g in gradients:
        for name, step in steps.items():
            start = time.perf_counter()
            ended[name] = step(g)
            times[name].append(time.perf_counter() - start)
    exact = ended[f"kopt.AdamW, {STATES[0]}"]
    way = float(np.linalg.norm(exact - first))
    lines = ["| on one tape | distance from float32, of the way | time of a step, × float32 |", "|---|---:|---:|"]
    for name in steps:
        apart = float(np.linalg.norm(ended[name] - exact)) / way
        lines.append(f"| {name} | {apart:.4f} | {_turns.ratio(times, name, f'kopt.AdamW, {STATES[0]}'):.2f} |")
    return lines


def main() -> None:
    """Measures what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist5k", help="as for recipes.mnist")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/README.md")
    given = parser.parse_args()
    lines = [*ends(given.data, given.epochs, given.seeds), "", *beside()]
    scope = f"cnn on {Path(given.data).stem}, {given.epochs} epochs; {SIDE} × {SIDE}, {STEPS} steps"
    lines += ["", f"{scope}; {_turns.machine('Keras', 'TensorFlow')}"]
    print("\n".join(lines))
    if given.write:
        _turns.insert("\n".join(lines), "low-precision")


if __name__ == "__main__":
    main()

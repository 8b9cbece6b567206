"""Times one optimizer step on the weights of a small BERT, against Keras and torch.

    python -m benchmarks.step [--rounds 15] [--write]

133 variables, 13.9 million parameters. The contestants take turns, round after round, so that other work on the
machine falls on all of them; torch runs in a process of its own, where its threads do not disturb TensorFlow's. The
table gives the median over the rounds and, as the figures to go by, the medians of the ratios within a round.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import _turns

TORCH = "torch.optim.AdamW(fused=True)"


def shapes(blocks: int = 8) -> list[tuple[int, ...]]:
    """Returns the shapes of the weights: embeddings, blocks of attention and feed-forward, with their norms."""
    width, heads, inner = 320, 10, 1280
    layer = [(width, heads, width // heads), (heads, width // heads)] * 3
    layer += [(heads, width // heads, width), (width,), (width,), (width,)]
    layer += [(width, inner), (inner,), (inner, width), (width,), (width,), (width,)]
    return [(12000, width), (512, width), (2, width), (width,), (width,), *layer * blocks]


def arrays(scale: float, seed: int, of: list[tuple[int, ...]]) -> list[Any]:
    """Returns random values for the weights or their gradients."""
    import numpy as np

    rng = np.random.default_rng(seed)
    return [(scale * rng.normal(size=s)).astype("float32") for s in of]


def torch_step() -> Callable[[], Any]:
    """Returns a fused step of AdamW."""
    import torch

    parameters = [torch.nn.Parameter(torch.from_numpy(a)) for a in arrays(0.02, 0, shapes())]
    for parameter, g in zip(parameters, arrays(0.01, 1, shapes()), strict=True):
        parameter.grad = torch.from_numpy(g)
    return torch.optim.AdamW(parameters, lr=1e-3, fused=True).step


def contestants() -> dict[str, Callable[[], float]]:
    """Returns, by name, functions that time one round."""
    import keras
    import tensorflow as tf

    import kopt

    gradients = [tf.constant(g) for g in arrays(0.01, 1, shapes())]

    def steps(optimizer: Any) -> dict[str, Callable[[], Any]]:
        variables = [keras.Variable(a) for a in arrays(0.02, 0, shapes())]
        optimizer.build(variables)

        def eager() -> None:
            optimizer.apply(gradients, variables)

        return {
            "eager": eager,
            "tf.function": tf.function(eager, autograph=False),
            "XLA": tf.function(eager, autograph=False, jit_compile=True),
        }

    made = {"kopt.Adam": kopt.Adam(), "keras.optimizers.Adam": keras.optimizers.Adam(), "kopt.AdamW": kopt.AdamW()}
    timed = {f"{name}, {mode}": step for name, optimizer in made.items() for mode, step in steps(optimizer).items()}
    for step in timed.values():
        step()
    return {name: functools.partial(_turns.clock, step) for name, step in timed.items()}


def table(rounds: int) -> list[str]:
    """Returns the results as lines of Markdown."""
    with _turns.apart(torch_step) as torch:
        times = _turns.take_turns(contestants() | {TORCH: torch}, rounds)
    keras, adam, adamw = "keras.optimizers.Adam, {}", "kopt.Adam, {}", "kopt.AdamW, {}"
    comparisons = [
        (f"{mode}: kopt.Adam is faster than Keras' by", keras.format(mode), adam.format(mode), f"≥ {aim} ×")
        for mode, aim in (("eager", 8), ("tf.function", 2), ("XLA", 1))
    ] + [
        (f"kopt.AdamW, {mode}: time of torch's fused AdamW", adamw.format(mode), TORCH, "≤ 1.5 ×")
        for mode in ("eager", "tf.function")
    ]
    scope = f"{rounds} rounds; {_turns.machine('Keras', 'TensorFlow', 'torch')}"
    return [*_turns.compare(times, comparisons, digits=1), "", scope]


if __name__ == "__main__":
    _turns.main(__doc__, "step", 15, table)

"""Times one compiled step of every rule against that of kopt.Adam.

    python -m benchmarks.rules [--rounds 15] [--write]

The weights are those of a small BERT of one block. Each rule takes turns with Adam; a figure is the median of the
ratios within a round. Wrappers stand around AdamW.
"""

import os
import statistics
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import kopt
from benchmarks import _turns, step

SHAPES = step.shapes(blocks=1)


def stepper(optimizer: Any) -> Callable[[], Any]:
    """Returns a function that makes one step, compiled and warm."""
    variables = [keras.Variable(a) for a in step.arrays(0.02, 0, SHAPES)]
    gradients = [tf.constant(g) for g in step.arrays(0.01, 1, SHAPES)]
    optimizer.build(variables)

    @tf.function(autograph=False)
    def call() -> None:
        optimizer.scale_loss(tf.constant(1.0))  # some rules look at the loss
        optimizer.apply(gradients, variables)

    call()
    return call


def ratios(rounds: int) -> dict[str, float]:
    """Returns the time of a step of each rule in units of Adam's."""
    adam = stepper(kopt.Adam())
    found = {}
    for cls in kopt.registry().values():
        call = stepper(cls())
        _turns.clock(call)
        found[cls.__name__] = statistics.median(_turns.clock(call) / _turns.clock(adam) for _ in range(rounds))
        print(f"{cls.__name__} {found[cls.__name__]:.2f}", flush=True)
    return found


def table(rounds: int) -> list[str]:
    """Returns the ratios as lines of Markdown, in four columns."""
    rows = sorted(ratios(rounds).items(), key=lambda item: item[1])
    height = -(-len(rows) // 4)
    columns = [rows[i : i + height] for i in range(0, len(rows), height)]
    lines = ["| rule | × Adam " * len(columns) + "|", "|---|---:" * len(columns) + "|"]
    for i in range(height):
        cells = [f"| `{c[i][0]}` | {c[i][1]:.2f} " if i < len(c) else "| | " for c in columns]
        lines.append("".join(cells) + "|")
    size = sum(int(np.prod(s)) for s in SHAPES)
    scope = f"{len(SHAPES)} variables, {size / 1e6:.1f} million parameters; {rounds} rounds"
    return [*lines, "", f"{scope}; {_turns.machine('Keras', 'TensorFlow')}"]


if __name__ == "__main__":
    _turns.main(__doc__, "rules", 15, table)

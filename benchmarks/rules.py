"""Times one compiled step of every rule against that of kopt.Adam.

    python -m benchmarks.rules [--rounds 15] [--write]

The weights are those of a small BERT of one block. Each rule takes turns with Adam; a figure is the median of the
ratios within a round. Wrappers stand around AdamW.
"""

import argparse
import os
import platform
import statistics
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import kopt
from benchmarks import step

START, END = "<!-- rules -->", "<!-- /rules -->"
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
        step.clock(call)
        found[cls.__name__] = statistics.median(step.clock(call) / step.clock(adam) for _ in range(rounds))
        print(f"{cls.__name__} {found[cls.__name__]:.2f}", flush=True)
    return found


def table(found: dict[str, float], rounds: int) -> str:
    """Returns the ratios as Markdown, in four columns."""
    rows = sorted(found.items(), key=lambda item: item[1])
    height = -(-len(rows) // 4)
    columns = [rows[i : i + height] for i in range(0, len(rows), height)]
    lines = ["| rule | × Adam " * len(columns) + "|", "|---|---:" * len(columns) + "|"]
    for i in range(height):
        cells = [f"| `{c[i][0]}` | {c[i][1]:.2f} " if i < len(c) else "| | " for c in columns]
        lines.append("".join(cells) + "|")
    versions = f"Keras {keras.__version__}, TensorFlow {tf.__version__}, Python {platform.python_version()}"
    size = sum(int(np.prod(s)) for s in SHAPES)
    scope = f"{len(SHAPES)} variables, {size / 1e6:.1f} million parameters; {rounds} rounds"
    return "\n".join([*lines, "", f"{scope}; {versions}, {len(os.sched_getaffinity(0))} cores, no GPU."])


def main() -> None:
    """Measures, prints the table, and with --write puts it into README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/README.md")
    arguments = parser.parse_args()
    result = table(ratios(arguments.rounds), arguments.rounds)
    print(result)
    if arguments.write:
        step.insert(result, START, END)


if __name__ == "__main__":
    main()

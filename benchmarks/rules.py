"""Times one compiled step of every rule against that of kopt.Adam, and against what its reads and writes take.

    python -m benchmarks.rules [--rounds 15] [--write]
    python -m benchmarks.rules --check

The weights are those of a small BERT of one block. Each rule takes turns with Adam and with SGD, which does nothing but
read two numbers and write one; a figure is the median of the ratios within a round. Wrappers stand around AdamW. With
--check a few rounds are compared with the table of README.md: a rule that takes more than 1.6 times as long as there,
or that is not there, is an error.
"""

import os
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import kopt
from benchmarks import _turns, step

SHAPES = step.shapes(blocks=1)
SLACK = 1.6
FEW = 5  # rounds of a check; a rule that fails has three times as many, twice
Step = Callable[[], Any]


def stepper(optimizer: Any) -> Step:
    """Returns a function that makes one step, compiled and warm."""
    variables = [keras.Variable(a) for a in step.arrays(0.02, 0, SHAPES)]
    gradients = [tf.constant(g) for g in step.arrays(0.01, 1, SHAPES)]
    optimizer.build(variables)

    @tf.function(autograph=False)
    def call() -> None:
        optimizer.scale_loss(tf.constant(1.0))  # some rules look at the loss
        if hasattr(optimizer, "observe"):
            optimizer.observe(lambda: gradients)
        optimizer.apply(gradients, variables)

    call()
    return call


def streams(rule: Any) -> int | None:
    """Returns how many numbers a step reads and writes for each parameter; None if it is not element by element.

    XLA on a CPU writes each output in a loop of its own: each slot like the weight reads itself and the gradient and
    is written; the weight reads itself, the gradient and all of these slots and is written.
    """
    shape = (3, 4)
    slots = [slot.shape_for(shape) for slot in rule.slots.values()]
    if not rule.row_wise or rule.needs_loss:
        return None
    return 3 + 4 * sum(slot == shape for slot in slots)


def compare(call: Step, adam: Step, sgd: Step, rounds: int) -> tuple[float, float]:
    """Returns the time of a step in units of Adam's, and of a third of SGD's: that of reading or writing a number."""
    times = [tuple(_turns.clock(f) for f in (call, adam, sgd)) for _ in range(rounds)]
    return statistics.median(a / b for a, b, _ in times), statistics.median(3 * a / c for a, _, c in times)


def measured(rounds: int) -> dict[str, tuple[float, float | None]]:
    """Returns for each rule the time of a step in units of Adam's, and in units of its bound where it has one."""
    adam, sgd, found = stepper(kopt.Adam()), stepper(kopt.SGD()), dict[str, tuple[float, float | None]]()
    for cls in kopt.registry().values():
        rule = cls()
        call = stepper(rule)
        _turns.clock(call)
        by_adam, moved = compare(call, adam, sgd, rounds)
        count = streams(rule)
        found[cls.__name__] = by_adam, None if count is None else moved / count
        print(cls.__name__, *(f"{x:.2f}" for x in found[cls.__name__] if x is not None), flush=True)
    return found


def table(rounds: int) -> list[str]:
    """Returns the ratios as lines of Markdown, in three columns."""
    rows = sorted(measured(rounds).items(), key=lambda item: item[1][0])
    height = -(-len(rows) // 3)
    columns = [rows[i : i + height] for i in range(0, len(rows), height)]
    lines = ["| rule | × Adam | × its bound " * len(columns) + "|", "|---|---:|---:" * len(columns) + "|"]
    for i in range(height):
        cells = []
        for column in columns:
            name, (by_adam, by_bound) = column[i] if i < len(column) else ("", (0.0, None))
            bound = "-" if by_bound is None else f"{by_bound:.2f}"
            cells.append(f"| `{name}` | {by_adam:.2f} | {bound} " if name else "| | | ")
        lines.append("".join(cells) + "|")
    size = sum(int(np.prod(s)) for s in SHAPES)
    scope = f"{len(SHAPES)} variables, {size / 1e6:.1f} million parameters; {rounds} rounds"
    return [*lines, "", f"{scope}; {_turns.machine('Keras', 'TensorFlow')}"]


def faults(known: Mapping[str, float], names: Sequence[str], ratio: Callable[[str, int], float]) -> list[str]:
    """Returns what is wrong with the table of README.md, a sentence each.

    Args:
        known: times of a step by rule, in units of Adam's, as they are there.
        names: the rules that there are.
        ratio: measures the time of a rule in so many rounds.
    """
    found = []
    for name in names:
        if name not in known:
            found.append(f"{name} is not in benchmarks/README.md: run `python -m benchmarks.rules --write`.")
            continue
        ratios = []
        for rounds in (FEW, 3 * FEW, 3 * FEW):  # another program may have been in the way
            ratios.append(ratio(name, rounds))
            if ratios[-1] <= SLACK * known[name]:
                break
        else:
            found.append(f"{name} takes {min(ratios):.2f} × Adam; benchmarks/README.md has {known[name]:.2f}.")
    return found + [f"{name} is in benchmarks/README.md, but no rule." for name in sorted({*known} - {*names})]


def written() -> dict[str, float]:
    """Returns the times in the table of README.md, in units of Adam's."""
    return {name: float(x) for name, x in re.findall(r"\| `(\w+)` \| ([\d.]+) ", _turns.written("rules"))}


def check() -> int:
    """Prints what is wrong, and returns how much."""
    adam, classes, steps = stepper(kopt.Adam()), kopt.registry().values(), dict[str, Step]()

    def ratio(name: str, rounds: int) -> float:
        if name not in steps:
            steps.clear()  # one at a time: the slots of all would fill the memory
            steps[name] = stepper(next(cls for cls in classes if cls.__name__ == name)())
            _turns.clock(steps[name])
        return statistics.median(_turns.clock(steps[name]) / _turns.clock(adam) for _ in range(rounds))

    wrong = faults(written(), [cls.__name__ for cls in classes], ratio)
    print("\n".join(wrong) or f"No rule takes more than {SLACK} times as long as in benchmarks/README.md.")
    return len(wrong)


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(check() > 0)
    _turns.main(__doc__, "rules", 15, table)

"""Times the look for gradients and weights that are not finite: `on_nonfinite="skip"` against "ignore".

    python -m benchmarks.nonfinite [--rounds 15] [--write]

On the weights of `benchmarks.step`, in turns. *tf.function* is what `fit` does on a CPU, *XLA* a compiled train step.
No step can be skipped before every gradient was read once. The floor is that read, by the fastest of NumPy's and
TensorFlow's own sums of squares, beside the step without it.
"""

import functools
import os
import statistics
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import _turns
from benchmarks.step import arrays, shapes

RULES = ("SGD", "Lion", "Adam", "LAMB")
READS = ("NumPy", "TensorFlow")


def contestants() -> dict[str, Callable[[], float]]:
    """Returns, by name, functions that time one round."""
    import keras
    import tensorflow as tf

    import kopt

    drawn = arrays(0.01, 1, shapes())
    gradients, flat = [tf.constant(g) for g in drawn], [g.reshape(-1) for g in drawn]
    timed = {
        read("NumPy"): lambda: [g @ g for g in flat],
        read("TensorFlow"): tf.function(lambda: tf.stack([tf.nn.l2_loss(g) for g in gradients]), autograph=False),
    }
    for rule in RULES:
        for what in ("ignore", "skip"):
            for mode, compiled in (("tf.function", None), ("XLA", True)):
                variables = [keras.Variable(a) for a in arrays(0.02, 0, shapes())]
                optimizer = kopt.get(rule, on_nonfinite=what)
                optimizer.build(variables)

                step = functools.partial(optimizer.apply, gradients, variables)
                timed[f"kopt.{rule}, {what}, {mode}"] = tf.function(step, autograph=False, jit_compile=compiled)
    for step in timed.values():
        step()
    return {name: functools.partial(_turns.clock, step) for name, step in timed.items()}


def read(library: str) -> str:
    """Returns the name of the contestant that only reads the gradients."""
    return f"a sum of squares of every gradient, {library}"


def table(rounds: int) -> list[str]:
    """Returns the results as lines of Markdown."""
    times = _turns.take_turns(contestants(), rounds)
    name = "kopt.{}, {}, {}".format
    fastest = min(map(read, READS), key=lambda x: statistics.median(times[x]))
    for rule in RULES:
        below = name(rule, "ignore", "tf.function")
        times[f"kopt.{rule}, floor"] = [x + y for x, y in zip(times[below], times[fastest], strict=True)]
    comparisons = [
        (f"kopt.{rule}, tf.function: floor", f"kopt.{rule}, floor", name(rule, "ignore", "tf.function"), "none")
        for rule in RULES
    ]
    comparisons += [
        (f"kopt.{rule}, {mode}: time with skip", name(rule, "skip", mode), name(rule, "ignore", mode), aim)
        for mode, aim in (("tf.function", "≤ 1.15 ×"), ("XLA", "none"))
        for rule in RULES
    ]
    scope = f"{rounds} rounds; {_turns.machine('Keras', 'TensorFlow')}"
    return [*_turns.compare(times, comparisons, digits=1), "", scope]


if __name__ == "__main__":
    _turns.main(__doc__, "nonfinite", 15, table)

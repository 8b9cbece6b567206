"""Times a step of kopt.Muon beside that of Keras' on the kernels that both treat, and its iterations on a stack.

    python -m benchmarks.muon [--rounds 15] [--write]

The kernels are those of two blocks of a transformer of width 256. The iterations alone run on twelve equal kernels, one
after the other as in a step, and stacked into one product.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import _turns, step

SHAPES: list[tuple[int, ...]] = [*[(256, 256)] * 4, (256, 1024), (1024, 256)] * 2
EQUAL: list[tuple[int, ...]] = [(64, 64), (256, 256), (256, 1024)]
COUNT = 12


def steps() -> dict[str, Callable[[], Any]]:
    """Returns the steps of both optimizers by name."""
    import keras
    import tensorflow as tf

    import kopt

    gradients, found = [tf.constant(g) for g in step.arrays(0.01, 1, SHAPES)], dict[str, Callable[[], Any]]()
    for library, optimizer in (("kopt", kopt.Muon), ("keras.optimizers", keras.optimizers.Muon)):
        for way, options in (("tf.function", {}), ("XLA", {"jit_compile": True})):
            variables, made = [keras.Variable(a) for a in step.arrays(0.02, 0, SHAPES)], optimizer()
            made.build(variables)
            call = functools.partial(made.apply, gradients, variables)
            found[f"{library}.Muon, {way}"] = tf.function(call, autograph=False, **options)
    return found


def iterations() -> dict[str, Callable[[], Any]]:
    """Returns the iterations on equal kernels, apart and stacked, by name."""
    import tensorflow as tf

    from kopt.optimizers.matrix.newton_schulz import orthogonalized

    def moves(weights: list[Any], directions: list[Any], stacked: bool) -> None:
        found = [w + u for w, u in zip(weights, directions, strict=True)]
        if stacked:
            found = tf.unstack(orthogonalized(tf.stack(found), "quintic", 5))
        else:
            found = [orthogonalized(x, "quintic", 5) for x in found]
        for w, o in zip(weights, found, strict=True):
            w.assign_sub(0.02 * o)

    made = {}
    for shape in EQUAL:
        weights, directions = (step.arrays(0.02, seed, [shape] * COUNT) for seed in (0, 1))
        for name, stacked in (("apart", False), ("stacked", True)):
            call = functools.partial(
                moves, [tf.Variable(w) for w in weights], list(map(tf.constant, directions)), stacked
            )
            made[f"{COUNT} of {shape[0]} × {shape[1]}, {name}"] = tf.function(call, autograph=False, jit_compile=True)
    return made


def table(rounds: int) -> list[str]:
    """Returns the results as lines of Markdown."""
    timed = steps() | iterations()
    for call in timed.values():
        call()
    times = _turns.take_turns({name: functools.partial(_turns.clock, call) for name, call in timed.items()}, rounds)
    comparisons = [
        (f"{way}: kopt.Muon takes of Keras' time", f"kopt.Muon, {way}", f"keras.optimizers.Muon, {way}", "≤ 1 ×")
        for way in ("tf.function", "XLA")
    ]
    names = [f"{COUNT} of {p} × {q}" for p, q in EQUAL]
    comparisons += [
        (f"{name}: stacked is faster by", f"{name}, apart", f"{name}, stacked", "≥ 1.1 ×") for name in names
    ]
    scope = f"{rounds} rounds; {_turns.machine('Keras', 'TensorFlow')}"
    return [*_turns.compare(times, comparisons, digits=1), "", scope]


if __name__ == "__main__":
    _turns.main(__doc__, "muon", 15, table)

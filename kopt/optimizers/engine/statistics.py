"""What can be told of the weights and their averages between two steps."""

from typing import Any

from keras import ops

from kopt.optimizers.engine.backends.backend import backend
from kopt.optimizers.engine.setup import Setup
from kopt.optimizers.engine.step import overwritten
from kopt.optimizers.engine.tensor_math import Tensor


def statistics(setup: Setup, rate: Tensor) -> dict[str, dict[str, Tensor]]:
    """Returns, by label of the weight, each element's `effective_learning_rate` and what its rule measures."""

    def look(rate: Tensor) -> dict[str, dict[str, Tensor]]:
        result = {}
        for p in setup.parameters:
            update = ops.maximum(setup.updates(), 1)
            s = setup.view(p, p.remembered(), setup.shared_values(), rate, update)
            t = ops.cast(update, p.dtype)
            result[p.label] = {"effective_learning_rate": s.learning_rate * p.rule.rate(s, t), **p.rule.measure(s, t)}
        return result

    return backend.compiled(setup.graphs, "statistics", look)(ops.cast(rate, setup.scalar_dtype))


def pay_averages(setup: Setup) -> None:
    """Gives every row of the averages the updates that it is owed."""
    averaged = [p for p in setup.parameters if p.average is not None]
    if not averaged:
        return

    def pay() -> list[Any]:
        return [p.paid(setup.updates()) for p in averaged]

    for p, (average, at) in zip(averaged, backend.compiled(setup.graphs, "paid", pay)(), strict=True):
        p.average.assign(average)
        p.averaged_at.assign(at)


def leave_averages(setup: Setup) -> None:
    """Makes every weight its average."""
    for write in overwritten(setup, setup.updates()):
        value = ops.copy(ops.cast(write.value, write.variable.dtype))  # on JAX no two variables may share an array
        write.variable.assign(value)

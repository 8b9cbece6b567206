"""What can be told of the weights and their averages between two steps."""

import functools

from keras import ops

from kopt.optimizers.engine.backends.backend import backend
from kopt.optimizers.engine.setup import Setup
from kopt.optimizers.engine.step import overwritten, paid
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


def reached(setup: Setup) -> dict[str, Tensor]:
    """Returns, by label of the weight, which elements have ever had a gradient other than zero, where slots tell.

    The step size of an adaptive rule is not defined for the others: its denominator is still ε.
    """

    def look() -> dict[str, Tensor]:
        found = {p.label: p.reached() for p in setup.parameters}
        return {label: seen for label, seen in found.items() if seen is not None}

    return backend.compiled(setup.graphs, "reached", look)()


def pay_averages(setup: Setup) -> None:
    """Gives every row of the averages the updates that it is owed."""
    if setup.averages_at is not None:
        backend.compiled(setup.graphs, "paid", functools.partial(_pay, setup))()


def leave_averages(setup: Setup) -> None:
    """Makes every weight its average."""
    backend.compiled(setup.graphs, "overwritten", functools.partial(_overwrite, setup))()


def _pay(setup: Setup) -> None:
    backend.commit(paid(setup, setup.updates()))


def _overwrite(setup: Setup) -> None:
    backend.commit(overwritten(setup, setup.updates()))

"""Where a step runs: as one compiled function, inside of a compiled train step, or on one of several replicas."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from keras import ops

from kopt.optimizers.engine.accumulation import accumulate, add, begin_anew, means
from kopt.optimizers.engine.backends.backend import backend
from kopt.optimizers.engine.backends.records import Gradient, Write
from kopt.optimizers.engine.clipping import measure, shorten
from kopt.optimizers.engine.finite import moderate_as_given, needs_care
from kopt.optimizers.engine.setup import Setup
from kopt.optimizers.engine.step import agree, counted, finish, move, read, step, unscaled
from kopt.optimizers.engine.tensor_math import Tensor


@backend.unconverted
def run(setup: Setup, gradients: Sequence[Any], rate: Tensor, loss: Tensor | None) -> None:
    """Makes one step, or accumulates towards one.

    Args:
        setup: the optimizer.
        gradients: one a parameter, or None.
        rate: η.
        loss: the loss, for rules that look at it.
    """
    gradients = [g if g is None else backend.as_given(g) for g in gradients]
    rate, loss = (x if x is None else ops.cast(x, setup.scalar_dtype) for x in (rate, loss))
    accumulates, place = setup.options.gradient_accumulation_steps, backend.place()
    looks = setup.options.on_nonfinite != "ignore"
    make = accumulate if accumulates else step
    if place == "replica":
        (loss,) = backend.sum_over_replicas([loss])  # Keras divides the loss of each replica by their number
        flags = make(setup, backend.sum_over_replicas(gradients), rate, loss)
    elif place == "compiled":
        flags = make(setup, gradients, rate, loss, careful=needs_care(setup, rate) if looks else False)
    elif accumulates:
        flags = _compiled(setup, _accumulated)(gradients, rate, loss)
    else:
        flags = _compiled_step(setup, gradients, rate, loss)
    if setup.options.on_nonfinite == "raise" and flags is not None:
        backend.raise_on(flags, [p.label for p, _ in setup.given(gradients)], setup.owner)


def _compiled_step(setup: Setup, gradients: Sequence[Any], rate: Tensor, loss: Tensor | None) -> Tensor | None:
    if setup.options.on_nonfinite == "ignore" or all(g is None for g in gradients):
        return _made(setup, gradients, rate, loss)
    return _compiled(setup, _judged)(gradients, rate, loss)


def _made(setup: Setup, gradients: Sequence[Any], rate: Tensor, loss: Tensor | None) -> Tensor | None:
    """Makes a step of which nothing is looked at, as one compiled function if the weights are not many."""
    if len(setup.parts()) > 1:
        return _compiled(setup, _in_parts)(gradients, rate, loss)
    return _compiled(setup, _fast, xla=True)(gradients, rate, loss)


def _in_parts(setup: Setup, gradients: Sequence[Any], rate: Tensor, loss: Tensor | None) -> Tensor | None:
    """Makes a step that moves some weights after the others, so that what it computes for them need not be kept.

    Only what all gradients decide together comes before, and has to wait for all of them.
    """
    number, options = setup.updates() + 1, setup.options
    factors, shared = list[Any]([None] * len(gradients)), dict[str, Tensor]()
    if setup.shared or options.clipnorm or options.clipvalue or options.global_clipnorm:
        factors, shared = _compiled(setup, _agreed, xla=True)(gradients, rate, loss)
    else:
        agreed = _compiled(setup, _agreed, xla=True)
        backend.cond(
            backend.value(setup.watched),
            lambda: (agreed(gradients, rate, loss), ops.ones([]))[1],
            lambda: ops.ones([]),
        )
    calls = []
    for places, first, count in setup.parts():
        own = [g if place in places else None for place, g in enumerate(gradients)]
        given = [g for g in own if g is not None]
        if not given or (first and backend.is_of_rows(given[0])):
            continue
        count = None if backend.is_of_rows(given[0]) else count
        moved = functools.partial(_moved, setup, count=count)
        call = backend.compiled(setup.graphs, f"_moved {places[0]} {count}", moved, xla=True)
        calls.append(functools.partial(call, own, factors, rate, shared, ops.convert_to_tensor(first, number.dtype)))
    backend.in_turn(calls)
    finish(setup, number)
    return None if options.on_nonfinite == "ignore" else ops.ones([len(setup.given(gradients))], "bool")


def _agreed(
    setup: Setup, gradients: Sequence[Any], rate: Tensor, loss: Tensor | None
) -> tuple[list[Tensor | None], dict[str, Tensor]]:
    """Settles what all gradients decide together: for each weight a factor of its gradient, and the shared values."""
    active = unscaled(setup, gradients)
    found, writes = measure(setup, active)
    factors = [None] * len(gradients)
    for (p, _), factor in zip(active, found, strict=False):
        factors[p.index] = factor
    if not setup.shared:
        backend.commit(writes)
        return factors, {}
    active = shorten(setup, active, found)
    shared, settling = agree(setup, active, read(active), rate, loss, setup.updates() + 1)
    backend.commit([*writes, *settling])
    return factors, shared


def _moved(
    setup: Setup,
    gradients: Sequence[Any],
    factors: Sequence[Tensor | None],
    rate: Tensor,
    shared: Mapping[str, Tensor],
    first: Tensor,
    count: int | None,
) -> Tensor:
    """Moves the weights that have a gradient here, or some rows of one; returns a tensor to wait for."""
    active = unscaled(setup, gradients)
    found = [factors[p.index] for p, _ in active if factors[p.index] is not None]
    active, number = shorten(setup, active, found), setup.updates() + 1
    seed = number
    if count is not None:
        rows = first + ops.arange(count, dtype=first.dtype)
        active = [(p, Gradient(ops.take(g.value, rows, axis=0), rows)) for p, g in active]
        seed = number + first * 2**16  # other noise for other rows
    backend.commit(move(setup, active, read(active), rate, shared, number, seed)[0])
    return ops.ones([])


def _fast(setup: Setup, gradients: Sequence[Any], rate: Tensor, loss: Tensor | None) -> Tensor | None:
    """Makes a step of which nothing is looked at: nobody asks, or the gradients were judged and no more is needed."""
    return step(setup, gradients, rate, loss, judged=True, careful=False)


def _careful(setup: Setup, gradients: Sequence[Any], rate: Tensor, loss: Tensor | None) -> Tensor | None:
    """Makes a step with gradients that were judged, and looks at the new weights and slots."""
    return step(setup, gradients, rate, loss, judged=True)


def _judged(setup: Setup, gradients: Sequence[Any], rate: Tensor, loss: Tensor | None) -> Tensor:
    """Looks at the gradients outside of XLA, where a condition copies no weights, then makes the step or not."""
    flags = moderate_as_given(setup, gradients)

    def careful() -> Tensor:
        return _compiled(setup, _careful, xla=True)(gradients, rate, loss)

    def fast() -> Tensor:
        return _made(setup, gradients, rate, loss)

    def make() -> Tensor:
        care = needs_care(setup, rate)
        return careful() if care is True else backend.cond(care, careful, fast)

    def skip() -> Tensor:
        backend.commit(counted(setup, ops.convert_to_tensor(False)))
        return flags

    return backend.cond(ops.all(flags), make, skip)


def _accumulated(setup: Setup, gradients: Sequence[Any], rate: Tensor, loss: Tensor | None) -> Tensor:
    """Adds a batch outside of XLA, which would copy whole tables inside of a condition; the last one makes the step."""
    due, loss = add(setup, gradients, loss)
    fine = ops.ones([len(setup.given(gradients))], "bool")

    def make() -> Tensor:
        flags = _compiled_step(setup, means(setup, gradients), rate, loss)
        backend.commit(begin_anew(setup, gradients))
        return fine if flags is None else flags

    def wait() -> Tensor:
        backend.commit([Write(setup.iterations, backend.value(setup.iterations) + 1)])
        return fine

    return backend.cond(due, make, wait)


def _compiled(setup: Setup, function: Callable[..., Any], xla: bool = False) -> Callable[..., Any]:
    """Returns a function of this module without its first argument, as a graph that `setup` keeps."""
    return backend.compiled(setup.graphs, function.__name__, functools.partial(function, setup), xla)

"""One step as a pure computation: from gradients to the writes that end it."""

from collections.abc import Mapping, Sequence
from typing import Any

from keras import ops

from kopt.optimizers.engine import rule_checks
from kopt.optimizers.engine.backends.backend import Update, backend
from kopt.optimizers.engine.backends.records import Gradient, Write
from kopt.optimizers.engine.clipping import Active, clip
from kopt.optimizers.engine.finite import are_finite, kept_unless, moderate
from kopt.optimizers.engine.setup import Setup, with_prefix
from kopt.optimizers.engine.tensor_math import Tensor

Known = list[tuple[Tensor, dict[str, Tensor]]]


def step(
    setup: Setup,
    gradients: Sequence[Any],
    rate: Tensor,
    loss: Tensor | None = None,
    due: Tensor | None = None,
    judged: bool = False,
    careful: Any = True,
) -> Tensor | None:
    """Reads the gradients, looks at them, updates if they may be used, and counts.

    Args:
        setup: the optimizer.
        gradients: one a parameter, or None.
        rate: η.
        loss: the loss, for rules that look at it.
        due: whether this batch completes an update; None is always.
        judged: whether the gradients are known not to be huge.
        careful: whether to look at the new weights and slots, too; a boolean, or a tensor of one.

    Returns:
        For each gradient whether it and the weight it makes are finite; None if `on_nonfinite` is "ignore".
    """
    active = unscaled(setup, gradients)
    number, fine = setup.updates() + 1, None
    if setup.options.on_nonfinite != "ignore" and active:
        fine = ops.ones([len(active)], "bool") if judged else moderate([g.value for _, g in active])
    looks = fine is not None and not (judged and careful is False)
    flags = backend.commit_if(due, lambda: update(setup, active, rate, loss, fine if looks else None, careful))
    finite = None if flags is None else ops.all(flags)
    finish(setup, number, due, finite)
    return fine if flags is None else flags


def finish(setup: Setup, number: Tensor, due: Tensor | None = None, finite: Tensor | None = None) -> None:
    """Puts the averages into the weights where it is time, and counts; arguments as of `step` and `counted`."""
    if every := setup.options.ema_overwrite_frequency:
        conditions = [c for c in (ops.equal(number % every, 0), due, finite) if c is not None]
        backend.commit_if(ops.all(ops.stack(conditions)), lambda: (overwritten(setup, number), None))
    backend.commit(counted(setup, finite))


def update(
    setup: Setup, active: Active, rate: Tensor, loss: Tensor | None, fine: Tensor | None, careful: Any
) -> Update:
    """Clips, settles the shared values, runs the rule and the decay on each weight; assigns nothing.

    Args:
        setup: the optimizer.
        active: the weights that have a gradient.
        rate: η.
        loss: the loss, for rules that look at it.
        fine: which gradients may be used; None does not look at anything.
        careful: whether to look at what is new, too.

    Returns:
        The writes, and for each weight whether both it and its gradient are fine. If one is not, the writes leave
        everything as it was.
    """
    active, writes = clip(setup, active)
    number, known = setup.updates() + 1, read(active)
    shared, settling = agree(setup, active, known, rate, loss, number)
    writes += settling
    moving, made = move(setup, active, known, rate, shared, number, seed=number)
    writes += moving
    if fine is None:
        return writes, None
    alone = [] if setup.needs_loss else [write.value for write in settling]  # a search may remember an infinite loss
    if careful is True:
        fine = ops.logical_and(fine, are_finite(made, alone))
    elif careful is not False:
        fine = ops.logical_and(fine, ops.cond(careful, lambda: are_finite(made, alone), lambda: fine))
    return [kept_unless(ops.all(fine), write) for write in writes], fine


def read(active: Active) -> Known:
    """Returns the weights that have a gradient, or rows of them, with their slots, as they are before the update."""
    return [(p.weight(g.rows), p.remembered(g.rows)) for p, g in active]


def agree(
    setup: Setup, active: Active, known: Known, rate: Tensor, loss: Tensor | None, number: Tensor
) -> tuple[dict[str, Tensor], list[Write]]:
    """Returns the shared values at this update, and the writes of those that were settled; arguments as of `move`."""
    shared = setup.shared_values() | ({} if loss is None else {"loss": loss})
    settled = settle(setup, active, known, shared, rate, number) if shared else {}
    return shared | settled, [Write(setup.shared[k], x) for k, x in settled.items()]


def move(
    setup: Setup,
    active: Active,
    known: Known,
    rate: Tensor,
    shared: Mapping[str, Tensor],
    number: Tensor,
    seed: Tensor,
) -> tuple[list[Write], list[list[Tensor]]]:
    """Runs the rule and the decay on each weight; assigns nothing.

    Args:
        setup: the optimizer.
        active: the weights that have a gradient, which is clipped.
        known: what `read` returns of them.
        rate: η.
        shared: the shared values.
        number: of this update, 1, 2, ..., as an integer.
        seed: an integer that random numbers go by; the number, unless it tells parts of one weight apart.

    Returns:
        The writes, and for each weight all that is new.
    """
    writes, made, whole = list[Write](), list[list[Tensor]](), list[int]()
    stepped = _stepped(setup, active, known, rate, shared, number)
    for (p, g), (w, _), (moved, new) in zip(active, known, stepped, strict=True):
        weight = p.moved(g, w, moved, number, seed, salt=2 * p.index)
        whole += [p.index] if p.average is not None and p.moves_whole(g) else []
        writes += [*weight, *p.encoded(g, new, seed, salt=2 * p.index + 1)]
        made.append([*(write.value for write in weight), *new.values()])
    return writes + _averaged(setup, whole, number), made


def _stepped(
    setup: Setup, active: Active, known: Known, rate: Tensor, shared: Mapping[str, Tensor], number: Tensor
) -> Known:
    """Runs the rule on each weight, and once on all that it moves together; returns new weights and slots."""
    times, groups, found = _times(setup, number), dict[Any, list[int]](), dict[int, tuple[Tensor, dict[str, Tensor]]]()
    for i, (p, g) in enumerate(active):
        together = g.rows is None and g.touched is None and p.rule.stacks(p.layout)
        groups.setdefault(p.kind if together else i, []).append(i)
    for places in groups.values():
        (p, g), (w, s) = active[places[0]], known[places[0]]
        if len(places) == 1:
            view = setup.view(p, s, shared, rate, number)
            found[places[0]] = rule_checks.stepped(p.rule, g.value, w, view, times[p.dtype])
            continue
        layout = p.layout.stacked(len(places))
        shapes = {name: slot.shape_for(layout) for name, slot in p.rule.slots.items()}
        slots = {name: _stack([known[i][1][name] for i in places], shape) for name, shape in shapes.items()}
        view = setup.view(p, slots, shared, rate, number)
        view.layout = layout
        gradient, weight = ops.stack([active[i][1].value for i in places]), ops.stack([known[i][0] for i in places])
        moved, new = rule_checks.stepped(p.rule, gradient, weight, view, times[p.dtype])
        rule_checks.check_stack(type(p.rule).__name__, slots, new)
        for k, i in enumerate(places):
            old = known[i][1]
            found[i] = moved[k], {name: _taken(x, k, old[name]) for name, x in new.items()}
    return [found[i] for i in range(len(active))]


def _stack(slots: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Returns slots of several weights as the slot of their stack; of numbers, which stand for no slot, the first."""
    return ops.reshape(ops.stack(slots), shape) if len(shape) else slots[0]


def _taken(stacked: Tensor, place: int, like: Tensor) -> Tensor:
    """Returns the slot of one weight from that of the stack; a number stays as it was."""
    return ops.reshape(stacked, (-1, *like.shape))[place] if len(stacked.shape) else like


def _times(setup: Setup, number: Tensor) -> dict[str, Tensor]:
    """Returns the number of an update as t, by the dtype in which a rule sees it."""
    return {dtype: ops.cast(number, dtype) for dtype in ("float32", setup.scalar_dtype)}


def settle(
    setup: Setup, active: Active, known: Known, shared: Mapping[str, Tensor], rate: Tensor, number: Tensor
) -> dict[str, Tensor]:
    """Returns the new shared values: every weight contributes to sums, and each rule settles its own.

    Arguments as of `move`, the shared values before the update.
    """
    times = _times(setup, number)
    t, sums, settled = times[setup.scalar_dtype], dict[str, Tensor](), dict[str, Tensor]()
    for (p, g), (w, s) in zip(active, known, strict=True):
        view = setup.view(p, s, shared, rate, number)
        for k, x in p.rule.contribute(g.value, w, view, times[p.dtype]).items():
            sums[p.key + k] = sums.get(p.key + k, 0.0) + ops.cast(x, setup.scalar_dtype)
    for key, rule in setup.rules.items():
        view = setup.shared_view(key, shared, rate, number)
        settled |= {key + k: x for k, x in rule_checks.settled(rule, with_prefix(sums, key), view, t).items()}
    return settled


def paid(setup: Setup, number: Tensor) -> list[Write]:
    """Returns the writes that give every row of the averages the updates that it is owed."""
    averaged = [p for p in setup.parameters if p.average is not None]
    return [
        *(Write(p.average, p.paid(number)) for p in averaged),
        *_averaged(setup, [p.index for p in averaged], number),
    ]


def overwritten(setup: Setup, number: Tensor) -> list[Write]:
    """Returns the writes that make every weight its average, at the end of an update."""
    averaged = [p for p in setup.parameters if p.average is not None]
    writes = [write for p in averaged for write in p.overwritten(number)]
    return writes + _averaged(setup, [p.index for p in averaged], number)


def _averaged(setup: Setup, whole: Sequence[int], number: Tensor) -> list[Write]:
    """Returns the write that notes for these weights that every row of their averages is right at an update."""
    if not whole:
        return []
    chosen = ops.convert_to_tensor([i in set(whole) for i in range(len(setup.parameters))])
    old = backend.value(setup.averages_at)
    return [Write(setup.averages_at, ops.where(chosen, ops.cast(number, old.dtype), old))]


def counted(setup: Setup, finite: Tensor | None) -> list[Write]:
    """Returns the writes of the counters, after a step or one that was skipped as not `finite`."""
    count = backend.value(setup.iterations)
    if finite is None:
        return [Write(setup.iterations, count + 1)]
    # A skipped update takes back the batches that led to it, so that `iterations` counts real updates.
    skipped = count + 1 - setup.options.batches
    failed = ops.cast(ops.logical_not(finite), setup.nonfinite_steps.dtype)
    return [
        Write(setup.iterations, ops.where(finite, count + 1, skipped)),
        Write(setup.nonfinite_steps, backend.value(setup.nonfinite_steps) + failed),
    ]


def unscaled(setup: Setup, gradients: Sequence[Any]) -> Active:
    """Returns the weights that have a gradient, with that of the loss itself in the precision of the arithmetic."""
    active, scale = [], setup.options.loss_scale_factor
    for p, g in setup.given(gradients):
        gradient = g if isinstance(g, Gradient) else p.gradient(g, setup.owner)
        active.append((p, gradient.with_value(gradient.value / scale) if scale else gradient))
    return active

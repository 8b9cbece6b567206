"""One step as a pure computation: from gradients to the writes that end it."""

from collections.abc import Mapping, Sequence
from typing import Any

from keras import ops

from kopt.optimizers.engine import rule_checks
from kopt.optimizers.engine.backends.backend import Update, backend
from kopt.optimizers.engine.backends.records import Gradient, Write
from kopt.optimizers.engine.clipping import Active, clip
from kopt.optimizers.engine.finite import are_finite, kept_unless, moderate
from kopt.optimizers.engine.parameter import Parameter
from kopt.optimizers.engine.setup import Setup, with_prefix
from kopt.optimizers.engine.tensor_math import Tensor


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
    active = [(p, _unscaled(setup, p, g)) for p, g in setup.given(gradients)]
    number, fine = setup.updates() + 1, None
    if setup.options.on_nonfinite != "ignore" and active:
        fine = ops.ones([len(active)], "bool") if judged else moderate([g.value for _, g in active])
    looks = fine is not None and not (judged and careful is False)
    flags = backend.commit_if(due, lambda: update(setup, active, rate, loss, fine if looks else None, careful))
    finite = None if flags is None else ops.all(flags)
    if every := setup.options.ema_overwrite_frequency:
        conditions = [c for c in (ops.equal(number % every, 0), due, finite) if c is not None]
        backend.commit_if(ops.all(ops.stack(conditions)), lambda: (overwritten(setup, number), None))
    backend.commit(counted(setup, finite))
    return fine if flags is None else flags


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
    number, made = setup.updates() + 1, []
    slots = [p.remembered(g.rows) for p, g in active]
    old = [p.weight(g.rows) for p, g in active]
    shared = setup.shared_values() | ({} if loss is None else {"loss": loss})
    times = {dtype: ops.cast(number, dtype) for dtype in ("float32", setup.scalar_dtype)}
    settled = settle(setup, active, old, slots, shared, rate, number, times) if shared else {}
    shared |= settled
    writes += [Write(setup.shared[k], x) for k, x in settled.items()]
    for i, ((p, g), w, s) in enumerate(zip(active, old, slots, strict=True)):
        view = setup.view(p, s, shared, rate, number)
        moved, new = rule_checks.stepped(p.rule, g.value, w, view, times[p.dtype])
        weight = p.moved(g, w, moved, number, salt=2 * i)
        writes += [*weight, *p.encoded(g, new, number, salt=2 * i + 1)]
        made.append([*(write.value for write in weight), *new.values()])
    if fine is None:
        return writes, None
    alone = [] if setup.needs_loss else list(settled.values())  # a search may remember an infinite loss
    if careful is True:
        fine = ops.logical_and(fine, are_finite(made, alone))
    elif careful is not False:
        fine = ops.logical_and(fine, ops.cond(careful, lambda: are_finite(made, alone), lambda: fine))
    return [kept_unless(ops.all(fine), write) for write in writes], fine


def settle(
    setup: Setup,
    active: Active,
    weights: Sequence[Tensor],
    slots: Sequence[Mapping[str, Tensor]],
    shared: Mapping[str, Tensor],
    rate: Tensor,
    number: Tensor,
    times: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Returns the new shared values: every weight contributes to sums, and each rule settles its own.

    Args:
        setup: the optimizer.
        active: the weights that have a gradient.
        weights: their values, before the update, in the same order.
        slots: their slots, likewise.
        shared: the shared values before the update, by name.
        rate: η.
        number: of this update, 1, 2, ..., as an integer.
        times: that number as t, by the dtype in which a rule sees it.
    """
    t, sums, settled = times[setup.scalar_dtype], dict[str, Tensor](), dict[str, Tensor]()
    for (p, g), w, s in zip(active, weights, slots, strict=True):
        view = setup.view(p, s, shared, rate, number)
        for k, x in p.rule.contribute(g.value, w, view, times[p.dtype]).items():
            sums[p.key + k] = sums.get(p.key + k, 0.0) + ops.cast(x, setup.scalar_dtype)
    for key, rule in setup.rules.items():
        view = setup.shared_view(key, shared, rate, number)
        settled |= {key + k: x for k, x in rule_checks.settled(rule, with_prefix(sums, key), view, t).items()}
    return settled


def overwritten(setup: Setup, number: Tensor) -> list[Write]:
    """Returns the writes that make every weight its average, at the end of an update."""
    return [write for p in setup.parameters if p.average is not None for write in p.overwritten(number)]


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


def _unscaled(setup: Setup, p: Parameter, g: Any) -> Gradient:
    """Returns a gradient of the loss itself, in the precision of the arithmetic."""
    gradient = g if isinstance(g, Gradient) else p.gradient(g, setup.owner)
    scale = setup.options.loss_scale_factor
    return gradient.with_value(gradient.value / scale) if scale else gradient

"""`kopt.recommend`: the first situation of the table that holds, made into an optimizer that can be trained with."""

import dataclasses
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

from kopt.advice.additions import ADDITIONS, SMALLER
from kopt.advice.call import Call, class_of
from kopt.advice.facts import Facts, Goal, facts_of
from kopt.advice.parts import Alternative, Answer, Rate, Reason, Situation
from kopt.advice.situations import SITUATIONS
from kopt.declare import Count, Positive, checked
from kopt.optimizers import LossScaleOptimizer, Optimizer, state_bytes
from kopt.schedules.schedule import Schedule
from kopt.training import AveragedWeights

WIDTH = 100
"""Columns of what is printed."""


@dataclasses.dataclass(frozen=True)
class Advice:
    """What `recommend` answers; `print` shows it as a page.

    Attributes:
        situation: name of the row of the table in docs/choosing.md.
        optimizer: to be given to `model.compile`, or to `kopt.minimize` where `usage` says so; with its schedule.
        code: what makes that optimizer, to be copied.
        usage: lines of code that train with it.
        callbacks: to be given to `fit`.
        updates: that the schedule is made for: the budget.
        total_bytes: of weights, gradients and what the optimizer keeps; without activations.
        state_bytes: of these, what the optimizer keeps.
        reasons: why, each with its source.
        alternatives: code of other answers, each with when it is the better one.
        facts: what was found in the model, and what was asked for.
    """

    situation: str
    optimizer: Any
    code: str
    usage: str
    callbacks: tuple[Any, ...]
    updates: int
    total_bytes: int
    state_bytes: int
    reasons: tuple[Reason, ...]
    alternatives: tuple[Alternative, ...]
    facts: Facts

    @property
    def schedule(self) -> Any:
        """The schedule of the learning rate; None if the rate is constant, or the rule has none."""
        held = getattr(self._rule, "_learning_rate", None)
        return held if isinstance(held, Schedule) else None

    @property
    def _rule(self) -> Any:
        return self.optimizer.inner_optimizer if isinstance(self.optimizer, LossScaleOptimizer) else self.optimizer

    def __str__(self) -> str:
        total, state = (f"{size / 1e6:,.1f} MB" for size in (self.total_bytes, self.state_bytes))
        lines = [f"{self.situation.capitalize()}: {type(self._rule).__name__}", ""]
        lines += [textwrap.indent(self.usage, "    "), ""]
        lines += _wrapped(f"Seen: {self.facts}. {self.updates:,} updates.", "")
        lines += _wrapped(f"Weights, gradients and state take {total}, of which {state} are state.", "")
        lines += ["", "Why:"]
        for reason in self.reasons:
            lines += _wrapped(f"- {reason.text} [{reason.source}]", "  ")
        lines += ["", "What else:"]
        for other in self.alternatives:
            lines += _wrapped(f"- {other.code}: {other.when}", "  ")
        return "\n".join(lines)


@checked
def recommend(
    model: Any,
    *,
    batch_size: Count,
    dataset_size: Count,
    budget: Positive = 10.0,
    goal: Goal = "fast",
    memory_limit: Positive | None = None,
    pretrained: bool = False,
    workers: Count = 1,
) -> Advice:
    """Recommends an optimizer with its arguments and schedule, from published benchmarks and runs of this repository.

        advice = kopt.recommend(model, batch_size=64, dataset_size=len(x), budget=20)
        print(advice)
        model.compile(advice.optimizer, "mse")

    The rules are a table, kopt/advice/situations.py, which docs/choosing.md shows: the first row that fits the model
    and the arguments is the answer. It is a place to begin at, not a search: `LearningRateFinder` finds a rate on the
    data, `kopt compare` tries several rules. The rate of a schedule is 0 when the budget is spent.

    Args:
        model: built. If it is compiled, its loss is looked at; nothing is trained or changed.
        batch_size: ≥ 1, examples a step, of all workers together.
        dataset_size: ≥ `batch_size`, examples of the training set. If both are equal, every step sees all of them.
        budget: > 0, epochs, for which the schedule is made; 0.5 is half of the examples. Of 2.5 the lines of code train
            three: the rate is 0 in the rest.
        goal: "fast", the least time to a good loss; "generalize", the best result on other data; "no-tuning", no rate
            to choose; "memory", the least state; "exact", the last digits of the training loss, as in a regression or
            a physics-informed network.
        memory_limit: > 0, bytes for weights, gradients and the state of the optimizer, without activations; what does
            not fit gives way to what does. `None` is no limit.
        pretrained: whether the weights were trained on other data before.
        workers: ≥ 1, processes that share each batch.

    Raises:
        ValueError: the model is not built or has nothing to train, an argument is out of range or contradicts another,
            or nothing fits within the limit.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"recommend takes a Keras model. Received: model={model!r}")
    if not model.built:
        raise ValueError(f"recommend takes a model that is built: call {model.name!r} on a batch, or give it an Input.")
    if not model.trainable_variables:
        raise ValueError(f"The model {model.name!r} has no trainable weights, so there is nothing to recommend.")
    if batch_size > dataset_size:
        raise ValueError(f"recommend: a batch of {batch_size} needs as many examples. Received: {dataset_size=}")
    if workers > batch_size:
        raise ValueError(f"recommend: {workers} workers cannot share a batch of {batch_size}. Give batch_size of all.")
    run = {"batch_size": batch_size, "dataset_size": dataset_size, "budget": budget, "workers": workers}
    facts = facts_of(model, goal=goal, pretrained=pretrained, **run)
    if goal == "exact" and (facts.noise or workers > 1):
        what = "dropout or noise in the model" if facts.noise else f"{workers} workers"
        raise ValueError(f"recommend: goal='exact' compares losses to the last digit, which {what} does not allow.")
    row = next(situation for situation in SITUATIONS if situation.holds(facts))
    answer, call, smaller = _within(memory_limit, row.answer, facts, model)
    return _advice(row, answer, call, smaller, facts, model)


def _within(limit: float | None, answer: Answer, facts: Facts, model: Any) -> tuple[Answer, Call, Reason | None]:
    """Returns the first answer that fits, the call of its optimizer, and why it is not the one of the table.

    Raises:
        ValueError: none fits.
    """
    call = _call(answer, {}, facts)
    first = size = _bytes(call.make(), facts, model)
    if limit is None or size <= limit:
        return answer, call, None
    for other, reason in SMALLER:
        chosen, options = (other, {}) if isinstance(other, Answer) else (answer, other)
        if options and not issubclass(class_of(chosen.rule), Optimizer):
            continue
        call = _call(chosen, options, facts)
        size = _bytes(call.make(), facts, model)
        if size <= limit:
            text = f"{answer.rule} takes {first / 1e6:,.1f} MB of {limit / 1e6:,.1f}. {reason.text}"
            return chosen, call, Reason(text, reason.source)
    raise ValueError(
        f"recommend: weights and gradients alone take {size:,} bytes, more than memory_limit={limit:,.0f}. Train less "
        "of the model: adapters (kopt.peft) need gradients for few weights, and may stand on a quantized base."
    )


def _advice(row: Situation, answer: Answer, call: Call, smaller: Reason | None, facts: Facts, model: Any) -> Advice:
    rule = optimizer = call.make()
    code = str(call)
    if facts.float16 and isinstance(rule, Optimizer):
        optimizer, code = LossScaleOptimizer(rule), f"kopt.LossScaleOptimizer({call})"
    added = [addition for addition in ADDITIONS if addition.when.holds(facts)]
    others = [*row.alternatives, *(addition.alternative for addition in added)]
    if smaller is not None:
        others.insert(0, Alternative(str(_call(row.answer, {}, facts)), "more memory is there"))
    return Advice(
        situation=row.name,
        optimizer=optimizer,
        code=code,
        usage="\n".join(_usage(answer, code, facts)),
        callbacks=(AveragedWeights(),) if answer.averaged else (),
        updates=_updates(answer, facts),
        total_bytes=_bytes(rule, facts, model),
        state_bytes=_state(rule, facts, model),
        reasons=(*(() if smaller is None else (smaller,)), *row.reasons, *(addition.reason for addition in added)),
        alternatives=tuple(others),
        facts=facts,
    )


# ------------------------------------------------------------------------------------------------- optimizers


def _call(answer: Answer, options: Mapping[str, Any], facts: Facts) -> Call:
    """Returns the call of the optimizer of an answer, with these options beside its own arguments."""
    rate = () if answer.rate is None else (_rate(answer, answer.rate, facts),)
    arguments = dict(answer.arguments)
    if answer.whole and not facts.full_batch:
        arguments |= {"examples": facts.dataset_size, "batch_size": facts.batch_size}
    if answer.tables is None:
        call = Call(answer.rule, rate, arguments | dict(options))
        return Call(answer.rule, rate, {**call.named, "sparse": "exact"}) if _moves_whole(call, facts) else call
    routes = [
        (_pattern([table.path for table in facts.tables]), _call(answer.tables, {}, facts)),
        ("", Call(answer.rule, rate, arguments)),
    ]
    return Call("Route", (routes,), options)


def _rate(answer: Answer, rate: Rate, facts: Facts) -> Any:
    """Returns a rate, or the call of a schedule with this peak."""
    peak = float(f"{rate.of(facts):.2g}")
    if answer.schedule is None:
        return peak
    steps = _updates(answer, facts)
    warmup = int(answer.warmup * steps)
    rise = {"warmup": warmup, "start": 0.1} if warmup else {}
    fall = {"decay": max(1, int(answer.fall * steps))} if answer.fall else {}
    return Call(answer.schedule, (peak,), {"steps": steps, **rise, **fall, **answer.shape})


def _updates(answer: Answer, facts: Facts) -> int:
    return max(1, math.ceil(facts.budget)) if answer.whole else facts.updates


def _moves_whole(call: Call, facts: Facts) -> bool:
    """Returns whether a rule moves all rows of a table, which kopt wants to be told."""
    rule = call.make() if facts.tables else None
    return isinstance(rule, Optimizer) and not all(map(rule.is_row_wise, facts.tables))


def _pattern(paths: Sequence[str]) -> str:
    """Returns a pattern that is found in these paths: by their tails, which stay when a model is loaded."""
    tails = {"/".join(path.split("/")[-2:]) for path in paths}
    if {tail.rpartition("/")[2] for tail in tails} == {"embeddings"}:  # as Keras calls them
        return "embeddings$"
    return "|".join(sorted(re.escape(tail) + "$" for tail in tails))


def _state(optimizer: Any, facts: Facts, model: Any) -> int:
    """Returns the bytes that an optimizer keeps."""
    if isinstance(optimizer, Optimizer):
        return state_bytes(optimizer, model)
    vectors = 1 + 2 * optimizer.products  # of Levenberg-Marquardt: D, and in float64 what spans the steps
    return 4 * facts.weights * vectors


def _bytes(optimizer: Any, facts: Facts, model: Any) -> int:
    return facts.weight_bytes + facts.gradient_bytes + _state(optimizer, facts, model)


# ------------------------------------------------------------------------------------------------- code


def _usage(answer: Answer, code: str, facts: Facts) -> Iterator[str]:
    """Yields the lines of code that train with an answer."""
    if facts.workers > 1:
        yield 'strategy = kopt.distribution.strategy("multiworker")  # make and compile the model in strategy.scope()'
    yield f"optimizer = {code}"
    if not issubclass(class_of(answer.rule), Optimizer):
        yield f"kopt.minimize(model, x, y, optimizer=optimizer, max_evaluations={_updates(answer, facts)})"
        return
    length = f"epochs={math.ceil(facts.budget)}"  # of arrays, Keras reads no second time within an epoch
    if facts.budget < 1:
        length = f"epochs=1, steps_per_epoch={facts.updates}"
    if answer.whole and facts.batch_norm and not facts.full_batch:
        length += ", shuffle=False"  # a line search compares losses, which depend on who is in a batch with whom
    yield "model.compile(optimizer, loss=...)"
    averages = ", callbacks=[kopt.AveragedWeights()]" if answer.averaged else ""
    yield f"model.fit(x, y, batch_size={facts.batch_size}, {length}{averages})"


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)

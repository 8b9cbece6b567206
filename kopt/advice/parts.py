"""What the table of `situations.py` is made of."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from kopt.advice.facts import Facts


@dataclasses.dataclass(frozen=True)
class Condition:
    """What must hold, in words and as a function."""

    words: str
    holds: Callable[[Facts], bool]


@dataclasses.dataclass(frozen=True)
class Rate:
    """The learning rate at its peak, in words and as a function."""

    words: str
    of: Callable[[Facts], float]


@dataclasses.dataclass(frozen=True)
class Reason:
    """Why, and who found it."""

    text: str
    source: str


@dataclasses.dataclass(frozen=True)
class Alternative:
    """Code of another optimizer, or of what takes its place, and when it is the better one."""

    code: str
    when: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """What is recommended.

    Attributes:
        rule: name of the optimizer.
        rate: its learning rate; `None` leaves the rule its own.
        schedule: name of the schedule, of which `rate` is the peak; `None` keeps the rate constant.
        warmup: share of the updates in which the rate rises.
        fall: share of the updates in which the rate falls at the end, for schedules that stay at their peak until then.
        shape: other arguments of the schedule.
        arguments: other arguments of the rule.
        tables: what moves the tables of which a step reads rows; `None` is the rule itself.
        whole: whether the rule needs all examples for an update, and adds up the batches of an epoch for it.
        averaged: whether the model is to be evaluated at the average of its weights.
    """

    rule: str
    rate: Rate | None = None
    schedule: str | None = None
    warmup: float = 0.0
    fall: float = 0.0
    shape: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tables: "Answer | None" = None
    whole: bool = False
    averaged: bool = False


@dataclasses.dataclass(frozen=True)
class Situation:
    """One row of the table: the answer where all conditions hold."""

    name: str
    when: tuple[Condition, ...]
    answer: Answer
    reasons: tuple[Reason, ...]
    alternatives: tuple[Alternative, ...]

    def holds(self, facts: Facts) -> bool:
        """Returns whether all conditions hold."""
        return all(condition.holds(facts) for condition in self.when)


@dataclasses.dataclass(frozen=True)
class Addition:
    """What is added to any answer where a condition holds."""

    name: str
    when: Condition
    reason: Reason
    alternative: Alternative

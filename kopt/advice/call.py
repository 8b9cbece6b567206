"""Calls of the classes of kopt that can be made, and shown as the code that makes them: so both are the same."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kopt import optimizers, schedules
from kopt.optimizers import full_batch


def class_of(name: str) -> Any:
    """Returns an optimizer or a schedule by the name of its class."""
    rooms = (optimizers, full_batch, schedules)
    return next(getattr(room, name) for room in rooms if hasattr(room, name))


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a class, whose arguments may be calls again.

    Attributes:
        name: of the class.
        given: arguments by position: values, calls, or lists of pairs of them.
        named: arguments by name.
    """

    name: str
    given: tuple[Any, ...] = ()
    named: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def make(self) -> Any:
        """Returns what the call returns."""
        return class_of(self.name)(*map(_made, self.given), **{k: _made(v) for k, v in self.named.items()})

    def __str__(self) -> str:
        room = "kopt.schedules" if hasattr(schedules, self.name) else "kopt"
        arguments = [*map(_shown, self.given), *(f"{k}={_shown(v)}" for k, v in self.named.items())]
        return f"{room}.{self.name}({', '.join(arguments)})"


def _made(value: Any) -> Any:
    if isinstance(value, list):
        return [tuple(map(_made, pair)) for pair in value]
    return value.make() if isinstance(value, Call) else value


def _shown(value: Any) -> str:
    if isinstance(value, list):
        pairs = [f"({', '.join(map(_shown, pair))})" for pair in value]
        return f"[{', '.join(pairs)}]"
    return str(value) if isinstance(value, Call) else repr(value)

"""What is searched: a range or a choice for each flag, as `--search` says it, checked against the recipe."""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from typing import Any, Literal, cast

from ..run.errors import UsageError
from ..run.optimizer_flags import find_class, peak_learning_rate
from .tuned import OWN, Tuned

Kind = Literal["log", "float", "int", "log_int", "choice"]
FORMS: dict[Kind, str] = {
    "log": "log(1e-4, 1e-1)",
    "float": "float(0, 0.5)",
    "int": "int(1, 8)",
    "log_int": "log_int(16, 512)",
    "choice": "choice(adam, lion)",
}
"""An example of each kind of space."""
SPAN = 1000.0
"""Ratio of the highest learning rate, and weight decay, of the space that is searched when none is given."""
DECAYS = (1e-6, 1e-1)
"""The same for the weight decay of optimizers that have none by default."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """What is searched of one flag."""

    name: str
    """Of the flag, as learning_rate, or of an argument that a flag gives, as opt.beta_1."""
    kind: Kind
    values: tuple[Any, ...]
    """The lowest and the highest number, or the choices as texts."""

    def __str__(self) -> str:
        shown = (value if self.kind == "choice" else f"{value:.4g}" for value in self.values)
        return f"{self.name}={self.kind}({', '.join(map(str, shown))})"

    def arguments(self, value: Any, switch: bool) -> list[str]:
        """Returns the words of a command line that give the flag a value.

        Args:
            value: of the flag.
            switch: whether the flag is one that is on or off.
        """
        flag, _, key = self.name.partition(".")
        word = "--" + flag.replace("_", "-")
        if switch:
            return [word if value == "true" else "--no-" + word.removeprefix("--")]
        return [word, f"{key}={value}" if key else str(value)]

    def distribution(self) -> Any:
        """Returns it as Optuna knows it."""
        from optuna import distributions as known

        if self.kind == "choice":
            return known.CategoricalDistribution(self.values)
        low, high = self.values
        log = self.kind.startswith("log")
        if self.kind in ("int", "log_int"):
            return known.IntDistribution(low, high, log=log)
        return known.FloatDistribution(low, high, log=log)


class Space:
    """All that is searched.

    Args:
        tuned: the recipe.
        axes: one for each flag.

    Raises:
        UsageError: the recipe has no such flag, does not take a value, or has the flag in all trials.
    """

    def __init__(self, tuned: Tuned, axes: Sequence[Axis]) -> None:
        self._tuned, self.axes = tuned, tuple(axes)
        listed = [axis.name for axis in axes]
        for axis in axes:
            self._check_flag(axis, listed)
        first = {axis.name: axis.values[0] for axis in axes}
        for axis in axes:
            for value in axis.values:
                tuned.with_flags(self.arguments(first | {axis.name: value}), f"--search {axis}")

    def _check_flag(self, axis: Axis, listed: Sequence[str]) -> None:
        flag, _, key = axis.name.partition(".")
        fields = self._tuned.fields
        if flag not in fields:
            near = difflib.get_close_matches(flag, fields, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(fields)}."
            raise UsageError(f"--search {axis}: {self._tuned.name} has no flag {flag}. {hint}")
        if flag in (*OWN, "config"):
            raise UsageError(f"--search {axis}: cannot be searched.")
        if listed.count(axis.name) > 1:
            raise UsageError(f"--search {axis.name}: is there twice.")
        if not key and self._tuned.gives(flag):
            raise UsageError(f"--search {axis}: all trials have --{flag.replace('_', '-')} too. Leave one of them out.")
        if self._is_switch(axis) and not set(axis.values) <= {"true", "false"}:
            raise UsageError(f"--search {axis}: is on or off. Give {axis.name}=choice(true, false).")

    def _is_switch(self, axis: Axis) -> bool:
        return self._tuned.fields[axis.name.partition(".")[0]] is bool

    def arguments(self, values: dict[str, Any]) -> list[str]:
        """Returns the words of a command line for a value of each flag."""
        return [word for axis in self.axes for word in axis.arguments(values[axis.name], self._is_switch(axis))]

    def flags(self, values: dict[str, Any]) -> Any:
        """Returns all flags of a trial."""
        return self._tuned.with_flags(self.arguments(values), "--search")


def read(texts: Sequence[str]) -> list[Axis]:
    """Returns what `--search` says.

    Raises:
        UsageError: a text is none of the forms, or its numbers are none.
    """
    return [_read(text) for text in texts]


def _read(text: str) -> Axis:
    found = re.fullmatch(r"\s*([\w-]+(?:\.\w+)?)\s*=\s*(\w+)\s*\((.*)\)\s*", text)
    if found is None or found[2] not in FORMS:
        examples = ", ".join(f"NAME={example}" for example in FORMS.values())
        raise UsageError(f"--search {text!r}: expected one of {examples}.")
    name, kind = found[1].replace("-", "_"), found[2]
    parts = [part.strip() for part in found[3].split(",")]
    if kind == "choice":
        if len(parts) < 2 or not all(parts) or len(set(parts)) < len(parts):
            raise UsageError(f"--search {text!r}: expected two or more different values, as in {FORMS['choice']}.")
        return Axis(name, "choice", tuple(parts))
    number = int if kind in ("int", "log_int") else float
    try:
        low, high = map(number, parts)
    except ValueError:
        whole = "whole numbers" if number is int else "numbers"
        raise UsageError(f"--search {text!r}: expected two {whole}, as in {name}={FORMS[kind]}.") from None
    if not low < high or not high < float("inf") or not low > float("-inf"):
        raise UsageError(f"--search {text!r}: expected the lowest number, then a higher one.")
    if kind.startswith("log") and low <= 0:
        raise UsageError(f"--search {text!r}: {kind} needs numbers of more than 0. Give {kind[4:] or 'float'}(...).")
    return Axis(name, cast(Kind, kind), (low, high))


def usual(tuned: Tuned) -> list[Axis]:
    """Returns what is searched if nothing is said: learning rate and weight decay around the optimizer's own.

    Raises:
        UsageError: all trials have both.
    """
    flags, axes = tuned.flags.optim, list[Axis]()
    if not (tuned.gives("learning_rate") or flags.lr_find):
        axes.append(_around("learning_rate", peak_learning_rate(flags)))
    cls = find_class(flags.optimizer)
    if not tuned.gives("weight_decay") and hasattr(own := cls(), "weight_decay"):
        decay = flags.weight_decay if flags.weight_decay is not None else own.weight_decay
        axes.append(_around("weight_decay", decay) if decay else Axis("weight_decay", "log", DECAYS))
    if not axes:
        raise UsageError("--search: give at least one, as in --search 'batch_size=log_int(16, 512)'.")
    return axes


def _around(name: str, middle: float) -> Axis:
    return Axis(name, "log", (middle / SPAN**0.5, middle * SPAN**0.5))

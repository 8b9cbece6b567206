"""One declaration of a hyperparameter: constructor, bounds, repr and configuration.

A class lists its hyperparameters as annotated class attributes,

    beta_1: float = hyper(0.9, 0, 1)

and `Configurable` reads them: it gives the class a signature, checks every value against its bounds, keeps it in
`get_config()` and protects it once the object is frozen.
"""

import dataclasses
import difflib
import inspect
import numbers
from collections.abc import Callable
from typing import Any, ClassVar, dataclass_transform


@dataclasses.dataclass(frozen=True)
class Hyper:
    """What is known of one hyperparameter; made by `hyper`."""

    default: Any
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[str, ...] | None = None
    integer: bool = False
    closed: bool = False
    convert: Callable[[Any], Any] | None = None

    def check(self, owner: str, name: str, value: Any) -> Any:
        """Returns `value` as a plain Python value, or raises `ValueError` saying what is allowed."""
        if self.convert is not None:
            try:
                return self.convert(value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{owner}: {name} must be {error}. Received: {name}={value!r}") from None
        if self.choices is not None:
            valid = value in self.choices
        elif isinstance(self.default, bool):
            valid = isinstance(value, bool)
        elif self.default is None or isinstance(self.default, (int, float)):
            if value is None and self.default is None:
                return None
            valid = isinstance(value, numbers.Real) and not isinstance(value, bool) and self._inside(float(value))
            if valid:
                value = int(value) if self._whole else float(value)
        else:
            return value
        if not valid:
            raise ValueError(f"{owner}: {name} must be {self._expected()}. Received: {name}={value!r}")
        return value

    @property
    def _whole(self) -> bool:
        return self.integer or isinstance(self.default, int)

    def _inside(self, value: float) -> bool:
        return (
            abs(value) < float("inf")  # also refuses NaN
            and (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value < self.high or (self.closed and value == self.high))
            and (not self._whole or value == int(value))
        )

    def _expected(self) -> str:
        if self.choices is not None:
            return "one of " + ", ".join(map(repr, self.choices))
        if isinstance(self.default, bool):
            return "True or False"
        kind = "an integer" if self._whole else "a finite number"
        left = f"({self.above}" if self.above is not None else f"[{'-inf' if self.low is None else self.low}"
        right = f"{'inf' if self.high is None else self.high}{']' if self.closed else ')'}"
        return f"{kind} in {left}, {right}" + (" or None" if self.default is None else "")


def hyper(
    default: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
    integer: bool = False,
    closed: bool = False,
    convert: Callable[[Any], Any] | None = None,
) -> Any:
    """Declares a hyperparameter.

    Args:
        default: its default. `None` makes a number optional.
        low: smallest allowed value.
        high: first value that is too large: the range is [low, high).
        above: largest value that is too small, where the range is open below.
        choices: the allowed strings.
        integer: whether an optional number is whole.
        closed: whether `high` is allowed too: the range is [low, high].
        convert: for what is no number: returns the value in its plain form, or raises ValueError(what is expected).
    """
    return Hyper(default, low, high, above, choices, integer, closed, convert)


class _Signature:
    """The signature of a `Configurable`, made when somebody asks: there are many classes."""

    def __get__(self, instance: Any, owner: type["Configurable"]) -> inspect.Signature:
        kinds: list[Any] = [inspect.Parameter.KEYWORD_ONLY] * len(owner.hypers)
        if kinds and owner.leading is not None:
            kinds[:1] = [inspect.Parameter.POSITIONAL_OR_KEYWORD]
        return inspect.Signature(
            [
                inspect.Parameter(name, kind, default=declared.default)
                for kind, (name, declared) in zip(kinds, owner.hypers.items(), strict=True)
            ]
        )


@dataclass_transform(field_specifiers=(hyper,))
class Configurable:
    """Turns `hyper` declarations, its own and inherited ones, into attributes."""

    __signature__: ClassVar[Any] = _Signature()

    hypers: ClassVar[dict[str, Hyper]] = {}
    leading: ClassVar[str | None] = ""
    """The hyperparameter that can be given by position; "" is the first that is declared, None is none."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = {name: value for name, value in vars(cls).items() if isinstance(value, Hyper)}
        inherited = {k: h for base in reversed(cls.__mro__[1:]) for k, h in vars(base).get("hypers", {}).items()}
        cls.hypers = {**inherited, **own}
        if cls.leading in cls.hypers:
            cls.hypers = {cls.leading: cls.hypers[cls.leading], **cls.hypers}
        for name, declared in own.items():
            if any(isinstance(vars(base).get(name), property) for base in cls.__mro__[1:]):
                delattr(cls, name)  # a property of a base class keeps its place
            else:
                setattr(cls, name, declared.default)

    def _checked(self, options: dict[str, Any]) -> dict[str, Any]:
        """Returns every hyperparameter by name: those of `options`, checked, and the defaults of the others."""
        owner = type(self).__name__
        for name in options:
            if name not in self.hypers:
                near = difflib.get_close_matches(name, self.hypers, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"It takes {', '.join(self.hypers)}."
                raise ValueError(f"{owner} has no argument {name!r}. {hint}")
        return {
            name: declared.check(owner, name, options.get(name, declared.default))
            for name, declared in self.hypers.items()
        }

    def _frozen(self) -> bool:
        """Whether the hyperparameters can no longer change."""
        return False

    def __setattr__(self, name: str, value: Any) -> None:
        declared = self.hypers.get(name)
        # `None` switches any option off: Keras' own wrappers do so before the first step.
        if declared is not None and not isinstance(inspect.getattr_static(type(self), name, None), property):
            if self._frozen():
                if value == getattr(self, name):
                    return
                raise AttributeError(
                    f"{type(self).__name__}.{name} is a constant of the compiled step and cannot change after build. "
                    "Create a new optimizer; only learning_rate can be set during training."
                )
            if value is not None:
                value = declared.check(type(self).__name__, name, value)
        super().__setattr__(name, value)

"""Arguments declared by annotation: constructor, bounds, configuration, repr and help.

A class lists its arguments as annotated attributes. The annotation carries the bound, the default is the default:

    beta_1: Fraction = 0.9
    form: Literal["adamw", "lion"] = "adamw"
    warmup: Count | None = None

`Declared` reads them into `fields` and checks what is assigned. `Configurable` makes the constructor of them, which
type checkers know too (PEP 681). A class that only changes a default writes it down without an annotation:
`beta_1 = 0.95`. `checked` does the same for the arguments of a function.
"""

import collections
import copy
import dataclasses
import difflib
import enum
import functools
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Literal, ParamSpec, TypeVar, cast, dataclass_transform, get_args, get_origin

import numpy as np

from kopt.declare.described import complete_doc, own_arguments
from kopt.declare.kinds import Convert, Range, accept, members, range_of

P = ParamSpec("P")
R = TypeVar("R")
REQUIRED = inspect.Parameter.empty


FOREIGN = (
    ("lr", ("learning_rate",)),
    ("betas", ("beta_1", "beta_2")),
    ("b1", ("beta_1",)),
    ("b2", ("beta_2",)),
    ("beta", ("beta_1",)),
    ("momentum", ("beta_1",)),
    ("rho", ("beta_2",)),
    ("eps", ("epsilon",)),
    ("wd", ("weight_decay",)),
    ("decay", ("weight_decay",)),
    ("total_steps", ("steps",)),
    ("max_lr", ("peak_learning_rate",)),
    ("rank", ("r",)),
    ("lora_r", ("r",)),
    ("lora_rank", ("r",)),
    ("alpha", ("lora_alpha",)),
    ("dropout", ("lora_dropout",)),
)
"""What arguments of other libraries are called here."""


@dataclasses.dataclass(frozen=True)
class Field:
    """One declared argument.

    Attributes:
        name: of the argument.
        kind: its annotation: `int`, `float`, `bool`, `str`, `None`, `Literal`, unions of these, with a `Range` or a
            `Convert` in `Annotated`. Anything else is not checked.
        default: its default; `REQUIRED` if there is none.
    """

    name: str
    kind: Any
    default: Any = REQUIRED

    def check(self, owner: str, value: Any) -> Any:
        """Returns `value` as a plain Python value, or raises `ValueError` saying what is allowed."""
        try:
            return accept(self.kind, value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{owner}: {self.name} must be {error}. Received: {self.name}={value!r}") from None

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values of a `Literal`; none for other kinds."""
        return next((get_args(kind) for kind, _ in members(self.kind) if get_origin(kind) is Literal), ())

    @property
    def range(self) -> Range | None:
        """The range of a number; None for other kinds."""
        found = [range_of(notes) for kind, notes in members(self.kind) if kind in (int, float)]
        return found[0] if found else None

    @property
    def whole(self) -> bool:
        """Whether it is a whole number."""
        return any(kind is int for kind, _ in members(self.kind))

    @property
    def converted(self) -> bool:
        """Whether a function checks it."""
        return any(isinstance(note, Convert) for _, notes in members(self.kind) for note in notes)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Checks the arguments of every call by the annotations of the function."""
    signature = inspect.signature(function)

    @functools.cache
    def fields() -> dict[str, Field]:
        hints = inspect.get_annotations(function, eval_str=True)
        return {name: Field(name, kind) for name, kind in hints.items() if name != "return"}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            if name in fields():
                bound.arguments[name] = fields()[name].check(function.__name__, value)
        return function(*bound.args, **bound.kwargs)

    return cast(Callable[P, R], call)


class Declared:
    """Reads the annotations of its subclasses into `fields` and checks every assignment to one of them."""

    fields: ClassVar[Mapping[str, Field]] = {}
    """The arguments by name: the one by position, those of the class itself, then those of its bases."""
    _own: ClassVar[Mapping[str, Field]] = {}
    leading: ClassVar[tuple[str, ...]] = ()
    """The arguments that can be given by position: declared as `dataclasses.field(default=..., kw_only=False)`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _declare(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, _checked_value(self, name, value))


def _declare(cls: Any) -> None:
    """Makes the annotations of a class its arguments."""
    inherited = {k: f for base in reversed(cls.__mro__[1:]) for k, f in vars(base).get("_own", {}).items()}
    own = _own_fields(cls, inherited)
    cls._own = own
    nearest, order = inherited | own, (*cls.leading, *own, *cls.fields, *inherited)
    cls.fields = {name: nearest[name] for name in dict.fromkeys(order)}
    for name, field in own.items():
        if name in vars(cls) and any(isinstance(vars(base).get(name), property) for base in cls.__mro__[1:]):
            delattr(cls, name)  # a property of a base class keeps its place
        elif field.default is not REQUIRED:
            setattr(cls, name, field.default)
    complete_doc(cls)


def _checked_value(owner: Any, name: str, value: Any) -> Any:
    """Returns what is assigned to an attribute, checked if it is an argument."""
    field = owner.fields.get(name)
    if field is None or isinstance(inspect.getattr_static(type(owner), name, None), property):
        return value
    return field.check(type(owner).__name__, value)


def _own_fields(cls: type, inherited: Mapping[str, Field]) -> dict[str, Field]:
    """Returns the arguments that a class itself declares, or gives a new default."""
    own = {}
    for name, annotation in inspect.get_annotations(cls).items():
        if name.startswith("_") or _is_attribute_of_a_base(cls, name):
            continue
        kind, default = _evaluated(cls, name, annotation), vars(cls).get(name, REQUIRED)
        if kind is ClassVar or get_origin(kind) is ClassVar or isinstance(default, property):
            continue
        own[name] = Field(name, kind, default)
    changed = {k: v for k, v in vars(cls).items() if k in inherited and k not in own}
    own |= {
        name: Field(name, inherited[name].kind, value)
        for name, value in changed.items()
        if not isinstance(value, property)
    }
    return {name: _with_checked_default(cls, field) for name, field in own.items()}


def _with_checked_default(cls: Any, field: Field) -> Field:
    default = field.default
    if isinstance(default, dataclasses.Field):
        if default.kw_only is False:
            others = vars(cls).get("leading", ())  # those of this class take the place of its bases' own
            cls.leading = (*(name for name in others if name != field.name), field.name)
        if default.default_factory is not dataclasses.MISSING:
            default = default.default_factory()
        else:
            default = REQUIRED if default.default is dataclasses.MISSING else default.default
    kind = field.kind | None if default is None and not field.converted else field.kind
    field = Field(field.name, kind, default)
    if default is REQUIRED or field.converted:
        return field
    return Field(field.name, kind, field.check(cls.__name__, default))


def _is_attribute_of_a_base(cls: type, name: str) -> bool:
    """Whether the name is that of something else than an argument, such as a fact like `row_wise`.

    Raises:
        TypeError: it is that of a method, or of a property that cannot be set.
    """
    if name in inspect.get_annotations(Declared):
        raise TypeError(f"{cls.__name__}: every declared class has {name!r} already. Give the argument another name.")
    for base in cls.__mro__[1:]:
        if name in vars(base).get("fields", {}):
            return False
        found = vars(base).get(name)
        fixed = isinstance(found, property) and found.fset is None and not _is_declared(base)
        kept = name in vars(base).get("kept", ())
        if isinstance(found, (types.FunctionType, classmethod, staticmethod)) or fixed or kept:
            raise TypeError(f"{cls.__name__}: {base.__name__} has {name!r} already. Give the argument another name.")
        if found is not None and _is_declared(base):
            return True
    return False


def _is_declared(cls: type) -> bool:
    return issubclass(cls, (Declared, Configurable))


def _evaluated(cls: type, name: str, annotation: Any) -> Any:
    """Returns an annotation, also one that is text, as all are after `from __future__ import annotations`."""
    if not isinstance(annotation, str):
        return annotation
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and (frame.f_code.co_filename == __file__ or frame.f_code.co_name == "__init_subclass__"):
        frame = frame.f_back
    module = frame.f_globals if frame is not None else {}
    around = []  # the class may stand in a function, whose local names the annotation may use
    while frame is not None:
        around.append(frame.f_locals)
        frame = frame.f_back
    try:
        return eval(annotation, {}, collections.ChainMap(dict(vars(cls)), *around[:1], module, *around[1:]))
    except NameError as error:
        raise TypeError(
            f"{cls.__name__}.{name}: the annotation {annotation!r} cannot be read ({error}). Import what it names at "
            "run time, not for type checkers alone; ClassVar[...] says that it is no argument."
        ) from None


class _Signature:
    """The signature of a `Configurable`, made when somebody asks: there are many classes."""

    def __get__(self, instance: Any, owner: type["Configurable"]) -> inspect.Signature:
        by_position, by_name = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        return inspect.Signature(
            [
                inspect.Parameter(name, by_position if name in owner.leading else by_name, default=field.default)
                for name, field in owner.fields.items()
            ]
        )


@dataclass_transform(kw_only_default=True, field_specifiers=(dataclasses.field,))
class Configurable:
    """A class whose declared arguments are those of its constructor.

    Raises:
        ValueError: an argument is missing, unknown or out of range.
        TypeError: a second argument by position.
    """

    fields: ClassVar[Mapping[str, Field]] = {}
    """The arguments by name, as of `Declared`."""
    _own: ClassVar[Mapping[str, Field]] = {}
    leading: ClassVar[tuple[str, ...]] = ()
    """The arguments that can be given by position."""
    __signature__: ClassVar[Any] = _Signature()
    kept: ClassVar[tuple[str, ...]] = ()
    """Names of what an object keeps beside its arguments."""
    elsewhere: ClassVar[Mapping[str, str]] = {}
    """Arguments that such a class has in other libraries, with what has them here."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__()
        for name, value in self._checked(args, options).items():
            setattr(self, name, value)
        self.__post_init__()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _declare(cls)

    def _frozen(self) -> bool:
        """Whether the arguments can no longer change."""
        return False

    def __setattr__(self, name: str, value: Any) -> None:
        value = _checked_value(self, name, value)
        is_property = isinstance(inspect.getattr_static(type(self), name, None), property)
        if name in self.fields and not is_property and self._frozen():
            if same(value, getattr(self, name)):
                return
            raise AttributeError(
                f"{type(self).__name__}.{name} is a constant of the compiled step and cannot change after build. "
                "Create a new optimizer; only learning_rate can be set during training."
            )
        super().__setattr__(name, value)

    def __post_init__(self) -> None:
        """Checks arguments against each other, and derives what follows from them."""

    def _checked(self, args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
        """Returns every argument by name: those given, checked, and the defaults of the others."""
        owner, options = type(self).__name__, self._by_name(args, options)
        for name in options:
            if name not in self.fields:
                raise ValueError(f"{owner} has no argument {name!r}. {self.hint(name)}")
        given = {name: options.get(name, _own(field.default)) for name, field in self.fields.items()}
        for name, value in given.items():
            if value is REQUIRED:
                about = own_arguments(inspect.getdoc(type(self)) or "").get(name, "")
                raise ValueError(f"{owner} needs {name}" + (f": {about}" if about else "."))
        return {name: self.fields[name].check(owner, value) for name, value in given.items()}

    def _by_name(self, args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
        """Returns the arguments of a call by name."""
        owner, leading = type(self).__name__, self.leading
        if len(args) > len(leading):
            named = [f"{k}={v!r}" for k, v in zip(self.fields, args, strict=False)][len(leading) :]
            allowed = {0: "no argument", 1: "one argument"}.get(len(leading), f"{len(leading)} arguments")
            which = f", {' and '.join(leading)}. The others are named" if leading else ""
            raise TypeError(f"{owner} takes {allowed} by position{which}: write {', '.join(named)}. Received: {args}")
        given = dict(zip(leading, args, strict=False))
        if twice := [name for name in given if name in options]:
            raise TypeError(f"{owner} got {twice[0]} twice, by position and by name.")
        return options | given

    @classmethod
    def hint(cls, name: str, others: Iterable[str] = ()) -> str:
        """Returns what was meant by an argument that there is not; `others` are known beside those of the class."""
        if name in cls.elsewhere:
            return f"That is {cls.elsewhere[name]} here."
        for foreign, here in FOREIGN:
            if name == foreign and all(own in cls.fields for own in here):
                return f"Here it is called {' and '.join(here)}."
        near = difflib.get_close_matches(name, [*cls.fields, *others], n=1)
        return f"Did you mean {near[0]!r}?" if near else f"It takes {', '.join(cls.fields)}."

    def _argument(self, name: str) -> Any:
        """Returns an argument as it would be given again."""
        return getattr(self, name)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, fit for JSON."""
        return {name: plain(_own(self._argument(name))) for name in self.fields}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(self._changed())})"

    def _changed(self, *left_out: str) -> list[str]:
        """Returns the code of the arguments that are not their defaults."""
        given = {name: self._argument(name) for name in self.fields if name not in left_out}
        return [f"{k}={as_code(v)}" for k, v in given.items() if not same(v, self.fields[k].default)]


def _own(value: Any) -> Any:
    """Returns a value, or a copy of one that can be changed."""
    return copy.deepcopy(value) if isinstance(value, (dict, list, set)) else value


def as_code(value: Any) -> str:
    """Returns the code that makes a value; of an object with a configuration, such as a schedule, its constructor."""
    if type(value).__repr__ is object.__repr__ and hasattr(value, "get_config"):
        given = {k: v for k, v in value.get_config().items() if v is not None}
        return f"{type(value).__name__}({', '.join(f'{k}={as_code(v)}' for k, v in given.items())})"
    return repr(plain(value))


def plain(value: Any) -> Any:
    """Returns a value as JSON gives it back: lists for tuples, the values of enumerations, paths as text."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return [plain(x) for x in value] if isinstance(value, (tuple, list)) else value


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal, arrays included."""
    try:
        return bool(np.all(plain(a) == plain(b))) and np.shape(a) == np.shape(b)
    except (TypeError, ValueError):
        return a is b

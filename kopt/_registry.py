"""The classes by name: feeds `kopt.get`, the tests, the tables of the README and `--optimizer`."""

import difflib
from typing import Any

import keras

_CLASSES: dict[str, type] = {}


def register(cls: type) -> None:
    """Makes `cls` known under its lower-case name and to Keras' saving.

    The names of this package are frozen: they stand in saved files as `kopt>Name`. Classes defined elsewhere are
    registered under their own top-level package and may not take one of those names.

    Raises:
        ValueError: a class outside kopt has the name of one inside.
    """
    package = cls.__module__.partition(".")[0]
    name = cls.__name__.lower()
    holder = _CLASSES.get(name)
    if holder is not None and holder.__module__.startswith("kopt.") and package != "kopt":
        raise ValueError(f"The name {cls.__name__!r} belongs to kopt.{holder.__name__}. Give the class another name.")
    _CLASSES[name] = cls
    keras.saving.register_keras_serializable(package)(cls)


def registry() -> dict[str, type]:
    """Returns the registered optimizer classes by lower-case name, sorted."""
    return dict(sorted(_CLASSES.items()))


def get(name: str, **options: Any) -> Any:
    """Returns a new optimizer by name.

    Args:
        name: name of the class; upper and lower case are equal, as in `kopt.get("adabound")`.
        **options: arguments of its constructor.

    Raises:
        ValueError: no optimizer has that name, or an option is wrong.
    """
    if not isinstance(name, str) or name.lower() not in _CLASSES:
        near = difflib.get_close_matches(str(name).lower(), _CLASSES, n=3)
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Known names: {', '.join(registry())}."
        raise ValueError(f"Unknown optimizer {name!r}. {hint}")
    return _CLASSES[name.lower()](**options)

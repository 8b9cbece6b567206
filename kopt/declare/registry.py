"""Classes by name: one registry for each family. They feed `kopt.get`, tests, tables and the flags of recipes."""

import difflib
from typing import Any

import keras


class Registry:
    """The classes of one family by lower-case name.

    The names of this package are frozen: they stand in saved files as `kopt>Name`. Classes defined elsewhere are
    registered under their own top-level package and may not take one of those names.

    Args:
        family: what one of them is called in errors.
    """

    def __init__(self, family: str) -> None:
        self.family = family
        self._classes: dict[str, type] = {}

    def register(self, cls: type, serializable: bool = True) -> None:
        """Makes `cls` known under its lower-case name, and to Keras' saving if it is `serializable`.

        Raises:
            ValueError: a class outside kopt has the name of one inside.
        """
        package, name = cls.__module__.partition(".")[0], cls.__name__.lower()
        holder = self._classes.get(name)
        if holder is not None and holder.__module__.startswith("kopt.") and package != "kopt":
            raise ValueError(
                f"The name {cls.__name__!r} belongs to kopt.{holder.__name__}. Give the class another name."
            )
        self._classes[name] = cls
        if serializable:
            keras.saving.register_keras_serializable(package)(cls)

    def classes(self) -> dict[str, type]:
        """Returns the classes by lower-case name, sorted."""
        return dict(sorted(self._classes.items()))

    def get(self, name: str, **options: Any) -> Any:
        """Returns a new object by the name of its class.

        Args:
            name: name of the class; upper and lower case are equal.
            **options: arguments of its constructor.

        Raises:
            ValueError: no class has that name, or an option is wrong.
        """
        if not isinstance(name, str) or name.lower() not in self._classes:
            near = difflib.get_close_matches(str(name).lower(), self._classes, n=3)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"Known names: {', '.join(self.classes())}."
            raise ValueError(f"Unknown {self.family} {name!r}. {hint}")
        return self._classes[name.lower()](**options)


OPTIMIZERS = Registry("optimizer")
SCHEDULES = Registry("schedule")
ADAPTERS = Registry("adapter")


def registry() -> dict[str, type]:
    """Returns the registered optimizer classes by lower-case name, sorted."""
    return OPTIMIZERS.classes()


def get(name: str, **options: Any) -> Any:
    """Returns a new optimizer by name, as in `kopt.get("adabound", final_lr=0.01)`.

    Args:
        name: name of the class; upper and lower case are equal.
        **options: arguments of its constructor.

    Raises:
        ValueError: no optimizer has that name, or an option is wrong.
    """
    return OPTIMIZERS.get(name, **options)

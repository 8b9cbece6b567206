"""The recipe whose flags are searched: what it is called, which flags it has, and what the user has given."""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from ..run.command_line import PACKAGE, parse, program
from ..run.errors import UsageError
from ..run.flags import flag_words, flatten
from ..run.optimizer_flags import check_names

OWN = ("output_dir", "run_name", "overwrite", "resume", "dry_run", "progress", "distribute", "workers", "worker_index")
"""Flags that a search sets itself, or cannot have."""


def names() -> list[str]:
    """Returns the recipes that train one model from flags, sorted."""
    place = importlib.import_module(PACKAGE).__path__
    found = [module.name for module in pkgutil.iter_modules(place)]
    return sorted(name.replace("_", "-") for name in found if _flags_of(name) is not None)


def _flags_of(name: str) -> type | None:
    if importlib.util.find_spec(f"{PACKAGE}.{name}") is None:
        return None
    kind = getattr(importlib.import_module(f"{PACKAGE}.{name}"), "Train", None)
    fields = {field.name for field in dataclasses.fields(kind)} if kind is not None else set[str]()
    return kind if {"epochs", "optim", "run"} <= fields else None


class Tuned:
    """A recipe with the flags that all trials have.

    Args:
        name: of the recipe.
        words: its flags, as on a command line.

    Raises:
        UsageError: there is no such recipe, or a flag is one that the search sets.
        SystemExit: a flag is unknown or malformed (code 2).
    """

    def __init__(self, name: str, words: Sequence[str]) -> None:
        self.name = name.replace("-", "_")
        kind = _flags_of(self.name) if self.name.isidentifier() else None
        if kind is None:
            raise UsageError(f"tune {name}: expected one of {', '.join(names())}.")
        self.kind, self.words = kind, tuple(words[1:] if words[:1] == ["train"] else words)
        self.flags = parse(self.words, {"train": kind}, program(self.name))
        """Those that all trials have."""
        given, usual = flatten(self.flags), flatten(kind())
        for flag in OWN:
            if given[flag] != usual[flag]:
                raise UsageError(f"--{flag.replace('_', '-')}: is not for the flags of all trials. Leave it out.")

    @property
    def fields(self) -> Mapping[str, Any]:
        """Returns the annotation of each flag by its name, those in the dataclasses within included."""
        return _fields(self.kind)

    def gives(self, flag: str) -> bool:
        """Returns whether a flag is among those that all trials have."""
        word = flag.replace("_", "-")
        return bool({f"--{word}", f"--no-{word}"} & set(flag_words(self.words)))

    def with_flags(self, words: Sequence[str], source: str) -> Any:
        """Returns the flags of a trial.

        Args:
            words: its own, as on a command line.
            source: what they come from, for the error.

        Raises:
            UsageError: the recipe does not take them.
        """
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                found = parse([*self.words, *words], {"train": self.kind}, program(self.name))
            check_names(found.optim)
        except SystemExit:
            shown = " ".join(words)
            raise UsageError(f"{source}: {self.name} does not take {shown}. See {program(self.name)} --help.") from None
        except UsageError as error:
            raise UsageError(f"{source}: {error}") from error
        return found


def _fields(kind: type) -> dict[str, Any]:
    found = dict[str, Any]()
    for field in dataclasses.fields(kind):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            found |= _fields(field.type)
        else:
            found[field.name] = field.type
    return found

"""Values as JSON and arrays, and back: numbers, texts, arrays, and collections of these."""

from collections import deque
from typing import Any

import numpy as np
from keras import ops

Array = np.ndarray[Any, Any]


KINDS: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque}


class NotPlainError(TypeError):
    """A value is of another kind."""


def encoded(value: Any, arrays: dict[str, Array], name: str) -> Any:
    """Returns what JSON can hold of a value; its arrays are added to `arrays`.

    Args:
        value: what to keep.
        arrays: to add to.
        name: what the names of its arrays begin with.

    Raises:
        NotPlainError: something in it is of another kind.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic | np.ndarray) or ops.is_tensor(value):
        key = f"{name}.{len(arrays)}"
        arrays[key] = np.asarray(ops.convert_to_numpy(value))
        if arrays[key].dtype.hasobject or arrays[key].dtype.names:
            raise NotPlainError(f"an array of {arrays[key].dtype}")
        return {"array": key, "scalar": isinstance(value, np.generic)}
    for kind, cls in KINDS.items():
        if isinstance(value, cls):
            return {kind: [encoded(x, arrays, name) for x in value]}
    if isinstance(value, dict):
        return {"dict": [[encoded(k, arrays, name), encoded(x, arrays, name)] for k, x in value.items()]}
    raise NotPlainError(type(value).__name__)


def decoded(value: Any, arrays: dict[str, Array]) -> Any:
    """Returns the value that `encoded` was given."""
    if not isinstance(value, dict):
        return value
    if "array" in value:
        array = arrays[value["array"]].copy()
        return array[()] if value["scalar"] else array
    if "dict" in value:
        return {decoded(k, arrays): decoded(x, arrays) for k, x in value["dict"]}
    (kind,) = value
    return KINDS[kind](decoded(x, arrays) for x in value[kind])


def like(old: Any, value: Any) -> Any:
    """Returns a decoded value as what an object of its owner has in its place, which keeps its class.

    A variable is assigned; a collection of a class of its own, such as `defaultdict`, is filled anew.
    """
    if hasattr(old, "assign"):
        old.assign(value)
        return old
    if ops.is_tensor(old) and isinstance(value, np.ndarray):
        return ops.convert_to_tensor(value)
    if type(old) is type(value) and not isinstance(old, deque):  # which has a length, too
        return value
    if isinstance(old, tuple) and isinstance(value, tuple) and hasattr(old, "_make"):
        return type(old)(*value)
    for kind, fill in ((dict, "update"), (set, "update"), (list, "extend"), (deque, "extend")):
        if isinstance(old, kind) and isinstance(value, kind):
            old.clear()
            getattr(old, fill)(value)
            return old
    return value

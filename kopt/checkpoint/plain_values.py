"""Values as JSON and arrays, and back: numbers, texts, arrays, and lists, tuples and dictionaries of these."""

from typing import Any

import numpy as np
from keras import ops

Array = np.ndarray[Any, Any]


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
        if arrays[key].dtype.hasobject:
            raise NotPlainError(f"an array of {arrays[key].dtype}")
        return {"array": key, "scalar": isinstance(value, np.generic)}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
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
    kind = list if "list" in value else tuple
    return kind(decoded(x, arrays) for x in value[kind.__name__])

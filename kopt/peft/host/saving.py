"""The weights of one host and of its adapters in a Keras store: the adapters with their hash, the host with a mark.

Keras counts what a file has for each layer, but does not see that it has children which the model lacks. With the mark
a host has one entry more than its plain layer, so that a plain model refuses the file and loses no adapter in silence.
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from kopt.declare.digest import digest_of

_SEAL = "sha256"
"""Where the hash is saved. Files of older versions have none."""

_MARK = "has adapters: load it into a model that has them too, by kopt.peft"


def mark(store: Any) -> None:
    """Tells what a host has written apart from what its plain layer writes."""
    store[_MARK] = np.zeros((), np.uint8)


def without_mark(store: Any) -> dict[str, Any]:
    """Returns what a host reads: its own weights, written with adapters or without."""
    return {key: store[key] for key in {*store.keys()} - {_MARK}}


def write_weights(variables: Mapping[str, keras.Variable], store: Any) -> None:
    """Writes variables by name, and the SHA-256 of all."""
    values = {key: np.asarray(variable.numpy()) for key, variable in variables.items()}
    for key, value in values.items():
        store[key] = value
    store[_SEAL] = np.frombuffer(digest_of(values).encode(), np.uint8)


def read_weights(path: str, variables: Mapping[str, keras.Variable], store: Any) -> None:
    """Gives variables the values that were saved under their names.

    Args:
        path: of the host, for errors.
        variables: by name.
        store: of Keras.

    Raises:
        ValueError: some are missing, or they do not have the SHA-256 that was saved with them.
    """
    names = {*store.keys()}
    found = names - {_SEAL}
    if missing := sorted(variables.keys() - found):
        raise ValueError(
            f"{path}: the file has no weights for {', '.join(missing)}, but for {', '.join(sorted(found))}. It was "
            "written by a model with other adapters."
        )
    values = {key: np.asarray(store[key]) for key in variables}
    if _SEAL in names and np.asarray(store[_SEAL]).tobytes() != digest_of(values).encode():
        raise ValueError(
            f"{path}: the saved adapters are damaged or were changed: they do not have the SHA-256 that was saved with "
            "them. Load another copy of the file."
        )
    for key, variable in variables.items():
        variable.assign(values[key])

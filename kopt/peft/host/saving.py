"""The weights of the adapters of one host in a Keras store, with their hash."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from kopt.declare.digest import digest_of

_SEAL = "sha256"
"""Where the hash is saved. Files of older versions have none."""


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

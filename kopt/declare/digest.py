"""SHA-256 of named arrays: files say what they held when they were written, so that a changed bit is noticed.

It protects against damage, not against forgery: whoever writes a file can write its hash too.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np


class Digest:
    """The SHA-256 of a text and of arrays: of the name, type, shape and bytes of each, in the order of `add`.

    Args:
        text: what else belongs to it.
    """

    def __init__(self, text: str = "") -> None:
        self._hash = hashlib.sha256(text.encode())

    def add(self, name: str, array: Any) -> None:
        """Adds an array; its bytes are not copied if they lie in one piece."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        self._hash.update(f"\n{json.dumps([name, str(array.dtype), array.shape])}\n".encode())
        self._hash.update(array.reshape(-1).view(np.uint8))

    def hexdigest(self) -> str:
        """Returns the hash so far, as 64 hexadecimal digits."""
        return self._hash.hexdigest()


def digest_of(arrays: Mapping[str, Any], text: str = "") -> str:
    """Returns the hash of a text and of arrays by name, in the order of their names."""
    digest = Digest(text)
    for name in sorted(arrays):
        digest.add(name, arrays[name])
    return digest.hexdigest()

"""Whether a server can be reached, asked before a library waits for it."""

import contextlib
import threading
import urllib.request
from http.client import HTTPException

TIMEOUT = 5.0
"""Seconds that a server has to answer."""


def is_reachable(url: str, seconds: float = TIMEOUT) -> bool:
    """Returns whether a server answers within `seconds`, however long its name takes to resolve."""
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(OSError, HTTPException):
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            answered.set()

    threading.Thread(target=ask, daemon=True).start()
    return answered.wait(seconds)

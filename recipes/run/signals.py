"""Ctrl-C, SIGTERM and SIGHUP: an exception at once, or a note while something must come to an end first."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

CAUGHT = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupted(KeyboardInterrupt):
    """A signal ends the run.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.left = "nothing was saved."
        """What stands on the disk."""


class _State:
    """What a process knows of its signals."""

    received: int | None = None
    held: str | None = None


_STATE = _State()


@contextlib.contextmanager
def caught() -> Iterator[None]:
    """Makes an `Interrupted` of each signal in the block; SIGTERM and SIGHUP stay ignored where nohup made them so."""
    _STATE.received = _STATE.held = None
    before = dict[Any, Any]()
    if threading.current_thread() is threading.main_thread():
        for number in CAUGHT:
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, _handle)
    hook, sys.unraisablehook = sys.unraisablehook, lambda found: _send_again(found, hook)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def held(note: str) -> Iterator[None]:
    """Lets the first signal in the block only be noted, for `received`; a second one interrupts.

    Args:
        note: printed when a signal comes: what happens now.
    """
    _STATE.held = note
    try:
        yield
    finally:
        _STATE.held = None


def received() -> int | None:
    """Returns the number of the signal that has come; `None` if none has."""
    return _STATE.received


def note(number: int) -> None:
    """Takes it that a signal has come, as to another worker."""
    _STATE.received = _STATE.received or number


def check() -> None:
    """Interrupts if a signal has come in a `held` block.

    Raises:
        Interrupted: one has.
    """
    if _STATE.received is not None:
        raise Interrupted(_STATE.received)


def exit_code(number: int) -> int:
    """Returns the exit code by which shells know that a signal ended a program."""
    return 128 + number


def _send_again(found: Any, otherwise: Any) -> None:
    """Sends a signal once more whose exception Python ignores, as in callbacks of weak references."""
    if isinstance(found.exc_value, Interrupted):
        again = threading.Timer(0.01, os.kill, (os.getpid(), found.exc_value.number))
        again.daemon = True
        again.start()
    else:
        otherwise(found)


def _handle(number: int, frame: FrameType | None) -> None:
    first = _STATE.received is None
    _STATE.received = _STATE.received or number
    if not (first and _STATE.held is not None):
        raise Interrupted(number)
    if _STATE.held:
        with contextlib.suppress(OSError):  # a terminal that hung up
            os.write(2, f"{_STATE.held}\n".encode())  # print may be in the middle of a line

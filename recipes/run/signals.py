"""Ctrl-C, SIGTERM and SIGHUP: an exception at once, or a note while something must come to an end first."""

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, TypeVar

Thing = TypeVar("Thing")
CAUGHT = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
NOTHING = "nothing was saved."


class Interrupted(KeyboardInterrupt):
    """A signal ends the run.

    Args:
        number: of the signal.
        left: what stands on the disk.
    """

    def __init__(self, number: int, left: str = NOTHING) -> None:
        super().__init__()
        self.number, self.left = number, left


class _State:
    """What a process knows of its signals."""

    received: int | None = None
    held: str | None = None
    repeater: "_Repeater | None" = None
    """Of the `caught` block; without it signals are let be."""


_STATE = _State()


@contextlib.contextmanager
def caught() -> Iterator[None]:
    """Makes an `Interrupted` of each signal in the block; SIGTERM and SIGHUP stay ignored where nohup made them so."""
    _STATE.received = _STATE.held = None
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    repeater, before = _Repeater(sys.unraisablehook), dict[Any, Any]()
    _STATE.repeater, sys.unraisablehook = repeater, repeater.hear
    try:
        for number in CAUGHT:
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, _handle)
        yield
    finally:
        _STATE.repeater = None  # from here on a signal comes too late to change how the block ends
        repeater.close()
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = repeater.otherwise


@contextlib.contextmanager
def held(note: str) -> Iterator[None]:
    """Lets the first signal in the block only be noted, for `received`; a second one interrupts.

    Args:
        note: printed when a signal comes: what happens now.
    """
    before, _STATE.held = _STATE.held, note
    try:
        yield
    finally:
        _STATE.held = before


def received() -> int | None:
    """Returns the number of the signal that has come; `None` if none has."""
    return _STATE.received


def note(number: int) -> None:
    """Takes it that a signal has come, as to another worker."""
    _STATE.received = _STATE.received or number


def check(left: str = NOTHING) -> None:
    """Interrupts if a signal has come in a `held` block that has ended.

    Args:
        left: what stands on the disk.

    Raises:
        Interrupted: one has.
    """
    if _STATE.received is not None and _STATE.held is None:
        raise Interrupted(_STATE.received, left)


@contextlib.contextmanager
def ended(made: contextlib.AbstractContextManager[Thing], left: str) -> Iterator[Thing]:
    """Gives what a context manager gives, whose end a signal does not disturb: it interrupts after it.

    Args:
        made: the context manager.
        left: what stands on the disk then.
    """
    with contextlib.ExitStack() as stack:
        yield stack.enter_context(made)
        before = received()
        with held(""):
            stack.close()
    if before is None:
        check(left)


def exit_code(number: int) -> int:
    """Returns the exit code by which shells know that a signal ended a program."""
    return 128 + number


class _Repeater:
    """Sends a signal once more whose exception Python has ignored, as it does in callbacks of weak references.

    A thread sends it, as often as it is ignored: however long Python takes, no signal comes too early to be heard.

    Args:
        otherwise: what hears of other exceptions that are ignored.
    """

    def __init__(self, otherwise: Any) -> None:
        self.otherwise = otherwise
        self._wanted = queue.SimpleQueue[int | None]()
        self._thread = threading.Thread(target=self._send, name="signals", daemon=True)
        self._thread.start()

    def hear(self, found: Any) -> None:
        """Asks for a signal whose exception was ignored. What is raised in here is ignored, too."""
        if isinstance(found.exc_value, Interrupted):
            self.ask(found.exc_value.number)
        else:
            self.otherwise(found)

    def ask(self, number: int) -> None:
        """Asks for a signal; may be called in the middle of anything, this included."""
        self._wanted.put(number)

    def is_within(self, frame: FrameType | None) -> bool:
        """Returns whether a frame is one of `hear`, or was called from there."""
        while frame is not None and frame.f_code is not _Repeater.hear.__code__:
            frame = frame.f_back
        return frame is not None

    def close(self) -> None:
        """Ends the thread: nothing is sent after this."""
        self._wanted.put(None)
        self._thread.join()

    def _send(self) -> None:
        main = threading.main_thread().ident
        while (number := self._wanted.get()) is not None:
            time.sleep(0.001)  # the main thread may be within `hear`, and would only ask again
            if hasattr(signal, "pthread_kill") and main is not None:
                signal.pthread_kill(main, number)  # to that thread, so that it wakes where it sleeps
            else:
                signal.raise_signal(number)


def _handle(number: int, frame: FrameType | None) -> None:
    repeater = _STATE.repeater
    if repeater is None:
        return
    first = _STATE.received is None
    _STATE.received = _STATE.received or number
    if repeater.is_within(frame):
        repeater.ask(number)
    elif not (first and _STATE.held is not None):
        raise Interrupted(number)
    elif _STATE.held:
        with contextlib.suppress(OSError):  # a terminal that hung up
            os.write(2, f"{_STATE.held}\n".encode())  # print may be in the middle of a line

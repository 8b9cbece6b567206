"""Several workers on this machine, started and ended together: the command `kopt launch`."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO

from kopt.distribution.peers import LOST

PATIENCE = 30.0
"""Seconds in which the others end by themselves when one has failed."""


def launch(command: Sequence[str], workers: int, restarts: int = 0, again: Sequence[str] = ()) -> int:
    """Starts a command once for each worker, prefixes what they print with their numbers, and waits for them.

    Each process has TF_CONFIG in its environment, from which `kopt.distribution.strategy("multiworker")` takes the
    addresses. If one fails, the others end by themselves, as they see it go, or are killed after 30 s. SIGINT, SIGTERM
    and SIGHUP are handed on to all.

    Args:
        command: program and arguments.
        workers: ≥ 1, how many.
        restarts: ≥ 0, how often all are started anew after a failure by which a process was killed or lost another one.
            What fails by itself, as with a wrong flag or a missing file, would fail again.
        again: arguments that are added then, as those by which a training goes on.

    Returns:
        0 if all ended well; else the exit code of the first one that failed, 5 if a signal killed it, and 128 and the
        number of a signal that was handed on.
    """
    attempts, arguments = restarts + 1, list(command)
    while True:
        attempts -= 1
        group = _Group(arguments, workers)
        with group.signals():
            code, again_useful = group.wait()
        if code == 0 or group.received is not None or not attempts or not again_useful:
            return code if group.received is None or code == 0 else 128 + group.received
        print(
            f"launch: all workers are started again; {attempts - 1} more times if need be.", file=sys.stderr, flush=True
        )
        arguments = [*command, *again]


class _Group:
    """The processes of one attempt.

    Args:
        command: program and arguments.
        workers: how many.
    """

    def __init__(self, command: Sequence[str], workers: int) -> None:
        self.received: int | None = None
        self._processes = list[subprocess.Popen[bytes]]()
        self._threads = list[threading.Thread]()
        addresses, lock = _free_addresses(workers), threading.Lock()
        for index in range(workers):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            process = subprocess.Popen(
                command,
                env={"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ}
                | {"TF_CONFIG": json.dumps(config), "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # so that Ctrl-C reaches them once, from here
            )
            self._processes.append(process)
            for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                assert source is not None
                thread = threading.Thread(target=_copy, args=[source, target, f"[{index}] ", lock], daemon=True)
                thread.start()
                self._threads.append(thread)

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Hands signals on in the block, where this is the main thread."""
        before = {}
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                if hasattr(signal, name):
                    number = getattr(signal, name)
                    before[number] = signal.signal(number, lambda number, _: self._hand_on(number))
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hand_on(self, number: int) -> None:
        self.received = number
        self._send(number)

    def _send(self, number: int) -> None:
        for process in self._processes:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(number)

    def wait(self) -> tuple[int, bool]:
        """Returns the exit code of all together, and whether another attempt may go better."""
        try:
            first = self._first_failure(lambda: False)
            if first is not None:
                end = time.monotonic() + PATIENCE
                self._first_failure(lambda: time.monotonic() > end, all_of_them=True)
        finally:
            self._send(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
            for process in self._processes:
                process.wait()
            for thread in self._threads:
                thread.join()
        codes = [process.returncode for process in self._processes]
        if first is None or (self.received is not None and not any(codes)):
            return 0, False
        own = [code for code in codes if code > 0 and code != LOST]  # more telling than that others have lost it
        return (own[0], False) if own else (LOST, True)

    def _first_failure(self, given_up: Callable[[], bool], all_of_them: bool = False) -> int | None:
        """Waits until one fails, or all have ended."""
        while not given_up():
            codes = [process.poll() for process in self._processes]
            failed = next((code for code in codes if code), None)
            if None not in codes or (failed is not None and not all_of_them):
                return failed
            time.sleep(0.1)
        return None


def _free_addresses(count: int) -> list[str]:
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in found]


def _copy(source: IO[bytes], target: IO[str], prefix: str, lock: threading.Lock) -> None:
    """Prints the lines of a process, each with the prefix."""
    with source:
        for line in source:
            with lock:
                target.write(prefix + line.decode(errors="replace").rstrip("\r\n") + "\n")
                target.flush()

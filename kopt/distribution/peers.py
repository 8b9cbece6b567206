"""Whether the other workers are there: before TensorFlow waits for them, and while all train.

A worker is there if somebody listens at its address: at first this module, then the server of TensorFlow.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

from kopt.distribution.cluster import Cluster, parts

LOST = 5
"""Exit code of a process whose training ends because another worker is gone."""
GREETING = b"kopt worker "
PROBE = 1.0
"""Seconds until an address that does not answer counts as closed."""


class WorkerLostError(RuntimeError):
    """Another worker is gone, or never came."""


def meet(cluster: Cluster, timeout: float) -> None:
    """Waits until every worker is there.

    Args:
        cluster: of this process.
        timeout: seconds.

    Raises:
        WorkerLostError: one is not there in time; it is named.
        ValueError: the own port is taken, or a worker has other addresses or another number.
    """
    with _listening(cluster):
        missing, end = cluster.others, time.monotonic() + timeout
        while missing := [i for i in missing if not _greets(cluster, i)]:
            if time.monotonic() > end:
                verb = "have" if len(missing) > 1 else "has"
                raise WorkerLostError(
                    f"{' and '.join(map(cluster.name, missing))} {verb} not come within {timeout:g} s. Start every "
                    "worker, and check addresses, ports and firewalls."
                )
            time.sleep(0.1)


@contextlib.contextmanager
def _listening(cluster: Cluster) -> Iterator[None]:
    """Tells all who connect to the own address which worker they have found."""
    said = GREETING + json.dumps([list(cluster.addresses), cluster.index]).encode()
    _, port = parts(cluster.addresses[cluster.index])
    server = socket.socket(socket.AF_INET6 if _has_ipv6() else socket.AF_INET)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if server.family == socket.AF_INET6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    try:
        server.bind(("", port))
    except OSError as error:
        server.close()
        raise ValueError(
            f"{cluster.name(cluster.index)}: this process cannot listen there ({error.strerror}). Choose another port, "
            "and give each process an index of its own."
        ) from error
    server.listen(128)

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:  # closed
                return
            with connection, contextlib.suppress(OSError):
                connection.sendall(said)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        server.close()
        thread.join()


def _has_ipv6() -> bool:
    if not socket.has_ipv6:
        return False
    try:
        with socket.socket(socket.AF_INET6) as found:
            found.bind(("::", 0))
    except OSError:
        return False
    return True


def _greets(cluster: Cluster, index: int) -> bool:
    """Whether a worker is there; what TensorFlow's server says is not looked at."""
    said = b""
    try:
        connection = socket.create_connection(parts(cluster.addresses[index]), PROBE)
    except OSError:
        return False
    with connection, contextlib.suppress(OSError):
        while len(said) < 2**20 and (more := connection.recv(2**16)):
            said += more
            if not said.startswith(GREETING):
                break
    if said.startswith(GREETING):
        addresses, number = json.loads(said.removeprefix(GREETING))
        if (tuple(addresses), number) != (cluster.addresses, index):
            raise ValueError(
                f"{cluster.name(index)} was started as worker {number} of {', '.join(addresses)}. Give every worker "
                f"the same addresses in the same order. Received here: {', '.join(cluster.addresses)}"
            )
    return True


def _answers(address: str) -> bool:
    try:
        socket.create_connection(parts(address), PROBE).close()
    except OSError:
        return False
    return True


class Watch(threading.Thread):
    """Looks whether the others are there, and ends this process if one is gone: what TensorFlow does may wait for ever.

    Args:
        cluster: of this process.
        patience: seconds for which nobody may listen at an address.
        grace: seconds after that in which the process may end by itself.
        leave: ends it.
    """

    def __init__(
        self, cluster: Cluster, patience: float = 5.0, grace: float = 10.0, leave: Callable[[int], object] = os._exit
    ) -> None:
        super().__init__(name="kopt-watch", daemon=True)
        self.cluster, self.patience = cluster, patience
        self._grace, self._leave = grace, leave
        self._gone = threading.Event()
        self._ended = threading.Event()
        self.message = ""
        """Which worker is gone, in one line."""

    def run(self) -> None:
        """Looks twice a second."""
        seen = dict.fromkeys(self.cluster.others, time.monotonic())
        while not self._ended.wait(0.5):
            for i in seen:
                if _answers(self.cluster.addresses[i]):
                    seen[i] = time.monotonic()
                elif time.monotonic() - seen[i] > self.patience:
                    self.message = f"{self.cluster.name(i)} is gone; nobody has listened there for {self.patience:g} s."
                    self._gone.set()
                    if not self._ended.wait(self._grace):
                        print(f"error: {self.message}", file=sys.stderr, flush=True)
                        self._leave(LOST)
                    return

    def check(self) -> None:
        """Waits as long as it takes to see that a worker is gone.

        Raises:
            WorkerLostError: one is.
        """
        if self._gone.wait(self.patience + PROBE * len(self.cluster.addresses) + 2):
            raise WorkerLostError(self.message)

    def end(self) -> None:
        """Stops looking."""
        self._ended.set()

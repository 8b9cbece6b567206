"""Several hosts on one machine: network namespaces with addresses of their own on one bridge. Linux, as root."""

import contextlib
import itertools
import os
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

PORT = 2222


class Host(NamedTuple):
    """A namespace, the address in it, and the name of the end of its cable outside of it."""

    name: str
    address: str
    cable: str

    def command(self, *arguments: str) -> list[str]:
        """Returns the command that runs another one there."""
        return ["ip", "netns", "exec", self.name, *arguments]

    def cut(self) -> None:
        """Takes the cable down: nothing arrives any more, and nobody is told."""
        _ip("link", "set", self.cable, "down")


def addresses(hosts: list[Host]) -> str:
    """Returns the argument of `--workers`."""
    return ",".join(f"{host.address}:{PORT}" for host in hosts)


@contextlib.contextmanager
def network(count: int) -> Iterator[list[Host]]:
    """Makes hosts that reach each other, and nothing else; removes them at the end.

    Args:
        count: 1 to 250, how many.
    """
    mark = f"{os.getpid():x}"  # names of interfaces have at most 15 characters
    bridge = f"kb{mark}"
    hosts = [Host(f"kopt-{mark}-{i}", f"10.77.0.{i + 1}", f"k{mark}c{i}") for i in range(count)]
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("link", "set", bridge, "up")
        for host, number in zip(hosts, itertools.count(), strict=False):
            inside = f"k{mark}e{number}"
            _ip("netns", "add", host.name)
            _ip("link", "add", host.cable, "type", "veth", "peer", "name", inside, "netns", host.name)
            _ip("link", "set", host.cable, "master", bridge, "up")
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", inside)
            _ip("-n", host.name, "link", "set", inside, "up")
            _ip("-n", host.name, "link", "set", "lo", "up")
        yield hosts
    finally:
        for host in hosts:
            _ip("link", "delete", host.cable, check=False)  # a namespace lives on until its last process has ended
            _ip("netns", "delete", host.name, check=False)
        _ip("link", "delete", bridge, check=False)


def _ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=not check)

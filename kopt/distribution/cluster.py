"""Which workers train together, and which of them this process is."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

INSTEAD = (
    "Keras 3 trains on no parameter servers. Use MultiWorkerMirroredStrategy: "
    'kopt.distribution.strategy("multiworker"), or --distribute multiworker.'
)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a training.

    Attributes:
        addresses: "host:port" of each, in one order that all of them know.
        index: of this process among them. Worker 0 is the chief, which alone writes files.
    """

    addresses: tuple[str, ...]
    index: int

    def name(self, index: int) -> str:
        """Returns what messages call a worker."""
        return f"worker {index} ({self.addresses[index]})"

    @property
    def others(self) -> list[int]:
        """Returns the numbers of the other workers."""
        return [i for i in range(len(self.addresses)) if i != self.index]


def find(
    workers: Sequence[str] | None = None, index: int | None = None, environment: Mapping[str, str] = os.environ
) -> Cluster:
    """Returns the cluster that is given, or else that of `TF_CONFIG`.

    Args:
        workers: "host:port" of each.
        index: which of them this process is, from 0.
        environment: with the variable TF_CONFIG, as TensorFlow documents it; a "chief" there is worker 0.

    Raises:
        ValueError: addresses or number are missing or wrong, or there are parameter servers.
    """
    if (workers is None) != (index is None):
        raise ValueError(f"Give workers and index together. Received: workers={workers} and index={index}")
    if workers is None or index is None:
        if not environment.get("TF_CONFIG"):
            raise ValueError(
                'No workers: set TF_CONFIG, or give workers=["host:port", ...] and index. On one machine '
                "`kopt launch --workers 2 RECIPE` does it."
            )
        workers, index = _of_tensorflow(environment["TF_CONFIG"])
    addresses = tuple(workers)
    for address in addresses:
        parts(address)
    if not addresses or len(set(addresses)) != len(addresses):
        raise ValueError(f"Give each worker an address of its own. Received: {', '.join(addresses) or 'none'}")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(addresses):
        raise ValueError(f"The index of a worker is from 0 to {len(addresses) - 1} here. Received: {index}")
    return Cluster(addresses, index)


def parts(address: str) -> tuple[str, int]:
    """Returns host and port of an address; ValueError if it is none."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f'The address of a worker is "host:port", as in "10.0.0.1:2222". Received: {address!r}')
    return host.strip("[]"), int(port)


def _of_tensorflow(text: str) -> tuple[list[str], int]:
    try:
        config: Any = json.loads(text)
        jobs, task = config["cluster"], config["task"]
        kind, index = task["type"], int(task["index"])
        chief, rest = list(jobs.get("chief", [])), list(jobs.get("worker", []))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            'TF_CONFIG: expected {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}. '
            f"Received: {text}"
        ) from error
    if "ps" in jobs:
        raise ValueError(f"TF_CONFIG has parameter servers (ps). {INSTEAD}")
    if kind not in ("chief", "worker"):
        raise ValueError(f'TF_CONFIG: expected a task of type "chief" or "worker". Received: {kind!r}')
    return [*chief, *rest], index if kind == "chief" else index + len(chief)

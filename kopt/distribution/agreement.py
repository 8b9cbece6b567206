"""What all workers tell each other between steps: sums, and what the chief knows.

Each function must be called by every worker, in the same order.
"""

import functools
from typing import Any

import numpy as np

CHUNK = 2**24
"""Numbers of 4 bytes that are sent at once."""


def is_chief(strategy: Any) -> bool:
    """Whether this process is the one that writes files: worker 0, or the only one."""
    resolver = getattr(strategy, "cluster_resolver", None)
    return resolver is None or not resolver.task_id


def several_workers(strategy: Any) -> bool:
    """Whether a strategy has more processes than this one."""
    resolver = getattr(strategy, "cluster_resolver", None)
    return resolver is not None and len(resolver.cluster_spec().as_dict().get("worker", ())) > 1


def total(strategy: Any, numbers: Any) -> np.ndarray[Any, Any]:
    """Returns the sum of arrays of one shape over all workers.

    Args:
        strategy: of `tf.distribute`.
        numbers: int32 or float32, at least one axis.
    """
    import tensorflow as tf

    numbers = np.asarray(numbers)
    if not several_workers(strategy):
        return numbers
    return np.asarray(strategy.experimental_local_results(_summing(strategy)(tf.constant(numbers)))[0])


@functools.lru_cache(1)
def _summing(strategy: Any) -> Any:
    """Returns a graph; a strategy of several workers is one a process."""
    import tensorflow as tf

    here = len(strategy.extended.worker_devices)

    def add(x: Any) -> Any:
        context = tf.distribute.get_replica_context()
        first = tf.cast(context.replica_id_in_sync_group % here == 0, x.dtype)  # each device of a worker has the same
        return context.all_reduce(tf.distribute.ReduceOp.SUM, x * first)

    return tf.function(lambda x: strategy.run(add, args=(x,)), autograph=False, reduce_retracing=True)


def from_chief(strategy: Any, data: bytes) -> bytes:
    """Returns what the chief gives; the argument of others is not looked at."""
    if not several_workers(strategy):
        return data
    chief = is_chief(strategy)
    count = int(total(strategy, np.array([len(data) if chief else 0], np.int32))[0])
    room = np.zeros(-(-count // 4), np.int32)
    if chief:
        room[:] = np.frombuffer(data.ljust(4 * len(room), b"\0"), np.int32)
    for begin in range(0, len(room), CHUNK):
        room[begin : begin + CHUNK] = total(strategy, room[begin : begin + CHUNK])
    return room.tobytes()[:count]

"""What all workers tell each other between steps: sums, and what the chief knows.

Each function must be called by every worker, in the same order.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

CHUNK = 2**24
"""Numbers that are sent at once."""


def is_chief(strategy: Any) -> bool:
    """Whether this process is the one that writes files: worker 0, or the only one."""
    resolver = getattr(strategy, "cluster_resolver", None)
    return resolver is None or not resolver.task_id


def count_workers(strategy: Any) -> int:
    """Returns the number of processes that a strategy has."""
    resolver = getattr(strategy, "cluster_resolver", None)
    return 1 if resolver is None else max(1, len(resolver.cluster_spec().as_dict().get("worker", ())))


def several_workers(strategy: Any) -> bool:
    """Whether a strategy has more processes than this one."""
    return count_workers(strategy) > 1


def total(strategy: Any, numbers: Any) -> Array:
    """Returns the sum of arrays of one shape over all workers.

    Args:
        strategy: of `tf.distribute`.
        numbers: int32, float32 or float64, at least one axis.
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
    return _in_chunks(strategy, room).tobytes()[:count]


def from_first(strategy: Any, arrays: Sequence[Array]) -> list[Array]:
    """Returns the arrays that the chief gives, of at most 53 bits a number; all give such of the same shapes."""
    chief = is_chief(strategy)
    return _together(arrays, lambda x, _: _in_chunks(strategy, x if chief else np.zeros_like(x)))


def mean(strategy: Any, arrays: Sequence[Array]) -> list[Array]:
    """Returns the means over all workers of arrays of floating point, and the largest of whole numbers.

    Computed in float32; single numbers, and what is float64, in float64, so that numbers that are the same stay so.
    """
    workers, index = count_workers(strategy), strategy.cluster_resolver.task_id

    def agree(numbers: Array, whole: bool) -> Array:
        if not whole:
            return _in_chunks(strategy, numbers) / workers
        rows = np.zeros((workers, len(numbers)))
        rows[index] = numbers
        return _in_chunks(strategy, np.ravel(rows)).reshape(rows.shape).max(0)

    return _together(arrays, agree)


def _together(arrays: Sequence[Array], call: Callable[[Array, bool], Array]) -> list[Array]:
    """Returns what becomes of arrays when all that are computed alike are one array.

    Args:
        arrays: of numbers.
        call: function of one array of one axis, and whether it is of whole numbers.
    """
    found: list[Any] = [None] * len(arrays)
    groups = dict[tuple[type, bool], list[int]]()
    for i, x in enumerate(arrays):
        whole = x.dtype.kind in "iub"
        wide = whole or x.size == 1 or x.dtype == np.float64
        groups.setdefault((np.float64 if wide else np.float32, whole), []).append(i)
    for (dtype, whole), places in groups.items():
        result = call(np.concatenate([np.ravel(arrays[i]).astype(dtype) for i in places]), whole)
        ends = np.cumsum([arrays[i].size for i in places])
        for i, part in zip(places, np.split(result, ends[:-1]), strict=True):
            found[i] = part.reshape(arrays[i].shape).astype(arrays[i].dtype)
    return found


def _in_chunks(strategy: Any, numbers: Array) -> Array:
    """Returns the sum over all workers of an array of one axis, however long."""
    parts = [total(strategy, numbers[begin : begin + CHUNK]) for begin in range(0, len(numbers), CHUNK)]
    return np.concatenate(parts) if parts else numbers

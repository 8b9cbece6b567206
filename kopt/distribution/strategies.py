"""Strategies of `tf.distribute` for several devices of one machine, and for several processes or machines."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import keras
import numpy as np

from kopt.distribution import cluster as clusters
from kopt.distribution.agreement import several_workers, total
from kopt.distribution.keras_internals import repair
from kopt.distribution.peers import Watch, meet


class _Joined:
    """The workers that this process is one of: TensorFlow knows one cluster a process."""

    watch: Watch | None = None


def strategy(
    kind: Literal["mirrored", "multiworker"],
    *,
    workers: Sequence[str] | None = None,
    index: int | None = None,
    timeout: float = 60.0,
) -> Any:
    """Returns a strategy of `tf.distribute`, in whose scope a model and its optimizer are made.

    "mirrored": `MirroredStrategy` on all GPUs of this machine, without any on all its logical CPU devices.

    "multiworker": `MultiWorkerMirroredStrategy`, one process a worker, each with all of its own GPUs (NCCL) or with its
    CPU (ring all-reduce). Which workers there are says TF_CONFIG, or `workers` and `index`. The function returns when
    all of them are there. From then on every process watches the others: if one is gone for 5 s, its number and address
    are printed and the process ends with code 5, at the latest 10 s after that; within `together` a `WorkerLostError`
    is raised where TensorFlow lets it. On the way Keras' `fit` is repaired for several workers.

    Args:
        kind: of the strategy.
        workers: "host:port" of each worker.
        index: which of them this process is, from 0; worker 0 is the chief.
        timeout: seconds, > 0, in which all workers must have come.

    Raises:
        RuntimeError: on other backends than TensorFlow, where TensorFlow is in use already, or where Keras is one that
            the repairs do not fit.
        ValueError: an argument or TF_CONFIG is wrong, or the own port is taken.
        WorkerLostError: a worker has not come in time.
    """
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"kopt.distribution is for the TensorFlow backend. Received: {keras.backend.backend()}. On JAX use "
            "keras.distribution."
        )
    import tensorflow as tf

    if kind == "mirrored":
        if workers is not None or index is not None:
            raise ValueError('workers and index are for "multiworker"; "mirrored" has the devices of one machine.')
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    if kind != "multiworker":
        advice = clusters.INSTEAD if "server" in str(kind).lower() else 'Use "mirrored" or "multiworker".'
        raise ValueError(f"No strategy {kind!r}. {advice}")
    if not timeout > 0:
        raise ValueError(f"timeout: seconds > 0. Received: {timeout}")
    found = clusters.find(workers, index)
    if _Joined.watch is not None:
        raise RuntimeError("This process is a worker already: make the strategy once, and use it for all models.")
    repair()
    meet(found, timeout)
    _Joined.watch = Watch(found)
    _Joined.watch.start()
    try:
        return _of_workers(found)
    except RuntimeError as error:
        leave()
        if "program startup" not in str(error):
            raise
        raise RuntimeError(
            "TensorFlow is in use already: make the strategy of several workers before the first tensor, variable or "
            "optimizer of the program."
        ) from error


def _of_workers(found: clusters.Cluster) -> Any:
    import tensorflow as tf

    kinds = tf.distribute.experimental.CommunicationImplementation
    gpus = len(tf.config.list_physical_devices("GPU"))
    return tf.distribute.MultiWorkerMirroredStrategy(
        cluster_resolver=tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({"worker": list(found.addresses)}),
            task_type="worker",
            task_id=found.index,
            rpc_layer="grpc",
            num_accelerators={"GPU": gpus},
        ),
        communication_options=tf.distribute.experimental.CommunicationOptions(
            implementation=kinds.NCCL if gpus else kinds.RING
        ),
    )


@contextlib.contextmanager
def together(strategy: Any) -> Iterator[None]:
    """Raises `WorkerLostError` where a worker is gone; at the end waits for all of them, who then part.

    After the block nobody is watched any more, and nothing may be computed by several workers: the chief goes on alone
    with a model that is `detach`ed, to save or to use it.

    Args:
        strategy: any one; those without other workers need nothing.

    Raises:
        WorkerLostError: a worker is gone, which is named.
    """
    with named_losses():
        yield
        part(strategy)


@contextlib.contextmanager
def named_losses() -> Iterator[None]:
    """Raises `WorkerLostError` for the error that TensorFlow raises where a worker is gone."""
    import tensorflow as tf

    try:
        yield
    except (
        tf.errors.AbortedError,
        tf.errors.CancelledError,
        tf.errors.DeadlineExceededError,
        tf.errors.InternalError,
        tf.errors.UnavailableError,
        tf.errors.UnknownError,
    ):
        if _Joined.watch is not None:
            _Joined.watch.check()
        raise


def part(strategy: Any) -> None:
    """Waits for all workers, and stops watching them."""
    if several_workers(strategy):
        total(strategy, np.zeros(1, np.int32))
        leave()


def leave() -> None:
    """Stops watching the others, who see this process go if they watch it."""
    if _Joined.watch is not None:
        _Joined.watch.end()
        _Joined.watch = None

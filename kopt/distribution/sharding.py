"""Each replica its rows of every batch, and a loss that is that of one process whatever their number."""

import inspect
from typing import Any

import keras

from kopt.distribution.agreement import count_workers, several_workers
from kopt.distribution.keras_internals import repair, set_steps, unscaled


def shard(data: Any, strategy: Any) -> Any:
    """Returns batches of which each replica of a strategy gets its rows.

    Every worker reads all of `data`, in the same order, and takes its part of each batch: replica r of n rows i with
    r·size/n ≤ i < (r+1)·size/n. So all make the same number of steps. Where the size does not divide, the parts differ
    by one row; a batch with fewer rows than replicas goes to all of them whole. Give the model to `share_loss`, so that
    its loss is that of the whole batch.

    Args:
        data: a `tf.data.Dataset` of batches, or a `keras.utils.PyDataset` such as `kopt.checkpoint.ShuffledBatches`, as
            for one process. Its `set_epoch`, if it has one, is kept.
        strategy: of `tf.distribute`.

    Returns:
        A `tf.distribute.DistributedDataset` for `fit` and `evaluate`; `data` itself where there is one replica.

    Raises:
        TypeError: `data` is of another kind.
    """
    import tensorflow as tf

    batches, count = _batches(data), strategy.num_replicas_in_sync
    if count == 1:
        return data
    steps = int(batches.cardinality())

    def own(context: Any) -> Any:
        here = count // context.num_input_pipelines
        first = here * context.input_pipeline_id

        def cut(*batch: Any) -> Any:
            parts = [_rows(batch if len(batch) > 1 else batch[0], first + i, count) for i in range(here)]
            return tf.data.Dataset.from_tensors(parts[0]) if here == 1 else _in_turn(parts)

        found = batches.flat_map(cut)
        found = found if steps < 0 else found.apply(tf.data.experimental.assert_cardinality(steps * here))
        return found.prefetch(tf.data.AUTOTUNE)

    repair()  # that of parts of different sizes, on one machine too
    distributed = strategy.distribute_datasets_from_function(own)
    set_steps(distributed, steps)
    if hasattr(data, "set_epoch"):
        distributed.set_epoch = data.set_epoch
    return distributed


def part(data: Any, strategy: Any) -> Any:
    """Returns a `tf.data.Dataset` of the rows of this worker of each batch, cut as by `shard`.

    Args:
        data: as for `shard`.
        strategy: of several workers; of others, `data` itself is returned.
    """
    import tensorflow as tf

    batches = _batches(data)
    if not several_workers(strategy):
        return data
    count, index, steps = count_workers(strategy), strategy.cluster_resolver.task_id, batches.cardinality()
    found = batches.map(lambda *batch: _rows(batch if len(batch) > 1 else batch[0], index, count))
    found = found.apply(tf.data.experimental.assert_cardinality(steps)) if int(steps) >= 0 else found
    found = found.prefetch(tf.data.AUTOTUNE)
    if hasattr(data, "set_epoch"):
        found.set_epoch = data.set_epoch
    return found


def _batches(data: Any) -> Any:
    """Returns data as a dataset of batches; TypeError if they are none."""
    import tensorflow as tf

    if isinstance(data, tf.data.Dataset):
        return data
    if isinstance(data, keras.utils.PyDataset):
        return _read(data)
    raise TypeError(
        "shard takes a tf.data.Dataset of batches or a PyDataset; for arrays "
        f"kopt.checkpoint.ShuffledBatches(x, y). Received: {type(data).__name__}"
    )


def _rows(batch: Any, replica: int, count: int) -> Any:
    """Returns the rows of one replica."""
    import tensorflow as tf

    size = tf.shape(tf.nest.flatten(batch)[0])[0]
    begin = tf.where(size < count, 0, replica * size // count)
    end = tf.where(size < count, size, (replica + 1) * size // count)
    return tf.nest.map_structure(lambda part: part[begin:end], batch)


def gather(rows: Any) -> tuple[Any, Any]:
    """Returns the rows that all replicas have, in the order of the batch, and how many stand before one's own.

    For losses in which the rows of a batch meet, as those whose negatives are the other items of the batch: give the
    ids, and let each replica compute what it needs of all. No gradient passes. In a replica, within `fit`; elsewhere,
    and where there is one replica, these are the rows that are given, and 0. A batch of `shard` with fewer rows than
    replicas, of which each has all rows, is there once for each.

    Args:
        rows: tensor of at least one axis.
    """
    import tensorflow as tf

    if tf.distribute.in_cross_replica_context() or tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return rows, 0
    context = tf.distribute.get_replica_context()
    counts = context.all_gather(tf.shape(rows)[:1], 0)
    found = tf.stop_gradient(context.all_gather(rows, 0))
    return tf.ensure_shape(found, (None, *rows.shape[1:])), tf.reduce_sum(counts[: context.replica_id_in_sync_group])


def ratio(x: Any) -> Any:
    """Returns how many times as many rows all replicas have as this one: 1.0 where there is one, or outside of them.

    A loss that is a sum over the rows of a replica, divided by what belongs to the whole batch, becomes times this what
    `share_loss` takes: the mean over replicas, weighted by their rows, is then the sum over all. It is float64.

    Args:
        x: inputs of a model, of which the first axis are the rows.
    """
    import tensorflow as tf

    if tf.distribute.in_cross_replica_context() or tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return 1.0
    rows = tf.cast(tf.shape(next(part for part in tf.nest.flatten(x) if part is not None))[0], tf.float64)
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, rows) / rows


def _in_turn(parts: list[Any]) -> Any:
    import tensorflow as tf

    found = tf.data.Dataset.from_tensors(parts[0])
    for part in parts[1:]:
        found = found.concatenate(tf.data.Dataset.from_tensors(part))
    return found


def _read(data: Any) -> Any:
    """Returns a dataset of the batches of a `PyDataset`."""
    import tensorflow as tf

    def leaf(x: Any) -> Any:
        x = tf.convert_to_tensor(x)
        return tf.TensorSpec((None, *x.shape[1:]), x.dtype)

    steps = len(data)

    def batches() -> Any:
        for i in range(steps):
            yield _plain(data[i])
        data.on_epoch_end()

    signature = tf.nest.map_structure(leaf, _plain(data[0]))
    found = tf.data.Dataset.from_generator(batches, output_signature=signature)
    return found.apply(tf.data.experimental.assert_cardinality(steps))


def _plain(batch: Any) -> Any:
    """Returns a batch as `fit` reads it: one part alone is no tuple."""
    return batch[0] if isinstance(batch, tuple) and len(batch) == 1 else batch


def share_loss(model: Any) -> None:
    """Has each replica's loss count by its share of the rows of a batch, so that the gradients add up to that of all.

    Keras takes the mean over replicas, whatever number of rows each of them has; and of a loss that comes from a
    `compute_loss` of one's own, or of predictions of one axis, the sum. Here every loss is a mean over the rows of its
    replica, as `compute_loss` returns it in one process. Where there is one replica, this has no effect.

    Args:
        model: compiled or not, made in the scope of its strategy.
    """
    import tensorflow as tf

    if model.distribute_strategy.num_replicas_in_sync == 1:
        return
    repair()
    plain, replicas = type(model).compute_loss, model.distribute_strategy.num_replicas_in_sync
    told = "training" in inspect.signature(plain).parameters  # Keras allows a loss of one's own to leave it out

    def compute_loss(x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: Any = True):  # type: ignore[no-untyped-def]
        with unscaled():
            loss = plain(model, x, y, y_pred, sample_weight, *([training] if told else [])) / replicas
        if not training or tf.distribute.in_cross_replica_context():
            return loss
        return _weighed(loss, tf.cast(replicas / ratio(x), loss.dtype))

    model.compute_loss = compute_loss


def _weighed(loss: Any, weight: Any) -> Any:
    """Returns a loss whose gradient is multiplied."""
    import tensorflow as tf

    @tf.custom_gradient
    def apply(value: Any) -> Any:
        return tf.identity(value), lambda gradient: gradient * weight

    return apply(loss)

"""How a step runs on TensorFlow: XLA, IndexedSlices, tf.distribute. The only file of this wing that imports it.

See `Backend` for what the functions do.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.compiler.tf2xla.ops.gen_xla_ops import xla_sort

from kopt.optimizers.engine.backends.records import NOT_FINITE, Gradient, Products, Write, check_depends, not_finite
from kopt.optimizers.engine.tensor_math import beside

has_rows = True

# ---------------------------------------------------------------------------------------------------------- running


def unconverted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps AutoGraph out of it."""
    return tf.autograph.experimental.do_not_convert(function)


def place() -> Any:
    """Asks the strategy and the graph."""
    if tf.distribute.has_strategy():
        if tf.distribute.in_cross_replica_context():
            raise RuntimeError("Under a strategy call apply() in replica context: inside strategy.run(train_step).")
        return "replica"
    return "compiled" if _in_xla() else "open"


def is_traced() -> bool:
    """Whether it is inside of a `tf.function`."""
    return tf.inside_function()


def compiled(graphs: dict[str, Any], name: str, function: Callable[..., Any], xla: bool = False) -> Any:
    """Makes a graph once, with a name of its own."""
    if name not in graphs:
        # A partial, because TensorFlow counts the traces of one code object, and warns, over all optimizers.
        own, options = functools.partial(function), {"jit_compile": True} if xla else {}
        graphs[name] = tf.function(own, autograph=False, reduce_retracing=True, **options)
    return graphs[name]


def widest() -> str:
    """TensorFlow has float64."""
    return "float64"


def check_place(owner: str) -> None:
    """Raises `ValueError` under `keras.distribution`, which Keras ignores here."""
    if keras.distribution.distribution() is not None:
        raise ValueError(
            f"{owner}: keras.distribution does nothing on the TensorFlow backend: use a strategy of tf.distribute, or "
            "call keras.distribution.set_distribution(None)."
        )


def cond(condition: tf.Tensor, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
    """As `tf.cond`."""
    return tf.cond(condition, then, otherwise)


def in_turn(calls: Sequence[Callable[[], Any]]) -> None:
    """Each call waits for the tensor that the one before returns."""
    done: list[tf.Tensor] = []
    for call in calls:
        with tf.control_dependencies(done):
            done = [call()]


def on_host(owner: str, call: Callable[..., None], tensors: Sequence[Any], after: Sequence[Any]) -> None:
    """As `tf.py_function`, which XLA has not."""
    if tf.executing_eagerly():
        call(*tensors)
        return
    if _in_xla():
        raise ValueError(f"{owner} computes on the host between steps. Compile the model with jit_compile=False.")
    with tf.control_dependencies([tf.convert_to_tensor(g) for g in after]):
        tf.py_function(call, list(tensors), [])


def replicas() -> int:
    """Those of the strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def sum_over_replicas(gradients: Sequence[Any]) -> list[Any]:
    """One reduction of all."""
    present = [g for g in gradients if g is not None]
    if not present:
        return list(gradients)
    summed = iter(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, present))
    return [None if g is None else next(summed) for g in gradients]


def stop_unless(fine: Callable[[], tf.Tensor], message: str) -> None:
    """Raises `FloatingPointError`, in a graph `tf.errors.InvalidArgumentError`; XLA goes on."""
    if tf.executing_eagerly():
        if not bool(fine()):
            raise FloatingPointError(message)
    elif not _in_xla():
        tf.debugging.Assert(fine(), [message])


def raise_on(flags: tf.Tensor, labels: Sequence[str], owner: str) -> None:
    """Raises `FloatingPointError`, in a graph `tf.errors.InvalidArgumentError`, in XLA `ValueError` at once."""
    if not tf.executing_eagerly():
        if _in_xla():
            raise ValueError(
                f"{owner}: on_nonfinite='raise' cannot stop an XLA-compiled train step. Use on_nonfinite='skip', or "
                "compile the model with jit_compile=False."
            )
        names = tf.boolean_mask(tf.constant(labels), tf.logical_not(flags))
        tf.debugging.Assert(tf.reduce_all(flags), [NOT_FINITE.format(owner=owner), names], summarize=10)
    elif not bool(tf.reduce_all(flags)):
        raise FloatingPointError(not_finite(owner, flags, labels))


def noted(loss: Any, note: Callable[[Any], None]) -> Any:
    """The tape hides nothing of it."""
    note(loss)
    return loss


def differentiated(
    function: Callable[..., Any], variables: Sequence[Any], state: Sequence[Any], compiled: bool
) -> Callable[..., Any]:
    """By a tape, in a graph if `compiled`."""
    sources = [_native(v) for v in variables]

    def differentiate(*args: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            value = tf.convert_to_tensor(function(*args))
        if value.shape.rank != 0:
            raise ValueError(f"The function must return a scalar. Received: shape {tuple(value.shape)}")
        gradients = tape.gradient(value, sources)
        check_depends(variables, gradients)
        return value, [tf.convert_to_tensor(g) for g in gradients]

    return tf.function(differentiate, autograph=False, reduce_retracing=True) if compiled else differentiate


def products(function: Callable[..., Any], variables: Sequence[Any], state: Sequence[Any], compiled: bool) -> Products:
    """By a tape and a forward accumulator, in graphs if `compiled`."""
    sources = [_native(v) for v in variables]

    def value(*args: Any) -> tf.Tensor:
        return tf.reshape(tf.convert_to_tensor(function(*args)), [-1])

    def forward(tangents: list[tf.Tensor], *args: Any) -> tf.Tensor:
        with tf.autodiff.ForwardAccumulator(sources, tangents) as accumulator:
            result = value(*args)
        return accumulator.jvp(result, tf.UnconnectedGradients.ZERO)

    def backward(cotangent: tf.Tensor, *args: Any) -> list[tf.Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            result = value(*args)
        gradients = tape.gradient(result, sources, cotangent)
        check_depends(variables, gradients)
        return [tf.convert_to_tensor(g) for g in gradients]

    made = (value, forward, backward)
    # Partials, as in `compiled`.
    graphs = (tf.function(functools.partial(f), autograph=False, reduce_retracing=True) for f in made)
    return Products(*(graphs if compiled else made))


# --------------------------------------------------------------------------------------------------------- variables


def value(variable: Any) -> tf.Tensor:
    """Reads a variable into a tensor (keras.ops may pass the variable on)."""
    return tf.convert_to_tensor(_native(variable))


def holds(variable: Any) -> bool:
    """It always has."""
    return True


def take(variable: Any, rows: tf.Tensor) -> tf.Tensor:
    """Gathers rows. A read of the whole would have the next assignment to rows copy it."""
    return tf.gather(_native(variable), rows)


def commit(writes: Sequence[Write]) -> None:
    """Assigns in place; under a strategy in cross-replica context."""
    if not tf.distribute.has_strategy() or tf.distribute.in_cross_replica_context():
        for write in writes:
            _assign(_native(write.variable), write.value, write.rows)
        return
    targets = [_native(w.variable) for w in writes]

    def across_replicas(strategy: tf.distribute.Strategy, values: list[Any], rows: list[Any]) -> None:
        for target, value, ids in zip(targets, values, rows, strict=True):
            strategy.extended.update(target, _assign, args=(value, ids), group=False)

    context = tf.distribute.get_replica_context()
    context.merge_call(across_replicas, args=([w.value for w in writes], [w.rows for w in writes]))


def commit_if(condition: tf.Tensor | None, compute: Callable[[], Any]) -> tf.Tensor | None:
    """Assigns inside of a condition.

    Rows are chosen there and assigned after it, where XLA needs no copy of their table. Under a strategy nothing can be
    assigned inside of a condition.
    """
    if condition is None:
        writes, flags = compute()
        commit(writes)
        return flags
    chosen: list[Write] = []
    looked: list[tf.Tensor] = []

    def new() -> list[tf.Tensor]:
        writes, flags = compute()
        for write in writes:
            if write.rows is not None or tf.distribute.has_strategy():
                chosen.append(write)
            else:
                commit([write])
        looked.extend([] if flags is None else [flags])
        return [*looked, *(tf.cast(w.value, w.variable.dtype) for w in chosen)]

    def old() -> list[tf.Tensor]:
        kept = (value(w.variable) if w.rows is None else take(w.variable, w.rows) for w in chosen)
        return [*(tf.ones_like(flags) for flags in looked), *kept]

    results = tf.cond(condition, new, old)
    commit([Write(w.variable, x, w.rows) for w, x in zip(chosen, results[len(looked) :], strict=True)])
    return results[0] if looked else None


def add_beside(optimizer: Any, like: Any, name: str, shape: Any, dtype: Any, initializer: Any) -> keras.Variable:
    """Adds a variable on the devices of another one, under the strategy that the optimizer was made in."""
    label = getattr(like, "path", like.name).replace("/", "_").replace(":", "_")
    with optimizer._distribution_strategy.extended.colocate_vars_with(_native(like)):
        return optimizer.add_variable(shape, initializer, dtype, name=f"{label}_{name}")


def outside_graph() -> Any:
    """As `tf.init_scope`."""
    return tf.init_scope()


def where_slots_begin(owner: str, variables: Sequence[Any], copying: bool) -> Any:
    """Outside of a traced step, where an initial value can copy a weight.

    XLA cannot hoist such a value. Weights that the same trace creates, of a model without an input shape, have none
    to copy yet: then slots are created beside them.
    """
    if tf.distribute.has_strategy():
        return contextlib.nullcontext()
    with tf.init_scope():
        begun = not tf.executing_eagerly() or all(bool(_native(v).is_initialized()) for v in variables)
    if begun or not copying:
        return tf.init_scope()
    if _in_xla():
        raise ValueError(
            f"{owner} copies the first weights, which have no values yet. Give the model an Input, "
            "or call model.build(input_shape), before a fit that XLA compiles."
        )
    return contextlib.nullcontext()


# --------------------------------------------------------------------------------------------------------- gradients


def as_given(gradient: Any) -> Any:
    """Of rows: their ids may be a tuple of Python numbers."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    shape = None if gradient.dense_shape is None else tf.convert_to_tensor(gradient.dense_shape)
    return tf.IndexedSlices(tf.convert_to_tensor(gradient.values), tf.convert_to_tensor(gradient.indices), shape)


def is_of_rows(gradient: Any) -> bool:
    """Whether it is `tf.IndexedSlices`."""
    return isinstance(gradient, tf.IndexedSlices)


def static_shape(gradient: Any) -> tuple[int | None, ...] | None:
    """The number of rows is unknown."""
    if gradient.shape.rank is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        return (None, *gradient.values.shape[1:])
    return tuple(gradient.shape)


def read_gradient(gradient: Any, variable: Any, dtype: str, lazy: bool) -> Gradient:
    """Of rows: sums repeated ones, or makes it dense. A graph may have forgotten the shape."""
    if not isinstance(gradient, tf.IndexedSlices):
        whole = tf.cast(gradient, dtype)
        return Gradient(whole if whole.shape.is_fully_defined() else tf.ensure_shape(whole, variable.shape))
    values, ids = tf.cast(gradient.values, dtype), gradient.indices
    if lazy:
        return _sum_repeated(values, ids)
    whole = tf.convert_to_tensor(tf.IndexedSlices(values, ids, tf.shape(variable, out_type=ids.dtype)))
    return Gradient(tf.ensure_shape(whole, variable.shape))


def bounds_of_squares(gradients: Sequence[Any], dtypes: Sequence[str], dtype: str) -> tf.Tensor:
    """By TensorFlow's own kernels.

    Rows of one id are summed later: n of them make at most n times the sum of their squares. One vector of all, because
    an operation for each weight costs more than to look at it.
    """
    squares, factors = [], []
    for g, own in zip(gradients, dtypes, strict=True):
        values, count = (g.values, tf.shape(g.indices)[0]) if isinstance(g, tf.IndexedSlices) else (g, 1)
        squares.append(tf.cast(tf.nn.l2_loss(tf.cast(values, own)), dtype))
        factors.append(2.0 * tf.cast(count, dtype))
    return tf.stack(squares) * tf.stack(factors)


def marked_rows(marks: Any) -> tf.Tensor | None:
    """XLA cannot tell how many there will be."""
    return None if _in_xla() else tf.where(value(marks))[:, 0]


def sparse(values: tf.Tensor, rows: tf.Tensor) -> tf.IndexedSlices:
    """Fills the rows up to the next power of two, so that XLA compiles few of them."""
    count = tf.shape(rows)[0]
    digits = tf.math.ceil(tf.math.log(tf.cast(tf.maximum(count, 1), tf.float64)) / math.log(2))
    room = tf.cast(2.0**digits, tf.int32)
    places = tf.range(room)
    keep = tf.where(places < count, places, 0)
    values = tf.where(beside(places < count, values), tf.gather(values, keep), 0)
    return tf.IndexedSlices(values, tf.gather(rows, keep))


def _sum_repeated(values: tf.Tensor, ids: tf.Tensor) -> Gradient:
    """Sums the rows of repeated ids without a shape that depends on the data, which XLA would compile anew."""
    count = tf.shape(ids)[0]
    wide = tf.cast(count, tf.int64)
    keys = tf.cast(ids, tf.int64) * wide + tf.range(wide)  # tell equal ids apart: their order is kept
    # TensorFlow sorts by TopKV2, whose length XLA takes for dynamic: then it inlines every call, and computes each
    # random number of dropout four times over.
    keys = xla_sort(keys) if _in_xla() else tf.sort(keys)
    ids, order = tf.cast(keys // wide, ids.dtype), keys % wide
    segment = tf.cumsum(tf.cast(tf.concat([ids[:1] != ids[:1], ids[1:] != ids[:-1]], 0), tf.int32))
    position = tf.range(count)
    keep = tf.where(position <= tf.reduce_max(segment), position, 0)
    sums = tf.math.unsorted_segment_sum(tf.gather(values, order), segment, count)
    rows = tf.gather(tf.math.unsorted_segment_max(ids, segment, count), keep)
    return Gradient(sums, rows, keep)


def _in_xla() -> bool:
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext

    return not tf.executing_eagerly() and GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def _native(variable: Any) -> tf.Variable:
    return variable.value if isinstance(variable, keras.Variable) else variable


def _assign(variable: tf.Variable, value: tf.Tensor, rows: tf.Tensor | None) -> None:
    value = tf.cast(value, variable.dtype)
    if rows is None:
        variable.assign(value, read_value=False)
    else:
        variable.scatter_update(tf.IndexedSlices(value, rows))

"""How a step runs on TensorFlow: XLA, IndexedSlices, tf.distribute. The only file of this wing that imports it."""

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.compiler.tf2xla.ops.gen_xla_ops import xla_sort

from kopt.optimizers.engine.parameter import Gradient, OptimizerParts, Parameter, Write
from kopt.optimizers.engine.tensor_math import beside, too_large

UNUSUAL = 100.0
"""A learning rate above which new weights and slots are looked at, if `on_nonfinite` asks for finite ones."""


class Engine(OptimizerParts):
    """Executes the pure steps of `Optimizer` on TensorFlow.

    On one device the whole step, for all weights, is one XLA-compiled function that updates the variables in place.
    Under a multi-replica strategy each replica computes the step from the summed gradients, and the results are
    assigned in cross-replica context.
    """

    # ------------------------------------------------------------------------------------------------------- run

    @tf.autograph.experimental.do_not_convert
    def _execute(self, grads: Sequence[Any], rate: tf.Tensor, loss: tf.Tensor | None = None) -> None:
        run = self._accumulate if self.gradient_accumulation_steps else self._step
        grads = [_as_tensors(g) if isinstance(g, tf.IndexedSlices) else g for g in grads]
        if tf.inside_function():
            self._traced = True
        if tf.distribute.has_strategy():
            if tf.distribute.in_cross_replica_context():
                raise RuntimeError("Under a strategy call apply() in replica context: inside strategy.run(train_step).")
            (loss,) = self._sum_over_replicas([loss])  # Keras divides the loss of each replica by their number
            flags = run(self._sum_over_replicas(grads), rate, loss)
        elif _in_xla():
            flags = run(grads, rate, loss, careful=self._needs_care(rate))
        elif self.gradient_accumulation_steps:
            flags = self._in_graph(self._accumulate_outside_xla)(grads, rate, loss)
        else:
            flags = self._compiled_step(grads, rate, loss)
        if self.on_nonfinite == "raise" and flags is not None:
            self._raise_on(flags, [p.label for p, g in zip(self._parameters, grads, strict=True) if g is not None])

    def _compiled_step(self, grads: Sequence[Any], rate: tf.Tensor, loss: tf.Tensor | None) -> tf.Tensor | None:
        if self.on_nonfinite == "ignore" or all(g is None for g in grads):
            return self._in_graph(self._fast_step, jit_compile=True)(grads, rate, loss)
        return self._in_graph(self._judged_step)(grads, rate, loss)

    def _fast_step(self, grads: Sequence[Any], rate: tf.Tensor, loss: tf.Tensor | None) -> tf.Tensor | None:
        return self._step(grads, rate, loss, None, True, False)

    def _careful_step(self, grads: Sequence[Any], rate: tf.Tensor, loss: tf.Tensor | None) -> tf.Tensor | None:
        return self._step(grads, rate, loss, None, True)

    def _judged_step(self, grads: Sequence[Any], rate: tf.Tensor, loss: tf.Tensor | None) -> tf.Tensor:
        """Looks at the gradients outside of XLA, where a condition copies no weights, then makes the step or not."""
        flags = self._moderate(grads)

        def careful() -> tf.Tensor:
            return self._in_graph(self._careful_step, jit_compile=True)(grads, rate, loss)

        def fast() -> tf.Tensor:
            return self._in_graph(self._fast_step, jit_compile=True)(grads, rate, loss)

        def step() -> tf.Tensor:
            care = self._needs_care(rate)
            return careful() if care is True else tf.cond(care, careful, fast)

        def skip() -> tf.Tensor:
            self._commit(self._counters(tf.constant(False)))
            return flags

        return tf.cond(tf.reduce_all(flags), step, skip)

    def _moderate(self, grads: Sequence[Any]) -> tf.Tensor:
        """Returns what `moderate` does, by TensorFlow's own kernels, of gradients as they come."""
        squares, factors = [], []
        active = [(p, g) for p, g in zip(self._parameters, grads, strict=True) if g is not None]
        dtype = "float64" if any(p.dtype == "float64" for p, _ in active) else "float32"
        for p, g in active:
            values, count = (g.values, tf.shape(g.indices)[0]) if isinstance(g, tf.IndexedSlices) else (g, 1)
            squares.append(tf.cast(tf.nn.l2_loss(tf.cast(values, p.dtype)), dtype))
            # Rows of one id are summed later: n of them make at most n times the sum of their squares.
            factors.append(2.0 * tf.cast(count, dtype))
        # One vector: an operation for each weight costs more than to look at it.
        sums = tf.stack(squares) * tf.stack(factors)
        room = min((self.loss_scale_factor or 1.0) ** 2, 2.0**9)
        flags = sums < tf.constant([too_large(p.dtype) * room for p, _ in active], dtype)
        if dtype == "float32":
            # Where one is too large by itself, it alone is to blame.
            flags &= (tf.reduce_sum(sums) < too_large(dtype) * room) | ~tf.reduce_all(flags)
        return flags

    def _needs_care(self, rate: tf.Tensor) -> Any:
        """Returns whether gradients that are not huge may make a weight or slot that is not finite.

        A boolean where that is known without the rate: of bounded rules it depends on the rate, and on the decay, which
        lets weights grow if there is too much of it.
        """
        if (
            not all(rule.bounded for rule in (self, *self.owners().values()))
            or any(getattr(p.variable, "constraint", None) for p in self._parameters)
            or any(keras.backend.standardize_dtype(p.variable.dtype) == "float16" for p in self._parameters)
        ):
            return True
        update = self._updates()
        fastest = max((p.multiplier for p in self._parameters), default=1.0)
        usual = []
        for rule in self.owners().values():
            top = tf.abs(self._rate_of(rule, rate, update + 1)) * fastest
            usual += [top <= UNUSUAL, top * tf.cast(rule.decay(update), top.dtype) <= 1.0]
        return ~tf.reduce_all(usual)

    def _accumulate_outside_xla(self, grads: Sequence[Any], rate: tf.Tensor, loss: tf.Tensor | None) -> tf.Tensor:
        due, loss = self._add(grads, loss)
        fine = tf.ones([sum(g is not None for g in grads)], tf.bool)

        def step() -> tf.Tensor:
            flags = self._compiled_step(self._means(grads), rate, loss)
            self._commit(self._begin_anew(grads))
            return fine if flags is None else flags

        def wait() -> tf.Tensor:
            self._commit([Write(self._iterations, self._value(self._iterations) + 1)])
            return fine

        return tf.cond(due, step, wait)

    def _in_graph(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """Returns a method as a graph, made once for each optimizer."""
        graphs = vars(self).setdefault("_graphs", {})  # past the tracking of attributes: it is no state
        if function.__name__ not in graphs:
            # A partial, because TensorFlow counts the traces of one code object, and warns, over all optimizers.
            own = functools.partial(function)
            graphs[function.__name__] = tf.function(own, autograph=False, reduce_retracing=True, **options)
        return graphs[function.__name__]

    def _sum_over_replicas(self, grads: Sequence[Any]) -> list[Any]:
        present = [g for g in grads if g is not None]
        if not present:
            return list(grads)
        summed = iter(tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, present))
        return [None if g is None else next(summed) for g in grads]

    def _raise_on(self, flags: tf.Tensor, paths: list[str]) -> None:
        message = (
            f"{type(self).__name__}: a gradient or new weight is not finite; the update was skipped. Weights concerned:"
        )
        if not tf.executing_eagerly():
            if _in_xla():
                raise ValueError(
                    f"{type(self).__name__}: on_nonfinite='raise' cannot stop an XLA-compiled train step. Use "
                    "on_nonfinite='skip', or compile the model with jit_compile=False."
                )
            names = tf.boolean_mask(tf.constant(paths), tf.logical_not(flags))
            tf.debugging.Assert(tf.reduce_all(flags), [message, names], summarize=10)
        elif not bool(tf.reduce_all(flags)):
            bad = [path for path, ok in zip(paths, flags.numpy(), strict=True) if not ok]
            raise FloatingPointError(f"{message} {', '.join(bad[:10])}")

    def _stop_unless(self, fine: tf.Tensor, message: str) -> None:
        """Raises an error unless all is `fine`; an XLA-compiled train step goes on."""
        if tf.executing_eagerly():
            if not bool(fine):
                raise FloatingPointError(message)
        elif not _in_xla():
            tf.debugging.Assert(fine, [message])

    def _replicas(self) -> int:
        return tf.distribute.get_strategy().num_replicas_in_sync

    def differentiated(self, function: Callable[..., Any], variables: Sequence[Any], compiled: bool) -> Any:
        """Returns a function that returns the value of `function` and its dense gradients, in a graph if `compiled`."""
        sources = [_native(v) for v in variables]

        def differentiate(*args: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sources)
                value = tf.convert_to_tensor(function(*args))
            if value.shape.rank != 0:
                raise ValueError(f"The function must return a scalar. Received: shape {tuple(value.shape)}")
            gradients = tape.gradient(value, sources)
            for v, g in zip(variables, gradients, strict=True):
                if g is None:
                    raise ValueError(f"The function does not depend on {getattr(v, 'path', v.name)!r}.")
            return value, [tf.convert_to_tensor(g) for g in gradients]

        return tf.function(differentiate, autograph=False, reduce_retracing=True) if compiled else differentiate

    # ----------------------------------------------------------------------------------------------------- writes

    def _commit(self, writes: list[Write]) -> None:
        if not tf.distribute.has_strategy():
            for write in writes:
                _assign(_native(write.variable), write.value, write.rows)
            return
        targets = [_native(w.variable) for w in writes]

        def across_replicas(strategy: tf.distribute.Strategy, values: list[Any], rows: list[Any]) -> None:
            for target, value, ids in zip(targets, values, rows, strict=True):
                strategy.extended.update(target, _assign, args=(value, ids), group=False)

        context = tf.distribute.get_replica_context()
        context.merge_call(across_replicas, args=([w.value for w in writes], [w.rows for w in writes]))

    def _commit_if(
        self, condition: tf.Tensor | None, compute: Callable[[], tuple[list[Write], tf.Tensor | None]]
    ) -> tf.Tensor | None:
        if condition is None:
            writes, flags = compute()
            self._commit(writes)
            return flags
        # Rows are chosen inside the condition and assigned after it, where XLA needs no copy of their table. Under a
        # strategy nothing can be assigned inside a condition.
        chosen: list[Write] = []
        looked: list[tf.Tensor] = []

        def new() -> list[tf.Tensor]:
            writes, flags = compute()
            for write in writes:
                if write.rows is not None or tf.distribute.has_strategy():
                    chosen.append(write)
                else:
                    self._commit([write])
            looked.extend([] if flags is None else [flags])
            return [*looked, *(tf.cast(w.value, w.variable.dtype) for w in chosen)]

        def old() -> list[tf.Tensor]:
            return [*(tf.ones_like(flags) for flags in looked), *(self._read(w.variable, w.rows) for w in chosen)]

        results = tf.cond(condition, new, old)
        for write, value in zip(chosen, results[len(looked) :], strict=True):
            write.value = value
        self._commit(chosen)
        return results[0] if looked else None

    def _add_beside(self, variable: Any, name: str, shape: Any, dtype: Any, initializer: Any) -> keras.Variable:
        """Adds a variable on the devices of another one."""
        label = getattr(variable, "path", variable.name).replace("/", "_").replace(":", "_")
        with self._distribution_strategy.extended.colocate_vars_with(_native(variable)):
            return self.add_variable(shape, initializer, dtype, name=f"{label}_{name}")

    def _outside_graph(self) -> Any:
        """Lets assignments happen now, even if `build` is called while a train step is traced."""
        return tf.init_scope()

    def _where_slots_begin(self, variables: Sequence[Any]) -> Any:
        """Scope in which slots are created: outside of a traced step, where an initial value can copy a weight.

        XLA cannot hoist such a value. Weights that the same trace creates, of a model without an input shape, have none
        to copy yet: then slots are created beside them.
        """
        if tf.distribute.has_strategy():
            return contextlib.nullcontext()
        copying = any(slot.init == "weight" for rule in self.owners().values() for slot in rule.slots.values())
        with tf.init_scope():
            begun = not tf.executing_eagerly() or all(bool(_native(v).is_initialized()) for v in variables)
        if begun or not copying:
            return tf.init_scope()
        if _in_xla():
            raise ValueError(
                f"{type(self).__name__} copies the first weights, which have no values yet. Give the model an Input, "
                "or call model.build(input_shape), before a fit that XLA compiles."
            )
        return contextlib.nullcontext()

    def _value(self, variable: Any) -> tf.Tensor:
        """Reads a variable into a tensor that later assignments leave alone (keras.ops may pass the variable on)."""
        return tf.convert_to_tensor(_native(variable))

    def _rows(self, variable: Any, rows: tf.Tensor) -> tf.Tensor:
        """Reads rows of a variable. A read of the whole would have the next assignment to rows copy it."""
        return tf.gather(_native(variable), rows)

    # -------------------------------------------------------------------------------------------------- gradients

    def _static_shape(self, g: Any) -> tuple[int | None, ...] | None:
        if g is None or g.shape.rank is None:
            return None
        if isinstance(g, tf.IndexedSlices):
            return (None, *g.values.shape[1:])
        return tuple(g.shape)

    def _read_gradient(self, g: Any, p: Parameter) -> Gradient:
        if not isinstance(g, tf.IndexedSlices):
            return Gradient(tf.cast(g, p.dtype))
        rule = self.owners()[p.owner]
        lazy = self._lazy(p)
        if self.sparse == "lazy" and not rule.row_wise:
            warnings.warn(
                f"{type(rule).__name__} is not row-wise: the sparse gradient of {p.path!r} is made dense and every row "
                "is updated. Say so with sparse='exact', or give the table a row-wise optimizer.",
                stacklevel=2,
            )
        g = tf.IndexedSlices(tf.cast(g.values, p.dtype), g.indices, tf.shape(p.variable, out_type=g.indices.dtype))
        return _sum_repeated(g.values, g.indices) if lazy else Gradient(tf.convert_to_tensor(g))

    def _marked_rows(self, p: Parameter) -> tf.Tensor | None:
        """Returns the rows of a table that were read since its last update; XLA cannot tell how many there will be."""
        return None if _in_xla() else tf.where(self._value(p.read))[:, 0]

    def _sparse(self, values: tf.Tensor, rows: tf.Tensor) -> tf.IndexedSlices:
        """Returns a gradient of rows, filled up to the next power of two, so that XLA compiles few of them."""
        count = tf.shape(rows)[0]
        digits = tf.math.ceil(tf.math.log(tf.cast(tf.maximum(count, 1), tf.float64)) / math.log(2))
        room = tf.cast(2.0**digits, tf.int32)
        places = tf.range(room)
        keep = tf.where(places < count, places, 0)
        values = tf.where(beside(places < count, values), tf.gather(values, keep), 0)
        return tf.IndexedSlices(values, tf.gather(rows, keep))

    def _uniform(self, x: tf.Tensor, update: tf.Tensor, salt: int) -> tf.Tensor:
        """Noise in [0, 1) like x: the same for the same update and salt, on every replica and after a restart."""
        seed = tf.stack([tf.cast(update, tf.int64), tf.constant(salt, tf.int64)])
        # Not XLA's own choice of a generator, which is far slower on a CPU.
        return tf.cast(tf.random.stateless_uniform(tf.shape(x), seed, alg="philox"), x.dtype)


def _as_tensors(g: tf.IndexedSlices) -> tf.IndexedSlices:
    """Returns a gradient of rows whose ids may be a tuple of Python numbers."""
    shape = None if g.dense_shape is None else tf.convert_to_tensor(g.dense_shape)
    return tf.IndexedSlices(tf.convert_to_tensor(g.values), tf.convert_to_tensor(g.indices), shape)


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

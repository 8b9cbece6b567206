"""Batches as large as the noise of the gradient asks for (McCandlish et al., 2018, arXiv:1812.06162)."""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import keras
import numpy as np
from keras import ops

from kopt.declare import Configurable, Convert, Count, Fraction, Positive
from kopt.declare.keras_bases import KerasCallback
from kopt.distribution.keras_internals import compiled_step
from kopt.tensorboard.event_file import EventFile, as_folder
from kopt.training.keras_internals import loss_metric, takes_training

TAGS = ("Batch/noise_scale", "Batch/examples")


def _more_than_one(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 < value < math.inf:
        raise ValueError("a number > 1")
    return float(value)


def estimate(small: float, large: float, rows: tuple[float, float]) -> tuple[float, float]:
    """Returns the trace of the covariance of the gradient of one example, and the squared length of their mean.

    Both are without bias: |gradient of B rows|² is on average |G|² + tr(Σ)/B.

    Args:
        small: squared length of the gradient of a small batch, as a mean over several.
        large: that of a large batch.
        rows: of the small and of the large batch, the large one having more.
    """
    few, many = rows
    return (small - large) / (1 / few - 1 / many), (many * large - few * small) / (many - few)


class AdaptiveBatch(Configurable, KerasCallback):
    """Updates the weights after as many batches as the noise of their gradients asks for.

        adaptive = kopt.distribution.AdaptiveBatch(largest=32)
        model.fit(data.batch(32), epochs=10, callbacks=[adaptive])

    The gradients of some batches are averaged and make one update, by any optimizer; under a strategy those of all
    replicas. How much the gradients of the parts differ gives the noise scale tr(Σ)/|G|²: with far fewer examples an
    update is mostly noise, with far more it is hardly better. Both quantities are averaged over updates, and the number
    of batches follows their ratio, or a share of it, within bounds, by no more than a factor from one update to the
    next.

    The optimizer counts updates, so that a schedule advances more slowly where batches grow. The gradients of rows of
    embeddings are made dense. What is gathered when `fit` ends and has made no update is not used. On the TensorFlow
    backend, for models without a train step of their own. A checkpoint keeps all of it: give this to
    `kopt.checkpoint.Checkpoint(callbacks=...)`, too.

    Args:
        start: batches of the first updates; where there is one replica ≥ 2, for one gradient says nothing about noise.
        largest: ≥ `start`, batches of an update at most.
        growth: > 1, factor by which their number grows or shrinks at most from one update to the next.
        share: > 0, examples of an update in units of the noise scale. By McCandlish et al. (2018) a training needs
            1 + share times the fewest examples, and 1 + 1/share times the fewest updates.
        smoothing: weight of the averages so far in the averages of tr(Σ) and |G|².
        wait: updates before the first change.
        adapt: whether the number changes; otherwise the noise scale is only measured.
        rule: what becomes of the learning rate where a batch has c times the examples of the first ones: it is
            multiplied by 1 ("none"), √c ("square-root": for Adam and the like) or c ("linear": for SGD).
        log_dir: folder of the event file with the curves; None for none.
        log: function of the values by name and the update, called with each point.

    Raises:
        ValueError: an argument is out of range.
    """

    start: Count = 2
    largest: Count = 64
    growth: Annotated[Any, Convert(_more_than_one)] = 1.5
    share: Positive = 1.0
    smoothing: Fraction = 0.95
    wait: Count = 10
    adapt: bool = True
    rule: Literal["none", "square-root", "linear"] = "none"
    log_dir: Annotated[Any, Convert(as_folder)] = None
    log: Callable[[Mapping[str, float], int], None] | None = None

    def __post_init__(self) -> None:
        if self.largest < self.start:
            raise ValueError(f"AdaptiveBatch: largest is at least start, {self.start}. Received: {self.largest}")
        self.batches, self.updates = self.start, 0
        self._gathered, self._rows, self._batch_rows = 0, 0.0, 0.0
        self._covariance, self._squared = 0.0, 0.0
        self._rate: float | None = None
        self._sums: list[Any] = []

    @property
    def noise_scale(self) -> float:
        """Returns tr(Σ)/|G|² in examples; infinite where no direction can be told from noise, NaN before any update."""
        if not self.updates:
            return math.nan
        return max(self._covariance, 0.0) / self._squared if self._squared > 0 else math.inf

    @property
    def examples(self) -> float:
        """Returns the number of examples of the last update."""
        return self._batch_rows

    def get_state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps."""
        names = ("batches", "updates", "_gathered", "_rows", "_batch_rows", "_covariance", "_squared", "_rate")
        return {name: getattr(self, name) for name in names} | {
            "sums": [np.asarray(ops.convert_to_numpy(v)) for v in self._sums]
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        for variable, value in zip(self._sums, state["sums"], strict=True):
            variable.assign(value)
        for name, value in state.items():
            if name != "sums":
                setattr(self, name, value)

    def on_train_begin(self, logs: Any = None) -> None:
        """Takes the place of the train function.

        Raises:
            ValueError: the model, its optimizer or its strategy does not fit.
        """
        model = self.model
        _check(model, self)
        self._replicas = int(model.distribute_strategy.num_replicas_in_sync)
        if self.start == 1 and self._replicas == 1:
            raise ValueError("AdaptiveBatch: start is at least 2 where there is one replica. Received: 1")
        if self.rule != "none" and self._rate is None:
            self._rate = float(ops.convert_to_numpy(model.optimizer.learning_rate))
        with model.distribute_strategy.scope():
            # Of squared lengths, of batches, and of gradients, in each replica its own.
            shapes = [(), (), *(tuple(v.shape) for v in model.trainable_variables)]
            if [tuple(v.shape) for v in self._sums] != shapes:
                options = {"trainable": False, "aggregation": "sum", "synchronization": "on_read", "dtype": "float32"}
                self._sums = [keras.Variable("zeros", shape=shape, **options) for shape in shapes]
            if not model.optimizer.built:
                model.optimizer.build(model.trainable_variables)
        self._functions = [compiled_step(model, self._gather), compiled_step(model, self._update)]
        self._file = EventFile(self.log_dir)
        model.train_function = self._step

    def on_train_end(self, logs: Any = None) -> None:
        """Gives the train function back."""
        self._file.close()
        self.model.train_function = None

    def _step(self, iterator: Any) -> Any:
        """Reads a batch, and makes an update if it is the last one of several."""
        self._gathered += 1
        last = self._gathered >= self.batches
        logs = dict(self._functions[last](iterator))
        self._rows += float(logs.pop("rows")) * self._replicas  # `fit` shows means over replicas
        if last:
            self._learn(float(logs.pop("small")), float(logs.pop("large")))
        return logs

    def _learn(self, small: float, large: float) -> None:
        """Takes the squared lengths of an update into the averages, and chooses the size of the next one."""
        parts, rows = self._gathered * self._replicas, self._rows
        found = estimate(small, large, (rows / parts, rows))
        if math.isfinite(small) and math.isfinite(large):  # a step that an optimizer skips teaches nothing
            keep = self.smoothing
            self._covariance, self._squared = (
                keep * old + (1 - keep) * new for old, new in zip((self._covariance, self._squared), found, strict=True)
            )
        self.updates += 1
        self._gathered, self._rows, self._batch_rows = 0, 0.0, rows
        if self.log is not None or self.log_dir is not None:
            self._show()
        if self.adapt and self.updates >= self.wait:
            self._choose(rows / (parts / self._replicas))

    def _show(self) -> None:
        values = dict(zip(TAGS, (min(self.noise_scale, 1e12), self.examples), strict=True))
        self._file.scalars(values, self.updates)
        if self.log is not None:
            self.log(values, self.updates)

    def _choose(self, rows: float) -> None:
        """Follows the noise scale, by one factor of `growth` at most.

        Args:
            rows: of one batch.
        """
        low, high = self.batches / self.growth, self.batches * self.growth
        wanted = min(max(self.share * self.noise_scale / rows, low), high)
        least = 2 if self._replicas == 1 else 1
        grows = wanted > self.batches
        self.batches = int(min(max(math.ceil(wanted) if grows else round(wanted), least), self.largest))
        if self._rate is not None:
            ratio = self.batches / self.start
            self.model.optimizer.learning_rate = self._rate * (ratio if self.rule == "linear" else ratio**0.5)

    def _gather(self, data: Any) -> Any:
        """Adds the gradient of a batch, in a replica; returns the logs."""
        return self._add(data)

    def _update(self, data: Any) -> Any:
        """Adds the gradient of a batch and moves the weights by the mean of all."""
        import tensorflow as tf

        logs = self._add(data)
        model, replicas = self.model, self._replicas
        context = tf.distribute.get_replica_context()
        squares, count, *sums = (tf.convert_to_tensor(v.value) for v in self._sums)
        means, squares = [total / count for total in sums], squares / count
        if replicas > 1:
            means = context.all_reduce(tf.distribute.ReduceOp.MEAN, means)
            squares = context.all_reduce(tf.distribute.ReduceOp.MEAN, squares)
        large = tf.add_n([tf.reduce_sum(tf.square(m)) for m in means])
        scale, weights = self._scale(), model.trainable_variables
        # The optimizer adds up what the replicas give.
        model.optimizer.apply([tf.cast(m / replicas, w.dtype) for m, w in zip(means, weights, strict=True)], weights)
        for v in self._sums:
            v.assign(tf.zeros_like(v.value))
        return {**logs, "small": squares / scale**2, "large": large / scale**2}

    def _scale(self) -> Any:
        """Returns by what the loss is multiplied."""
        import tensorflow as tf

        optimizer = self.model.optimizer
        fixed = getattr(getattr(optimizer, "inner_optimizer", optimizer), "loss_scale_factor", None) or 1.0
        dynamic = getattr(optimizer, "dynamic_scale", None)
        return fixed if dynamic is None else fixed * tf.identity(dynamic.value)

    def _add(self, data: Any) -> dict[str, Any]:
        import tensorflow as tf

        model = self.model
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        weights = model.trainable_variables
        with tf.GradientTape() as tape:
            y_pred = model(x, training=True) if takes_training(model) else model(x)
            loss = model.compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)
            scaled = model.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [w.value for w in weights])
        rows = tf.shape(next(part for part in tf.nest.flatten(x) if part is not None))[0]
        loss_metric(model).update_state(loss * self._replicas, sample_weight=rows)
        gradients = [
            tf.zeros(w.shape) if g is None else tf.cast(tf.convert_to_tensor(g), "float32") * self._replicas
            for g, w in zip(gradients, weights, strict=True)
        ]
        squares = tf.add_n([tf.reduce_sum(tf.square(g)) for g in gradients])
        for total, more in zip(self._sums, [squares, tf.ones([]), *gradients], strict=True):
            total.assign_add(more)
        return {**model.compute_metrics(x, y, y_pred, sample_weight), "rows": tf.cast(rows, "float32")}


def _check(model: Any, owner: AdaptiveBatch) -> None:
    """Raises `ValueError` for what cannot be trained in this way."""
    if keras.backend.backend() != "tensorflow":
        raise ValueError(f"AdaptiveBatch is for the TensorFlow backend. Received: {keras.backend.backend()}")
    if type(model).train_step is not keras.Model.train_step:
        raise ValueError(
            f"AdaptiveBatch has a train step of its own, and so has {type(model).__name__}: use one of both."
        )
    if model.steps_per_execution != 1 or model.jit_compile:
        raise ValueError("AdaptiveBatch: compile the model with steps_per_execution=1 and without jit_compile=True.")
    inner = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # of a scaled loss
    if inner.gradient_accumulation_steps:
        raise ValueError("AdaptiveBatch accumulates itself: leave out gradient_accumulation_steps of the optimizer.")
    rate = inner.get_config().get("learning_rate")
    if owner.rule != "none" and not isinstance(rate, int | float):
        raise ValueError(
            f"AdaptiveBatch: rule={owner.rule!r} sets the learning rate, which a schedule sets too. Use one of both."
        )

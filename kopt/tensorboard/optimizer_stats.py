"""What the optimizer did, in TensorBoard."""

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from keras import ops

from kopt.declare import Configurable, Convert, Count
from kopt.declare.keras_bases import KerasCallback
from kopt.optimizers import Optimizer
from kopt.optimizers.engine.tensor_math import Tensor, sum_of_squares
from kopt.tensorboard.event_file import (
    as_folder,
    check_tensorboard,
    layout_of_scalars,
    open_writer,
    part,
    session_end,
    table,
    write,
    write_scalars,
)
from kopt.training.keras_internals import copied, count_batches, innermost

SAMPLE = 2**14
"""Elements of a weight that percentiles are taken from: their ranks are then within 0.4 points, 95 times in 100."""
BAND = ("mean", "p5", "p95")


class OptimizerStats(Configurable, KerasCallback):
    """Writes what the optimizer does in `fit` to TensorBoard.

    The step axis counts updates (`optimizer.iterations`), not batches, and goes on where a resumed run left off. There
    is a point after every `every`-th update and after the last one. Of any Keras optimizer:

    - `optimizer/learning_rate`, of the next update; `optimizer/loss_scale` under a `LossScaleOptimizer`;
    - `optimizer/param_norm`, `/update_norm`, `/update_to_param`: ‖w‖ of all trainable weights together, ‖Δw‖ of their
      change, and the ratio of ‖Δw‖ to ‖w‖ before it. With `steps_per_execution`, Δw is that of the whole execution;
    - `throughput/examples_per_second` since the last point or the begin of the epoch; `throughput/updates_per_second`
      if a `train_step` of your own does not count examples in Keras' loss metric.

    Of a kopt optimizer also:

    - `optimizer/grad_norm`, of all gradients together, before clipping (not of a new optimizer's first batch);
    - `optimizer/clip_fraction`, the share of the updates since the last point that were clipped, if a clipping is set;
    - `optimizer/nonfinite_steps`, the number of skipped updates, if `on_nonfinite` looks for them;
    - `layer/<path>/effective_lr_mean`, `_p5`, `_p95`: what multiplies each element of the direction;
    - what the rule measures, as `<rule>/<name>`, averaged over all elements: `adabound/lower_bound` and so on.

    Text shows the optimizer's arguments and the weights, Custom Scalars the effective rates as bands. HParams shows
    `hparams` and what `finish` is given; these lie in a run of their own, `hparams` below `log_dir`, because that page
    takes every scalar of a run with hyperparameters for a metric.

    Args:
        log_dir: folder of the run.
        every: ≥ 1, updates from one point to the next.
        hparams: flags of the run. Those that are None are left out; what is no bool, number or string becomes a string.
        text: Markdown for the Text page, by title.

    Raises:
        ImportError: tensorboard is missing, broken or too old.
        ValueError: `every` is not a positive integer.
    """

    log_dir: Annotated[Any, Convert(as_folder)] = dataclasses.field(kw_only=False)
    every: Count = dataclasses.field(default=100, kw_only=False)
    hparams: Mapping[str, Any] | None = None
    text: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        check_tensorboard("OptimizerStats")
        self.hparams = None if self.hparams is None else _flags(self.hparams)
        self._described = self._laid_out = self._armed = self._watched = False
        self._before: list[Tensor] | None = None
        self._clock: tuple[float, float, int] | None = None
        self._step = 0

    def finish(self, metrics: Mapping[str, float]) -> None:
        """Writes the final metrics for the HParams page and marks the run as done. Call it once, after `fit`."""
        writer = open_writer(self.log_dir, "hparams")
        write_scalars(writer, {name: float(value) for name, value in metrics.items()}, self._step)
        if self.hparams is not None:
            write(writer, session_end(), self._step)
        writer.close()

    # ------------------------------------------------------------------------------------------------ when to look
    # on_train_batch_end is left alone: if a callback defines it, Keras waits for the result of every batch. What a
    # batch did is seen when the next batch, the validation or the end of the epoch begins.

    def on_train_begin(self, logs: Any = None) -> None:
        """Opens the event file and describes the run."""
        optimizer = self._optimizer
        if optimizer is None:
            raise ValueError(f"OptimizerStats needs a model compiled with an optimizer. Received: {self.model!r}")
        self._ours = isinstance(optimizer, Optimizer)
        self._stride, self._chunk = optimizer.gradient_accumulation_steps or 1, self.model.steps_per_execution
        self._armed = self._warm = False
        self._step, self._clipped = self._batches() // self._stride, _number(getattr(optimizer, "clipped_steps", 0))
        self._watch(False)  # an interrupted fit may have left it on
        self._writer = open_writer(self.log_dir)
        if not self._described:
            self._describe()
            self._described = True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Finds out where the count stands: steps that were skipped are not in it."""
        self._offset, steps = self._batches(), self.params.get("steps")
        self._end = self._offset + (self.params["epochs"] - epoch) * steps if steps else 0
        self._clock = (time.perf_counter(), 0.0, self._offset) if self._warm else None
        self._aim(self._offset)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Looks at the batch before, if its result is due, and prepares for this one, if its will be."""
        if self._armed:
            count = self._settle()
            self._offset = count - batch
            self._aim(count)
        elif batch and not self._warm:  # the first batch traces and compiles
            self._warm = True
            self._clock = (time.perf_counter(), self._examples(), self._batches())
        if self._offset + batch + self._chunk >= self._due:
            self._armed = True
            self._before = [copied(v) for v in self.model.trainable_weights]
            self._watch(True)

    def on_test_begin(self, logs: Any = None) -> None:
        """Looks before validation resets the metrics or swaps the weights."""
        self._settle()
        self._clock = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Looks at the last batch."""
        self._settle()
        self._clock, self._warm = None, True

    def on_train_end(self, logs: Any = None) -> None:
        """Writes the last point, if the end came too early to prepare for it, and closes the file."""
        self._settle()
        if self._batches() // self._stride > self._step:
            self._point(self._batches(), None)
        self._writer.close()

    def _aim(self, count: int) -> None:
        """Sets the number of batches after which the next point is due; accumulated ones make one update."""
        period, last = self.every * self._stride, self._end // self._stride * self._stride
        self._due = (count // period + 1) * period
        if count < last:
            self._due = min(self._due, last)

    def _settle(self) -> int:
        """Writes the point that was prepared, if its update took place; returns the number of batches."""
        if not self._armed:
            return 0
        before, self._before, self._armed = self._before, None, False
        count = self._batches()
        if count >= self._due:
            self._point(count, before)
        self._watch(False)
        return count

    def _watch(self, on: bool) -> None:
        self._watched = self._ours and self._optimizer.built  # the first batch builds it
        if self._watched:
            self._optimizer.watch(on)

    @property
    def _optimizer(self) -> Any:
        """The optimizer, up to date, without loss scaling around it."""
        return innermost(self.model)

    def _batches(self) -> int:
        return int(ops.convert_to_numpy(count_batches(self._optimizer)))

    def _examples(self) -> float:
        loss = next((m for m in self.model.metrics if m.name == "loss"), None)
        return _number(getattr(loss, "count", 0))

    # ------------------------------------------------------------------------------------------------- what to see

    def _point(self, count: int, before: list[Tensor] | None) -> None:
        step, optimizer = count // self._stride, self._optimizer
        values = {"optimizer/learning_rate": _number(optimizer.learning_rate)}
        values |= self._throughput(count) | self._norms(before)
        if (outer := self.model.optimizer) is not optimizer:
            values["optimizer/loss_scale"] = _number(outer.dynamic_scale)
        if self._ours:
            if (before is not None and self._watched) or optimizer.global_clipnorm:
                values["optimizer/grad_norm"] = _number(optimizer.gradient_norm)
            if optimizer.clipnorm or optimizer.clipvalue or optimizer.global_clipnorm:
                clipped = _number(optimizer.clipped_steps)
                values["optimizer/clip_fraction"] = (clipped - self._clipped) / (step - self._step)
                self._clipped = clipped
            if optimizer.on_nonfinite != "ignore":
                values["optimizer/nonfinite_steps"] = _number(optimizer.nonfinite_steps)
            values |= self._statistics()
        self._step = step
        write_scalars(self._writer, values, step)

    def _throughput(self, count: int) -> dict[str, float]:
        """Measures how fast the batches since the clock was set were trained, and sets it anew."""
        now, seen, start = time.perf_counter(), self._examples(), self._clock
        self._clock = (now, seen, count)
        if start is None or count <= start[2]:
            return {}
        if seen > start[1]:
            return {"throughput/examples_per_second": (seen - start[1]) / (now - start[0])}
        return {"throughput/updates_per_second": (count - start[2]) / self._stride / (now - start[0])}

    def _norms(self, before: list[Tensor] | None) -> dict[str, float]:
        after = [ops.cast(v, "float32") for v in self.model.trainable_weights]
        groups = [after]
        if before is not None:
            old = [ops.cast(w, "float32") for w in before]
            groups += [old, [w - o for w, o in zip(after, old, strict=True)]]
        squares = ops.convert_to_numpy(ops.stack([sum_of_squares(w) for group in groups for w in group]))
        norms = np.sqrt(squares.reshape(len(groups), -1).sum(axis=1, dtype=float)).tolist()
        values = {"optimizer/param_norm": norms[0]}
        if before is not None:
            values["optimizer/update_norm"] = norms[2]
            if norms[1]:
                values["optimizer/update_to_param"] = norms[2] / norms[1]
        return values

    def _statistics(self) -> dict[str, float]:
        values, sums, sizes = dict[str, float](), dict[str, float](), dict[str, int]()
        elements = {v.path: math.prod(v.shape) for v in self.model.weights}
        adaptive = []
        for path, measured in self._optimizer.statistics().items():
            size = elements.get(path, 1)
            for name, x in measured.items():
                if name == "effective_learning_rate":
                    mean, low, high = _distribution(x)
                    values |= dict(zip(_tags(path), (mean, low, high), strict=True))
                    adaptive += [path] if low < high else []
                else:
                    mean = float(np.mean(ops.convert_to_numpy(x), dtype=float))
                sums[name], sizes[name] = sums.get(name, 0.0) + mean * size, sizes.get(name, 0) + size
        rule = type(self._optimizer).__name__.lower()
        if not self._laid_out:
            self._lay_out(rule if {"lower_bound", "upper_bound"} <= set(sums) else None, adaptive)
            self._laid_out = True
        return values | {f"{rule}/{name}": total / sizes[name] for name, total in sums.items()}

    # --------------------------------------------------------------------------------------------- how to write it

    def _describe(self) -> None:
        arguments = {k: v for k, v in self._optimizer.get_config().items() if v is not None}
        rows = [(f"`{w.path}`", list(w.shape), w.dtype, w.trainable, math.prod(w.shape)) for w in self.model.weights]
        total, trainable = sum(row[-1] for row in rows), sum(row[-1] for row in rows if row[-2])
        share = f"{trainable:,} of {total:,} parameters are trainable ({100 * trainable / max(total, 1):.4g} %)."
        pages = {
            "parameters": f"{share}\n\n" + table(("path", "shape", "dtype", "trainable", "count"), rows),
            "optimizer": f"{type(self._optimizer).__name__}\n\n" + table(("argument", "value"), arguments.items()),
        }
        for title, markdown in (pages | dict(self.text or {})).items():
            write(self._writer, part("plugins.text.summary_v2").text_pb(title, markdown), self._step)
        if self.hparams is not None:
            writer = open_writer(self.log_dir, "hparams")
            write(writer, part("plugins.hparams.summary_v2").hparams_pb(self.hparams), self._step)
            writer.close()

    def _lay_out(self, bounded: str | None, paths: Sequence[str]) -> None:
        """Writes the page Custom Scalars: bands from a lower to an upper value around a middle one."""
        pages = {}
        if bounded:
            tags = [f"{bounded}/{name}" for name in ("effective_learning_rate", "lower_bound", "upper_bound")]
            pages[f"{bounded}: effective learning rate between its bounds"] = {"all weights": tags}
        if paths:
            pages["effective learning rate: mean, and 5 % to 95 % of the elements"] = {p: _tags(p) for p in paths}
        layout = part("plugins.custom_scalar.layout_pb2").Layout()
        for title, bands in pages.items():
            category = layout.category.add(title=title)
            for name in reversed(bands):  # the page shows the last chart first
                series = category.chart.add(title=name).margin.series
                series.add(**dict(zip(("value", "lower", "upper"), bands[name], strict=True)))
        if pages:
            write(self._writer, layout_of_scalars(layout), self._step)


def _number(value: Any) -> float:
    return float(ops.convert_to_numpy(value))


def _tags(path: str) -> list[str]:
    return [f"layer/{path}/effective_lr_{k}" for k in BAND]


def _flags(hparams: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in hparams.items()}
    return {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in plain.items() if v is not None}


def _distribution(x: Tensor) -> tuple[float, float, float]:
    """Returns the mean over the elements and their 5th and 95th percentile."""
    size, stride = math.prod(ops.shape(x)), 1
    if size > SAMPLE:
        stride = -(-size // SAMPLE)
        while math.gcd(stride, size) > 1:  # else the sample could stay in some columns of the weight
            stride += 1
    sample = ops.convert_to_numpy(ops.reshape(x, (-1,))[::stride] if stride > 1 else x)
    mean = _number(ops.mean(x)) if stride > 1 else float(np.mean(sample, dtype=float))
    low, high = np.percentile(sample, (5, 95)).tolist()
    return mean, low, high

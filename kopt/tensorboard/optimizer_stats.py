"""What the optimizer did, in TensorBoard."""

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from keras import ops

from kopt.declare import Configurable, Convert, Count
from kopt.declare.keras_bases import KerasCallback
from kopt.optimizers import Optimizer
from kopt.optimizers.engine.statistics import reached
from kopt.optimizers.engine.tensor_math import Tensor, sum_of_squares
from kopt.tensorboard.event_file import (
    EventFile,
    as_folder,
    check_tensorboard,
    layout_of_scalars,
    part,
    table,
    write_hparams,
)
from kopt.tensorboard.points import Log, period
from kopt.training.keras_internals import copied, count_batches, innermost

SAMPLE = 2**14
"""Elements of a weight that percentiles are taken from: their ranks are then within 0.4 points, 95 times in 100."""
BAND = ("mean", "p5", "p95")


class OptimizerStats(Configurable, KerasCallback):
    """Writes what the optimizer does in `fit` to TensorBoard.

    The step axis counts updates (`optimizer.iterations`), not batches, and goes on where a resumed run left off. There
    is a point after every `every`-th update and after the last one. Of any Keras optimizer:

    - `Loss/train`, the mean over the batches since the last point; TensorBoard shows capital letters first. Where
      `on_nonfinite` skips updates, it is left out between a loss that is not finite and the end of the epoch;
    - `optimizer/learning_rate`, of the next update; `optimizer/loss_scale` under a `LossScaleOptimizer`;
    - `optimizer/param_norm`, `/update_norm`, `/update_to_param`: ‖w‖ of all trainable weights together, ‖Δw‖ of their
      change, and the ratio of ‖Δw‖ to ‖w‖ before it. With `steps_per_execution`, Δw is that of the whole execution;
    - `throughput/examples_per_second` since the last point or the begin of the epoch; `throughput/updates_per_second`
      if a `train_step` of your own does not count examples in Keras' loss metric.

    Of a kopt optimizer also:

    - `optimizer/grad_norm`, of all gradients together, before clipping (not of a new optimizer's first batch);
    - `optimizer/clip_fraction`, the share of the updates since the last point that were clipped, if a clipping is set;
    - `optimizer/nonfinite_steps`, the number of skipped updates, if `on_nonfinite` looks for them;
    - `layer/<path>/effective_lr_mean`, `_p5`, `_p95`: what multiplies each element of the direction, of the elements
      that have had a gradient other than zero. Rows of an embedding that no batch has read have no rate yet;
    - what the rule measures, as `<rule>/<name>`, averaged over all elements that ever had a gradient:
      `adabound/lower_bound` and so on.

    Text shows the optimizer's arguments and the weights, Custom Scalars the effective rates as bands, HParams `hparams`
    and what `finish` is given.

    Args:
        log_dir: folder of the run, which other callbacks may share; with None, `log` alone is called.
        every: ≥ 1, updates from one point to the next. None makes about 100 points in all epochs of `fit`; if their
            length is not known, one at each of the first 200 updates, and about 100 whenever their number doubles.
        hparams: flags of the run. Those that are None are left out; what is no bool, number or string becomes a string.
        text: Markdown for the Text page, by title.
        run_name: what HParams calls the run; None takes `log_dir`. Runs of one name are shown as one.
        log: function of the values by name and the step, called with each point, as those of other trackers are:
            `lambda values, step: wandb.log(values, step=step)`.

    Raises:
        ImportError: tensorboard is missing, broken or too old.
        ValueError: `every` is not a positive integer.
    """

    log_dir: Annotated[Any, Convert(as_folder)] = dataclasses.field(kw_only=False)
    every: Count | None = dataclasses.field(default=None, kw_only=False)
    hparams: Mapping[str, Any] | None = None
    text: Mapping[str, str] | None = None
    run_name: str | None = None
    log: Log | None = None

    def __post_init__(self) -> None:
        if self.log_dir is not None:
            check_tensorboard("OptimizerStats")
        self.hparams = None if self.hparams is None else _flags(self.hparams)
        self._described = self._laid_out = self._armed = self._watched = self._tracked = False
        self._before: list[Tensor] | None = None
        self._clock: tuple[float, float, int] | None = None
        # Sums of losses and of their weights: those for the next point, and what is read of Keras' metric.
        self._loss, self._read_so_far = np.zeros(2), np.zeros(2)
        self._step, self._began = 0, time.time()

    def add(self, values: Mapping[str, float]) -> None:
        """Writes scalars of your own, by name, at the update where training stands: in a callback, or after `fit`."""
        with EventFile(self.log_dir) as file:
            self._write(file, values, self._batches() // self._stride)

    def get_state(self) -> dict[str, Any]:
        """Returns what `kopt.checkpoint.Checkpoint(callbacks=[...])` keeps: the losses that no point shows yet."""
        if self._armed:  # a point that is due is written now
            self._aim(self._settle())
        return {"loss": self._loss, "read": self._read_so_far}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        self._loss, self._read_so_far = np.array(state["loss"]), np.array(state["read"])

    def finish(
        self, metrics: Mapping[str, float], hparams: Mapping[str, Any] | None = None, others: Iterable[str] = ()
    ) -> None:
        """Writes the final metrics and a line of the HParams page with them. Call it once, after `fit`.

        TensorBoard takes the columns of that page from one of the runs that it shows, and of metrics the last value.

        Args:
            metrics: by name; columns of the page.
            hparams: more of them than the callback was given.
            others: names of metrics that only other runs in the same folder have, for columns of their own.
        """
        chosen = {**(self.hparams or {}), **_flags(hparams or {})}
        with EventFile(self.log_dir) as file:
            self._write(file, {name: float(value) for name, value in metrics.items()}, self._step)
            if chosen and self.log_dir is not None:
                name = self.run_name or str(self.log_dir)
                write_hparams(file, name, chosen, [*dict.fromkeys([*metrics, *others])], self._began, self._step)

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
        self._loss = np.zeros(2)
        self._file = EventFile(self.log_dir)
        if not self._described:
            self._describe()
            self._described = True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Finds out where the count stands: steps that were skipped are not in it."""
        self._offset, steps = self._batches(), self.params.get("steps")
        self._end = self._offset + (self.params["epochs"] - epoch) * steps if steps else 0
        self._clock = (time.perf_counter(), 0.0, self._offset) if self._warm else None
        self._tracked, self._read_so_far = True, np.zeros(2)
        self._aim(self._offset)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Looks at the batch before, if its result is due, and prepares for this one, if its will be."""
        if self._armed:
            count = self._settle()
            self._offset = count - batch
            self._aim(count)
        elif batch and not self._warm:  # the first batch traces and compiles
            self._warm = True
            self._clock = (time.perf_counter(), self._sums()[1], self._batches())
        if self._offset + batch + self._chunk >= self._due:
            self._armed = True
            self._before = [copied(v) for v in self.model.trainable_weights]
            self._watch(True)

    def on_test_begin(self, logs: Any = None) -> None:
        """Looks before validation resets the metrics or swaps the weights."""
        self._settle()
        self._gather()
        self._clock, self._tracked = None, False

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Looks at the last batch."""
        self._settle()
        self._gather()
        self._clock, self._warm, self._tracked = None, True, False

    def on_train_end(self, logs: Any = None) -> None:
        """Writes the last point, if the end came too early to prepare for it, and closes the file."""
        self._settle()
        if self._batches() // self._stride > self._step:
            self._point(self._batches(), None)
        self._file.close()

    def _aim(self, count: int) -> None:
        """Sets the number of batches after which the next point is due; accumulated ones make one update."""
        every = (self.every or period(self.params, self._stride, count // self._stride)) * self._stride
        last = self._end // self._stride * self._stride
        self._due = (count // every + 1) * every
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

    def _sums(self) -> np.ndarray[Any, Any]:
        """Returns the sums, in the metric of the loss, of losses and of their weights, which count the examples."""
        loss = next((m for m in self.model.metrics if m.name == "loss"), None)
        return np.array([_number(getattr(loss, name, 0)) for name in ("total", "count")])

    def _train_loss(self) -> dict[str, float]:
        self._gather()
        (total, weight), self._loss = self._loss, np.zeros(2)
        # After the loss of a skipped update the metric of Keras stays NaN until the epoch ends.
        skips = self._ours and self._optimizer.on_nonfinite != "ignore"
        known = weight and (math.isfinite(total) or not skips)
        return {"Loss/train": total / weight} if known else {}

    def _gather(self) -> None:
        """Adds the losses since the last look; the metric begins anew with each epoch, and with a test."""
        if self._tracked:
            seen = self._sums()
            if seen[1] > self._read_so_far[1]:  # else the difference of two NaN would be one
                self._loss = self._loss + seen - self._read_so_far
            self._read_so_far = seen

    # ------------------------------------------------------------------------------------------------- what to see

    def _point(self, count: int, before: list[Tensor] | None) -> None:
        step, optimizer = count // self._stride, self._optimizer
        values = self._train_loss()
        values["optimizer/learning_rate"] = _number(optimizer.learning_rate)
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
        self._write(self._file, values, step)

    def _write(self, file: EventFile, values: Mapping[str, float], step: int) -> None:
        file.scalars(values, step)
        if self.log is not None:
            self.log(dict(values), step)

    def _throughput(self, count: int) -> dict[str, float]:
        """Measures how fast the batches since the clock was set were trained, and sets it anew."""
        now, seen, start = time.perf_counter(), self._sums()[1], self._clock
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
        elements, seen = {v.path: math.prod(v.shape) for v in self.model.weights}, reached(self._optimizer.setup)
        adaptive = []
        for path, measured in self._optimizer.statistics().items():
            there = _places(seen.get(path))
            size = elements.get(path, 1) if there is None else len(there)
            for name, x in measured.items() if size else ():
                if name == "effective_learning_rate":
                    mean, low, high = _distribution(x, there)
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
        arguments = {k: _shown(v) for k, v in self._optimizer.get_config().items() if v is not None}
        rows = [(f"`{w.path}`", list(w.shape), w.dtype, w.trainable, math.prod(w.shape)) for w in self.model.weights]
        total, trainable = sum(row[-1] for row in rows), sum(row[-1] for row in rows if row[-2])
        share = f"{trainable:,} of {total:,} parameters are trainable ({100 * trainable / max(total, 1):.4g} %)."
        pages = {
            "parameters": f"{share}\n\n" + table(("path", "shape", "dtype", "trainable", "count"), rows),
            "optimizer": f"{type(self._optimizer).__name__}\n\n" + table(("argument", "value"), arguments.items()),
        }
        for title, markdown in (pages | dict(self.text or {})).items():
            self._file.text(title, markdown, self._step)

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
            self._file.write(layout_of_scalars(layout), self._step)


def _number(value: Any) -> float:
    return float(ops.convert_to_numpy(value))


def _tags(path: str) -> list[str]:
    return [f"layer/{path}/effective_lr_{k}" for k in BAND]


def _shown(value: Any) -> Any:
    """Returns an argument as one reads it: a schedule or an optimizer within it is nested dictionaries to Keras."""
    if isinstance(value, Mapping) and {"class_name", "config"} <= set(value):
        inner = {k: _shown(v) for k, v in value["config"].items() if v is not None}
        return f"{value['class_name']}({', '.join(f'{k}={v}' for k, v in inner.items())})"
    return value


def _flags(hparams: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in hparams.items()}
    return {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in plain.items() if v is not None}


def _places(seen: Tensor | None) -> np.ndarray[Any, Any] | None:
    """Returns the numbers of the elements that have had a gradient; None if these are all, or it is not known."""
    if seen is None:
        return None
    flat = ops.convert_to_numpy(seen).ravel()
    return None if flat.all() else np.flatnonzero(flat)


def _distribution(x: Tensor, there: np.ndarray[Any, Any] | None = None) -> tuple[float, float, float]:
    """Returns the mean over the elements, or over those that are there, and their 5th and 95th percentile."""
    if there is not None and ops.size(x) > 1:
        x = ops.take(ops.reshape(x, (-1,)), there)
    size, stride = math.prod(ops.shape(x)), 1
    if size > SAMPLE:
        stride = -(-size // SAMPLE)
        while math.gcd(stride, size) > 1:  # else the sample could stay in some columns of the weight
            stride += 1
    sample = ops.convert_to_numpy(ops.reshape(x, (-1,))[::stride] if stride > 1 else x)
    mean = _number(ops.mean(x)) if stride > 1 else float(np.mean(sample, dtype=float))
    low, high = np.percentile(sample, (5, 95)).tolist()
    return mean, low, high

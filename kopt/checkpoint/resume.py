"""Checkpoints inside of `fit`, from which it goes on as if it had never ended."""

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from kopt.checkpoint import snapshot_files
from kopt.checkpoint.atomic_files import check_writable, remove_leftovers
from kopt.checkpoint.snapshot import (
    Kept,
    Snapshot,
    generators,
    last_logs,
    optimizers,
    put_back,
    put_back_generators,
    put_back_others,
    take,
)
from kopt.declare import Configurable, Convert, Count
from kopt.declare.keras_bases import KerasCallback
from kopt.distribution.agreement import from_chief, is_chief, several_workers
from kopt.distribution.keras_internals import first_of_replicas
from kopt.distribution.local_sgd import LocalSGD
from kopt.training.keras_internals import build_metrics, flatten_layers, read_only, sync_variables

ENDED = 2**31 - 1
"""The epoch with which a training goes on that a callback has ended: above any number of epochs."""


def _as_path(value: Any) -> Path:
    if not isinstance(value, str | os.PathLike):
        raise ValueError("a path")
    return Path(value)


def _cadence(value: Any) -> int | str:
    """Returns a number of epochs, or steps as text: "500s"."""
    text = value.removesuffix("s") if isinstance(value, str) else str(value)
    if isinstance(value, bool) or not text.isdecimal() or not int(text):
        raise ValueError('a number of epochs ≥ 1, or of steps as in "500s"')
    return value if isinstance(value, str) and value.endswith("s") else int(text)


def _kept(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, Sequence) or not all(isinstance(x, KerasCallback) for x in value):
        raise ValueError("a list of callbacks")
    return tuple(value)


def _with_epochs(value: Any) -> Any:
    if value is not None and not hasattr(value, "set_epoch"):
        raise ValueError("an object with set_epoch(epoch), such as ShuffledBatches, or None")
    return value


class Checkpoint(Configurable, KerasCallback):
    """Writes all that a training needs to go on, so that 5 + 5 epochs with a kill in between are 10, bit for bit.

        checkpoint = kopt.checkpoint.Checkpoint("checkpoints", callbacks=[early_stopping])
        epoch = checkpoint.restore(model)  # 0 where there is none
        model.fit(data, epochs=10, initial_epoch=epoch, callbacks=[early_stopping, checkpoint])

    A checkpoint has the weights, the seeds of dropout and the like, the metrics of the epoch so far, all that the
    optimizer keeps, the states of `callbacks`, the generators of Python and NumPy, and where it was: epoch and batch.
    It is written to another name, brought to the disk and renamed; the newest whole one counts.

    The data are not in it. Their order must follow from the number of the epoch: always the same, or shuffled by
    `data`, which is told the epoch (`ShuffledBatches`); of arrays, `fit(x, y, shuffle=True)` draws it from a generator
    that no file can hold. What does not begin anew with each epoch, such as `dataset.repeat()` with `steps_per_epoch`,
    begins anew where training goes on. Where an epoch goes on in its middle, its batches so far are read and not
    trained on.

    A model that holds more than one optimizer must have them built before `restore`, which builds the one of `compile`.

    What ends a training early is kept, too. If a callback ends it in the middle of an epoch, as `TerminateOnNaN` and
    limits of time do, a checkpoint of that batch is written, and a new `fit` goes on there. If one ends it after an
    epoch, as `EarlyStopping` does, a new `fit` trains no more.

    Where `fit` begins, the folder must have no checkpoints that `restore` was not asked about, and nobody else may
    write there meanwhile: both are errors. Folders in it that are no checkpoints are left alone.

    Of several workers (`kopt.distribution`) all give this callback to `fit`, and all call `restore`; the chief alone
    reads and writes, and sends the others what it has read.

    Of a callback with `get_state` and `set_state` their result is kept, of others the attributes that are numbers,
    texts, arrays or collections of these and have changed since this object was made: all that `EarlyStopping`,
    `ReduceLROnPlateau` and `ModelCheckpoint` remember.

    Args:
        folder: where checkpoints are written, and nothing else is.
        every: epochs from one to the next, or steps as text: "500s". The end of the training has one in any case.
        keep: ≥ 1, the last ones that stay.
        callbacks: those whose states are kept. Give them to `fit` too, this one last.
        data: what is told the number of each epoch before it begins, by `set_epoch`.

    Raises:
        ValueError: an argument is of the wrong kind or out of range.
    """

    folder: Annotated[Any, Convert(_as_path)] = dataclasses.field(kw_only=False)
    every: Annotated[Any, Convert(_cadence)] = 1
    keep: Count = 2
    callbacks: Annotated[Any, Convert(_kept)] = ()
    data: Annotated[Any, Convert(_with_epochs)] = None

    def __post_init__(self) -> None:
        self._kept = [Kept(callback) for callback in self.callbacks]
        self._pending: Snapshot | None = None
        self._looked = self._cut = False
        self._epoch = self._batch = self._steps = 0
        self._seconds = 0.0
        self._number = 0  # of the last checkpoint that was there or is ours
        self._drawn: Any = None
        self._logs: Mapping[str, Any] = {}

    def restore(self, model: Any) -> int:
        """Puts a model and its optimizer back where the newest whole checkpoint has them.

        Callbacks follow when `fit` begins.

        Args:
            model: built, and compiled as it was.

        Returns:
            The epoch with which to go on, for `fit(initial_epoch=...)`; 0 where there is no checkpoint, and one above
            all others where a callback had ended the training after an epoch.

        Raises:
            ValueError: model or optimizer are others than those of the checkpoint, or every checkpoint is damaged.
        """
        self._looked, self._pending, self._number = False, None, self._last()
        if (found := self._newest(self._strategy(model))) is None:
            self._looked = True
            return 0
        # A model whose train step calls its parts, and that has no call of its own, is never built itself.
        if not model.built and not (model.variables and all(x.built for x in flatten_layers(model) if x is not model)):
            raise ValueError(f"{self._name} cannot restore {model.name}: it is not built. Call it on a batch.")
        for name, optimizer in optimizers(model).items():
            if not optimizer.built and len(found.paths.get(name, ())) > len(optimizer.variables):
                if optimizer is not model.optimizer:
                    raise ValueError(f"{self._name}: {name} is not built. Call its build(variables) before.")
                optimizer.build(model.trainable_variables)
        put_back(found, model, self._name)
        self._looked, self._pending, self._logs = True, found, last_logs(found)
        return ENDED if found.others.get("ended") else found.epoch

    def _newest(self, strategy: Any) -> Snapshot | None:
        """Returns the last checkpoint that is whole: the chief's, whatever is in the folders of others."""
        if not several_workers(strategy):
            return snapshot_files.newest(self.folder)
        found = snapshot_files.newest(self.folder) if is_chief(strategy) else None
        sent = from_chief(strategy, b"" if found is None else snapshot_files.packed(found))
        return snapshot_files.unpacked(sent) if sent else None

    @property
    def _writes(self) -> bool:
        """Whether it is this process that writes."""
        return is_chief(self._strategy(self.model))

    @property
    def _local(self) -> LocalSGD | None:
        return next((callback for callback in self.callbacks if isinstance(callback, LocalSGD)), None)

    def _strategy(self, model: Any) -> Any:
        """Returns the strategy of `tf.distribute` by which a model is trained; None on other backends."""
        return getattr(model, "distribute_strategy", None) if self._local is None else self._local.strategy

    @property
    def place(self) -> tuple[int, int]:
        """Returns the epoch that goes on, from 0, and how many of its batches are done."""
        return (self._epoch, self._batch) if self._pending is None else (self._pending.epoch, self._pending.batch)

    def save(self) -> Path:
        """Writes a checkpoint of the training as it is now, between two batches; returns its folder.

        Of several workers all call it, and the chief writes; to the others the folder of all checkpoints is returned.

        Raises:
            OSError: it cannot be written, as on a full disk. Those that are there stay.
            ValueError: another training has written to the folder meanwhile.
        """
        if self._writes and self._last() > self._number:
            raise ValueError(f"{self._name}: another training writes there. Choose another folder for one of them.")
        began = time.perf_counter()
        if self._local is not None:
            self._local.sync()
        snapshot = take(self.model, self._kept, self._epoch, self._batch, self._logs, self._drawn, self._ended())
        if not self._writes:
            return Path(self.folder)
        path = snapshot_files.write(self.folder, snapshot, keep=self.keep)
        self._seconds += time.perf_counter() - began
        self._number = snapshot_files.number_of(path)
        return path

    @property
    def seconds(self) -> float:
        """Returns the time that writing has taken so far, in this process."""
        return self._seconds

    def _last(self) -> int:
        """Returns the number of the newest checkpoint there; 0 where there is none."""
        return max(map(snapshot_files.number_of, snapshot_files.numbered(self.folder)), default=0)

    def _ended(self) -> bool:
        """Whether a callback ends the training after the epoch that is done."""
        return self._batch == 0 and bool(self.model.stop_training)

    @property
    def _name(self) -> str:
        return f"{type(self).__name__}({str(self.folder)!r})"

    def on_train_begin(self, logs: Any = None) -> None:
        """Gives the callbacks their states.

        Raises:
            OSError: the folder cannot be written to.
            ValueError: it has checkpoints of which nobody has asked.
        """
        if not self._writes:
            self._looked = True
        if not self._looked and self._last():
            raise ValueError(
                f"{self._name}: there are checkpoints already. Call restore(model) to go on from the last, or "
                "choose another folder."
            )
        self._looked = True
        if self._writes:
            check_writable(self.folder)
            remove_leftovers(self.folder)
        self._steps = 0
        if self._pending is not None and not self._pending.batch:
            put_back_others(self._pending, self._kept, self._name)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Begins to skip the batches that are done."""
        self._epoch, self._batch, self._drawn, self._cut = epoch, 0, generators(), False
        if self.data is not None:
            self.data.set_epoch(epoch)
        if (pending := self._pending) is None:
            return
        if epoch != pending.epoch:
            raise ValueError(
                f"{self._name}: the checkpoint is of epoch {pending.epoch}, and fit began with {epoch}. Call "
                "fit(initial_epoch=checkpoint.restore(model))."
            )
        if pending.batch:
            put_back_generators(pending, "random_before")  # the order of the batches may be drawn now
            self._drawn = generators()
        else:
            self._pending = None

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Has a batch that is done read only."""
        if self._pending is not None:
            self.model.train_function = read_only(self.model, self._skip)

    def _skip(self, batch: Any) -> Any:
        """Returns the logs of a batch that is done."""
        if (strategy := getattr(self.model, "distribute_strategy", None)) is not None:
            batch = first_of_replicas(strategy, batch)
        build_metrics(self.model, batch)
        return dict(self._logs)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Writes a checkpoint if enough steps are done, or goes on after the last batch that was done before."""
        if self._pending is not None:
            if batch + 1 >= self._pending.batch:
                self._go_on(self._pending)
                self._cut = bool(self.model.stop_training)  # a callback may be at its end there
            return
        self._steps += batch + 1 - self._batch
        self._batch, self._logs = batch + 1, logs or {}
        self._cut = bool(self.model.stop_training)  # then `on_epoch_end` comes before the epoch is done
        due = isinstance(self.every, str) and self._steps >= int(self.every.removesuffix("s"))
        if due or self._cut:
            self._steps = 0
            self.save()

    def _go_on(self, snapshot: Snapshot) -> None:
        """Trains again, from where the snapshot is."""
        sync_variables(self.model)
        put_back(snapshot, self.model, self._name, metrics=True)
        put_back_others(snapshot, self._kept, self._name)
        self._batch, self._pending = snapshot.batch, None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Writes a checkpoint if enough epochs are done, or if these are the last."""
        if self._cut or self._pending is not None:  # ended in the middle, or before the place to go on was reached
            return
        self._epoch, self._batch = epoch + 1, 0
        last = self.model.stop_training or epoch + 1 == self.params["epochs"]
        if last or (isinstance(self.every, int) and (epoch + 1) % self.every == 0):
            self.save()

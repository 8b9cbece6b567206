"""Workers that train by themselves, and whose weights become their mean now and then."""

import dataclasses
from typing import Any

import keras

from kopt.declare import Configurable, Count
from kopt.declare.keras_bases import KerasCallback
from kopt.distribution.agreement import from_first, mean, several_workers
from kopt.distribution.sharding import part

SHORT = ("int8", "uint8", "uint16")
"""Types of slots of which no mean can be taken: codes, not numbers."""


class LocalSGD(Configurable, KerasCallback):
    """Has each worker train on its own rows of the batches, and averages their weights: for slow networks.

        strategy = distribution.strategy("multiworker")
        local = distribution.LocalSGD(strategy, sync_every=16)
        model = build()                                     # outside of the scope of the strategy
        model.compile(kopt.AdamW(1e-3), "mse")
        checkpoint = kopt.checkpoint.Checkpoint("checkpoints", callbacks=[local])
        with distribution.together(strategy):
            model.fit(local.shard(data), shuffle=False, callbacks=[local, checkpoint])

    Between two averages nothing is sent: what `fit` sends a step is 1/`sync_every` of weights and slots, where a
    synchronous step sends every gradient. Each update is that of the rows of one worker. All that the model and the
    optimizer keep is averaged: weights, statistics, slots and averages; of counters the largest counts. So all workers
    have the same then. That is after each `sync_every` batches, at the end of an epoch, and before a checkpoint that
    has this object among its `callbacks`, and from which a training goes on bit for bit. Losses of an epoch are those
    of the own rows; validate on whole data. Give it to `fit` before all other callbacks. On the TensorFlow backend.

    Args:
        strategy: of several workers. With one it does nothing.
        sync_every: ≥ 1, batches from one average to the next.
        slots: whether the slots of the optimizer are averaged. If not, each worker keeps its own, as the local momentum
            of Lin et al. (2020); two thirds less is sent with Adam, and a training goes on with those of the chief.

    Raises:
        ValueError: an argument is out of range; or, where `fit` begins, the model is not built or was made in the scope
            of the strategy, or slots are stored in 8 or 16 bits and cannot be averaged.

    Reference: Stich, 2019, arXiv:1805.09767; Lin et al., 2020, arXiv:1808.07217.
    """

    strategy: Any = dataclasses.field(kw_only=False)
    sync_every: Count = 16
    slots: bool = True

    def __post_init__(self) -> None:
        self._since = 0
        self._steps: int | None = None

    def shard(self, data: Any) -> Any:
        """Returns the rows of this worker of each batch; `data` as for `kopt.distribution.shard`.

        A batch with fewer rows than workers goes to all of them whole.
        """
        return part(data, self.strategy)

    def get_state(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps."""
        return {"since": self._since}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from there: batches that are done may have been counted again."""
        self._since = state["since"]

    def on_train_begin(self, logs: Any = None) -> None:
        """Has all begin with what the chief has."""
        if self.model.distribute_strategy is self.strategy:
            raise ValueError(
                "LocalSGD: the model was made in the scope of the strategy, which sums all gradients. Make it outside."
            )
        if not self.model.built:
            raise ValueError("LocalSGD: give the model an Input, or build it, so that all begin with the same weights.")
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        kept = self.model.optimizer.variables if self.slots else ()
        short = next((v for v in kept if keras.backend.standardize_dtype(v.dtype) in SHORT), None)
        if short is not None:
            raise ValueError(
                f"LocalSGD: {short.path} is stored as {short.dtype}, of which there is no mean. Give slots=False, or "
                'the optimizer state_dtype="float32".'
            )
        self._since, self._steps = 0, (self.params or {}).get("steps")
        self._assign(from_first)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Counts; the last batch of an epoch is followed by a validation, of the mean."""
        self._since += 1
        if self._since >= self.sync_every or batch + 1 == self._steps:
            self.sync()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Averages."""
        self.sync()

    def on_train_end(self, logs: Any = None) -> None:
        """Averages."""
        self.sync()

    def sync(self) -> None:
        """Averages, unless nothing was trained since; all workers call it."""
        if self._since:
            self._assign(mean)
            self._since = 0

    def _assign(self, agreed: Any) -> None:
        """Sets all that is averaged to what the workers agree on."""
        if not several_workers(self.strategy):
            return
        found = [*self.model.variables, *(self.model.optimizer.variables if self.slots else ())]
        variables = list({id(v): v for v in found}.values())
        arrays = agreed(self.strategy, [keras.ops.convert_to_numpy(v) for v in variables])
        for v, array in zip(variables, arrays, strict=True):
            v.assign(array)

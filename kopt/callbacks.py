"""Callbacks that evaluate at averaged weights.

The weights that training goes on from are never overwritten unasked: the average takes their place while the model is
evaluated, within `with callback.weights():`, and after `fit` only with `keep=True`.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
from keras import ops


class _Averages(keras.callbacks.Callback):
    """What the callbacks share: the swap, and the statistics of batch normalization.

    Args:
        keep: whether the model ends `fit` with the average.
        batches: inputs, or (inputs, ...) tuples as `fit` takes them, from which batch normalization learns its mean and
            variance anew for the averaged weights; those of the raw weights do not fit them. Only looked at if the
            model has such layers.
    """

    def __init__(self, keep: bool = False, batches: Iterable[Any] | None = None) -> None:
        super().__init__()
        self.keep, self.batches = keep, batches
        self._raw: list[Any] | None = None

    def average(self) -> list[Any] | None:
        """Returns the averages of the trainable weights; None while there are none."""
        raise NotImplementedError

    @contextlib.contextmanager
    def weights(self) -> Iterator[None]:
        """Gives the model the averaged weights, to evaluate or save it."""
        self._swap_in()
        try:
            yield
        finally:
            self._swap_out()

    def on_test_begin(self, logs: Any = None) -> None:
        """Evaluation is done at the average."""
        self._swap_in()

    def on_test_end(self, logs: Any = None) -> None:
        """Training goes on from where it was."""
        self._swap_out()

    def on_train_end(self, logs: Any = None) -> None:
        """Leaves the average in the model, if that is asked for."""
        if self.keep:
            self._swap_in()
            self._raw = None

    def _swap_in(self) -> None:
        averages = self.average()
        if averages is None or self._raw is not None:
            return
        norms = [x for x in self.model._flatten_layers() if isinstance(x, keras.layers.BatchNormalization)]
        held = [*self.model.trainable_variables, *(v for x in norms for v in (x.moving_mean, x.moving_variance))]
        self._raw = [(v, ops.copy(v)) for v in held]
        for variable, value in zip(self.model.trainable_variables, averages, strict=True):
            variable.assign(value)
        if norms and self.batches is not None:
            self._learn_statistics(norms)

    def _swap_out(self) -> None:
        for variable, value in self._raw or ():
            variable.assign(value)
        self._raw = None

    def _learn_statistics(self, norms: list[Any]) -> None:
        momenta = [layer.momentum for layer in norms]
        try:
            for i, batch in enumerate(self.batches or ()):
                for layer in norms:
                    layer.momentum = i / (i + 1)  # the mean over all batches
                self.model(batch[0] if isinstance(batch, tuple) else batch, training=True)
        finally:
            for layer, momentum in zip(norms, momenta, strict=True):
                layer.momentum = momentum


class AveragedWeights(_Averages):
    """Evaluates at the average that the optimizer keeps: that of a Schedule-Free rule, or with `use_ema=True`.

    Raises:
        ValueError: the optimizer keeps none.
    """

    def set_model(self, model: Any) -> None:
        """Finds the optimizer."""
        super().set_model(model)
        optimizer = getattr(model, "optimizer", None)
        self._optimizer: Any = getattr(optimizer, "inner_optimizer", optimizer)
        if not (hasattr(self._optimizer, "averages") or getattr(self._optimizer, "use_ema", False)):
            raise ValueError(
                "AveragedWeights needs an optimizer that averages, such as kopt.ScheduleFreeAdamW() or "
                f"kopt.AdamW(use_ema=True). Received: {self._optimizer!r}"
            )

    def average(self) -> list[Any] | None:
        """Returns what the optimizer would evaluate at."""
        optimizer = self._optimizer
        if not optimizer.built or not int(ops.convert_to_numpy(optimizer.iterations)):
            return None
        return optimizer.averages() if hasattr(optimizer, "averages") else optimizer._model_variables_moving_average


class SWA(_Averages):
    """Stochastic weight averaging: the mean of the weights at the end of epochs.

    Args:
        start: ≥ 1, the first epoch that counts.
        every: ≥ 1, epochs from one that counts to the next.
        keep: whether the model ends `fit` with the average.
        batches: see `EMA`.

    Raises:
        ValueError: an argument is out of range.

    Reference: Izmailov et al., 2018, arXiv:1803.05407.
    """

    def __init__(self, start: int = 1, every: int = 1, keep: bool = False, batches: Any = None) -> None:
        super().__init__(keep, batches)
        if start < 1 or every < 1:
            raise ValueError(f"SWA: start and every must be at least 1. Received: start={start!r}, every={every!r}")
        self.start, self.every, self._count = start, every, 0
        self._mean: list[Any] | None = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Takes the weights into the mean."""
        if epoch + 1 < self.start or (epoch + 1 - self.start) % self.every:
            return
        now, self._count = [ops.copy(v) for v in self.model.trainable_variables], self._count + 1
        mean = self._mean or now
        self._mean = [m + (w - m) / self._count for m, w in zip(mean, now, strict=True)]

    def average(self) -> list[Any] | None:
        """Returns the mean."""
        return self._mean


class EMA(_Averages):
    """Exponential moving average of the weights, of any optimizer.

    Args:
        momentum: in [0, 1), memory of the average.
        every: ≥ 1, batches from one look at the weights to the next.
        keep: whether the model ends `fit` with the average.
        batches: inputs, or (inputs, ...) tuples as `fit` takes them, from which batch normalization learns its mean and
            variance anew for the averaged weights; those of the raw weights do not fit them.

    A kopt optimizer with `use_ema=True` does the same within its compiled step; `AveragedWeights` then evaluates there.

    Raises:
        ValueError: an argument is out of range.

    Reference: Polyak and Juditsky, 1992, doi:10.1137/0330046.
    """

    def __init__(self, momentum: float = 0.999, every: int = 1, keep: bool = False, batches: Any = None) -> None:
        super().__init__(keep, batches)
        if not 0 <= momentum < 1 or every < 1:
            raise ValueError(
                f"EMA: momentum must be in [0, 1) and every at least 1. Received: {momentum=!r}, {every=!r}"
            )
        self.momentum, self.every, self._batch = momentum, every, 0
        self._mean: list[Any] | None = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Takes the weights into the average."""
        self._batch += 1
        if self._batch % self.every:
            return
        now = [ops.copy(v) for v in self.model.trainable_variables]
        mean = self._mean or now
        self._mean = [w + self.momentum * (m - w) for m, w in zip(mean, now, strict=True)]

    def average(self) -> list[Any] | None:
        """Returns the average."""
        return self._mean

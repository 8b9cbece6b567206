"""Callbacks that evaluate at averaged weights.

The weights that training goes on from are never overwritten unasked: the average takes their place while the model is
evaluated, within `with callback.weights():`, and after `fit` only with `keep=True`. What a callback of Keras watches it
keeps: beside one of these, `ModelCheckpoint` and `EarlyStopping` on a validation metric save the average that was
evaluated. Of several averages the first in the list of callbacks is evaluated.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import keras
import numpy as np
from keras import ops

from kopt.declare import Configurable, Convert, Count, Fraction, OpenFraction
from kopt.declare.keras_bases import KerasCallback
from kopt.training.keras_internals import copied, flatten_layers, innermost, moving_averages, trained_by
from kopt.training.shown import Shown, Values


def _readable(value: Any) -> Any:
    """Returns batches that can be read more than once."""
    endless = isinstance(value, keras.utils.PyDataset) and value.num_batches is None
    if endless or (value is not None and (not isinstance(value, Iterable) or isinstance(value, Iterator))):
        raise ValueError("batches that can be read again, as a list or a tf.data.Dataset, not an iterator, or None")
    return value


class _Averages(Configurable, KerasCallback):
    """What the callbacks share: when the average is shown, and the statistics of batch normalization.

    Args:
        keep: whether the model ends `fit` with the average. Slots that remember weights follow it
            (`Optimizer.anchor`), so that training goes on from there.
        batches: inputs, or (inputs, ...) tuples as `fit` takes them, from which batch normalization learns its mean and
            variance anew for the averaged weights; those of the raw weights do not fit them. Only looked at if the
            model has such layers.
    """

    keep: bool = False
    batches: Annotated[Any, Convert(_readable)] = None

    def averaged(self) -> Values | None:
        """Returns the averaged variables with their averages, None while there are none."""
        raise NotImplementedError

    def average(self) -> list[Any] | None:
        """Returns the averages of the trainable weights, in their order; None while there are none."""
        averaged = self.averaged()
        if averaged is None:
            return None
        values = {id(v): value for v, value in averaged}
        return [values.get(id(v), ops.convert_to_tensor(v)) for v in self.model.trainable_variables]

    @contextlib.contextmanager
    def weights(self) -> Iterator[None]:
        """Gives the model the averaged weights, to evaluate or save it.

        Raises:
            ValueError: the callback has no model yet.
        """
        if self.model is None:
            raise ValueError(f"{type(self).__name__} has no model yet: give it to fit, or call set_model.")
        with Shown.of(self.model).showing(self._to_show, block=True):
            yield

    def on_train_begin(self, logs: Any = None) -> None:
        """From now on evaluations are done at the average."""
        Shown.of(self.model).join(self._to_show)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Forgets what the last epoch evaluated."""
        Shown.of(self.model).seen = None

    def on_test_begin(self, logs: Any = None) -> None:
        """Outside of `fit`, too, evaluation is done at the average."""
        Shown.of(self.model).begin_evaluation(self._to_show)

    def on_test_end(self, logs: Any = None) -> None:
        """The weights come back."""
        Shown.of(self.model).end_evaluation()

    def on_train_end(self, logs: Any = None) -> None:
        """Leaves the average in the model, if that is asked for."""
        Shown.of(self.model).leave(self._to_show)
        values = self._to_show() if self.keep else None
        if values is not None:
            for variable, value in values:
                variable.assign(ops.copy(ops.cast(value, variable.dtype)))
            optimizer = innermost(self.model)
            if hasattr(optimizer, "anchor"):
                optimizer.anchor()

    def _to_show(self) -> Values | None:
        """Returns the averaged weights and, if asked for, the statistics that fit them."""
        averaged = self.averaged()
        norms = [x for x in flatten_layers(self.model) if isinstance(x, keras.layers.BatchNormalization)]
        if averaged is None or not norms or self.batches is None:
            return averaged
        statistics = [v for norm in norms for v in (norm.moving_mean, norm.moving_variance)]
        # Dropout draws numbers, layers of one's own may count: all that a pass changes is put back.
        before = [(v, copied(v)) for v in self.model.non_trainable_variables]
        try:
            with Shown(self.model).showing(lambda: averaged):
                self._learn_statistics(norms)
            return [*averaged, *((v, copied(v)) for v in statistics)]
        finally:
            for variable, value in before:
                variable.assign(value)

    def _learn_statistics(self, norms: list[Any]) -> None:
        momenta = [layer.momentum for layer in norms]
        try:
            for i, batch in enumerate(_each(self.batches)):
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
        optimizer = innermost(model)
        if not (hasattr(optimizer, "averages") or getattr(optimizer, "use_ema", False)):
            raise ValueError(
                "AveragedWeights needs an optimizer that averages, such as kopt.ScheduleFreeAdamW() or "
                f"kopt.AdamW(use_ema=True). Received: {optimizer!r}"
            )

    def averaged(self) -> Values | None:
        """Returns what the optimizer would evaluate at."""
        optimizer = innermost(self.model)
        if not optimizer.built or not int(ops.convert_to_numpy(optimizer.iterations)):
            return None
        kept = optimizer.averages() if hasattr(optimizer, "averages") else moving_averages(optimizer)
        return list(zip(trained_by(optimizer), map(copied, kept), strict=True))


class _Running(_Averages):
    """Base of the averages that a callback keeps itself, in float32 or wider, one for each trainable weight.

    They belong to the weights of one model: for another one they begin anew. A weight that is frozen on the way keeps
    its average and is shown as it is; one that is thawed begins its own.
    """

    def __post_init__(self) -> None:
        self._kept: dict[int, tuple[Any, Any, int]] = {}  # variable, average and number of looks, by identity
        self._looks = 0
        self._waiting: Mapping[str, Any] | None = None

    def set_model(self, model: Any) -> None:
        """Begins anew for another model."""
        if self.model is not None and model is not self.model:
            self._kept, self._looks = {}, 0
        super().set_model(model)
        if self._waiting is not None:
            self._restore(self._waiting)
            self._waiting = None

    def averaged(self) -> Values | None:
        """Returns the weights looked at with their averages."""
        kept = [self._kept[id(v)] for v in self.model.trainable_variables if id(v) in self._kept]
        return [(v, mean) for v, mean, _ in kept] or None

    def look(self) -> None:
        """Takes the weights as they are into the averages."""
        for v in self.model.trainable_variables:
            now = copied(ops.cast(ops.convert_to_tensor(v), _wide(v)))
            _, mean, looks = self._kept.get(id(v), (v, now, 0))
            self._kept[id(v)] = (v, self.updated(mean, now, looks), looks + 1)

    def updated(self, mean: Any, now: Any, looks: int) -> Any:
        """Returns the average after one more look at a weight, which is `now`."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forgets all averages, for a training of the same model that begins anew, as in cross-validation."""
        self._kept, self._looks, self._waiting = {}, 0, None

    def __deepcopy__(self, memo: Any) -> Any:
        """Returns a callback of its own for the same model: it has the same averages."""
        other = type(self)(**{name: getattr(self, name) for name in self.fields})
        vars(other).update(vars(self) | {"_kept": dict(self._kept)})
        return other

    def __reduce__(self) -> Any:
        """Pickles arguments and averages, which wait for a model."""
        return _rebuilt, (type(self), {name: getattr(self, name) for name in self.fields}, self.get_state())

    def get_state(self) -> dict[str, Any]:
        """Returns the averages as arrays, to be saved (`np.savez`) and given to `set_state` later."""
        if self._waiting is not None:
            return dict(self._waiting)
        weights = self.model.trainable_variables if self.model is not None else []
        kept = {str(i): self._kept[id(v)] for i, v in enumerate(weights) if id(v) in self._kept}
        state = {name: ops.convert_to_numpy(mean) for name, (_, mean, _) in kept.items()}
        state |= {f"{name}.looks": np.asarray(looks) for name, (_, _, looks) in kept.items()}
        return state | {"looks": np.asarray(self._looks), "weights": np.asarray(len(weights))}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Puts averages back that `get_state` has returned; before the callback has a model they wait for it.

        Raises:
            ValueError: they are of other weights, or not finite; perhaps only when the callback gets its model.
        """
        state = {name: np.asarray(state[name]) for name in state}
        if self.model is None:
            self._waiting = state
        else:
            self._restore(state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        weights, kept = list(self.model.trainable_variables), {}
        name = type(self).__name__
        if not {"weights", "looks"} <= {*state} or int(state["weights"]) not in (0, len(weights)):
            raise ValueError(f"{name}: the state is of {state.get('weights')} weights, the model has {len(weights)}.")
        for i, v in enumerate(weights):
            if str(i) in state:
                if f"{i}.looks" not in state:
                    raise ValueError(f"{name}: the state lacks {i}.looks. Restore what get_state has returned, whole.")
                mean = state[str(i)]
                if mean.shape != tuple(v.shape) or not np.isfinite(mean).all():
                    raise ValueError(
                        f"{name}: the average saved for {v.path!r}, of shape {mean.shape}, does not fit its shape "
                        f"{tuple(v.shape)}, or is not finite. Restore it for the model that it was saved with."
                    )
                kept[id(v)] = (v, ops.convert_to_tensor(mean, _wide(v)), int(state[f"{i}.looks"]))
        self._kept, self._looks = kept, int(state["looks"])


class SWA(_Running):
    """Stochastic weight averaging: the mean of the weights at the end of epochs.

    Keras validates before an epoch ends: a validation sees the mean of the epochs before.

    Args:
        start: ≥ 1, the first epoch that counts.
        every: ≥ 1, epochs from one that counts to the next.

    Raises:
        ValueError: an argument is out of range.

    Reference: Izmailov et al., 2018, arXiv:1803.05407.
    """

    start: Count = dataclasses.field(default=1, kw_only=False)
    every: Count = 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Takes the weights into the mean."""
        if epoch + 1 >= self.start and (epoch + 1 - self.start) % self.every == 0:
            self.look()

    def updated(self, mean: Any, now: Any, looks: int) -> Any:
        """Returns the mean of one more."""
        return mean + (now - mean) / (looks + 1)


class EMA(_Running):
    """Exponential moving average of the weights, of any optimizer.

    Args:
        momentum: in [0, 1), memory of the average.
        every: ≥ 1, batches from one look at the weights to the next.

    A kopt optimizer with `use_ema=True` does the same within its compiled step; `AveragedWeights` then evaluates there.

    Raises:
        ValueError: an argument is out of range.

    Reference: Polyak and Juditsky, 1992, doi:10.1137/0330046.
    """

    momentum: Fraction = dataclasses.field(default=0.999, kw_only=False)
    every: Count = 1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Takes the weights into the average."""
        self._looks += 1
        if self._looks % self.every == 0:
            self.look()

    def updated(self, mean: Any, now: Any, looks: int) -> Any:
        """Returns the average of one more."""
        return now + self.momentum * (mean - now)


class TailAverage(_Running):
    """Mean of the weights over the last part of a training, which takes their noise away at a high rate.

        a ← a + (w - a) / k                  look number k = 1, 2, ... after (1 - share) of all batches

    One mean is kept, whatever the length of the part. Before its first look evaluations are done at the weights as they
    are. A `fit` is a training of its own, unless `steps` is given, or a state was put back.

    Args:
        share: in (0, 1), last part of the batches.
        every: ≥ 1, batches from one look to the next; the last batch has one.
        steps: ≥ 1, batches of the whole training; None is what `fit` is asked for.

    Raises:
        ValueError: an argument is out of range, or `fit` does not know how many batches an epoch has.

    Differs from the tail averages of modded-nanogpt, which forget exponentially.
    Reference: Jain et al., 2018, arXiv:1610.03774.
    """

    share: OpenFraction = dataclasses.field(default=0.2, kw_only=False)
    every: Count = 1
    steps: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._restored, self._begun = False, 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Begins anew, unless the training goes on."""
        super().on_train_begin(logs)
        if self.steps is None:
            if self.params.get("steps") is None:
                raise ValueError(
                    "TailAverage: fit does not know how many batches an epoch has. Give the batches of the whole "
                    "training, as in kopt.TailAverage(steps=1000), or steps_per_epoch to fit."
                )
            if not self._restored:
                self._kept, self._looks = {}, 0
        self._restored = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Finds the place in the training where `fit` begins later than at epoch 0."""
        super().on_epoch_begin(epoch, logs)
        if self.steps is None:
            self._looks = max(self._looks, epoch * self.params["steps"])

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Takes note of the first of the batches that are trained together."""
        self._begun = batch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Takes the weights into the mean, if they belong to the last part."""
        self._looks += batch + 1 - self._begun
        left = (self.steps or self.params["epochs"] * self.params["steps"]) - self._looks
        if left < self.share * (left + self._looks) and left % self.every == 0:
            self.look()

    def updated(self, mean: Any, now: Any, looks: int) -> Any:
        """Returns the mean of one more."""
        return mean + (now - mean) / (looks + 1)

    def _restore(self, state: Mapping[str, Any]) -> None:
        super()._restore(state)
        self._restored = True


def _rebuilt(cls: type[_Running], arguments: dict[str, Any], state: Mapping[str, Any]) -> _Running:
    callback = cls(**arguments)
    callback.set_state(state)
    return callback


def _innermost(model: Any) -> Any:
    """Returns the optimizer of a model, without Keras' loss scaling around it."""
    optimizer = getattr(model, "optimizer", None)
    return getattr(optimizer, "inner_optimizer", optimizer)


def _wide(variable: Any) -> str:
    return "float64" if keras.backend.standardize_dtype(variable.dtype) == "float64" else "float32"


def _each(batches: Any) -> Iterable[Any]:
    """Yields batches; a PyDataset of Keras has no end of its own."""
    if isinstance(batches, keras.utils.PyDataset):
        return (batches[i] for i in range(batches.num_batches))
    return iter(batches)

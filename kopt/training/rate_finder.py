"""Which learning rate to begin with: a sweep over rates, of which nothing remains in the model."""

import contextlib
import os
from collections.abc import Iterator
from typing import Annotated, Any

import keras
import numpy as np
from keras import ops

from kopt.checkpoint.atomic_files import atomic_file
from kopt.checkpoint.shuffled_batches import ShuffledBatches
from kopt.checkpoint.snapshot import generators, put_back, put_back_generators, take
from kopt.declare import Configurable, Positive, Range
from kopt.declare.keras_bases import KerasCallback, KerasSchedule
from kopt.training.keras_internals import build_metrics, innermost, unwrapped

Array = np.ndarray[Any, Any]
WIDTH = 0.025
"""Standard deviation of the Gaussian that smooths the losses, as a share of the steps of the sweep."""
FEWEST = 10
"""Rates that a curve needs."""


class LearningRateFinder(Configurable):
    r"""Suggests a learning rate, from a sweep over rates on a compiled model and its data.

        finder = kopt.LearningRateFinder()
        rate = finder.find(model, x, y, batch_size=64)      # or find(model, dataset)
        finder.plot("rates.png")
        model.optimizer.learning_rate = rate

    The model is trained for `steps` updates. The learning rate of update t = 0, 1, ... is

        lowest · (highest / lowest)^(t / (steps - 1))

    and the loss is that of the batch alone. The sweep ends early when the loss is not finite, or when its mean over the
    last few batches is `stop` times the lowest such mean. Then everything is put back, bit for bit, however the sweep
    ended, Ctrl-C and errors included: weights, the seeds of dropout and the like, metrics, the optimizer, its state,
    learning rate and compiled step, and the random generators of Python, NumPy and torch. The sweep uses an optimizer
    of its own, with the same arguments and an empty state, so that it needs memory for a second one meanwhile; a
    schedule and its warm-up are not followed, and what was learnt before does not matter but for the weights.

    The suggestion: the losses are smoothed over neighbouring rates, and the curve is followed from its highest point
    before its lowest one down to that lowest one. Suggested is the rate at which a share of `depth` of this fall is
    done for good, but no more than a third of the rate of the lowest loss. The first is where the loss falls fast, the
    range in which Smith looks for the rate; the second is the margin that he leaves to the largest rate that converges.

    The rate is one for a constant learning rate or the peak of a schedule. It belongs to the batch size, and to what
    else surrounds the rule (decay, clipping, multipliers). For `Route` and `Switch` it is a factor of all their rates.
    Plain SGD on a convex loss may take several times as much: the loss rises at first, and falls all the faster. Rules
    with a line search, such as `LBFGS`, need none.

    Args:
        lowest: > 0, the first rate.
        highest: the last rate, above `lowest`.
        steps: ≥ 10, updates of the sweep. More make the curve smoother.
        stop: > 1, see above; only looked at while losses are positive.
        depth: in (0, 1), see above.
        seed: ≥ 0, chooses the order of the examples in arrays.

    Raises:
        ValueError: an argument is out of range.

    Reference: Smith, 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3, arXiv:1506.01186.
    """

    lowest: Positive = 1e-7
    highest: Positive = 10.0
    steps: Annotated[int, Range(low=FEWEST)] = 100
    stop: Annotated[float, Range(above=1)] = 4.0
    depth: Annotated[float, Range(above=0, high=1)] = 0.8
    seed: Annotated[int, Range(low=0)] = 0

    def __post_init__(self) -> None:
        if self.highest <= self.lowest:
            raise ValueError(
                f"LearningRateFinder: highest must be above lowest. Received: {self.lowest} to {self.highest}"
            )
        self.rates: list[float] = []
        """The rates of the last sweep, in rising order."""
        self.losses: list[float] = []
        """The loss before the update with each of them."""
        self.suggestion: float | None = None
        """What the last sweep suggests; None if it failed."""

    def find(
        self, model: Any, x: Any, y: Any = None, *, sample_weight: Any = None, batch_size: int | None = None
    ) -> float:
        """Returns the learning rate that a sweep suggests. The model stays as it is.

        Args:
            model: compiled Keras model. If it is not built, it is built on the first batch, as by `fit`.
            x: arrays, or batches that can be read again, as `fit` takes them: a `tf.data.Dataset`, a `PyDataset`, a
                `DataLoader`. Their reader is not put back: a dataset that shuffles goes on with its orders.
            y: targets, if x are arrays.
            sample_weight: weights of the examples, if x are arrays.
            batch_size: examples a batch, if x are arrays. Default: 32.

        Raises:
            ValueError: the model is not compiled, its optimizer has no learning rate, the data cannot be read again,
                or no rate makes the loss fall; the curve can be plotted even so.
        """
        self.rates, self.losses, self.suggestion = [], [], None
        owner = type(self).__name__
        if getattr(model, "optimizer", None) is None:
            raise ValueError(f"{owner} needs a model compiled with an optimizer. Received: {model!r}")
        data = self._batches(x, y, sample_weight, batch_size)
        scope = getattr(model, "distribute_strategy", None)
        with contextlib.nullcontext() if scope is None else scope.scope():
            optimizer = self._copy(model.optimizer)
        sweep = _Sweep(self.steps * (unwrapped(optimizer).gradient_accumulation_steps or 1), self.stop)
        with _aside(model, optimizer, next(iter(data)), owner):
            # Each epoch has a batch at least.
            model.fit(data, epochs=sweep.batches, shuffle=False, verbose=0, callbacks=[sweep])
        pairs = np.array(sweep.pairs).reshape(-1, 2)
        rates, places = np.unique(pairs[:, 0], return_inverse=True)
        self.rates = rates.tolist()
        self.losses = (np.bincount(places, pairs[:, 1]) / np.bincount(places)).tolist()
        self.suggestion = suggest(self.rates, self.losses, self.depth, self.steps * WIDTH)
        return self.suggestion

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Writes loss over learning rate, with the suggestion, as a PNG file.

        Raises:
            ValueError: there was no sweep.
            ImportError: matplotlib is missing.
        """
        if not self.rates:
            raise ValueError(f"{type(self).__name__}.plot: call find(model, x, y) before.")
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(f"{type(self).__name__}.plot needs matplotlib: pip install matplotlib") from error
        figure = Figure((7, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes, smooth = figure.subplots(), smoothed(self.losses, self.steps * WIDTH)
        axes.semilogx(self.rates, self.losses, color="tab:blue", alpha=0.3, lw=1, label="loss of a batch")
        axes.semilogx(self.rates, smooth, color="tab:blue", lw=2, label="smoothed")
        if self.suggestion is not None:
            axes.axvline(self.suggestion, color="tab:red", ls="--", label=f"suggestion: {self.suggestion:.2g}")
        low = float(np.min(smooth))
        begun = float(np.max(smooth[: int(np.argmin(smooth)) + 1]))
        room = 0.3 * max(begun - low, 1e-12)
        axes.set(xlabel="learning rate", ylabel="loss", ylim=(low - room, begun + 2 * room))
        axes.grid(alpha=0.3)
        axes.legend()
        with atomic_file(path) as part:
            figure.savefig(part, dpi=120, format="png")

    def _batches(self, x: Any, y: Any, sample_weight: Any, batch_size: int | None) -> Any:
        owner = type(self).__name__
        if isinstance(x, Iterator):
            raise ValueError(f"{owner} reads its data more than once. Received: an iterator, {x!r}")
        if y is not None or all(isinstance(part, np.ndarray) or ops.is_tensor(part) for part in keras.tree.flatten(x)):
            return ShuffledBatches(x, y, sample_weight, batch_size=batch_size or 32, seed=self.seed)
        if sample_weight is not None or batch_size is not None:
            raise ValueError(f"{owner}: sample_weight and batch_size are for arrays. Received: {type(x).__name__}")
        return x if isinstance(x, keras.utils.PyDataset) or hasattr(x, "__iter__") else _refused(owner, x)

    def _copy(self, optimizer: Any) -> Any:
        """Returns an optimizer with the same arguments, an empty state, and the rates of the sweep."""
        copy = type(optimizer).from_config(optimizer.get_config())
        inner = unwrapped(copy)
        try:
            # Keras asks a schedule about batches, kopt about updates.
            ours = hasattr(inner, "rate_after")
            unit = 1 if ours else inner.gradient_accumulation_steps or 1
            inner.learning_rate = _Rates(self.lowest, self.highest, self.steps, unit)
            if ours and inner.on_nonfinite == "raise":
                inner.on_nonfinite = "ignore"  # the loss ends the sweep
        except (AttributeError, TypeError) as error:
            raise ValueError(
                f"{type(self).__name__}: {type(inner).__name__} has no learning rate that can be set ({error})."
            ) from error
        return copy


def _refused(owner: str, x: Any) -> Any:
    raise ValueError(f"{owner}: expected arrays, or batches as fit takes them. Received: {x!r}")


class _Rates(KerasSchedule):
    """The rates of the sweep, each for `unit` steps."""

    def __init__(self, lowest: float, highest: float, steps: int, unit: int) -> None:
        self.lowest, self.highest, self.steps, self.unit = lowest, highest, steps, unit

    def __call__(self, step: Any) -> Any:
        done = ops.cast(ops.minimum(step // self.unit, self.steps - 1), "float32") / (self.steps - 1)
        return self.lowest * ops.exp(done * float(np.log(self.highest / self.lowest)))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return dict(vars(self))


class _Sweep(KerasCallback):
    """Notes rate and loss of each batch, and ends the training when there is no more to see.

    Args:
        batches: after which it ends.
        stop: see `LearningRateFinder`.
    """

    def __init__(self, batches: int, stop: float) -> None:
        super().__init__()
        self.batches, self.pairs = batches, list[tuple[float, float]]()
        self._stop, self._lowest, self._few = stop, np.inf, max(2, batches // 50)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Has the metrics begin anew, and reads the rate."""
        model = self.model  # on JAX this brings the variables up to date
        model.reset_metrics()
        self._rate = float(ops.convert_to_numpy(innermost(model).learning_rate))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Notes the loss."""
        if "loss" not in (logs or {}):
            raise ValueError(f"LearningRateFinder needs a train step that returns the loss. Received: {logs}")
        loss = float(logs["loss"])
        if np.isfinite(loss):
            self.pairs.append((self._rate, loss))
            mean = float(np.mean([x for _, x in self.pairs[-self._few :]]))
            if len(self.pairs) >= self._few:
                self._lowest = min(self._lowest, mean)
        diverged = not np.isfinite(loss) or mean > self._stop * self._lowest > 0
        if diverged or len(self.pairs) == self.batches:
            self.model.stop_training = True


@contextlib.contextmanager
def _aside(model: Any, optimizer: Any, batch: Any, owner: str) -> Iterator[None]:
    """Gives the model another optimizer to train with, and puts back all that a training changes.

    Args:
        model: compiled.
        optimizer: not built.
        batch: of the data, which an unbuilt model is built on.
        owner: who asks, for messages.
    """
    names = ("optimizer", "train_function", "steps_per_execution", "stop_training", "history")
    before = {name: getattr(model, name) for name in names if hasattr(model, name)}

    def back() -> None:
        for name in names:
            if name in before:
                setattr(model, name, before[name])
            elif hasattr(model, name):
                delattr(model, name)

    drawn = generators()
    try:
        model.optimizer = optimizer
        build_metrics(model, batch if isinstance(batch, tuple) else tuple(batch) if isinstance(batch, list) else batch)
        model.optimizer = before["optimizer"]
        snapshot = take(model, [], 0, 0, {}, drawn)
        try:
            model.optimizer, model.train_function, model.steps_per_execution = optimizer, None, 1
            yield
        finally:
            back()
            put_back(snapshot, model, owner, metrics=True)
            put_back_generators(snapshot, "random_before")
    finally:
        back()


def smoothed(losses: Any, width: float) -> Array:
    """Returns losses averaged over their neighbours by a Gaussian with this standard deviation, in steps."""
    places = np.arange(len(losses))
    weights = np.exp(-0.5 * ((places[:, None] - places) / width) ** 2)
    smooth: Array = weights @ np.asarray(losses, float) / weights.sum(axis=1)
    return smooth


def suggest(rates: Any, losses: Any, depth: float, width: float) -> float:
    """Returns the rate that `LearningRateFinder` suggests for a curve.

    Args:
        rates: in rising order, [n].
        losses: [n].
        depth: share of the fall that is done.
        width: of the smoothing, in steps.

    Raises:
        ValueError: the loss does not fall.
    """
    advice = "Plot the curve, and try another range, more steps, or a model that learns."
    if len(rates) < FEWEST:
        last = rates[-1] if len(rates) else None
        raise ValueError(f"LearningRateFinder: the loss has left the range after the rate {last}. {advice}")
    smooth = smoothed(losses, width)
    end = int(np.argmin(smooth))
    start = int(np.argmax(smooth[: end + 1]))
    fall = smooth[start] - smooth[end]
    noise = float(np.std(np.asarray(losses)[: max(end, 2)] - smooth[: max(end, 2)]))
    if end - start < 2 or fall <= max(noise / 2, 1e-6 * abs(smooth[start])):
        raise ValueError(f"LearningRateFinder: the loss does not fall at any rate. {advice}")
    above = np.flatnonzero(smooth[start : end + 1] > smooth[start] - depth * fall)
    reached = start + int(above[-1]) + 1
    return float(f"{min(rates[reached], rates[end] / 3):.3g}")

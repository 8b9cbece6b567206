"""Which weights a model holds: those that training goes on from, or an average of them.

There is one owner for each model. It puts an average in for the time of one call, and takes it out again whatever ends
that call:

    evaluation within `fit`                         at the average
    save, get_weights of a callback that            at the average that was evaluated last: what is watched is kept
      watches a validation metric
    `with callback.weights():`                      at the average
    everything else                                 at the weights that training goes on from

Nothing is left to be put back later but one thing: `model.evaluate(callbacks=[...])` outside of `fit` tells a callback
when it begins and not when it is interrupted. The next of these calls settles that.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kopt.training.keras_internals import copied

Values = Sequence[tuple[Any, Any]]
"""Variables with values."""

EVALUATING = ("evaluate",)
KEEPING = ("save", "save_weights", "get_weights")
READING = ("predict", "predict_on_batch", "test_on_batch", "export")
CHANGING = ("fit", "train_on_batch", "set_weights", "load_weights")


class Shown:
    """The owner of one model.

    Args:
        model: the model.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.sources: list[Callable[[], Values | None]] = []
        """What gives an average, in the order of the callbacks; the first that has one is shown."""
        self.seen: Values | None = None
        """What the last evaluation of this epoch saw, if it was an average."""
        self._raw: Values | None = None
        self._put: list[Any] = []
        self._before: dict[str, Any] = {}  # what the model had in the place of our calls
        self._in_block = False
        self._lingers = False

    @classmethod
    def of(cls, model: Any) -> "Shown":
        """Returns the owner of a model."""
        return vars(model).setdefault("_kopt_shown", cls(model))  # past the tracking of attributes: it is no state

    # ------------------------------------------------------------------------------------------ putting in and out

    def put_in(self, values: Values) -> None:
        """Gives the model these values; those that it has are put aside."""
        self._put = [ops.copy(ops.cast(value, variable.dtype)) for variable, value in values]
        self._raw = [(v, copied(v)) for v, _ in values]
        for (variable, _), value in zip(values, self._put, strict=True):
            variable.assign(ops.copy(value))

    def settle(self) -> None:
        """Gives the model back what was put aside, if there is anything.

        A variable that holds something else than was put in has been set meanwhile, and keeps that.
        """
        for (variable, value), put in zip(self._raw or (), self._put, strict=True):
            if _bits(variable) == _bits(put):
                variable.assign(value)
        self._raw, self._put = None, []

    def join(self, source: Callable[[], Values | None]) -> None:
        """Lets a callback give an average to show, until it leaves."""
        if source not in self.sources:
            self.sources.append(source)
        self.watch()

    def leave(self, source: Callable[[], Values | None]) -> None:
        """Lets a callback go."""
        if source in self.sources:
            self.sources.remove(source)
        self.unwatch()

    def begin_evaluation(self, source: Callable[[], Values | None]) -> None:
        """Shows the average of a callback from the start of an evaluation, unless `fit` does it or another one."""
        if self.sources or self._raw is not None or (values := source()) is None:
            return
        self.join(source)
        self._lingers = True
        self.put_in(values)

    def end_evaluation(self) -> None:
        """Ends what `begin_evaluation` began."""
        if self._lingers:
            self._clear()

    @contextlib.contextmanager
    def showing(self, source: Callable[[], Values | None], block: bool = False) -> Iterator[None]:
        """Gives the model the values of a source for a while; within another such while nothing changes."""
        if self._lingers and not self._is_running():
            self._clear()
        # Some averages follow from the weights of training: they are asked for while the model has those.
        values = source() if self._raw is None else None
        if values is None:
            yield
            return
        self._in_block = block
        if block:
            self.watch()
        try:
            self.put_in(values)
            yield
        finally:
            self.settle()
            if block:
                self._in_block = False
                self.unwatch()

    def average(self) -> Values | None:
        """Returns the average to show, None while there is none."""
        return next((values for source in self.sources if (values := source()) is not None), None)

    # ------------------------------------------------------------------------------------------ calls of the model

    def watch(self) -> None:
        """Stands between the model and its callers, so that each finds the right weights."""
        for names, call in (
            (EVALUATING, self._evaluate),
            (KEEPING, self._keep),
            (READING, self._read),
            (CHANGING, self._change),
        ):
            for name in names:
                if hasattr(self.model, name) and name not in self._before:
                    self._before[name] = vars(self.model).get(name)
                    original = getattr(self.model, name)
                    vars(self.model)[name] = functools.wraps(original)(functools.partial(call, name, original))

    def unwatch(self) -> None:
        """Steps aside, unless somebody else still shows averages."""
        if self.sources or self._in_block:
            return
        for name, before in self._before.items():
            if before is None:
                vars(self.model).pop(name, None)
            else:
                vars(self.model)[name] = before
        self._before, self.seen = {}, None
        vars(self.model).pop("_kopt_shown", None)

    def _evaluate(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._is_running():
            return self._anew(call, *args, **kwargs)
        if self._raw is not None:
            return call(*args, **kwargs)
        with self.showing(self.average):
            if "_use_cached_eval_dataset" in kwargs or self.seen is None:  # the validation of `fit` itself
                self.seen = self._raw and [(v, copied(v)) for v, _ in self._raw]
            return call(*args, **kwargs)

    def _keep(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._is_running():
            return self._anew(call, *args, **kwargs)
        with self.showing(lambda: self.seen if _is_watching(self.model) else None):
            return call(*args, **kwargs)

    def _read(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs) if self._is_running() else self._anew(call, *args, **kwargs)

    def _change(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._in_block:
            raise RuntimeError(
                f"{name}() was called within `with callback.weights():`, at whose end the weights of before come back. "
                "Leave the block first; to train on from the average, give the callback keep=True."
            )
        return self._read(name, call, *args, **kwargs)

    def _is_running(self) -> bool:
        """Whether the call that shows averages is still going on."""
        return self._in_block or _is_within(self.model, "fit", "evaluate")

    def _anew(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Settles what an interruption has left, and calls the model."""
        self._clear()
        return call(*args, **kwargs)

    def _clear(self) -> None:
        self.settle()
        self._lingers = False
        self.sources.clear()
        self.unwatch()


def _bits(x: Any) -> bytes:
    return np.asarray(ops.convert_to_numpy(x)).tobytes()  # equal for NaN, too


def _stack(frame: Any) -> Iterator[Any]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_within(model: Any, *methods: str) -> bool:
    """Whether a method of the model is going on, in this thread or in another one, which loads data for it perhaps."""
    stacks = sys._current_frames().values()
    return any(f.f_code.co_name in methods and f.f_locals.get("self") is model for top in stacks for f in _stack(top))


def _is_watching(model: Any) -> bool:
    """Whether a callback of Keras that watches a validation metric is calling, from within `fit`."""
    for frame in _stack(sys._getframe(1)):
        caller = frame.f_locals.get("self")
        if caller is model and frame.f_code.co_name == "fit":
            return False
        if isinstance(caller, keras.callbacks.Callback) and not isinstance(caller, keras.callbacks.CallbackList):
            return str(getattr(caller, "monitor", "")).startswith("val_")
    return False

"""What several workers need of Keras beyond what it documents: repairs of `fit`, and a model that leaves them.

`fit` of Keras 3.15 fails under MultiWorkerMirroredStrategy (keras-team/keras#20585): to build a model it
averages batches of different workers, and it reduces the logs, which are scalars, over an axis. Under any strategy it
divides by the number of replicas only some losses, not those of predictions of one axis and not those of a
`compute_loss` of one's own, so that their gradients are too large. No other file of this folder reads privates of
Keras; after an upgrade, look here.
"""

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import keras

REDUCES = 'strategy.reduce("MEAN", v, axis=0)'
SCALES = "tf.distribute.get_strategy().num_replicas_in_sync"
AVERAGES = "data_batch = self.distribute_strategy.reduce("


class Fault(NamedTuple):
    """A function of Keras that has to be replaced.

    Attributes:
        owner: where it is.
        name: what it is called there.
        mark: lines of its source by which it is known to be the one that fails.
        arguments: those that the replacement takes.
        relied_on: whether kopt computes something else without the repair, so that it cannot be left out.
    """

    owner: Any
    name: str
    mark: str
    arguments: tuple[str, ...]
    relied_on: bool = False


def faults() -> list[Fault]:
    """Returns them, of the Keras that is installed."""
    trainer, losses = keras.src.backend.tensorflow.trainer, keras.src.losses.loss
    return [
        Fault(trainer, "reduce_per_replica", REDUCES, ("values", "strategy", "reduction")),
        Fault(trainer.TensorFlowTrainer, "_maybe_symbolic_build", AVERAGES, ("self", "iterator", "data_batch")),
        Fault(losses, "scale_loss_for_distribution", SCALES, ("value",), relied_on=True),
        Fault(losses, "unscale_loss_for_distribution", SCALES, ("value",), relied_on=True),
    ]


def is_there(fault: Fault) -> bool:
    """Whether a function has the fault still, and not been repaired.

    Raises:
        RuntimeError: there is no such function any more, or it takes other arguments.
    """
    function = getattr(fault.owner, fault.name, None)
    if hasattr(function, "repaired_by_kopt"):
        return False
    source = "" if function is None else inspect.getsource(function)
    if function is not None and fault.mark not in source and not fault.relied_on:
        return False
    if function is None or fault.mark not in source or tuple(inspect.signature(function).parameters) != fault.arguments:
        raise RuntimeError(
            f"Keras {keras.__version__} has no {fault.name}({', '.join(fault.arguments)}), which kopt repairs for "
            "several workers. Use the version of Keras that kopt asks for, or a newer kopt."
        )
    return True


def repair() -> list[str]:
    """Has `fit`, `evaluate` and `predict` work on several workers; returns the names of what was replaced."""
    found = [fault for fault in faults() if is_there(fault)]
    for fault in found:
        original = getattr(fault.owner, fault.name)
        replacement = REPLACEMENTS[fault.name](original)
        replacement.repaired_by_kopt = original
        setattr(fault.owner, fault.name, replacement)
    return [fault.name for fault in found]


def _reducing(original: Callable[..., Any]) -> Any:
    several = keras.src.backend.tensorflow.trainer._collective_all_reduce_multi_worker

    def reduce_per_replica(values: Any, strategy: Any, reduction: str) -> Any:
        if reduction == "concat" or not several(strategy):
            return original(values, strategy, reduction)
        kind = "SUM" if reduction == "sum" else "MEAN"
        return keras.tree.map_structure(lambda value: strategy.reduce(kind, value, axis=None), values)

    return reduce_per_replica


def _building(original: Callable[..., Any]) -> Any:
    def build(self: Any, iterator: Any = None, data_batch: Any = None) -> None:
        if self._distribute_strategy is not None and iterator is not None:
            for _, _, batches in iterator:
                data_batch = first_of_replicas(self.distribute_strategy, next(batches))
                break
        original(self, None, data_batch)

    return build


class _Scaling(threading.local):
    """Whether Keras scales losses, in this thread: each replica has one."""

    is_off = False


_SCALING = _Scaling()


@contextlib.contextmanager
def unscaled() -> Iterator[None]:
    """Has losses not be divided by the number of replicas in the block, whatever their shape."""
    before, _SCALING.is_off = _SCALING.is_off, True
    try:
        yield
    finally:
        _SCALING.is_off = before


def _scaling(original: Callable[..., Any]) -> Any:
    def scale(value: Any) -> Any:
        return value if _SCALING.is_off else original(value)

    return scale


REPLACEMENTS: Mapping[str, Callable[[Any], Any]] = {
    "reduce_per_replica": _reducing,
    "_maybe_symbolic_build": _building,
    "scale_loss_for_distribution": _scaling,
    "unscale_loss_for_distribution": _scaling,
}


def first_of_replicas(strategy: Any, batch: Any) -> Any:
    """Returns the part of a batch that the first replica of this process gets."""
    return keras.tree.map_structure(lambda part: strategy.experimental_local_results(part)[0], batch)


def compiled_step(model: Any, step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns a function of an iterator that makes a step in every replica, as the train function of `fit` does."""
    made: Callable[[Any], Any] = model._make_function(step)
    return made


def set_steps(distributed: Any, steps: int) -> None:
    """Tells `fit` how many steps an epoch of distributed batches has: TensorFlow counts the parts of all devices."""
    distributed._cardinality = steps


def detach(model: Any) -> None:
    """Has a model that was trained by several replicas compute on this process alone, without any other worker.

    Its layers, weights and optimizer stay as they are; `predict` and `save` ask nobody. Compile it again, without an
    optimizer, to evaluate it.
    """
    vars(model).pop("compute_loss", None)  # what `shared_loss` has put there
    model._distribute_strategy = None
    model.train_function = model.test_function = model.predict_function = None
    for layer in model._flatten_layers():
        if getattr(layer, "synchronized", False):  # statistics of batches, which no other backend can load
            layer.synchronized = False

"""What several workers need of Keras beyond what it documents: two repairs of `fit`, and a model that leaves them.

`fit` of Keras 3.15 fails under MultiWorkerMirroredStrategy (issue 20585 of keras-team/keras): to build a model it
averages batches of different workers, and it reduces the logs, which are scalars, over an axis. No other file of this
folder reads privates of Keras; after an upgrade, look here.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras

REDUCES = 'strategy.reduce("MEAN", v, axis=0)'
AVERAGES = "data_batch = self.distribute_strategy.reduce("


class Fault(NamedTuple):
    """A function of Keras that has to be replaced.

    Attributes:
        owner: where it is.
        name: what it is called there.
        mark: lines of its source by which it is known to be the one that fails.
        arguments: those that the replacement takes.
    """

    owner: Any
    name: str
    mark: str
    arguments: tuple[str, ...]


def faults() -> list[Fault]:
    """Returns both, of the Keras that is installed."""
    trainer = keras.src.backend.tensorflow.trainer
    return [
        Fault(trainer, "reduce_per_replica", REDUCES, ("values", "strategy", "reduction")),
        Fault(trainer.TensorFlowTrainer, "_maybe_symbolic_build", AVERAGES, ("self", "iterator", "data_batch")),
    ]


def is_there(fault: Fault) -> bool:
    """Whether a function has the fault still, and not been repaired.

    Raises:
        RuntimeError: there is no such function any more, or it takes other arguments.
    """
    function = getattr(fault.owner, fault.name, None)
    if getattr(function, "repaired_by_kopt", False):
        return False
    source = "" if function is None else inspect.getsource(function)
    if function is not None and fault.mark not in source:
        return False
    if function is None or tuple(inspect.signature(function).parameters) != fault.arguments:
        raise RuntimeError(
            f"Keras {keras.__version__} has no {fault.name}({', '.join(fault.arguments)}), which kopt repairs for "
            "several workers. Use the version of Keras that kopt asks for, or a newer kopt."
        )
    return True


def repair() -> list[str]:
    """Has `fit`, `evaluate` and `predict` work on several workers; returns the names of what was replaced."""
    found = [fault for fault in faults() if is_there(fault)]
    for fault in found:
        replacement = REPLACEMENTS[fault.name](getattr(fault.owner, fault.name))
        replacement.repaired_by_kopt = True
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


REPLACEMENTS: Mapping[str, Callable[[Any], Any]] = {
    "reduce_per_replica": _reducing,
    "_maybe_symbolic_build": _building,
}


def first_of_replicas(strategy: Any, batch: Any) -> Any:
    """Returns the part of a batch that the first replica of this process gets."""
    return keras.tree.map_structure(lambda part: strategy.experimental_local_results(part)[0], batch)


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

"""The optimizers of a model with adapters: one for each set of weights that was trained.

Moments, counters and schedules belong to the weights that they were made for. While another adapter is trained, the
optimizer of the first, with the train function that was traced for it, is parked; it comes back as it was.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from kopt.peft.layers import (
    TAKES_WEIGHTS_BY_PLACE,
    compilation,
    exchange_functions,
    forget_functions,
    models_around,
    set_optimizer,
    strategy_of,
    trained_by,
)


@dataclasses.dataclass
class _Parked:
    optimizer: Any
    train_function: Any


class Optimizers:
    """The optimizers of one model; that of the weights trained now is `model.optimizer`."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._compiled: Any = None
        self._trained: frozenset[int] | None = None
        self._parked: dict[frozenset[int], _Parked] = {}
        self._traced: dict[frozenset[int], dict[str, Any]] = {}
        """Compiled functions that hold for other trainable weights than those of now, by these."""

    def choose(self, frozen: bool = False) -> None:
        """Gives the model the optimizer of the weights that are trainable now: a parked one, or one of no steps.

        A new one has the configuration of the last, with its learning rate as it stands.

        Args:
            frozen: whether nothing is trainable only because the user froze what would be; the optimizer then stays.
        """
        model, trained = self.model, _ids(self.model.trainable_variables)
        if compilation(model) is not self._compiled:  # `compile` begins anew
            self._parked.clear()
            self._traced.clear()
            self._compiled = compilation(model)
        before, self._trained = self._trained, trained
        if TAKES_WEIGHTS_BY_PLACE and before is not None and before != trained:
            self._traced[before] = exchange_functions(model, self._traced.pop(trained, {}))
            for outer in models_around(model):
                forget_functions(outer)
        function = getattr(model, "train_function", None)
        if function is not None and before != trained:
            model.train_function = None
        optimizer = getattr(model, "optimizer", None)
        if optimizer is None or (frozen and not trained):
            return
        if optimizer.built:
            held = _ids(trained_by(optimizer))
            if held == trained:
                return
            if before is not None and held:  # of the base, which was trained before, nothing is kept
                self._parked[held] = _Parked(optimizer, function if before == held else None)
        if (found := self._parked.pop(trained, None)) is not None:
            set_optimizer(model, found.optimizer)
            model.train_function = found.train_function
        elif optimizer.built:
            set_optimizer(model, _fresh(optimizer))

    def forget_functions(self) -> None:
        """Makes the model trace its functions anew: what it computes has other parts now."""
        forget_functions(self.model)
        self._traced.clear()
        for parked in self._parked.values():
            parked.train_function = None

    def drop(self, variables: Iterable[Any]) -> None:
        """Forgets the parked optimizers of these weights."""
        gone = _ids(variables)
        self._parked = {ids: parked for ids, parked in self._parked.items() if not ids & gone}

    def restart(self, variables: Iterable[Any]) -> None:
        """Puts the state that belongs to these weights back to its start, without a new trace."""
        variables = list(variables)
        self.drop(variables)
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is None or not optimizer.built or not _ids(trained_by(optimizer)) & _ids(variables):
            return
        trained = trained_by(optimizer)
        with strategy_of(trained[0]):
            fresh = _fresh(optimizer)
            fresh.build(trained)
        for variable, start in zip(optimizer.variables, fresh.variables, strict=True):
            variable.assign(start.value)


def _ids(variables: Iterable[Any]) -> frozenset[int]:
    return frozenset(id(v) for v in variables)


def _fresh(optimizer: Any) -> Any:
    config = optimizer.get_config()
    if "undecayed" in config:  # weights by their places among those that it was built for
        config["undecayed"] = ()
    with strategy_of(optimizer.variables[0]):
        return type(optimizer).from_config(config)

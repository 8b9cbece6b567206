"""A small classifier that a run has trained, adapted to other data: flags, methods, and the model."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..run.errors import UsageError
from ..run.flags import OptionalCount, OptionalPath, OptionalPositive, refuse
from ..run.folder import load_model, read_flags
from ..run.optimizer_flags import OptimizerFlags
from . import methods
from .methods import Method, low_rank, plain

OWN = ("rank", "alpha")
METHODS = {
    "lora": Method(5e-3, None, low_rank("LoRA"), frozenset(OWN)),
    "dora": Method(5e-3, None, low_rank("DoRA"), frozenset(OWN)),
    "ia3": Method(2e-2, None, plain("IA3")),
    "head": Method(1e-2, None, None),
    "full": Method(1e-3, None, None),
}
USE = """
`adapter/` has what was trained, without the model: any adapter of {base} can be put into that model.

```python
model = keras.models.load_model("{base}/model.keras", compile=False)
kopt.peft.load_adapter(model, "adapter")
```
"""
"""How the model card says to use an adapter."""


@dataclasses.dataclass(frozen=True)
class AdaptFlags:
    """Adapting a trained classifier."""

    adapt: OptionalPath = None
    """Run to adapt to other data: its model is frozen, and what --method says is trained beside it."""
    method: Literal["lora", "dora", "ia3", "head", "full"] = "lora"
    """An adapter on all convolutions and dense layers, with the last layer; that layer alone (head); or everything."""
    rank: OptionalCount = None
    """Rank of lora and dora. Default: 16."""
    alpha: OptionalPositive = None
    """Numerator of the scale alpha/rank of lora and dora. Default: twice the rank."""

    @property
    def adapts(self) -> bool:
        """Returns whether an adapter is trained."""
        return self.adapt is not None and METHODS[self.method].make is not None


def check(flags: AdaptFlags) -> None:
    """Checks the flags against each other.

    Raises:
        UsageError: one has no effect.
    """
    refuse(flags, ("method", *OWN), flags.adapt is None and "without --adapt")
    if flags.adapt is not None:
        methods.check(flags, METHODS, OWN)


def of_model(flags: Any, folder: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Returns those flags of the run that is adapted which say what its model is.

    Args:
        flags: all flags of the recipe.
        folder: of that run.
        names: of these flags; the precision of its layers, which are saved with it, is among them.

    Raises:
        UsageError: the flags name another model.
        DataError: the folder holds no complete run.
    """
    before, default = read_flags(folder, type(flags)), type(flags)()
    taken = {name: getattr(before, name) for name in names}
    for name, value in taken.items():
        if getattr(flags, name) not in (getattr(default, name), value):
            raise UsageError(f"--{name} {getattr(flags, name)}: the model of {folder} has {value}. Leave it out.")
    own, now = before.run.precision, flags.run.precision
    if _policy(own) == _policy(now):
        return taken
    if now != default.run.precision:
        raise UsageError(f"--precision {now}: the model of {folder} has {own}. Leave it out.")
    return taken | {"run": dataclasses.replace(flags.run, precision=own)}


def _policy(precision: str) -> str:
    """Returns how Keras calls a precision: to round factors to TF32 is no matter of the layers."""
    return "float32" if precision == "tf32" else precision


def with_rate(flags: AdaptFlags, optim: OptimizerFlags) -> OptimizerFlags:
    """Returns the flags of the optimizer with the learning rate of the method, where none is given."""
    return optim if flags.adapt is None else dataclasses.replace(optim, learning_rate=METHODS[flags.method].rate(optim))


def load(flags: AdaptFlags, head: str, side: int) -> Any:
    """Returns the model of the run that is adapted, of which only what the method says is trained.

    Adapters that it has already are merged.

    Args:
        flags: which run, and how.
        head: name of the last layer.
        side: of the pictures.

    Raises:
        UsageError: the method does not fit the model.
        DataError: there is no model.
    """
    from kopt import peft

    assert flags.adapt is not None
    model, method = load_model(flags.adapt), METHODS[flags.method]
    if peft.layer_status(model):
        model = peft.merge_and_unload(model)
    model.trainable = True
    if method.make is not None:
        cls, options = method.make(peft, flags.rank, flags.alpha, 0.0, side)
        options |= {"target_modules": methods.linear_layers(model, but=[head]), "modules_to_save": [head]}
        methods.add(model, flags.method, cls, options)
    elif flags.method == "head":
        for layer in model.layers:
            layer.trainable = layer.name == head
    return model


def facts(flags: AdaptFlags, trained: int) -> dict[str, Any]:
    """Returns what the metrics say of the adaptation; nothing without one."""
    if flags.adapt is None:
        return {}
    return {"adapted_from": str(flags.adapt), "method": flags.method, "trained_parameters": trained}


def rows_of_card(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Returns the lines of a model card about it."""
    if "adapted_from" not in metrics:
        return {}
    trained = f"{metrics['trained_parameters']:,} of {metrics['parameters']:,}"
    return {"Adapted from": metrics["adapted_from"], "Method": metrics["method"], "Trained parameters": trained}


def use_of_card(metrics: Mapping[str, Any]) -> str:
    """Returns how a model card says to use the adapter, if there is one."""
    adapts = "adapted_from" in metrics and METHODS[metrics["method"]].make is not None
    return USE.format(base=metrics["adapted_from"]) if adapts else ""

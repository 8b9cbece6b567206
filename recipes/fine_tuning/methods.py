"""Methods of fine-tuning by name: what each one trains, which flags it uses, and its adapter."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..run.errors import UsageError
from ..run.fit import Run
from ..run.folder import NEW
from ..run.optimizer_flags import OptimizerFlags, default_learning_rate

TARGETS = "all-linear"
RANK = 16
"""Default of lora and dora."""
FROZEN = ("rank", "alpha", "dropout", "target")
"""Flags whose values are those of the adapter that a training starts from."""

Make = Callable[[Any, int | None, float | None, float, int], tuple[Any, dict[str, Any]]]
"""Function of kopt.peft, rank, alpha, dropout and width of the model that returns a class and its arguments."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of fine-tuning.

    Args:
        learning_rate: default for AdamW.
        head_learning_rate: default for AdamW and the head, which starts from random weights; `None` takes
            `learning_rate`.
        make: the adapter; `None` trains without one.
        flags: names of those of a recipe's flags that it uses.
        target: what it adapts by default, in the words of `--target`; without one the class says it.
    """

    learning_rate: float
    head_learning_rate: float | None
    make: Make | None
    flags: frozenset[str] = frozenset()
    target: tuple[str, ...] = ()

    def rate(self, optim: OptimizerFlags) -> float:
        """Returns the learning rate: the given one, else for AdamW that of the method, else the optimizer's own."""
        if optim.learning_rate is not None:
            return optim.learning_rate
        return self.learning_rate if has_rates_for(optim) else default_learning_rate(optim.optimizer)

    def head_factor(self, optim: OptimizerFlags, head_rate: float | None) -> float | None:
        """Returns the learning rate of the head in units of that of the rest; `None` where it has none of its own."""
        if head_rate is None and has_rates_for(optim):
            head_rate = self.head_learning_rate
        return None if head_rate is None else head_rate / self.rate(optim)


def has_rates_for(optim: OptimizerFlags) -> bool:
    """Returns whether the methods have learning rates for an optimizer."""
    return optim.optimizer.lower() == "adamw"


def ranked(name: str, default: int, alpha: str | None = None, dropout: str | None = None) -> Make:
    """Returns what makes a method with a rank.

    Args:
        name: of the class in kopt.peft.
        default: its rank where none is given.
        alpha: its argument for the numerator of the scale, which is twice the rank by default; `None` has none.
        dropout: its argument for dropout; `None` has none.
    """

    def make(peft: Any, rank: int | None, numerator: float | None, rate: float, width: int) -> Any:
        options: dict[str, Any] = {"r": rank or default}
        if alpha is not None:
            options[alpha] = 2.0 * options["r"] if numerator is None else numerator
        if dropout is not None:
            options[dropout] = rate
        return getattr(peft, name), options

    return make


def low_rank(name: str) -> Make:
    """Returns what makes LoRA, or a class like it."""
    return ranked(name, RANK, "lora_alpha", "lora_dropout")


def plain(name: str) -> Make:
    """Returns what makes an adapter without arguments."""
    return lambda peft, rank, alpha, dropout, width: (getattr(peft, name), {})


def keep_start(run: Run, flag: str, start: str | Path | None) -> None:
    """Checks that a run does not replace the run that it starts from, which its adapter needs again.

    Args:
        run: that has not begun.
        flag: that names the other run.
        start: what it says.

    Raises:
        UsageError: it does.
    """
    if start is not None and run.folder.name == NEW and Path(start).resolve() == run.folder.resolve().parent:
        raise UsageError(f"{flag} {start}: is the run that --overwrite would replace. Choose another --output-dir.")


def grouped(name: str, group: int) -> Make:
    """Returns what makes a method with groups of outputs, of the size nearest below `group` that divides the width."""
    return lambda peft, rank, alpha, dropout, width: (getattr(peft, name), {"group_size": math.gcd(group, width)})


def check(flags: Any, methods: Mapping[str, Method], own: Sequence[str]) -> None:
    """Checks that the method uses every flag that is given.

    Args:
        flags: dataclass with `method`, and perhaps `adapter`, the adapter to start from.
        methods: by name.
        own: names of the flags that only some methods use.

    Raises:
        UsageError: it does not use one of them.
    """
    start = getattr(flags, "adapter", None)
    for name in own:
        flag = "--" + name.replace("_", "-")
        if getattr(flags, name) in (None, False, ()):
            continue
        if name not in methods[flags.method].flags:
            takers = ", ".join(method for method, known in methods.items() if name in known.flags)
            raise UsageError(f"{flag} has no effect with --method {flags.method}; it is for {takers}.")
        if start is not None and name in FROZEN:
            raise UsageError(f"{flag} is fixed by --adapter {start}. Leave it out.")


def names_or_pattern(target: Sequence[str]) -> list[str] | str:
    """Returns the words of `--target` as `kopt.peft` takes them: names, or one expression for paths."""
    single = len(target) == 1 and (target[0] == TARGETS or any(c in target[0] for c in r"*+?[](){}|\^$"))
    return target[0] if single else list(target)


def linear_layers(model: Any, but: Sequence[str] = ()) -> list[str]:
    """Returns the names of all dense layers, einsums and convolutions in a model but those called `but`.

    Convolutions of each channel alone are left out: their kernels are too small for a change of low rank.
    """
    import keras

    kinds = (keras.layers.Dense, keras.layers.EinsumDense, keras.layers.Conv1D, keras.layers.Conv2D)
    found = [layer.name for layer in model._flatten_layers() if isinstance(layer, kinds) and layer.weights]
    return [name for name in dict.fromkeys(found) if name not in but]


def add(model: Any, method: str, cls: Any, options: Mapping[str, Any]) -> None:
    """Adds an adapter to a model, whose base is frozen.

    Raises:
        UsageError: it does not fit the model.
    """
    from kopt import peft

    try:
        peft.get_peft_model(model, cls(**options))
    except ValueError as error:
        raise UsageError(f"--method {method}: {' '.join(str(error).split())}") from error


def count_parameters(model: Any) -> tuple[int, int]:
    """Returns the number of trainable parameters, and of all."""
    from kopt import peft

    trained, everything = peft.get_nb_trainable_parameters(model)
    return trained, everything


def adapter_stats(run: Run, training: Any) -> list[Any]:
    """Returns the callback that shows the size of the adapter, and how far it changes the model.

    Args:
        run: that has begun.
        training: batches to train on.
    """
    from kopt.tensorboard import AdapterStats

    tracking = run.tracking
    return [AdapterStats(tracking.log_dir, run.points(run.count_steps(training)), log=tracking.log)]

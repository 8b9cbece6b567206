"""From flags to an optimizer of kopt or Keras."""

import contextlib
import dataclasses
import difflib
import inspect
from collections.abc import Sequence
from typing import Any, Literal

import tyro
import yaml

from .errors import UsageError
from .flags import Count, OptionalNumber


@dataclasses.dataclass(frozen=True)
class OptimizerFlags:
    """The optimizer."""

    optimizer: str = "adabound"
    """Name of an optimizer of kopt or Keras; upper and lower case are the same."""
    opt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE: an argument of the optimizer, as in final_lr=0.1."""
    learning_rate: OptionalNumber = None
    """Peak learning rate; if none is set, it is chosen by the recipe or is the optimizer's own."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up; linear and cosine decay to 0."""
    warmup: str = "0"
    """Length of the linear warm-up, in updates or in percent of all updates, as in 5%."""
    weight_decay: OptionalNumber = None
    """Weight decay. Default: the optimizer's own."""
    clip_norm: OptionalNumber = None
    """Clip the global norm of the gradients to this value."""
    grad_accum: Count = 1
    """Batches per update of the weights, which uses their mean gradient."""
    ema: OptionalNumber = None
    """Momentum of a moving average of the weights, as in 0.99. The averaged weights are tested and saved."""


def make_optimizer(flags: OptimizerFlags, batches: int, multipliers: Sequence[tuple[str, float]] = ()) -> Any:
    """Returns the optimizer that `flags` describe.

    Args:
        flags: the flags.
        batches: batches of the whole training, for schedules.
        multipliers: factors of the learning rate by path of a weight; only optimizers of kopt take them.

    Raises:
        UsageError: a name, option or value is wrong.
    """
    cls = find_class(flags.optimizer)
    options = parse_options(flags.opt)
    if multipliers:
        if not _is_kopt(cls):
            raise UsageError(f"--optimizer {flags.optimizer}: only kopt's optimizers have a learning rate per weight.")
        options["multipliers"] = list(multipliers)
    if flags.learning_rate is not None:
        options["learning_rate"] = flags.learning_rate
    if flags.weight_decay is not None:
        options["weight_decay"] = flags.weight_decay
    if flags.clip_norm is not None:
        options["global_clipnorm"] = flags.clip_norm
    if flags.ema is not None:
        options |= {"use_ema": True, "ema_momentum": flags.ema}
    if flags.grad_accum > 1:
        options["gradient_accumulation_steps"] = flags.grad_accum
    optimizer = _construct(cls, options)
    updates = max(1, batches // flags.grad_accum)
    warmup = _warmup_updates(flags.warmup, updates)
    if flags.lr_schedule == "constant" and not warmup:
        return optimizer
    # Keras asks a schedule about batches, kopt about updates.
    unit = 1 if _is_kopt(cls) else flags.grad_accum
    peak = options.get("learning_rate", _learning_rate(optimizer))
    return _construct(cls, options | {"learning_rate": _schedule(flags.lr_schedule, peak, updates, warmup, unit)})


def find_class(name: str) -> type:
    """Returns the optimizer class called `name`, in kopt or else in Keras.

    Raises:
        UsageError: there is none.
    """
    import keras

    import kopt

    classes = {
        key.lower(): cls
        for key, cls in vars(keras.optimizers).items()
        if isinstance(cls, type)
        and issubclass(cls, keras.optimizers.Optimizer)
        and "learning_rate" in inspect.signature(cls).parameters
    } | kopt.registry()
    if name.lower() not in classes:
        near = difflib.get_close_matches(name.lower(), classes, n=3)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise UsageError(f"--optimizer {name}: unknown. {hint}Known: {', '.join(sorted(classes))}.")
    return classes[name.lower()]


def default_learning_rate(name: str) -> float:
    """Returns the learning rate that an optimizer has when none is given.

    Raises:
        UsageError: there is no such optimizer.
    """
    return _learning_rate(find_class(name)())


def peak_learning_rate(flags: OptimizerFlags) -> float:
    """Returns the learning rate that the flags come to: the highest one, if it is scheduled.

    Raises:
        UsageError: a name, option or value is wrong.
    """
    given = parse_options(flags.opt).get("learning_rate") if flags.learning_rate is None else flags.learning_rate
    return default_learning_rate(flags.optimizer) if given is None else float(given)


def parse_options(pairs: tuple[str, ...]) -> dict[str, Any]:
    """Returns `K=V` pairs as a mapping.

    Raises:
        UsageError: a pair has no `=`, or its value is not a YAML scalar.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (equals and key.isidentifier()):
            raise UsageError(f"--opt {pair}: expected NAME=VALUE, as in final_lr=0.1.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UsageError(f"--opt {pair}: {text!r} is not a YAML scalar.") from None
        if isinstance(value, str):
            with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-3 as a string
                value = float(value)
        options[key] = value
    return options


def _construct(cls: type, options: dict[str, Any]) -> Any:
    arguments = set(inspect.signature(cls).parameters) | {"learning_rate"}
    arguments |= {name for base in cls.__mro__[1:-1] for name in inspect.signature(base).parameters}
    allowed = sorted(arguments - {"self", "args", "options", "kwargs"})
    for name in options:
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise UsageError(f"--opt {name}={options[name]}: unknown. {hint}{cls.__name__} takes {', '.join(allowed)}.")
    try:
        return cls(**options)
    except (ValueError, TypeError) as error:
        raise UsageError(f"--optimizer {cls.__name__.lower()}: {' '.join(str(error).split())}") from error


def _is_kopt(cls: type) -> bool:
    import kopt

    return issubclass(cls, kopt.Optimizer)


def _learning_rate(optimizer: Any) -> float:
    import keras

    return float(f"{float(keras.ops.convert_to_numpy(optimizer.learning_rate)):.7g}")


def _warmup_updates(text: str, updates: int) -> int:
    """Returns `--warmup` in updates."""
    try:
        number = float(text.removesuffix("%"))
        warmup = round(number / 100 * updates) if text.endswith("%") else int(text)
    except (ValueError, OverflowError):
        raise UsageError(f"--warmup {text}: expected a number of updates or a percentage, as in 100 or 5%.") from None
    if not 0 <= warmup <= updates:
        raise UsageError(f"--warmup {text}: is {warmup} of {updates} updates; expected 0 to all of them.")
    return warmup


def _schedule(kind: str, peak: float, updates: int, warmup: int, unit: int) -> Any:
    from keras.optimizers import schedules

    import kopt

    steps, warmup = max(updates, warmup + 1) * unit, warmup * unit
    if kind == "constant":  # a cosine that ends where it begins
        return schedules.CosineDecay(0.0, steps, alpha=1.0, warmup_target=peak, warmup_steps=warmup)
    shape = kopt.schedules.WarmupLinear if kind == "linear" else kopt.schedules.WarmupCosine
    return shape(peak, steps=steps, warmup=warmup)

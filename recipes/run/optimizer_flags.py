"""From flags to an optimizer of kopt or Keras."""

import ast
import contextlib
import dataclasses
import difflib
import functools
import importlib.util
import inspect
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
import yaml

from .errors import UsageError
from .flags import Count, OptionalNumber

SCHEDULES = {
    "linear": "WarmupLinear",
    "cosine": "WarmupCosine",
    "polynomial": "WarmupPolynomial",
    "rex": "REX",
    "stable-decay": "WarmupStableDecay",
    "power-cooldown": "PowerCooldown",
    "one-cycle": "OneCycle",
    "cyclical": "Cyclical",
}
"""Classes of `kopt.schedules`."""
OF_KERAS = "keras."
"""What stands before the names of Keras' own optimizers."""
OUTER = ("self", "name", "args", "kwargs", "options")
"""Parameters of constructors that are no arguments of an optimizer."""
PARTS = {
    "route": (("routes",), "--opt 'routes=[[bias$, sgd], [\"\", adamw]]'"),
    "switch": (("first", "second", "after"), "--opt first=adam --opt second=sgd --opt after=1000"),
}
"""Arguments without which an optimizer says nothing."""


@dataclasses.dataclass(frozen=True)
class OptimizerFlags:
    """The optimizer."""

    optimizer: str = "adabound"
    """Name of an optimizer of kopt, or of Keras with keras. before it; upper and lower case are the same."""
    opt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE: an argument of the optimizer, as in final_lr=0.1."""
    learning_rate: OptionalNumber = None
    """Peak learning rate; if none is set, it is chosen by the recipe or is the optimizer's own."""
    lr_find: bool = False
    """Find the peak learning rate by a sweep before the training, and train with it; with --dry-run only print it."""
    lr_schedule: Literal[
        "constant", "linear", "cosine", "polynomial", "rex", "stable-decay", "power-cooldown", "one-cycle", "cyclical"
    ] = "constant"
    """Learning rate after the warm-up; one-cycle and cyclical have their own way up."""
    schedule_opt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUE: an argument of the schedule, as in end=0.1, or decay=200 of stable-decay and power-cooldown."""
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
    on_nonfinite: Literal["stop", "skip", "ignore"] = "stop"
    """What a loss, gradient or weight that is NaN or infinite does: stop ends the run, skip leaves the update out."""


def make_optimizer(
    flags: OptimizerFlags,
    batches: int,
    multipliers: Sequence[tuple[str, float]] = (),
    examples: int | None = None,
    batch_size: int | None = None,
    flag: str = "--optimizer",
) -> Any:
    """Returns the optimizer that `flags` describe.

    Args:
        flags: the flags.
        batches: batches of the whole training, for schedules.
        multipliers: factors of the learning rate by path of a weight; only optimizers of kopt take them.
        examples: in an epoch; what `LBFGS` and `BGD` take the gradient of.
        batch_size: examples of a batch, but perhaps for the last one.
        flag: the one that names the optimizer.

    Raises:
        UsageError: a name, option or value is wrong.
    """
    cls = find_class(flags.optimizer, flag)
    if hasattr(cls, "observe"):
        raise UsageError(f"{flag} {flags.optimizer}: needs a model of kopt.Curvature, which the recipes do not train.")
    options = parse_options("--opt", flags.opt)
    if flags.on_nonfinite == "skip":
        if not _is_kopt(cls):
            raise UsageError(f"--on-nonfinite skip: only kopt's optimizers can, and {cls.__name__} is one of Keras.")
        options.setdefault("on_nonfinite", "skip")
    if multipliers:
        if not _is_kopt(cls):
            raise UsageError(f"{flag} {flags.optimizer}: only kopt's optimizers have a learning rate per weight.")
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
    accumulated = flags.grad_accum
    if examples is not None and batch_size is not None and "examples" in inspect.signature(cls).parameters:
        given = {"examples", "steps_per_update", "gradient_accumulation_steps"} & options.keys()
        options |= {} if given else {"examples": examples, "batch_size": min(batch_size, examples)}
        accumulated = 1 if given else -(-examples // batch_size)
    optimizer = _construct(cls, options, flag)
    updates = max(1, batches // accumulated)
    warmup = _warmup_updates(flags.warmup, updates)
    if flags.lr_schedule == "constant" and flags.schedule_opt:
        raise UsageError("--schedule-opt: --lr-schedule constant has no arguments.")
    if flags.lr_schedule == "constant" and not warmup:
        return optimizer
    # Keras asks a schedule about batches, kopt about updates.
    unit = 1 if _is_kopt(cls) else flags.grad_accum
    peak = options.get("learning_rate", _learning_rate(optimizer))
    return _construct(cls, options | {"learning_rate": _schedule(flags, peak, updates, warmup, unit)}, flag)


def scaled(optimizer: Any, replicas: int = 1) -> Any:
    """Returns the optimizer as the precision of the process asks for it: in mixed float16 with kopt's loss scaling.

    Raises:
        UsageError: it does not fit the precision.
    """
    import keras

    import kopt

    precision = keras.config.dtype_policy().name
    if isinstance(optimizer, kopt.Optimizer):
        try:
            return kopt.LossScaleOptimizer(optimizer) if precision == "mixed_float16" else optimizer
        except ValueError as error:
            raise UsageError(f"--precision mixed_float16: {error}") from error
    if precision == "bfloat16":
        raise UsageError(
            "--precision bfloat16: Keras' optimizers lose what is rounded. Take mixed_bfloat16, or kopt's."
        )
    if precision == "mixed_float16" and replicas > 1:
        raise UsageError(
            "--precision mixed_float16: of several replicas Keras' loss scaling lets a NaN through. Take kopt's."
        )
    return optimizer


def check_name(name: str, flag: str = "--optimizer") -> frozenset[str]:
    """Checks the name of an optimizer, without importing Keras, and returns what arguments it has.

    Raises:
        UsageError: there is none of this name.
    """
    known = known_arguments()
    if name.lower() not in known:
        raise UsageError(_unknown_optimizer(name, known, flag))
    return known[name.lower()]


def check_names(flags: OptimizerFlags) -> None:
    """Checks the names of the optimizer and of its arguments, without importing Keras.

    Raises:
        UsageError: one is unknown, or parts are missing.
    """
    known, name = check_name(flags.optimizer), flags.optimizer.lower()
    options = parse_options("--opt", flags.opt)
    for key in options:
        if key not in known:
            raise UsageError(_unknown_option("--opt", key, options[key], known, flags.optimizer))
    parts, example = PARTS.get(name, ((), ""))
    if missing := [part for part in parts if part not in options]:
        raise UsageError(f"--optimizer {flags.optimizer}: give --opt {missing[0]}=... too, as in {example}.")


def find_class(name: str, flag: str = "--optimizer") -> type:
    """Returns the optimizer class called `name`, in kopt, or in Keras as "keras.adam".

    Raises:
        UsageError: there is none.
    """
    import keras

    import kopt

    classes = {
        OF_KERAS + key.lower(): cls
        for key, cls in vars(keras.optimizers).items()
        if isinstance(cls, type)
        and issubclass(cls, keras.optimizers.Optimizer)
        and "learning_rate" in inspect.signature(cls).parameters
    } | kopt.registry()
    if name.lower() not in classes:
        raise UsageError(_unknown_optimizer(name, classes, flag))
    return classes[name.lower()]


def _unknown_optimizer(name: str, known: Iterable[str], flag: str) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=3)
    hint = f"Did you mean {' or '.join(near)}? " if near else ""
    return f"{flag} {name}: unknown. {hint}Known: {', '.join(sorted(known))}."


def _unknown_option(flag: str, name: str, value: Any, known: Iterable[str], owner: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    return f"{flag} {name}={value}: unknown. {hint}{owner} takes {', '.join(sorted(known))}."


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
    given = flags.learning_rate
    if given is None:
        given = parse_options("--opt", flags.opt).get("learning_rate")
    try:
        return default_learning_rate(flags.optimizer) if given is None else float(given)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--opt learning_rate={given}: expected a number.") from error


def parse_options(flag: str, pairs: tuple[str, ...]) -> dict[str, Any]:
    """Returns the `K=V` pairs after a flag as a mapping.

    Raises:
        UsageError: a pair has no `=`, or its value is not a YAML scalar.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not (equals and key.isidentifier()):
            raise UsageError(f"{flag} {pair}: expected NAME=VALUE, as in final_lr=0.1.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise UsageError(f"{flag} {pair}: {text!r} is not a YAML scalar.") from None
        if isinstance(value, str):
            with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-3 as a string
                value = float(value)
        options[key] = value
    return options


def _construct(cls: type, options: dict[str, Any], flag: str) -> Any:
    arguments = set(inspect.signature(cls).parameters) | {"learning_rate"}
    arguments |= {name for base in cls.__mro__[1:-1] for name in inspect.signature(base).parameters}
    allowed = sorted(arguments - {"self", "args", "options", "kwargs"})
    for name in options:
        if name not in allowed:
            raise UsageError(_unknown_option("--opt", name, options[name], allowed, cls.__name__))
    try:
        return cls(**options)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{flag} {cls.__name__.lower()}: {' '.join(str(error).split())}") from error


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


def _schedule(flags: OptimizerFlags, peak: float, updates: int, warmup: int, unit: int) -> Any:
    from keras.optimizers import schedules

    import kopt

    kind, options = flags.lr_schedule, parse_options("--schedule-opt", flags.schedule_opt)
    steps, warmup = max(updates, warmup + 1), warmup * unit
    if kind == "constant":  # a cosine that ends where it begins
        return schedules.CosineDecay(0.0, steps * unit, alpha=1.0, warmup_target=peak, warmup_steps=warmup)
    shape = getattr(kopt.schedules, SCHEDULES[kind])
    known = sorted(inspect.signature(shape).parameters.keys() - {"peak_learning_rate", "warmup"})
    for name, value in options.items():
        if name not in known:
            raise UsageError(_unknown_option("--schedule-opt", name, value, known, kind))
    falls = {"stable-decay": steps // 10, "power-cooldown": steps // 2}
    options = {"steps": steps} | ({"decay": max(1, falls[kind])} if kind in falls else {}) | options
    options |= {name: options[name] * unit for name in ("steps", "decay") if name in options}
    if "warmup" in inspect.signature(shape).parameters:
        options["warmup"] = warmup
    elif warmup:
        raise UsageError(f"--warmup {flags.warmup}: --lr-schedule {kind} has its own way up.")
    try:
        return shape(peak, **options)
    except (ValueError, TypeError) as error:
        raise UsageError(f"--lr-schedule {kind}: {' '.join(str(error).split())}") from error


# ----------------------------------------------------------------------------------------- names, without an import


@functools.cache
def known_arguments() -> dict[str, frozenset[str]]:
    """Returns the names of the arguments by the name of the optimizer, in lower case.

    As they stand in the sources of kopt and Keras: so a wrong name is found before TensorFlow is loaded, which takes
    seconds.
    """
    return _of_keras() | _of_kopt()


def _of_kopt() -> dict[str, frozenset[str]]:
    """Of classes below `Optimizer`: what is annotated in them and in those that they extend."""
    classes = {node.name: node for node in _classes("kopt", "optimizers")}
    found = {}
    for name in classes:
        line = _line(name, classes)
        if "Optimizer" in line[1:] and not any(word.arg == "abstract" for word in classes[name].keywords):
            found[name.lower()] = frozenset(
                field.target.id
                for each in line
                for field in classes[each].body
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
                if "ClassVar" not in ast.unparse(field.annotation)
            )
    return found


def _of_keras() -> dict[str, frozenset[str]]:
    """Of classes whose constructor takes a learning rate, what it takes, and what the base takes."""
    classes = {node.name: node for node in _classes("keras", "src/optimizers")}
    found = {}
    for name, node in classes.items():
        own = _of_constructor(node)
        if "learning_rate" in own and not name.startswith("Base"):
            base = classes.get("BaseOptimizer")
            found[OF_KERAS + name.lower()] = frozenset(own | (set() if base is None else _of_constructor(base)))
    return found


def _of_constructor(node: ast.ClassDef) -> set[str]:
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return {argument.arg for argument in (*part.args.args, *part.args.kwonlyargs)} - {*OUTER} | {"name"}
    return set()


def _line(name: str, classes: dict[str, ast.ClassDef]) -> list[str]:
    """Returns a class and all that it extends."""
    bases = [base.id for base in classes[name].bases if isinstance(base, ast.Name) and base.id in classes]
    return [name, *(each for base in bases for each in _line(base, classes))]


def _classes(package: str, folder: str) -> Iterator[ast.ClassDef]:
    spec = importlib.util.find_spec(package)
    for place in (spec and spec.submodule_search_locations) or ():
        for path in sorted(Path(place, folder).rglob("*.py")):
            if not path.stem.endswith("_test"):
                tree = ast.parse(path.read_text(encoding="utf-8"))
                yield from (node for node in tree.body if isinstance(node, ast.ClassDef))

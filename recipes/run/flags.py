"""Kinds of flags, which carry their bounds, and the flags that every run has.

The kinds are called as those of `kopt.declare`, which is not imported here because `--help` must not import Keras.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import tyro

from .errors import UsageError


@dataclasses.dataclass(frozen=True)
class Range:
    """The finite numbers of at least `low`, or with `above` more than `low`, and less than `high`."""

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, number: float) -> bool:
        return (number > self.low if self.above else number >= self.low) and number < self.high

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'more than' if self.above else 'at least'} {self.low}"
        return f"{f'more than {self.low}' if self.above else f'{self.low} or more'} and less than {self.high}"


def optional(name: str) -> Any:
    """Returns what `--help` calls the value of a flag that may be left out; a default of None is not shown."""

    def show(default: str) -> str:
        return "" if default == "None" else f"(default: {default})"

    return tyro.conf.arg(metavar=name, help_behavior_hint=show)


Fraction = Annotated[float, Range(0, 1)]
"""A number in [0, 1)."""
OptionalFraction = Annotated[float | None, Range(0, 1), optional("FLOAT")]
OpenFraction = Annotated[float, Range(0, 1, above=True)]
"""A number in (0, 1)."""
NonNegative = Annotated[float, Range(0)]
"""A number in [0, inf)."""
Count = Annotated[int, Range(1)]
"""A whole number in [1, inf)."""
CountOrZero = Annotated[int, Range(0)]
"""A whole number in [0, inf)."""
OptionalCount = Annotated[int | None, Range(1), optional("INT")]
OptionalNumber = Annotated[float | None, optional("FLOAT")]
OptionalPositive = Annotated[float | None, Range(0, above=True), optional("FLOAT")]
"""A number in (0, inf)."""
OptionalName = Annotated[str | None, optional("NAME")]
OptionalPath = Annotated[Path | None, optional("PATH")]
RunPath = Annotated[Path, tyro.conf.arg(metavar="RUN")]


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """How the run is done, and where its files go."""

    max_steps: OptionalCount = None
    """Stop after this many batches, even within an epoch."""
    early_stopping: OptionalCount = None
    """Stop when the watched metric has not improved for this many epochs, and restore the weights of the best epoch."""
    precision: Literal["float32", "tf32", "mixed_float16", "mixed_bfloat16", "bfloat16"] = "float32"
    """Arithmetic of the layers. tf32: a GPU rounds the factors of float32 products. mixed: weights stay float32; of
    float16 the loss is scaled. bfloat16: weights too, whose rounding errors the optimizer keeps (rounding=kahan)."""
    jit: Literal["auto", "on", "off"] = "auto"
    """Compile the train step with XLA; auto compiles on a GPU."""
    seed: CountOrZero = 42
    """Seed of the initial weights, the order of the data, dropout and augmentation."""
    deterministic: bool = False
    """Use only deterministic kernels: slower, but a run on a GPU repeats bit for bit."""
    progress: Literal["auto", "rich", "plain", "none"] = "auto"
    """rich adds a progress bar to the lines of the epochs, which none leaves out; auto is rich on a terminal."""
    log_every: OptionalCount = None
    """Updates of the weights from one point of a curve to the next. Default: what makes about 100 points."""
    track: str = "tensorboard"
    """Where curves and pictures are shown: tensorboard, wandb (Weights & Biases), both with a comma, or none."""
    output_dir: OptionalPath = None
    """Folder of the run. Default: saved_models/<recipe>/<run-name>."""
    run_name: OptionalName = None
    """Name of the run. Default: <optimizer>-<UTC time>."""
    overwrite: bool = False
    """Replace the run that is already in the folder, once the new one is complete."""
    resume: str = "never"
    """auto goes on from the last checkpoint in the folder and begins where there is none; or the folder of a run."""
    save_every: Annotated[str, tyro.conf.arg(metavar="EPOCHS|STEPSs")] = "1"
    """Epochs from one checkpoint to the next, or steps, as in 500s."""
    keep: Count = 2
    """How many of the last checkpoints stay."""
    dry_run: bool = False
    """Read the data, build the model and do one training step; write no files."""
    distribute: Literal["none", "mirrored", "multiworker"] = "none"
    """Train on all GPUs of this machine (mirrored), or by several processes, of which each is started with the same
    flags (multiworker): the batches are shared out, and the result is that of one process. See docs/distribution.md."""
    workers: Annotated[str | None, optional("HOST:PORT,...")] = None
    """Addresses of all workers, in one order; without them the variable TF_CONFIG says it. `kopt launch` sets it."""
    worker_index: Annotated[int | None, Range(0), optional("INT")] = None
    """Which of the workers this process is, from 0; worker 0 alone writes files."""
    sync_every: OptionalCount = None
    """With --distribute multiworker: each worker trains by itself on its rows, and after so many batches their weights
    become their mean (local SGD), for slow networks."""
    start_timeout: Annotated[float, Range(0, above=True)] = 60.0
    """Seconds in which all workers must have come."""
    config: Annotated[Path | None, optional("FILE")] = None
    """YAML file of flags, such as the config.yaml of a run; flags on the command line override it."""


def check_bounds(flags: Any) -> None:
    """Checks each number in a dataclass of flags, and in the dataclasses in it, against the bounds of its kind.

    Raises:
        UsageError: one is out of bounds, or not finite.
    """
    for name, kind in get_type_hints(type(flags), include_extras=True).items():
        value = getattr(flags, name)
        if dataclasses.is_dataclass(value):
            check_bounds(value)
        for number in value if isinstance(value, tuple) else (value,):
            flag = f"--{name.replace('_', '-')} {number}"
            if isinstance(number, float) and not math.isfinite(number):
                raise UsageError(f"{flag}: expected a finite number.")
            for bounds in _ranges(kind):
                if number is not None and number not in bounds:
                    raise UsageError(f"{flag}: expected {bounds}.")


def _ranges(kind: Any) -> Iterator[Range]:
    for part in get_args(kind):
        if isinstance(part, Range):
            yield part
        else:
            yield from _ranges(part)


def refuse(flags: Any, names: Iterable[str], reason: object) -> None:
    """Refuses flags that have no effect; those that have their default value count as not given.

    Args:
        flags: dataclass of the flags.
        names: of its fields.
        reason: beside what they have no effect, as in "with --task rating"; if it is empty or `None`, they have one.

    Raises:
        UsageError: one of them is given.
    """
    if not reason:
        return
    for field in dataclasses.fields(flags):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if field.name in names and getattr(flags, field.name) != default:
            raise UsageError(f"--{field.name.replace('_', '-')} has no effect {reason}. Leave it out.")


def check_texts(flag: str, texts: Iterable[str]) -> None:
    """Checks that what a flag gives are texts with something in them.

    Raises:
        UsageError: one is empty, or has bytes that are no letters.
    """
    for text in texts:
        if not text.strip():
            raise UsageError(f"{flag}: is empty.")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UsageError(f"{flag} {text[:40]!a}: is not UTF-8. Convert it, or set the locale to UTF-8.")


def check_rate(flags: Any) -> None:
    """Checks that `--lr-find` can find a learning rate, and that none is given.

    Args:
        flags: all flags of a recipe.

    Raises:
        UsageError: one is given, or there are several devices.
    """
    given = flags.optim.learning_rate
    if flags.optim.lr_find and given not in (None, type(flags)().optim.learning_rate):
        raise UsageError(f"--lr-find finds the learning rate. Leave it out, or --learning-rate {given}.")
    if flags.optim.lr_find and flags.run.distribute != "none":
        raise UsageError("--lr-find: sweeps on one device. Find the rate without --distribute, and give it.")


def flag_words(words: Iterable[str]) -> list[str]:
    """Returns the flags on a command line as they are documented: `--batch_size=8` is `--batch-size`."""
    return [word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")]


def flatten(flags: Any) -> dict[str, Any]:
    """Returns the flags of a dataclass and of the dataclasses in it as one plain, YAML-ready mapping."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(flags):
        value = getattr(flags, field.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value)
        elif isinstance(value, tuple):
            flat[field.name] = list(value)
        else:
            flat[field.name] = str(value) if isinstance(value, Path) else value
    return flat


PLACES = ("config", "output_dir", "run_name", "overwrite", "resume", "dry_run", "workers", "worker_index")
"""Flags that say where the results go."""
FREE = ("epochs", "max_steps", "save_every", "keep", "progress", "log_every", "track", "distribute", "start_timeout")
"""Flags that may change when a run goes on: its length, its checkpoints, and what is shown."""


def settings(flags: Any) -> dict[str, Any]:
    """Returns the flags that say what is trained, without those that say where the results go."""
    return {key: value for key, value in flatten(flags).items() if key not in PLACES}


def cadence(text: str) -> int | str:
    """Returns `--save-every` as `kopt.checkpoint.Checkpoint` takes it.

    Raises:
        UsageError: it is neither a number of epochs nor of steps.
    """
    number = text.removesuffix("s")
    if not (number.isascii() and number.isdecimal() and int(number)):
        raise UsageError(f"--save-every {text}: expected a number of epochs, as in 1, or of steps, as in 500s.")
    return text if text.endswith("s") else int(text)

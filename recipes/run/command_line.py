"""The command line of a recipe: flags from a dataclass, with a YAML file for their defaults, and exit codes.

Nothing here imports Keras, so that `--help` answers at once.
"""

import contextlib
import dataclasses
import difflib
import inspect
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
import yaml

from . import signals
from .errors import AlreadyDoneError, DiskError, EndedError, RecipeError, UsageError, is_full_disk
from .flags import check_bounds
from .optimizer_flags import check_names

PACKAGE = __name__.removesuffix(".run.command_line")
"""Name of the package of the recipes: `recipes` in a clone, `kopt.recipes` in a wheel."""


Commands = Mapping[type, Callable[[Any], int]]
"""Function of the flags by their dataclass."""


def program(recipe: str) -> str:
    """Returns the command that starts a recipe: in a clone `python -m recipes.NAME`, in a wheel `kopt NAME`."""
    outer, inside, _ = PACKAGE.rpartition(".")
    return f"{outer} {recipe.replace('_', '-')}" if inside else f"python -m {PACKAGE}.{recipe}"


def parse(argv: Sequence[str], commands: Mapping[str, type], prog: str, default: str = "train") -> Any:
    """Returns an instance of the dataclass of the command in `argv`.

    Args:
        argv: arguments without the program's name. The first may name a command.
        commands: dataclass by command. If it has a field `config`, that YAML file gives the defaults of the flags.
        prog: the command that the help text shows.
        default: the command when `argv` names none.

    Raises:
        UsageError: the YAML file is missing or wrong, or a number is out of bounds.
        SystemExit: `--help`, or a flag is unknown or malformed (code 2).
    """
    named = bool(argv) and argv[0] in commands
    command, rest = (argv[0], list(argv[1:])) if named else (default, list(argv))
    flags = commands[command]
    others = " | ".join(f"{name} (default)" if name == default else name for name in commands)
    found: Any = tyro.cli(
        flags,
        args=[*_config_arguments(rest, flags), *rest],
        prog=f"{prog} {command}" if named else prog,
        description=f"{inspect.cleandoc(flags.__doc__ or '')}\n\nCommands: {others}.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    check_bounds(found)
    return found


def _flag_names(flags: type) -> list[str]:
    names = []
    for field in dataclasses.fields(flags):
        kind = field.type
        names += _flag_names(kind) if isinstance(kind, type) and dataclasses.is_dataclass(kind) else [field.name]
    return names


def _config_arguments(argv: Sequence[str], flags: type) -> list[str]:
    """Returns the entries of the run after `--resume` and of the file after `--config` as command-line arguments.

    As arguments they pass the same checks as flags, and a flag typed later wins.
    """
    names = _flag_names(flags)
    if "config" not in names:
        return []
    run, file = _value_of("--resume", argv), _value_of("--config", argv)
    files = [] if run is None else [str(path) for path in (Path(run) / "config.yaml",) if path.is_file()]
    return [x for name in (*files, *([] if file is None else [file])) for x in _as_arguments(name, names)]


def _value_of(flag: str, argv: Sequence[str]) -> str | None:
    found = None
    for i, argument in enumerate(argv):
        if argument == flag and i + 1 < len(argv):
            found = argv[i + 1]
        elif argument.startswith(f"{flag}="):
            found = argument.partition("=")[2]
    return found


def _as_arguments(file: str, names: Sequence[str]) -> list[str]:
    arguments: list[str] = []
    for key, value in read_mapping(Path(file)).items():
        name = str(key).replace("-", "_")
        if name not in names or name == "config":
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(names)}."
            raise UsageError(f"--config {file}: unknown key {key!r}; {hint}")
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(flag if value else "--no-" + flag.removeprefix("--"))
        elif isinstance(value, dict):
            arguments += [f"{flag}={k}={v}" for k, v in value.items()]
        elif value is not None:
            arguments += [f"{flag}={v}" for v in (value if isinstance(value, list) else [value])]
    return arguments


LARGEST = 2**16
"""Bytes of the largest file."""


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, with which a short file can stand for an endless one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read")
        return super().compose_node(parent, index)


def read_mapping(path: Path) -> dict[Any, Any]:
    """Returns the entries of a YAML file.

    Raises:
        UsageError: it cannot be read, is too large, not valid YAML, or no mapping.
    """
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"--config {path}: is no file. Give an existing YAML file.")
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise UsageError(f"--config {path}: more than {LARGEST:,} bytes; expected `key: value` lines.")
        content = yaml.load(text.decode("utf-8-sig"), _PlainLoader)
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror or error}. Give an existing YAML file.") from error
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"--config {path}: not valid YAML ({reason}).") from error
    if not isinstance(content, dict):
        raise UsageError(f"--config {path}: expected `key: value` lines, found {type(content).__name__}.")
    return content


def run_command(
    recipe: str,
    arguments: Sequence[str],
    commands: Commands,
    check: Callable[[Any], None] | None = None,
    trains: Callable[[Any], bool] = lambda flags: True,
) -> int:
    """Runs the command that the arguments name, by default the first one, and returns the exit code.

    Args:
        recipe: name of the recipe.
        arguments: those of the command line, without the program's name.
        commands: function of the flags, by dataclass; the command is called as the dataclass in lower case.
        check: function of the flags, called before TensorFlow is loaded.
        trains: function of the flags: whether this process is the one that trains; else the GPUs stay free for those
            that do.
    """

    def run() -> int:
        kinds = {kind.__name__.lower(): kind for kind in commands}
        flags = parse(arguments, kinds, program(recipe), next(iter(kinds)))
        if hasattr(flags, "optim"):
            check_names(flags.optim)
        if check is not None:
            check(flags)
        with signals.held(""):
            # Workers must find each other before TensorFlow looks for devices.
            _import_quietly(getattr(getattr(flags, "run", None), "distribute", "none") != "multiworker", trains(flags))
        signals.check()
        return commands[type(flags)](flags)

    return _exit_code(run)


def _exit_code(run: Callable[[], int]) -> int:
    """Returns what `run` returns; if an error or a signal ends it, prints one line and returns their exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names and texts that the locale has no letters for
    codes = list[int]()
    try:
        with signals.caught():
            codes.append(_told(run))
    except signals.Interrupted as late:  # when all was done or said
        codes.append(signals.exit_code(late.number))
    return codes[0]


def _told(run: Callable[[], int]) -> int:
    try:
        code = run()
        sys.stdout.flush()
        return code
    except AlreadyDoneError as done:
        print(done)
        return done.code
    except EndedError as ended:
        return ended.code
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except BrokenPipeError:  # as `| head` has it
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still writes at its end
        return signals.exit_code(13)  # SIGPIPE, which Windows lacks
    except signals.Interrupted as error:
        with contextlib.suppress(OSError):  # a terminal that hung up
            print(f"interrupted: {error.left}", file=sys.stderr)
        return signals.exit_code(error.number)
    except Exception as error:
        if not is_full_disk(error):
            raise
        print(
            "error: the disk is full. Files that were complete are still there; so is the last checkpoint.",
            file=sys.stderr,
        )
        return DiskError.code


def _import_quietly(devices: bool, trains: bool) -> None:
    """Imports TensorFlow and Keras without the start-up notes that TF_CPP_MIN_LOG_LEVEL does not reach.

    Args:
        devices: whether to look for them, which writes notes too.
        trains: whether GPUs are for this process.
    """
    from kopt.start import filtered_stderr

    with filtered_stderr():
        import keras  # noqa: F401
        import tensorflow as tf

        if not trains:
            tf.config.set_visible_devices([], "GPU")
        if devices:
            tf.config.list_logical_devices()

"""The command line of a recipe: flags from a dataclass, a YAML file beneath them, and exit codes.

Nothing here imports Keras, so that `--help` answers at once.
"""

import contextlib
import dataclasses
import difflib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro
import yaml


class RecipeError(Exception):
    """What ends a run with one line on stderr and an exit code."""

    code = 1


class UsageError(RecipeError):
    """A flag is wrong."""

    code = 2


class DataError(RecipeError):
    """A file is missing or not what it should be."""

    code = 3


class DivergedError(RecipeError):
    """The loss is no longer finite."""

    code = 4


def parse(argv: Sequence[str], commands: Mapping[str, type], prog: str, default: str = "train") -> Any:
    """Returns an instance of the dataclass of the command in `argv`.

    Args:
        argv: arguments without the program's name. The first may name a command.
        commands: dataclass by command. One with a `config` field reads that YAML file beneath the flags.
        prog: how the program is called.
        default: the command when `argv` names none.

    Raises:
        UsageError: the YAML file is missing or wrong.
        SystemExit: `--help`, or a flag is unknown or malformed (code 2).
    """
    named = bool(argv) and argv[0] in commands
    command, rest = (argv[0], list(argv[1:])) if named else (default, list(argv))
    flags = commands[command]
    others = " | ".join(f"{name} (default)" if name == default else name for name in commands)
    return tyro.cli(
        flags,
        args=[*_config_arguments(rest, flags), *rest],
        prog=f"{prog} {command}" if named else prog,
        description=f"{(flags.__doc__ or '').strip()}\n\nCommands: {others}.",
        config=(tyro.conf.OmitArgPrefixes,),
    )


def flatten(flags: Any) -> dict[str, Any]:
    """Returns the flags of a dataclass and of the dataclasses in it as one plain, YAML-ready mapping."""
    flat: dict[str, Any] = {}
    for field in dataclasses.fields(flags):
        value = getattr(flags, field.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value)
        else:
            flat[field.name] = list(value) if isinstance(value, tuple) else str(value) if _is_path(value) else value
    return flat


def _is_path(value: Any) -> bool:
    return isinstance(value, Path)


def _names(flags: type) -> list[str]:
    names = []
    for field in dataclasses.fields(flags):
        kind = field.type
        names += _names(kind) if isinstance(kind, type) and dataclasses.is_dataclass(kind) else [field.name]
    return names


def _config_arguments(argv: Sequence[str], flags: type) -> list[str]:
    """Returns the entries of the file after `--config` as command-line arguments.

    As arguments they pass the same checks as flags, and a flag typed later wins.
    """
    file = None
    for i, argument in enumerate(argv):
        if argument == "--config" and i + 1 < len(argv):
            file = argv[i + 1]
        elif argument.startswith("--config="):
            file = argument.partition("=")[2]
    names = _names(flags)
    if file is None or "config" not in names:
        return []
    arguments: list[str] = []
    for key, value in _read_mapping(Path(file)).items():
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


def _read_mapping(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror or error}. Give an existing YAML file.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: not valid YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict):
        raise UsageError(f"--config {path}: expected `key: value` lines, found {type(content).__name__}.")
    return content


def exit_code(run: Callable[[], int | None]) -> int:
    """Runs `run` and returns its exit code, turning `RecipeError` and Ctrl-C into one line and theirs."""
    try:
        return run() or 0
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("interrupted: nothing was saved.", file=sys.stderr)
        return 130


def import_quietly() -> None:
    """Imports TensorFlow and Keras without the start-up notes that TF_CPP_MIN_LOG_LEVEL does not reach."""
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:  # the user chose what to see
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    with _filtered_stderr():
        import keras  # noqa: F401
        import tensorflow as tf

        tf.config.list_logical_devices()  # the search for a GPU writes notes too


@contextlib.contextmanager
def _filtered_stderr() -> Iterator[None]:
    """Holds back what native code writes to stderr and lets through all but known noise."""
    noise: tuple[str, ...] = ("absl::InitializeLog()", "cudart_stub.cc", "CUDA_ERROR_NO_DEVICE", "oneDNN custom")
    if not Path("/dev/nvidiactl").exists():  # on a machine with a GPU a failing driver is news
        noise += ("cuInit",)
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        saved = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            held.seek(0)
            for line in held.read().decode(errors="replace").splitlines():
                if not any(known in line for known in noise):
                    print(line, file=sys.stderr)

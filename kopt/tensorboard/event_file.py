"""Event files of TensorBoard, written without `tf.summary`."""

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

OLDEST = (2, 21)
NEEDED = ("hparams.api", "hparams.summary", "text.summary_v2", "custom_scalar.layout_pb2", "custom_scalar.summary")


def part(name: str) -> Any:
    """Returns a module of tensorboard; it is slow to import, and `import kopt.tensorboard` shall not be."""
    return import_module(f"tensorboard.{name}")


def check_tensorboard(owner: str) -> None:
    """Imports all parts before a training begins that needs them at its end.

    Raises:
        ImportError: tensorboard is missing, broken or too old.
    """
    try:
        version = part("version").VERSION
        if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < OLDEST:
            raise ImportError(f"version {version} is too old")
        for name in ("summary.writer.event_file_writer", *(f"plugins.{plugin}" for plugin in NEEDED)):
            part(name)
    except ImportError as error:
        wanted = ".".join(map(str, OLDEST))
        raise ImportError(f"{owner} needs tensorboard >= {wanted}: pip install -U tensorboard ({error})") from error


def as_folder(path: Any) -> str:
    """Returns the path of a folder as text."""
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError("the path of a folder")
    return os.fspath(path)


def open_writer(log_dir: str, run: str = "") -> Any:
    """Returns the writer of a new event file in the folder of a run."""
    return part("summary.writer.event_file_writer").EventFileWriter(os.path.join(log_dir, run), flush_secs=5)


def write(writer: Any, summary: Any, step: int) -> None:
    """Writes one event."""
    event = part("compat.proto.event_pb2").Event(wall_time=time.time(), step=step)
    event.summary.ParseFromString(summary.SerializeToString())  # some plugins give TensorFlow's class of it
    writer.add_event(event)


def write_scalars(writer: Any, values: Mapping[str, float], step: int) -> None:
    """Writes scalars by tag."""
    # One event for all: a call of `tf.summary.scalar` takes as long as a small model's batch.
    summary = part("compat.proto.summary_pb2").Summary()
    for tag, value in values.items():
        summary.value.add(tag=tag, simple_value=value)
    write(writer, summary, step)


def table(head: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)

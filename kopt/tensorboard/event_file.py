"""Event files of TensorBoard, written without `tf.summary`."""

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

OLDEST = (2, 21)
NEEDED = (  # of what tensorboard has, that which does not import TensorFlow
    "hparams.api_pb2",
    "hparams.metadata",
    "hparams.plugin_data_pb2",
    "hparams.summary_v2",
    "text.summary_v2",
    "custom_scalar.layout_pb2",
    "custom_scalar.metadata",
)


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


# tensorboard makes the next two itself, with TensorFlow, which a run on another backend may lack.


def session_end() -> Any:
    """Returns the summary that marks a run as done on the HParams page."""
    metadata, plugin = part("plugins.hparams.metadata"), part("plugins.hparams.plugin_data_pb2")
    status = part("plugins.hparams.api_pb2").Status.Value("STATUS_SUCCESS")
    end = plugin.SessionEndInfo(status=status, end_time_secs=time.time())
    described = metadata.create_summary_metadata(plugin.HParamsPluginData(session_end_info=end))
    return _summary(metadata.SESSION_END_INFO_TAG, described, metadata.NULL_TENSOR)


def layout_of_scalars(layout: Any) -> Any:
    """Returns the summary with a layout of the Custom Scalars page."""
    metadata = part("plugins.custom_scalar.metadata")
    types = part("compat.proto.types_pb2")
    tensor = part("compat.proto.tensor_pb2").TensorProto(
        dtype=types.DT_STRING, tensor_shape={}, string_val=[layout.SerializeToString()]
    )
    return _summary(metadata.CONFIG_SUMMARY_TAG, metadata.create_summary_metadata(), tensor)


def _summary(tag: str, metadata: Any, tensor: Any) -> Any:
    summary = part("compat.proto.summary_pb2").Summary()
    summary.value.add(tag=tag, metadata=metadata, tensor=tensor)
    return summary


def table(head: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)

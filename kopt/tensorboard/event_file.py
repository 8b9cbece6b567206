"""Event files of TensorBoard, written without `tf.summary`."""

import os
import re
import struct
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from types import TracebackType
from typing import Any, Self

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


def as_folder(path: Any) -> str | None:
    """Returns the path of a folder as text."""
    if path is not None and not isinstance(path, (str, os.PathLike)):
        raise ValueError("the path of a folder, or None")
    return None if path is None else os.fspath(path)


class _Open:
    """A writer that is closed when nobody holds it any more."""

    def __init__(self, folder: str) -> None:
        self.writer = part("summary.writer.event_file_writer").EventFileWriter(folder, flush_secs=5)
        weakref.finalize(self, self.writer.close)


_OPEN = weakref.WeakValueDictionary[str, _Open]()


class EventFile:
    """A file of events for TensorBoard. All that are open for one folder are one file, as TensorBoard follows only one.

    So callbacks and lines of your own write to one run: `with EventFile("logs") as file: file.scalars({"a": 1.0}, 5)`.

    Args:
        log_dir: folder of the run; with None, nothing is written.

    Raises:
        ImportError: tensorboard is missing, broken or too old.
    """

    def __init__(self, log_dir: str | os.PathLike[str] | None) -> None:
        self._open: _Open | None = None
        if log_dir is not None:
            check_tensorboard("EventFile")
            folder = os.fspath(log_dir)
            remote = "://" in folder  # as gs://
            folder = folder if remote else os.path.abspath(folder)
            self._open = _OPEN.get(folder) if remote or os.path.isdir(folder) else None
            if self._open is None:  # or somebody has removed the folder
                self._open = _OPEN[folder] = _Open(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Brings to the disk what was written; the file is closed with the last that is open for its folder."""
        if self._open is not None:
            self._open.writer.flush()
            self._open = None

    def write(self, summary: Any, step: int) -> None:
        """Writes a summary, as the functions of TensorBoard's plugins make them."""
        if self._open is not None:
            event = part("compat.proto.event_pb2").Event(wall_time=time.time(), step=step)
            event.summary.ParseFromString(summary.SerializeToString())  # some plugins give TensorFlow's class of it
            self._open.writer.add_event(event)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes scalars by tag."""
        # One event for all: a call of `tf.summary.scalar` takes as long as a small model's batch.
        summary = part("compat.proto.summary_pb2").Summary()
        for tag, value in values.items():
            summary.value.add(tag=tag, simple_value=value)
        self.write(summary, step)

    def text(self, title: str, markdown: str, step: int) -> None:
        """Writes Markdown for the Text page."""
        self.write(part("plugins.text.summary_v2").text_pb(title, markdown), step)

    def image(self, tag: str, png: bytes, step: int) -> None:
        """Writes the content of a PNG file for the Images page.

        Raises:
            ValueError: it is none.
        """
        if png[:8] != b"\x89PNG\r\n\x1a\n" or png[12:16] != b"IHDR":
            raise ValueError(f"{tag}: expected the content of a PNG file. Received: {png[:16]!r}")
        width, height = struct.unpack(">II", png[16:24])
        summary = part("compat.proto.summary_pb2").Summary()
        picture = {"width": width, "height": height, "colorspace": 3, "encoded_image_string": png}
        summary.value.add(tag=tag, image=summary.Image(**picture))
        self.write(summary, step)


# tensorboard makes the next ones itself, with TensorFlow, which a run on another backend may lack.


def write_hparams(
    file: EventFile, name: str, hparams: Mapping[str, Any], metrics: Sequence[str], began: float, step: int
) -> None:
    """Writes a line of the HParams page: of a run that is done.

    Args:
        file: of the run, which has the metrics as scalars.
        name: of the run.
        hparams: of the run; they are columns, in this order.
        metrics: tags that are columns.
        began: when the run did, in seconds of the epoch.
        step: where on the step axis.
    """
    api, metadata = part("plugins.hparams.api_pb2"), part("plugins.hparams.metadata")
    data = part("plugins.hparams.plugin_data_pb2")
    # Without an experiment the page takes every scalar for a metric. It reads one for all runs: no domains, therefore,
    # which would hide the runs whose values are outside of them.
    page = api.Experiment(time_created_secs=began)
    for key, value in hparams.items():
        kind = "BOOL" if isinstance(value, bool) else "STRING" if isinstance(value, str) else "FLOAT64"
        page.hparam_infos.add(name=key, type=api.DataType.Value(f"DATA_TYPE_{kind}"))
    for tag in metrics:
        page.metric_infos.add(name=api.MetricName(tag=tag), display_name=tag)
    status = api.Status.Value("STATUS_SUCCESS")
    end = data.SessionEndInfo(status=status, end_time_secs=time.time())
    file.write(part("plugins.hparams.summary_v2").hparams_pb(hparams, name, began), step)
    for tag, content in (
        (metadata.EXPERIMENT_TAG, data.HParamsPluginData(experiment=page)),
        (metadata.SESSION_END_INFO_TAG, data.HParamsPluginData(session_end_info=end)),
    ):
        file.write(_summary(tag, metadata.create_summary_metadata(content), metadata.NULL_TENSOR), step)


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

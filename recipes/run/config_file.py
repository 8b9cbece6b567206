"""YAML files of flags, read in bounded time and memory."""

from pathlib import Path
from typing import Any

import yaml

from .errors import UsageError

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

"""Folders of models that are made once: below Keras' own folder, for all runs."""

import os
from pathlib import Path


def cached(name: str) -> Path:
    """Returns the path of a folder in the cache, which may not exist yet."""
    home = os.environ.get("KERAS_HOME")
    return (Path(home) if home else Path.home() / ".keras") / "kopt" / name

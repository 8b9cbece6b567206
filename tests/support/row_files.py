"""Files of rows made by tests."""

from pathlib import Path

import pyarrow
import pyarrow.parquet


def write(name, content):
    """Writes a file with a text or bytes, or for Parquet columns by name or a list of rows; returns its path."""
    path = Path(name)
    if isinstance(content, dict):
        pyarrow.parquet.write_table(pyarrow.table(content), path)
    elif isinstance(content, list):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), path)
    else:
        path.write_bytes(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
    return path

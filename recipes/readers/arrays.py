"""Readers of arrays and images that say what is wrong with a file."""

import gzip
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..run.batches import Array
from ..run.errors import DataError


class Labelled(NamedTuple):
    """Examples with their classes, and where they come from."""

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    source: str


def read_npz(path: Path, keys: Sequence[str]) -> list[Array]:
    """Returns the arrays called `keys` in the archive.

    Raises:
        DataError: the file is missing, damaged, or lacks a key.
    """
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            found = list(archive) if isinstance(archive, np.lib.npyio.NpzFile) else []
            missing = [key for key in keys if key not in found]
            if missing:
                raise DataError(
                    f"{path}: no array {', '.join(missing)} (it holds {', '.join(found) or 'no named array'}). "
                    f"Save it with np.savez(path, {', '.join(f'{key}=...' for key in keys)})."
                )
            return [archive[key] for key in keys]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: {_reason(error, 'not a readable .npz, perhaps cut short')}. Check the path or get it again."
        ) from error


def read_npy(path: Path) -> Array:
    """Returns the array in the file.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"{path}: {_reason(error, 'not a readable .npy')}. Save it with np.save(path, array)."
        ) from error


def read_idx(path: Path) -> Array:
    """Returns the bytes of an IDX file, the format of the original MNIST, gzipped or not.

    Raises:
        DataError: the file is missing, damaged, or does not hold unsigned bytes.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: {_reason(error, 'not a readable file')}. Check the path or get it again.") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{path}: not an IDX file of unsigned bytes (it begins with {content[:4].hex() or 'nothing'}).")
    start = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:start]) if len(content) >= start else ()
    if not shape or len(content) != start + int(np.prod(shape, dtype=np.uint64)):
        raise DataError(f"{path}: {len(content)} bytes do not hold an array of shape {shape}. Get the file again.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_image(path: Path, height: int, width: int, invert: bool = False) -> Array:
    """Returns an image file as gray bytes, padded to the shape wanted and then scaled.

    Args:
        path: a file that Pillow reads, in any size and mode. Transparency shows the background.
        height: pixels of the result.
        width: pixels of the result.
        invert: whether the image is dark on a light background; the result is light on dark.

    Raises:
        DataError: the file is missing or not an image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    background = 255 if invert else 0
    try:
        with Image.open(path) as file:
            file.load()
            if file.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8 instead of scaling
                image = Image.fromarray((np.asarray(file, np.float64) / 257).clip(0, 255).astype(np.uint8))
            else:
                rgba = file.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", rgba.size, (background,) * 3 + (255,)), rgba)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: {_reason(error, 'not a readable image')}. Give a PNG or an .npy file.") from error
    gray = image.convert("L")
    if gray.size != (width, height):
        gray = ImageOps.pad(gray, (width, height), Image.Resampling.BOX, color=background)
    return 255 - np.asarray(gray) if invert else np.asarray(gray)


def _reason(error: Exception, otherwise: str) -> str:
    return str(error.strerror) if isinstance(error, OSError) and error.strerror else otherwise


def check_labelled(name: str, x: Array, y: Array, shape: tuple[int, ...], classes: int) -> None:
    """Checks that x holds byte arrays of `shape` and y their classes.

    Raises:
        DataError: they do not; the message begins with `name`.
    """
    if x.ndim != len(shape) + 1 or x.shape[1:] != shape:
        wanted = ", ".join(["n", *map(str, shape)])
        raise DataError(f"{name}: images have shape {x.shape}, expected ({wanted}). Reshape or resize them.")
    if x.dtype != np.uint8:
        raise DataError(f"{name}: images are {x.dtype}, expected uint8. Save them as bytes from 0 to 255.")
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{name}: labels are {y.dtype} of shape {y.shape}, expected whole numbers of shape (n,).")
    if len(x) != len(y) or not len(x):
        raise DataError(f"{name}: {len(x)} images and {len(y)} labels; expected as many of each, and at least one.")
    if y.min() < 0 or y.max() >= classes:
        raise DataError(f"{name}: labels go from {y.min()} to {y.max()}, expected 0 to {classes - 1}.")

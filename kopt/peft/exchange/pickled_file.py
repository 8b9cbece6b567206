"""The `adapter_model.bin` of old versions of peft: tensors that torch pickled, read without running what they say."""

import pathlib
import re
import zipfile
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_SAFE_TORCH = (2, 6)
"""Before that, `torch.load` could be made to run code also with `weights_only`."""
_CONVERT = "save the adapter again as safetensors, with peft's save_pretrained, where you trust the file"


def read_pickled(path: pathlib.Path) -> dict[str, Array]:
    """Returns the tensors of a file that `torch.save` wrote, as float32.

    torch reads it with `weights_only=True`: tensors, numbers and containers alone, no functions and no other classes.

    Raises:
        ValueError: torch is missing or too old; the file is damaged, has something else than tensors of floating
            point, or would be many times larger in memory than it is.
    """
    try:
        import torch
    except ImportError:
        raise ValueError(f"{path} can be read by torch only. Install torch, or {_CONVERT}.") from None
    if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < _SAFE_TORCH:
        raise ValueError(f"{path}: torch {torch.__version__} cannot read it safely. Install torch 2.6, or {_CONVERT}.")
    try:
        _check_size(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or malicious pickle raises what it likes
        reason = [line for line in str(error).splitlines() if line.strip() and "weights_only" not in line.lower()]
        raise ValueError(  # torch advises here to read the file with code
            f"{path} is no file of tensors that torch can read without running code "
            f"({reason[0].strip() if reason else type(error).__name__}). Download it again, or {_CONVERT}."
        ) from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path} holds no tensors by name.")
    kinds = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
    for key, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{path}: {key} is no tensor but {type(value).__name__}.")
        if value.dtype not in kinds or value.layout != torch.strided or value.device.type != "cpu":
            raise ValueError(f"{path}: {key} is no plain tensor of floating point but {value.dtype}, {value.layout}.")
    if sum(value.numel() for value in content.values()) > path.stat().st_size:  # at least 2 bytes each; some are shared
        raise ValueError(f"{path}: its tensors are larger than the file: it repeats elements.")
    return {key: value.detach().to(torch.float32).contiguous().numpy() for key, value in content.items()}


def _check_size(path: pathlib.Path) -> None:
    """Raises ValueError if a file of zip's form would be larger once read: torch stores without compression."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is compressed, as torch never writes it")

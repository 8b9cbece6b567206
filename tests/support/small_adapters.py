"""Arguments with which every method of adapters fits the small kernels of tests."""

from typing import Any

from kopt import peft

SIZES = {"token_indices": [1, 3], "block_size": 1, "gralora_k": 1, "n_frequency": 4, "group_size": 2}


def fitting(cls: type[peft.Adapter]) -> dict[str, Any]:
    """Returns the arguments that a method needs so that a kernel with six outputs can have it."""
    rank = {"r": 2} if "r" in cls.fields and cls.fields["r"].default > 8 else {}
    return rank | {name: size for name, size in SIZES.items() if name in cls.fields}

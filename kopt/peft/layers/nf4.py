"""NF4 with double quantization: numbers as 4 bits each and, for 64 of them, 8 bits for their largest magnitude.

    w ≈ level[code] a          level: the 16 NF4 levels in [-1, 1]; a: the largest magnitude of the block of 64
    a ≈ o + m[code] s          o: the mean of all a; m: 256 steps in [-1, 1]; s: the largest |a - o| of 256 blocks

That is 0.5 + 1/64 + 4/16384 bytes a number. What is stored is what bitsandbytes stores for the same numbers.

Reference: Dettmers et al., 2023, arXiv:2305.14314, whose appendix E has the levels. The 256 steps: Dettmers, 2016,
arXiv:1511.04561.
"""

from typing import Any

import numpy as np
from keras import ops

Array = np.ndarray[Any, Any]
BLOCK, GROUP = 64, 256
LEVELS = np.array(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    "float32",
)
_PAIRS = np.stack([np.repeat(LEVELS, 16), np.tile(LEVELS, 16)], axis=-1)
"""The two levels that each byte stands for, the first in its upper half."""


def _steps() -> Array:
    """Returns the 256 numbers of the dynamic 8-bit type: 2ⁱ steps up to 10^(i-6), from a tenth of it, and negatives."""
    found = [0.0, 1.0]
    for i in range(7):
        bounds = _spaced(2**i + 1)
        means = np.float32(10.0 ** (i - 6)) * ((bounds[:-1] + bounds[1:]) / np.float32(2))
        found += [*means.tolist(), *(-means).tolist()]
    return np.array(sorted(found), "float32")


def _spaced(count: int) -> Array:
    """Returns numbers from 0.1 to 1 as torch computes them: from both ends, rounded once."""
    step, places = float(np.float32(0.9) / np.float32(count - 1)), np.arange(count)
    numbers = np.where(places < count // 2, float(np.float32(0.1)) + step * places, 1 - step * places[::-1])
    return numbers.astype("float32")


STEPS = _steps()


def sizes(count: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Returns shape and dtype of what `count` numbers are stored as, by name."""
    blocks = -(-count // BLOCK)
    return {
        "codes": ((blocks * BLOCK // 2,), "uint8"),
        "magnitudes": ((blocks,), "uint8"),
        "spreads": ((-(-blocks // GROUP),), "float32"),
        "mean": ((), "float32"),
    }


def encode(numbers: Array) -> dict[str, Array]:
    """Returns what a vector of float32 is stored as, by the names of `sizes`."""
    blocks = _blocks(numbers, BLOCK)
    magnitudes = np.abs(blocks).max(axis=-1)
    codes = _nearest(blocks, magnitudes, LEVELS)
    mean = magnitudes.mean(dtype="float32")
    groups = _blocks(magnitudes - mean, GROUP)
    spreads = np.abs(groups).max(axis=-1)
    return {
        "codes": (codes[0::2] << 4 | codes[1::2]).astype("uint8"),
        "magnitudes": _nearest(groups, spreads, STEPS)[: len(magnitudes)],
        "spreads": spreads,
        "mean": mean,
    }


def _blocks(numbers: Array, length: int) -> Array:
    """Returns a vector in rows of one length, the last filled up with zeros."""
    return np.pad(numbers, (0, -len(numbers) % length)).reshape(-1, length)


def _nearest(rows: Array, magnitudes: Array, levels: Array) -> Array:
    """Returns the nearest level of each number over the magnitude of its row; of two, the lower one."""
    scaled = np.clip(rows * (np.float32(1) / np.maximum(magnitudes, np.float32(1e-38)))[:, None], -1, 1)
    return np.searchsorted((levels[:-1] + levels[1:]) / 2, scaled.reshape(-1)).astype("uint8")


def decode(codes: Any, magnitudes: Any, spreads: Any, mean: Any, count: int) -> Any:
    """Returns the `count` numbers in float32 as a tensor; the first arguments are those of `sizes`."""
    blocks = magnitudes.shape[0]
    steps = ops.take(STEPS, ops.cast(magnitudes, "int32"), axis=0)
    steps = ops.reshape(ops.pad(steps, (0, -blocks % GROUP)), (-1, GROUP)) * ops.expand_dims(spreads, -1)
    largest = ops.reshape(steps, (-1, 1))[:blocks] + mean
    pairs = ops.take(_PAIRS, ops.cast(codes, "int32"), axis=0)
    return ops.reshape(ops.reshape(pairs, (-1, BLOCK)) * largest, (-1,))[:count]

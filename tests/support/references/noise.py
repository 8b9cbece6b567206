"""The noise of kopt in NumPy: a hash of the place of an element, by the equations of `engine/noise.py`."""

from statistics import NormalDist

import numpy as np

A, B, C = (np.uint32(k) for k in (0x21F0AAAD, 0x735A2D97, 0x846CA68B))


def _folded(x, places):
    return x ^ (x >> np.uint32(places))


def _mixed(x):
    return _folded(_folded(_folded(x, 16) * A, 15) * B, 15)


def hashes(shape, update, salt):
    """Returns uint32 numbers of a shape."""
    words = [np.array([n % 2**32], "uint32") for n in (salt * 0x9E3779B9 + 1, update, 0x85EBCA6B)]
    key = _mixed(words[0])
    first = _mixed(key + words[1])
    x = _folded(np.arange(np.prod(shape, dtype=int), dtype="uint32") + first, 16) * A
    x = (_folded(x, 15) ^ _mixed(first ^ key ^ words[2])) * B
    return _folded(_folded(x, 15) * C, 16).reshape(shape)


def uniform(shape, update, salt):
    """Returns numbers in [0, 1), float64."""
    return (hashes(shape, update, salt) >> np.uint32(8)) * 2.0**-24


def normal(shape, update, salt):
    """Returns quantiles of the normal distribution, float64."""
    x = hashes(shape, update, salt)
    size = np.vectorize(NormalDist().inv_cdf, otypes=["float64"])(1 - ((x % 2**24) + 0.5) * 2.0**-25)
    return np.where(x >> np.uint32(31), size, -size)

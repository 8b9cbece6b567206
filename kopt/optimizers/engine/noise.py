"""Random numbers that depend on their place alone: update, weight and element, not on backend, graph or compiler.

A number is a hash of the place of its element and of two keys, which are hashes of the number of the update and of a
salt. Nothing is drawn in order, so that every element is computed where it is used:

    x = i + k₁
    x ← (x ⊕ x≫16) a,  x ← (x ⊕ x≫15 ⊕ k₂) b,  x ← (x ⊕ x≫15) c,  x ← x ⊕ x≫16

The multipliers were found by Ettinger in a search for hashes of 32 bits with little bias. All is modulo 2³², which the
masks see to on torch, where integers without a sign are kept in 64 bits. After 2³² updates the numbers repeat.
"""

from typing import Any

from keras import ops

from kopt.optimizers.engine.tensor_math import Tensor, normal_quantile

_MASK = 0xFFFFFFFF
_A, _B, _C = 0x21F0AAAD, 0x735A2D97, 0x846CA68B


def uniform(x: Tensor, update: Tensor, salt: int) -> Tensor:
    """Returns numbers in [0, 1) like x, multiples of 2⁻²⁴.

    Args:
        x: float32 or float64, any shape. Of a table of which an update moves some rows it is these rows: their noise
            goes by the place among them.
        update: number of the update, an integer.
        salt: tells what is drawn in one update apart; an integer of 32 bits.
    """
    places = ops.reshape(_hashes(ops.size(x), update, salt), ops.shape(x))
    # As integers with a sign, because those are turned into floats by one instruction.
    return ops.cast(ops.cast(ops.right_shift(places, _word(8)), "int32"), x.dtype) * 2.0**-24


def normal(x: Tensor, update: Tensor, salt: int) -> Tensor:
    """Returns normal numbers of variance 1 like x, none of them beyond 5.5: the quantiles of 2²⁵ equal shares.

    Args:
        x: float32 or float64, any shape.
        update: number of the update, an integer.
        salt: as for `uniform`; the numbers of both come from the same hashes.
    """
    places = ops.reshape(_hashes(ops.size(x), update, salt), ops.shape(x))
    share = ops.cast(ops.bitwise_and(places, _word(2**24 - 1)), "int32")
    size = normal_quantile((ops.cast(share, "float32") + 0.5) * 2.0**-25)
    upper = ops.equal(ops.right_shift(places, _word(31)), _word(1))
    return ops.cast(ops.where(upper, size, -size), x.dtype)


def _hashes(count: Any, update: Tensor, salt: int) -> Tensor:
    """Returns as many hashes, integers of 32 bits."""
    key = _mixed(_word(salt * 0x9E3779B9 + 1))
    first = _mixed(_sum(key, ops.bitwise_and(ops.cast(update, "uint32"), _word(_MASK))))
    second = _mixed(ops.bitwise_xor(ops.bitwise_xor(first, key), _word(0x85EBCA6B)))
    x = _sum(ops.cast(ops.arange(count, dtype="int32"), "uint32"), first)
    x = ops.bitwise_xor(_folded(_product(_folded(x, 16), _A), 15), second)
    return _folded(_product(_folded(_product(x, _B), 15), _C), 16)


def _mixed(x: Tensor) -> Tensor:
    return _folded(_product(_folded(_product(_folded(x, 16), _A), 15), _B), 15)


def _word(number: int) -> Tensor:
    return ops.convert_to_tensor(number & _MASK, "uint32")


def _folded(x: Tensor, places: int) -> Tensor:
    return ops.bitwise_xor(x, ops.right_shift(x, _word(places)))


def _product(x: Tensor, factor: int) -> Tensor:
    return ops.bitwise_and(ops.multiply(x, _word(factor)), _word(_MASK))


def _sum(x: Tensor, y: Tensor) -> Tensor:
    return ops.bitwise_and(ops.add(x, y), _word(_MASK))

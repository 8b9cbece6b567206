"""The variables of hosts and adapters as tensors."""

from typing import Any

import keras
import numpy as np
from keras import ops

from kopt.peft.adapter import Array
from kopt.peft.layers import QuantizedKernel, Site, Tensor, snapshot, stored_value

Stored = Any
"""What a layer computes with: a `keras.Variable`, or a `QuantizedKernel`."""
Bits = Array | dict[str, Array]
"""What is stored there, bit for bit."""


def as_float32(variable: Stored) -> Array:
    """Returns the value of a variable as float32."""
    if isinstance(variable, keras.Variable) and variable.dtype == "float32":
        return snapshot(variable)
    return np.asarray(ops.convert_to_numpy(ops.cast(variable.value, "float32")))


def as_kernel(site: Site, matrix: Tensor, value: Any) -> Tensor:
    """Returns [*batch, in, out] in the shape and dtype of the host's own kernel, `value`."""
    return ops.cast(site.kernel(matrix), dtype_of(value))


def tensor_of(value: Any) -> Tensor:
    """Returns the value of a variable as a layer that reads it sees it; a tensor is returned as it is."""
    if isinstance(value, QuantizedKernel):
        return ops.cast(value.value, value.dtype)
    return ops.convert_to_tensor(value.value) if isinstance(value, keras.Variable) else value


def stored_tensor(value: Any) -> Tensor:
    """Returns the value of a variable in its own dtype; a tensor is returned as it is."""
    if isinstance(value, QuantizedKernel):
        return value.value
    return ops.convert_to_tensor(stored_value(value)) if isinstance(value, keras.Variable) else value


def dtype_of(value: Any) -> str:
    """Returns the dtype of a variable, as a layer that reads it sees it, or of a tensor."""
    if isinstance(value, QuantizedKernel):
        return value.dtype
    return keras.backend.standardize_dtype(tensor_of(value).dtype)


def bits_of(stored: Stored) -> Bits:
    """Returns what is stored, for `put_bits`."""
    return stored.bits() if isinstance(stored, QuantizedKernel) else snapshot(stored)


def put_bits(stored: Stored, bits: Bits) -> None:
    """Stores what `bits_of` returned."""
    if isinstance(stored, QuantizedKernel):
        assert isinstance(bits, dict)
        stored.restore(bits)
    else:
        stored.assign(bits)


def value_of_bits(stored: Stored, bits: Bits) -> Array:
    """Returns the float32 value that such bits stand for."""
    value = stored.decode(bits) if isinstance(stored, QuantizedKernel) and isinstance(bits, dict) else bits
    return np.asarray(ops.convert_to_numpy(ops.cast(value, "float32")))


def between(own: Any, copy: Any, scale: Any) -> Tensor:
    """Returns own + scale (copy - own), exact at the scales 0 and 1."""
    change = ops.cast(scale, keras.backend.standardize_dtype(own.dtype)) * (copy - own)
    return ops.where(scale == 1, copy, ops.where(scale == 0, own, own + change))

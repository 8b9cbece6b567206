"""The variables of hosts and adapters as tensors."""

from typing import Any

import keras
import numpy as np
from keras import ops

from kopt.peft.adapter import Array
from kopt.peft.layers import Site, Tensor, stored_value


def as_float32(variable: keras.Variable) -> Array:
    """Returns the value of a variable as float32."""
    return np.asarray(ops.convert_to_numpy(ops.cast(variable.value, "float32")))


def as_kernel(site: Site, matrix: Tensor, value: Any) -> Tensor:
    """Returns [*batch, in, out] in the shape and dtype of the host's own kernel, `value`."""
    return ops.cast(site.kernel(matrix), dtype_of(value))


def tensor_of(value: Any) -> Tensor:
    """Returns the value of a variable as a layer that reads it sees it; a tensor is returned as it is."""
    return ops.convert_to_tensor(value.value) if isinstance(value, keras.Variable) else value


def stored_tensor(value: Any) -> Tensor:
    """Returns the value of a variable in its own dtype; a tensor is returned as it is."""
    return ops.convert_to_tensor(stored_value(value)) if isinstance(value, keras.Variable) else value


def dtype_of(value: Any) -> str:
    """Returns the dtype of a variable, as a layer that reads it sees it, or of a tensor."""
    return keras.backend.standardize_dtype(tensor_of(value).dtype)


def between(own: Any, copy: Any, scale: Any) -> Tensor:
    """Returns own + scale (copy - own), exact at the scales 0 and 1."""
    change = ops.cast(scale, keras.backend.standardize_dtype(own.dtype)) * (copy - own)
    return ops.where(scale == 1, copy, ops.where(scale == 0, own, own + change))

"""Kernels that are stored in a few bits a weight, seen as the float kernels that they stand for."""

import abc
import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from kopt.peft.layers.keras_internals import (
    dequantized,
    exchange_variables,
    flatten_layers,
    kernel_attribute,
    own_variables,
    quantized_parts,
    quantized_shape,
    requantized,
    say_not_quantized,
    set_class,
    stored_value,
)

Array = np.ndarray[Any, Any]
Tensor = Any
ROUNDINGS = {"int8": 0.5 / 127, "int4": 1 / 7, "nf4": 0.17}
"""By how much numbers may be rounded, as a share of the largest magnitude, by format."""
_OUTPUT = "reverse_embeddings"
"""What Keras calls the output matrix of an embedding that is not tied, and how the parts of it begin."""
_KERNEL = "kopt_quantized"
"""The attribute under which a layer keeps its `QuantizedKernel`."""


class QuantizedKernel(abc.ABC):
    """The kernel of a layer that is stored in a few bits a weight. It reads like a variable with the float kernel.

    Args:
        layer: the layer.
        attr: the attribute that holds the float kernel of a plain layer of that class.
        shape: shape of that kernel.
        parts: the variables that stand for it, by attribute.
        place: where the float kernel stands among the layer's direct variables.
    """

    mode: str
    """What the format is called."""

    def __init__(
        self, layer: Any, attr: str, shape: tuple[int, ...], parts: Mapping[str, keras.Variable], place: int = 0
    ) -> None:
        self.layer, self.attr, self.shape, self.parts, self.place = layer, attr, shape, dict(parts), place
        self.name = attr.lstrip("_")

    @abc.abstractmethod
    def decode(self, parts: Mapping[str, Any]) -> Tensor:
        """Returns the float32 kernel that values of the parts stand for."""

    @abc.abstractmethod
    def encode(self, kernel: Array) -> dict[str, Array]:
        """Returns the values of the parts that stand for about a float kernel."""

    @property
    def rounding(self) -> float:
        """By how much it may differ from what was quantized, as a share of the largest magnitude."""
        return ROUNDINGS[self.mode]

    @property
    def dtype(self) -> str:
        """The dtype in which its layer computes with it."""
        return str(self.layer.compute_dtype)

    @property
    def value(self) -> Tensor:
        """The kernel in float32."""
        return self.decode({attr: ops.convert_to_tensor(stored_value(v)) for attr, v in self.parts.items()})

    def assign(self, kernel: Any) -> None:
        """Stores a float kernel, rounded."""
        self.restore(self.encode(np.asarray(kernel, "float32")))

    def bits(self) -> dict[str, Array]:
        """Returns the values of the parts, for `restore`."""
        return {attr: np.array(variable.numpy()) for attr, variable in self.parts.items()}

    def restore(self, bits: Mapping[str, Array]) -> None:
        """Stores what `bits` returned."""
        for attr, variable in self.parts.items():
            variable.assign(bits[attr])

    def release(self) -> keras.Variable:
        """Gives the layer the float kernel in place of the quantized one, and returns the variable."""
        kernel = ops.convert_to_numpy(self.value)
        self.forget()
        options = {kind: getattr(self.layer, f"{self.name}_{kind}", None) for kind in ("regularizer", "constraint")}
        options |= {"name": self.name, "shape": self.shape, "dtype": self.layer.variable_dtype}
        exchange_variables(self.layer, self.parts, {self.attr: options}, self.place)
        variable: keras.Variable = vars(self.layer)[self.attr]
        variable.assign(kernel)
        return variable

    def forget(self) -> None:
        """Makes the layer one that is not quantized, but for its variables."""
        vars(self.layer).pop(_KERNEL, None)


class KerasKernel(QuantizedKernel):
    """A kernel in the int8 or int4 of Keras."""

    def __init__(self, layer: Any) -> None:
        attr = kernel_attribute(layer)
        assert attr is not None
        super().__init__(layer, attr, quantized_shape(layer), quantized_parts(layer))
        self.mode = layer.quantization_mode

    def decode(self, parts: Mapping[str, Any]) -> Tensor:
        """Returns the kernel as Keras computes with it."""
        return dequantized(self.layer, parts)

    def encode(self, kernel: Array) -> dict[str, Array]:
        """Returns what `quantize` of Keras makes of the kernel."""
        return requantized(self.layer, kernel)

    def release(self) -> keras.Variable:
        """Gives the layer float kernels: an embedding that is not tied has a second one, for its way back."""
        layer, value = self.layer, self._output_matrix()
        kernel = super().release()
        if value is not None:
            parts = [attr for attr in vars(layer) if attr.startswith(_OUTPUT)]
            options = {"name": _OUTPUT, "shape": tuple(value.shape), "dtype": layer.variable_dtype}
            exchange_variables(layer, parts, {_OUTPUT: options}, place=1)
            vars(layer)[_OUTPUT].assign(value)
        return kernel

    def _output_matrix(self) -> Tensor | None:
        """Returns the output matrix of an embedding, [width, words] in float32, or None if it has none of its own."""
        values = {attr: ops.convert_to_tensor(v) for attr, v in vars(self.layer).items() if attr.startswith(_OUTPUT)}
        if not values:
            return None
        scale = ops.cast(values[f"{_OUTPUT}_scale"], "float32")
        if self.mode == "int8":
            return ops.cast(values[_OUTPUT], "float32") / scale
        whole = ops.cast(keras.quantizers.unpack_int4(values[_OUTPUT], self.layer.output_dim, axis=0), "float32")
        if (zero := values.get(f"{_OUTPUT}_zero")) is None:
            return whole / scale
        groups = ops.cast(self.layer.g_idx, "int32")
        return (whole - ops.take(ops.cast(zero, "float32"), groups, axis=0)) * ops.take(scale, groups, axis=0)

    def forget(self) -> None:
        """Gives the layer the dtype back that it had."""
        super().forget()
        say_not_quantized(self.layer)


def quantized_kernel(layer: Any) -> QuantizedKernel | None:
    """Returns the kernel of a quantized layer, or None if it has none that can be read as a float kernel."""
    found: QuantizedKernel | None = vars(layer).get(_KERNEL)
    if found is None and getattr(layer, "quantization_mode", None) in ("int8", "int4") and kernel_attribute(layer):
        found = KerasKernel(layer)
        keep_quantized(layer, found)
    return found


def keep_quantized(layer: Any, kernel: QuantizedKernel) -> None:
    """Makes `kernel` the one that `quantized_kernel` returns for a layer."""
    vars(layer)[_KERNEL] = kernel  # past the tracking of Keras


def stored_weights(layer: Any) -> dict[str, Any]:
    """Returns the weights of a layer by attribute: its own variables, and a quantized kernel in its place."""
    kernel = quantized_kernel(layer)
    return ({} if kernel is None else {kernel.attr: kernel}) | own_variables(layer)


@contextlib.contextmanager
def kernels_shown(model: Any) -> Iterator[list[QuantizedKernel]]:
    """Lets quantized layers show their `QuantizedKernel` as their kernel within a block, and yields those."""
    kernels = [kernel for layer in flatten_layers(model) if (kernel := quantized_kernel(layer)) is not None]
    shown: list[tuple[Any, Any]] = [(kernel.layer, type(kernel.layer)) for kernel in kernels]
    for kernel, (layer, cls) in zip(kernels, shown, strict=True):
        set_class(layer, _showing(cls, kernel.name))
    try:
        yield kernels
    finally:
        for layer, cls in shown:
            set_class(layer, cls)


@functools.cache
def _showing(cls: Any, name: str) -> type:
    """Returns the subclass that shows what is quantized."""
    original = getattr(cls, "kopt_original", cls)
    return type(cls.__name__, (cls,), {name: property(quantized_kernel), "kopt_original": original})

"""Layers whose kernels are stored in NF4.

A layer stays the object that the model was built with, as a host of adapters does: its kernel gives way to the parts of
`nf4.sizes`, and its class to a subclass of the same name, which shows the kernel that these stand for.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from keras import ops

from kopt.peft.layers import nf4
from kopt.peft.layers.keras_internals import (
    all_variables,
    direct_variables,
    exchange_variables,
    plain_class,
    say_quantized,
    set_class,
)
from kopt.peft.layers.layer_paths import named_layers
from kopt.peft.layers.quantized import Array, QuantizedKernel, Tensor, keep_quantized, quantized_kernel
from kopt.peft.layers.site import Site, find_site

_PART = "nf4_"


class Nf4Kernel(QuantizedKernel):
    """A kernel in NF4. The order of its numbers is that of torch, [out, in], so that they are those of bitsandbytes."""

    mode = "nf4"

    @property
    def _site(self) -> Site:
        site = find_site(self.layer)
        assert site is not None
        return site

    def decode(self, parts: Mapping[str, Any]) -> Tensor:
        """Returns the kernel."""
        site, named = self._site, {attr.removeprefix(_PART): ops.convert_to_tensor(v) for attr, v in parts.items()}
        numbers = nf4.decode(**named, count=math.prod(self.shape))
        if site.kind == "embedding":
            return ops.reshape(numbers, self.shape)
        return site.kernel(ops.swapaxes(ops.reshape(numbers, (*site.batch, site.fan_out, site.fan_in)), -1, -2))

    def encode(self, kernel: Array) -> dict[str, Array]:
        """Returns the nearest kernel in NF4."""
        site = self._site
        numbers = kernel if site.kind == "embedding" else np.swapaxes(site.matrix(kernel), -1, -2)
        return {f"{_PART}{name}": value for name, value in nf4.encode(np.ravel(numbers)).items()}

    def forget(self) -> None:
        """Gives the layer its class back."""
        super().forget()
        set_class(self.layer, plain_class(self.layer))
        say_quantized(self.layer, False)


def pack(layer: Any, value: bool = True) -> None:
    """Stores the kernel of a layer in NF4.

    Args:
        layer: a built layer with a kernel of floats.
        value: whether the parts get the values of the kernel, or stay zero until a file is read.
    """
    site = find_site(layer)
    assert site is not None
    kernel, name = ops.convert_to_numpy(ops.cast(site.variable.value, "float32")) if value else None, site.variable.name
    parts = {
        f"{_PART}{part}": {"name": f"{name}_{part}", "shape": shape, "dtype": dtype, "trainable": False}
        | ({"autocast": False} if dtype == "float32" else {})
        for part, (shape, dtype) in nf4.sizes(math.prod(site.shape)).items()
    }
    place = next((i for i, v in enumerate(direct_variables(layer)) if v is site.variable), 0)
    exchange_variables(layer, [site.attr], parts)
    plain: Any = type(layer)
    set_class(layer, _nf4_class(plain, site.attr.lstrip("_")))
    stored = Nf4Kernel(layer, site.attr, site.shape, {attr: vars(layer)[attr] for attr in parts}, place)
    keep_quantized(layer, stored)
    say_quantized(layer, True)
    if kernel is not None:
        stored.assign(kernel)


@functools.cache
def _nf4_class(base: Any, name: str) -> type:
    """Returns the subclass of `base` for layers in NF4, of the same name.

    Args:
        base: a class of layers.
        name: the attribute under which they show their kernel.
    """

    class Nf4(base):
        kopt_plain = base
        quantization_mode = Nf4Kernel.mode
        """By this Keras calls `quantized_call` instead of `call`, which reads the kernel."""

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return base(*args, **kwargs)  # a clone is a plain layer

        def quantized_call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            site = find_site(self)
            if site is None or site.kind != "einsum" or site.batch or not site.maps_last_axes:
                return super().call(inputs, *args, **kwargs)
            return _applied(self, site, inputs)

        def save_own_variables(self, store: Any) -> None:
            for attr, variable in all_variables(self).items():
                store[attr] = variable

        def load_own_variables(self, store: Any) -> None:
            own = all_variables(self)
            if own.keys() != {*store.keys()}:
                raise ValueError(
                    f"{self.path} is stored in nf4 and takes {', '.join(sorted(own))}, but the file has "
                    f"{', '.join(sorted(store.keys()))}. Load a file of floats before kopt.peft.quantize is called."
                )
            for attr, variable in own.items():
                variable.assign(store[attr])

        def get_build_config(self) -> Any:
            raise ValueError(
                f"{self.path} is stored in nf4, which a file or copy of this model would not know. Save or copy the "
                "model that kopt.peft.quantize was given, or call kopt.peft.dequantize on it first."
            )

        def __reduce__(self) -> Any:
            return self.get_build_config()

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> Any:
            return base.from_config(config)

    Nf4.__name__, Nf4.__qualname__, Nf4.__module__ = base.__name__, base.__qualname__, base.__module__
    setattr(Nf4, name, property(_shown))
    return Nf4


def _shown(layer: Any) -> Tensor:
    """Returns the kernel of a layer in NF4 as it computes with it."""
    kernel = quantized_kernel(layer)
    assert kernel is not None
    return ops.cast(kernel.value, kernel.dtype)


def _applied(layer: Any, site: Site, x: Tensor) -> Tensor:
    """Returns what a dense layer gives for x. Its kernel is made anew for the gradient, so that none is kept."""
    kernel = quantized_kernel(layer)
    assert kernel is not None
    lead = ops.shape(x)[: len(x.shape) - len(site.in_axes)]

    def matrix(parts: tuple[Tensor, ...], dtype: Any) -> Tensor:
        return ops.cast(site.matrix(kernel.decode(dict(zip(kernel.parts, parts, strict=True)))), dtype)

    @ops.custom_gradient
    def product(x: Tensor, *parts: Tensor) -> Any:
        def gradient(*args: Tensor, upstream: Tensor | None = None) -> tuple[Tensor | None, ...]:
            g = args[0] if upstream is None else upstream
            return ops.matmul(g, ops.transpose(matrix(parts, g.dtype))), *(None for _ in parts)

        return ops.matmul(x, matrix(parts, x.dtype)), gradient

    values = (ops.convert_to_tensor(variable.value) for variable in kernel.parts.values())
    y = product(ops.reshape(x, (-1, site.fan_in)), *values)
    y = ops.reshape(y, (*lead, *(site.shape[i] for i in site.out_axes)))
    y = y if layer.bias is None else ops.add(y, layer.bias)
    return y if layer.activation is None else layer.activation(y)


def packed_layers(model: Any) -> dict[str, Any]:
    """Returns the layers of a model in a format of kopt, which its files must say, by path."""
    return {path: layer for path, layer in named_layers(model) if isinstance(quantized_kernel(layer), Nf4Kernel)}

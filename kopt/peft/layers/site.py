"""A host layer's kernel seen as a matrix [in, out]."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kopt.peft.layers.keras_internals import (
    BaseConv,
    BaseConvTranspose,
    causal_padding,
    kernel_attribute,
    original_class,
    symbolic_calls,
)
from kopt.peft.layers.quantized import QuantizedKernel, quantized_kernel

Tensor = Any
DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)


class Site:
    """One kernel of a layer.

    The kernel's axes are sorted into batch, input and output axes, so that it can be seen as [*batch, in, out]. `kind`
    says how the layer applies it: "einsum", "convolution" and "embedding" are known, so that a low-rank change of the
    kernel costs two thin products. Of an "opaque" layer only the kernel is known; what reads it in a forward pass gets
    the changed one.

    Args:
        layer: the layer, built.
        attr: the attribute that holds the variable.
        kind: as above.
        in_axes: axes of the kernel that the layer sums over.
        out_axes: axes of the kernel that appear in the output only.
        batch_axes: axes of the kernel that input and output share.
    """

    def __init__(
        self,
        layer: Any,
        attr: str,
        kind: str,
        in_axes: Sequence[int],
        out_axes: Sequence[int],
        batch_axes: Sequence[int] = (),
    ) -> None:
        self.layer, self.attr, self.kind = layer, attr, kind
        self.variable = stored_kernel(layer, attr)
        self.in_axes, self.out_axes, self.batch_axes = tuple(in_axes), tuple(out_axes), tuple(batch_axes)
        self.shape = tuple(self.variable.shape)
        self.batch = tuple(self.shape[i] for i in self.batch_axes)
        self.fan_in = math.prod(self.shape[i] for i in self.in_axes)
        self.fan_out = math.prod(self.shape[i] for i in self.out_axes)
        self.channels = self.shape[self.in_axes[-1]] if self.is_convolution else self.fan_in
        if self.is_depthwise:
            self.channels = 1
        self._order = (*self.batch_axes, *self.in_axes, *self.out_axes)
        self._in_order = self._order == tuple(range(len(self._order)))

    @property
    def has_kernel(self) -> bool:
        """Whether there is a kernel; else the layer is surrounded as a whole."""
        return True

    @property
    def is_quantized(self) -> bool:
        """Whether the kernel is stored in a few bits a weight."""
        return isinstance(self.variable, QuantizedKernel)

    @property
    def is_convolution(self) -> bool:
        """Whether the kernel slides over positions, however its layer applies it."""
        return isinstance(self.layer, (BaseConv, BaseConvTranspose))

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel of the input has filters of its own."""
        return isinstance(self.layer, DEPTHWISE)

    def size(self, axis: int | str) -> int:
        """Returns the length of an axis of a `Weight`: a number, "in", "out", "channel" or "window"."""
        if isinstance(axis, int):
            return axis
        window = self.fan_in // self.channels
        return {"in": self.fan_in, "out": self.fan_out, "channel": self.channels, "window": window}[axis]

    def matrix(self, kernel: Any) -> Any:
        """Returns the kernel as [*batch, in, out]; NumPy stays NumPy."""
        np_or_ops = np if isinstance(kernel, np.ndarray) else ops
        ordered = kernel if self._in_order else np_or_ops.transpose(kernel, self._order)
        shape = (*self.batch, self.fan_in, self.fan_out)
        return ordered if tuple(ordered.shape) == shape else np_or_ops.reshape(ordered, shape)

    def kernel(self, matrix: Any) -> Any:
        """Returns [*batch, in, out] in the shape of the kernel; the inverse of `matrix`."""
        np_or_ops = np if isinstance(matrix, np.ndarray) else ops
        shape = tuple(self.shape[i] for i in self._order)
        unfolded = matrix if tuple(matrix.shape) == shape else np_or_ops.reshape(matrix, shape)
        if self._in_order:
            return unfolded
        return np_or_ops.transpose(unfolded, [self._order.index(i) for i in range(len(self._order))])

    def low_rank(self, x: Tensor, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        """Returns what the layer gives for x with the kernel scale · a @ b and nothing else.

        Args:
            x: input of the layer.
            a: [*batch, in, r].
            b: [*batch, r, out].
            scale: a scalar.
        """
        dtype = self.layer.compute_dtype if self.kind == "embedding" else x.dtype
        if not self.batch and self.maps_last_axes:
            lead = ops.shape(x)[: len(x.shape) - len(self.in_axes)]
            factors = (ops.cast(tensor, dtype) for tensor in (a, b, scale))
            y = thin_products(ops.reshape(x, (-1, self.fan_in)), *factors)
            return ops.reshape(y, (*lead, *(self.shape[i] for i in self.out_axes)))
        a, b = ops.cast(a, dtype), ops.cast(scale * b, dtype)
        if self.kind == "embedding":
            return ops.matmul(ops.take(a, ops.cast(x, "int32"), axis=0), b)
        return self._convolve(x, a, b) if self.kind == "convolution" else self._contract(x, a, b)

    def _contract(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        source, kernel, target = _equation(self.layer)
        letters = [[kernel[i] for i in axes] for axes in (self.batch_axes, self.in_axes, self.out_axes)]
        batch, inner, outer = map("".join, letters)
        rank = a.shape[-1]
        r = next(letter for letter in "rzyxwvutsqponmlkjihgfedcba" if letter not in source + kernel + target)
        middle = "".join(letter for letter in source if letter not in inner) + r
        a = ops.reshape(a, (*self.batch, *(self.shape[i] for i in self.in_axes), rank))
        b = ops.reshape(b, (*self.batch, rank, *(self.shape[i] for i in self.out_axes)))
        h = ops.einsum(f"{source},{batch}{inner}{r}->{middle}", x, a)
        return ops.einsum(f"{middle},{batch}{r}{outer}->{target}", h, b)

    def _convolve(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        layer, rank = self.layer, a.shape[-1]
        if self.is_depthwise:  # its kernel is small, so that nothing is won by two steps
            kernel = self.kernel(ops.matmul(a, b))
            options = (layer.strides, layer.padding, layer.data_format, layer.dilation_rate)
            return ops.depthwise_conv(x, kernel, *options)
        groups = layer.groups
        # Each group of channels meets all of `a`; `b` then takes for each filter the products of its own group.
        down = ops.reshape(a, (*self.shape[:-1], rank))
        down = ops.concatenate([down] * groups, axis=-1) if groups > 1 else down
        padding = layer.padding
        if padding == "causal":
            x, padding = ops.pad(x, causal_padding(layer)), "valid"
        h = ops.conv(x, down, list(layer.strides), padding, layer.data_format, layer.dilation_rate)
        first = layer.data_format == "channels_first"
        h = ops.moveaxis(h, 1, -1) if first else h
        if groups > 1:
            lead, of_group = ops.shape(h)[:-1], ops.reshape(h, (-1, groups, rank))
            parts = ops.einsum("ngr,rgo->ngo", of_group, ops.reshape(b, (rank, groups, -1)))
            y = ops.reshape(parts, (*lead, self.fan_out))
        else:
            y = ops.matmul(h, b)
        return ops.moveaxis(y, -1, 1) if first else y

    def rows(self, x: Any) -> Any:
        """Returns an input of an einsum layer, as NumPy, as [..., in]: what the kernel is multiplied with."""
        source, kernel, _ = _equation(self.layer)
        places = [source.index(kernel[i]) for i in self.in_axes]
        dots = source.find("...")
        axes = [place - len(source) if 0 <= dots < place else place for place in places]
        turned = np.moveaxis(x, axes, range(-len(axes), 0))
        return turned.reshape((*turned.shape[: -len(axes)], self.fan_in))

    @property
    def maps_last_axes(self) -> bool:
        """Whether input and output differ in their last axes only: the batch in front is the same."""
        if self.kind != "einsum":
            return False
        source, kernel, target = _equation(self.layer)
        inner, outer = ("".join(kernel[i] for i in axes) for axes in (self.in_axes, self.out_axes))
        return source.endswith(inner) and target.endswith(outer)

    def along_output(self, vector: Tensor, y: Tensor) -> Tensor:
        """Returns [*batch, out] in a shape that goes with the layer's output y, and in its dtype."""
        return self._along(vector, y, (*self.batch_axes, *self.out_axes), -1)

    def along_input(self, vector: Tensor, x: Tensor) -> Tensor:
        """Returns [*batch, channel] in a shape that goes with the layer's input x, and in its dtype."""
        return self._along(vector, x, (*self.batch_axes, *self.in_axes), 0)

    def _along(self, vector: Tensor, tensor: Tensor, axes: tuple[int, ...], side: int) -> Tensor:
        vector, dimensions = ops.cast(vector, tensor.dtype), len(tensor.shape)
        if self.kind == "convolution" and self.layer.data_format == "channels_first":
            return ops.reshape(vector, (-1, *(1,) * (dimensions - 2)))
        if self.kind != "einsum":
            return vector
        spec = _equation(self.layer)[side]
        lengths, order = self._axes(axes, spec)
        head, _, tail = spec.partition("...") if "..." in spec else (spec, "", "")
        rest = " " * (dimensions - len(head) - len(tail))
        unfolded = ops.transpose(ops.reshape(vector, list(lengths.values())), order)
        return ops.reshape(unfolded, [lengths.get(c, 1) for c in head + rest + tail])

    def _axes(self, axes: tuple[int, ...], spec: str) -> tuple[dict[str, int], list[int]]:
        """Returns the lengths of axes of the kernel by letter, and the order in which `spec` has them."""
        kernel = _equation(self.layer)[1]
        lengths = {kernel[i]: self.shape[i] for i in axes}
        letters = list(lengths)
        return lengths, [letters.index(c) for c in spec if c in lengths]

    def vector(self, bias: Tensor) -> Tensor:
        """Returns a bias, as the layer keeps it, as [*batch, out]."""
        if self.kind == "einsum":
            target = _equation(self.layer)[2]
            lengths, order = self._axes((*self.batch_axes, *self.out_axes), target)
            kept = dict(zip(reversed(target), reversed(bias.shape), strict=False))  # a bias has the last axes
            own = [letter for letter in target if letter in lengths]
            thin = ops.reshape(bias, [kept.get(letter, 1) for letter in own])
            wide = ops.broadcast_to(thin, [lengths[letter] for letter in own])
            bias = ops.transpose(wide, np.argsort(order).tolist())
        return ops.reshape(bias, (*self.batch, self.fan_out))

    def bias(self, vector: Any, shape: tuple[int, ...]) -> Any:
        """Returns [*batch, out] as a bias of that shape; the inverse of `vector`.

        Raises:
            ValueError: the layer's bias is shared by several outputs.
        """
        if vector.size != math.prod(shape):
            raise ValueError(f"{self.layer.path}: its bias {shape} is shared by outputs that an adapter tells apart.")
        if self.kind == "einsum":
            lengths, order = self._axes((*self.batch_axes, *self.out_axes), _equation(self.layer)[2])
            vector = vector.reshape(list(lengths.values())).transpose(order)
        return vector.reshape(shape)


@ops.custom_gradient
def thin_products(x: Tensor, a: Tensor, b: Tensor, s: Tensor) -> Any:
    """Returns s (x a) b, [n, out], for x [n, in], a [in, r], b [r, out] and a scalar s, which gets no gradient.

    Flat products, because the gradients of the same einsum are slower. So are, on a CPU, xᵀ u instead of (uᵀ x)ᵀ, and a
    product with aᵀ that does not lie in memory; s stands where it keeps XLA from turning one into the other.
    """
    h = ops.matmul(x, a)

    def gradient(*args: Tensor, upstream: Tensor | None = None) -> tuple[Tensor | None, ...]:
        g = args[0] if upstream is None else upstream
        u = ops.matmul(g, ops.transpose(b))
        da = ops.transpose(s * ops.matmul(ops.transpose(u), x))
        return ops.matmul(u, s * ops.transpose(a)), da, s * ops.matmul(ops.transpose(h), g), None

    return ops.matmul(s * h, b), gradient


def _equation(layer: Any) -> tuple[str, str, str]:
    """Returns the axes of input, kernel and output."""
    text = layer.equation if isinstance(layer, keras.layers.EinsumDense) else "...i,io->...o"
    left, target = text.replace(" ", "").split("->")
    source, kernel = left.split(",")
    return source, kernel, target


def stored_kernel(layer: Any, attr: str) -> keras.Variable | QuantizedKernel:
    """Returns the variable that an attribute of a layer holds, or the quantized kernel in its place."""
    kernel = quantized_kernel(layer)
    return kernel if kernel is not None and kernel.attr == attr else vars(layer)[attr]


def find_site(layer: Any) -> Site | None:
    """Returns the kernel of a built layer that adapters can change, or None if it has none.

    Of an LSTM or GRU that is the kernel of the cell's input, of a separable convolution the pointwise one.
    """
    call, layers = original_class(layer).call, keras.layers
    quantized = quantized_kernel(layer)
    attr = kernel_attribute(layer) if quantized is None else quantized.attr
    if attr is None:
        return None
    axes = list(range(len(stored_kernel(layer, attr).shape)))
    if isinstance(layer, layers.EinsumDense):
        source, kernel, target = _equation(layer)
        batch = [i for i, c in enumerate(kernel) if c in source and c in target]
        inner = [i for i, c in enumerate(kernel) if c in source and c not in target]
        outer = [i for i, c in enumerate(kernel) if c not in source]
        if not inner or not outer:  # elementwise products: there is no rank to lower
            return None
        return Site(layer, attr, "einsum" if call is layers.EinsumDense.call else "opaque", inner, outer, batch)
    known, inner, outer = "opaque", axes[:-1], axes[-1:]
    if isinstance(layer, layers.Dense):
        known = "einsum" if call is layers.Dense.call else "opaque"
    elif isinstance(layer, layers.Embedding):
        known = "embedding" if call in (layers.Embedding.call, layers.ReversibleEmbedding.call) else "opaque"
    elif isinstance(layer, BaseConv):
        known = "convolution" if call in (BaseConv.call, layers.Conv1D.call) else "opaque"
    elif isinstance(layer, BaseConvTranspose):
        inner, outer = [*axes[:-2], axes[-1]], [axes[-2]]
    elif isinstance(layer, DEPTHWISE):
        inner, outer = axes[:-2], axes[-2:]
        known = "convolution" if call in (layers.DepthwiseConv1D.call, layers.DepthwiseConv2D.call) else "opaque"
    return Site(layer, attr, known, inner, outer)


def parameter_site(layer: Any, attr: str) -> Site:
    """Returns another kernel than the one that `find_site` knows, [in, out] or a batch of them, [batch, in, out]."""
    *batch, inner, outer = range(len(vars(layer)[attr].shape))
    return Site(layer, attr, "opaque", [inner], [outer], batch)


def is_output_matrix(model: Any, layer: Any) -> bool:
    """Returns whether the embeddings of a layer are, transposed, the output matrix of a model too."""
    if not getattr(layer, "tie_weights", False):
        return False
    reversed_somewhere = any(kw.get("reverse") or any(a is True for a in args) for args, kw in symbolic_calls(layer))
    return reversed_somewhere or hasattr(model, "call_with_cache")

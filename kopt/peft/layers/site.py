"""A host layer's kernel seen as a matrix [in, out], and the layers of a model by path.

The one file of this wing that reads what Keras does not document.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.backend.common import global_state
from keras.src.layers.convolutional.base_conv import BaseConv
from keras.src.layers.convolutional.base_conv_transpose import BaseConvTranspose
from keras.src.models.functional import Functional
from keras.src.utils.naming import to_snake_case

Tensor = Any
BANK = "kopt_adapters"
"""The attribute under which a host keeps its child layer of adapter variables."""


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
        self.variable: keras.Variable = vars(layer)[attr]
        self.in_axes, self.out_axes, self.batch_axes = tuple(in_axes), tuple(out_axes), tuple(batch_axes)
        self.shape = tuple(self.variable.shape)
        self.batch = tuple(self.shape[i] for i in self.batch_axes)
        self.fan_in = math.prod(self.shape[i] for i in self.in_axes)
        self.fan_out = math.prod(self.shape[i] for i in self.out_axes)
        self.channels = self.shape[self.in_axes[-1]] if self.is_convolution else self.fan_in
        self._order = (*self.batch_axes, *self.in_axes, *self.out_axes)

    @property
    def is_convolution(self) -> bool:
        """Whether the kernel slides over positions, however its layer applies it."""
        return isinstance(self.layer, (BaseConv, BaseConvTranspose))

    def size(self, axis: int | str) -> int:
        """Returns the length of an axis of a `Weight`: a number, "in", "out" or "channel"."""
        if isinstance(axis, int):
            return axis
        return {"in": self.fan_in, "out": self.fan_out, "channel": self.channels}[axis]

    def matrix(self, kernel: Any) -> Any:
        """Returns the kernel as [*batch, in, out]; NumPy stays NumPy."""
        np_or_ops = np if isinstance(kernel, np.ndarray) else ops
        return np_or_ops.reshape(np_or_ops.transpose(kernel, self._order), (*self.batch, self.fan_in, self.fan_out))

    def kernel(self, matrix: Any) -> Any:
        """Returns [*batch, in, out] in the shape of the kernel; the inverse of `matrix`."""
        np_or_ops = np if isinstance(matrix, np.ndarray) else ops
        unfolded = np_or_ops.reshape(matrix, [self.shape[i] for i in self._order])
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
        layer, rank, groups = self.layer, a.shape[-1], self.layer.groups
        # Each group of channels meets all of `a`; `b` then takes for each filter the products of its own group.
        down = ops.reshape(a, (*self.shape[:-1], rank))
        down = ops.concatenate([down] * groups, axis=-1) if groups > 1 else down
        padding = layer.padding
        if padding == "causal":
            x, padding = ops.pad(x, layer._compute_causal_padding()), "valid"
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


def find_site(layer: Any) -> Site | None:
    """Returns the kernel of a built layer that adapters can change, or None if it has none.

    Of an LSTM or GRU that is the kernel of the cell's input, of a separable convolution the pointwise one.
    """
    call, layers = original_class(layer).call, keras.layers
    attributes = vars(layer)
    attr = next(
        (a for a in ("_kernel", "_embeddings", "kernel", "pointwise_kernel") if _is_matrix(attributes.get(a))), None
    )
    if attr is None:
        return None
    axes = list(range(len(attributes[attr].shape)))
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
    elif isinstance(layer, (layers.DepthwiseConv1D, layers.DepthwiseConv2D)):
        inner, outer = axes[:-2], axes[-2:]
    return Site(layer, attr, known, inner, outer)


def _is_matrix(value: Any) -> bool:
    return isinstance(value, keras.Variable) and len(value.shape) >= 2


def original_class(layer: Any) -> Any:
    """Returns the class that a layer had before it became a host."""
    cls = type(layer)
    return getattr(cls, "kopt_original", cls)


def own_variables(layer: Any) -> dict[str, keras.Variable]:
    """Returns the trainable variables that the layer itself keeps as attributes, by attribute."""
    own = {id(v) for v in layer._trainable_variables}
    return {name: v for name, v in vars(layer).items() if id(v) in own}


def in_forward_pass() -> bool:
    """Returns whether some Keras layer is being called."""
    return global_state.get_global_attribute("current_call_ctx") is not None


def strategy_of(variable: keras.Variable) -> contextlib.AbstractContextManager[Any]:
    """Returns the scope of the distribution strategy that a variable was created under."""
    strategy = getattr(variable.value, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def hang(layer: Any, bank: Any, cls: type) -> None:
    """Makes `bank` a child of the layer and `cls` the layer's class."""
    layer._tracker.unlock()  # a built layer takes no more children
    setattr(layer, BANK, bank)
    layer._tracker.lock()
    bank._parent_path = layer.path or layer.name
    bank._path = f"{bank._parent_path}/{bank.name}"
    object.__setattr__(layer, "__class__", cls)


def unhang(layer: Any) -> None:
    """Undoes `hang`."""
    object.__setattr__(layer, "__class__", original_class(layer))
    layer._tracker.unlock()
    layer._tracker.untrack(getattr(layer, BANK))
    delattr(layer, BANK)
    layer._tracker.lock()


@contextlib.contextmanager
def growing(layer: Any) -> Iterator[None]:
    """Lets a built layer take or drop variables."""
    layer._tracker.unlock()
    try:
        yield
    finally:
        layer._tracker.lock()


def children(layer: Any) -> list[Any]:
    """Returns the layers directly below, without adapter variables' own."""
    graph = list(layer.layers) if _is_graph(layer) else []
    inner = getattr(layer, "_functional", None)  # a Sequential's other view of the same layers
    bank = vars(layer).get(BANK)
    return graph + [
        c for c in layer._layers if c is not inner and c is not bank and not any(c is other for other in graph)
    ]


def _is_graph(layer: Any) -> bool:
    return isinstance(layer, (Functional, keras.Sequential))


def named_layers(model: Any) -> list[tuple[str, Any]]:
    """Returns (path, layer) for every layer below `model`, a shared one once.

    A path does not change when the same model is built again: below a Functional or Sequential model it has the layer's
    name; elsewhere too, but for names that Keras made up ("dense_36" depends on what was built before), which give way
    to the attribute that holds the layer, as in "blocks.0".
    """
    found: list[tuple[str, Any]] = []
    seen: set[int] = set()

    def visit(owner: Any, prefix: str) -> None:
        attributes, used = _attribute_names(owner), set[str]()
        for child in children(owner):
            if id(child) in seen:
                continue
            seen.add(id(child))
            name = child.name
            if not _is_graph(owner) and _is_made_up(child):
                name = attributes.get(id(child), name)
            while name in used:
                name += "_"
            used.add(name)
            path = f"{prefix}.{name}" if prefix else name
            found.append((path, child))
            visit(child, path)

    visit(model, "")
    return found


def _is_made_up(layer: Any) -> bool:
    return re.fullmatch(re.escape(to_snake_case(type(layer).__name__)) + r"(_\d+)?", layer.name) is not None


def _attribute_names(owner: Any) -> dict[int, str]:
    names: dict[int, str] = {}

    def visit(value: Any, name: str) -> None:
        if isinstance(value, keras.layers.Layer):
            names.setdefault(id(value), name)
        elif isinstance(value, dict):
            for key, item in value.items():
                visit(item, f"{name}.{key}")
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                visit(item, f"{name}.{i}")

    hidden = ("_layers", "_operations", "_operations_by_depth", "_inbound_nodes", "_outbound_nodes")
    for name, value in vars(owner).items():
        if name not in hidden and not name.startswith("_self_"):  # TensorFlow's own list of the same
            visit(value, name)
    return names

"""How a layer uses the axes of a weight: which sum over its inputs, and which number its outputs."""

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Self

import keras
from keras import ops

from kopt.optimizers.engine.tensor_math import Tensor

Axes = tuple[int, ...]
VECTORS = ("bias", "gamma", "beta", "alpha")
"""Names of weights that scale or move each number of a layer, whatever their shape."""


class Layout(tuple[int, ...]):
    """The shape of a weight, and what its axes are for.

    Attributes:
        inputs: axes that the layer sums over: their product is the fan-in. None if the weight is no matrix.
        outputs: axes of what it computes: their product is the fan-out.
        stacks: axes that number matrices of their own, as one an expert.
        has_heads: whether the first of several axes of outputs numbers heads that see the inputs by one measure, as
            queries and keys do.
        is_table: whether the weight is a table of which a layer reads rows.
        is_last: whether it is the last matrix of a model, frozen ones included, from which the predictions come.
        path: of the weight.
    """

    inputs: Axes = ()
    outputs: Axes = ()
    stacks: Axes = ()
    has_heads: bool = False
    is_table: bool = False
    is_last: bool = False
    path: str = ""

    def __new__(cls, shape: Iterable[int], path: str = "") -> Self:
        """Makes the layout of a weight of which nothing but its name is known: the last axis is that of the outputs."""
        made = super().__new__(cls, shape)
        name = path.rpartition("/")[2]
        made.path, made.is_table = path, len(made) == 2 and "embedding" in path.lower()
        if len(made) > 1 and not made.is_table and name != "bias":
            made.inputs, made.outputs = tuple(range(len(made) - 1)), (len(made) - 1,)
        return made

    @property
    def is_matrix(self) -> bool:
        """Whether the weight maps several inputs to several outputs."""
        return self.fan_in > 1 and self.fan_out > 1 and not self.is_table

    @property
    def fan_in(self) -> int:
        """Inputs of each output; 1 of a weight that is no matrix."""
        return math.prod(self[i] for i in self.inputs)

    @property
    def fan_out(self) -> int:
        """Outputs; 1 of a weight that is no matrix."""
        return math.prod(self[i] for i in self.outputs)

    @property
    def matrices(self) -> tuple[int, ...]:
        """Shape of the weight as [fan_in, fan_out], with the number of stacked matrices in front if there are any."""
        stacked = (math.prod(self[i] for i in self.stacks),) if self.stacks else ()
        return (*stacked, self.fan_in, self.fan_out)

    def as_matrices(self, x: Tensor) -> Tensor:
        """Returns a tensor of the shape of the weight in the shape of `matrices`."""
        return ops.reshape(ops.transpose(x, self._order), self.matrices)

    def from_matrices(self, x: Tensor) -> Tensor:
        """Returns a tensor of the shape of `matrices` in that of the weight."""
        back = sorted(range(len(self)), key=self._order.__getitem__)
        return ops.transpose(ops.reshape(x, [self[i] for i in self._order]), back)

    def stacked(self, count: int) -> "Layout":
        """Returns the layout of so many weights of this one on one more axis, in front."""
        made = Layout((count, *self), self.path)
        made.inputs, made.outputs = (tuple(i + 1 for i in axes) for axes in (self.inputs, self.outputs))
        made.stacks, made.has_heads = (0, *(i + 1 for i in self.stacks)), self.has_heads
        return made

    @property
    def _order(self) -> Axes:
        return (*self.stacks, *self.inputs, *self.outputs)


def layouts(variables: Sequence[Any], paths: Sequence[str]) -> list[Layout]:
    """Returns the layouts of weights, from the layers that hold them where a caller of `build` has these at hand."""
    found, owners = [], _owners(variables)
    for variable, path in zip(variables, paths, strict=True):
        layout, holders = Layout(variable.shape, path), owners.get(id(variable), [])
        if holders and len(layout) > 1:
            _read(layout, holders)
        found.append(layout)
    known = [(v, layout) for v, layout in zip(variables, found, strict=True) if id(v) in owners]
    matrices = [(v, layout) for v, layout in known if layout.outputs]
    if len(matrices) > 1:
        variable, layout = matrices[-1]
        layout.is_last = not _is_followed(variable, owners[id(variable)][0])
    return found


def _is_followed(variable: Any, model: Any) -> bool:
    """Returns whether a model has a matrix after this one, which is frozen: from that one the predictions come."""
    weights = list(model.weights)
    after = weights[1 + next((i for i, v in enumerate(weights) if v is variable), len(weights)) :]
    holders = _inside(model, {id(v) for v in after})
    for v in after:
        layout = Layout(v.shape, v.path)
        if len(layout) > 1 and id(v) in holders:
            _read(layout, holders[id(v)])
        if layout.outputs:
            return True
    return False


def _read(layout: Layout, holders: Sequence[Any]) -> None:
    """Sets the axes of a weight as the last of its holders, its layer, uses them."""
    layer = holders[-1]
    name, every = layout.path.rpartition("/")[2], tuple(range(len(layout)))
    host = holders[-2] if len(holders) > 1 else layer
    layout.is_table = _has_table(layer) or (_has_table(host) and getattr(host, "input_dim", None) == layout[0])
    depthwise = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
    transposed = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
    layout.inputs, layout.outputs = every[:-1], every[-1:]
    if layout.is_table or name in VECTORS or "depthwise" in name or isinstance(layer, depthwise):
        layout.inputs = layout.outputs = ()
    elif isinstance(layer, transposed):
        layout.inputs, layout.outputs = every[-1:], every[:-1]
    elif isinstance(layer, keras.layers.EinsumDense) and name == "kernel":
        given, _, rest = layer.equation.replace(" ", "").partition(",")
        kernel, _, result = rest.partition("->")
        roles = [(letter in given, letter in result) for letter in kernel]
        layout.inputs, layout.outputs, layout.stacks = (
            tuple(i for i, role in enumerate(roles) if role == wanted)
            for wanted in ((True, False), (False, True), (True, True))
        )
        makes_values = any(getattr(holder, "value_dense", None) is layer for holder in holders)
        layout.has_heads = len(layout.outputs) > 1 and not makes_values


def _has_table(layer: Any) -> bool:
    return "embedding" in type(layer).__name__.lower()


def _owners(variables: Sequence[Any]) -> dict[int, list[Any]]:
    """Returns the layers that hold weights, the outermost first, by the identity of the weight.

    A weight does not tell of what layer it is; but who builds an optimizer, `fit` or a loop, has the model at hand.
    """
    wanted, owners, seen = {id(v) for v in variables}, dict[int, list[Any]](), set[int]()
    frame: Any = sys._getframe()
    while frame is not None and not wanted <= owners.keys():
        for names in (frame.f_locals, frame.f_globals):
            if id(names) in seen:
                continue
            seen.add(id(names))
            for thing in list(names.values()):
                # Not `isinstance`: it asks objects for their class, at which some import a package.
                if issubclass(type(thing), keras.Layer) and id(thing) not in seen:
                    seen.add(id(thing))
                    owners |= _inside(thing, wanted - owners.keys())
        frame = frame.f_back
    return owners


def _inside(layer: Any, wanted: set[int]) -> dict[int, list[Any]]:
    """Returns which layers in a model hold each weight, the outermost first."""
    found = dict[int, list[Any]]()
    for each in layer._flatten_layers():
        for v in each.weights:
            if id(v) in wanted:
                found.setdefault(id(v), []).append(each)
    return found

"""Where the elements of a Keras variable lie in a Hugging Face tensor, found by sending indices through a converter."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kopt.peft.exchange import kerashub_converter
from kopt.peft.layers import QuantizedKernel, Site, find_site

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the elements of a Keras variable lie in a Hugging Face tensor.

    Args:
        shape: shape of the tensor.
        axes: for each axis of the tensor an index in the shape of the variable.
    """

    shape: tuple[int, ...]
    axes: tuple[Array, ...]

    def take(self, tensor: Array) -> Array:
        """Returns the variable's part of a tensor."""
        return tensor[self.axes]

    def put(self, value: Array, tensor: Array) -> None:
        """Writes the variable's part of a tensor."""
        tensor[self.axes] = value


@dataclasses.dataclass(frozen=True)
class Factors:
    """A kernel as Hugging Face's matrix: where its inputs and outputs lie.

    Args:
        shape: shape of the tensor.
        inputs: place of each input of the site among those of the tensor, counted in C order.
        outputs: the same of the outputs.
        input_shape: lengths of the tensor's input axes.
        output_length: number of the tensor's outputs.
        transposed: whether inputs come first, as in GPT-2.
        batch: lengths of the axes that inputs and outputs share, in front.
    """

    shape: tuple[int, ...]
    inputs: Array
    outputs: Array
    input_shape: tuple[int, ...]
    output_length: int
    transposed: bool
    batch: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Port:
    """A variable of the model and its name in Hugging Face.

    Args:
        path: Keras path of the layer.
        attr: attribute of the layer that holds the variable.
        layer: the layer.
        variable: the variable.
        module: module in the checkpoint, without the prefix of a model with a head.
        parameter: name in the module: "weight", "bias", ...
        record: what KerasHub's converter told; None for a layer that it does not know.
    """

    path: str
    attr: str
    layer: Any
    variable: keras.Variable | QuantizedKernel
    module: str
    parameter: str
    record: kerashub_converter.Record | None = None

    @functools.cached_property
    def site(self) -> Site | None:
        """The kernel's site, if the variable is the kernel."""
        site = find_site(self.layer)
        return site if site is not None and site.attr == self.attr else None


class _Probe(np.ndarray[Any, Any]):
    """An array of places, which a converter may move but not round.

    A converter has a hook for each tensor: it turns the tensor of Hugging Face into the variable of Keras. To see where
    the elements go, it is given, instead of a tensor, the number of each element along one axis after the other. Where
    the hook is a transpose, and the tensor [2, 3]:

        axis 0   [[0 0 0]            [[0 1]
                  [1 1 1]]   hook ->  [0 1]
                                      [0 1]]      element [2, 1] of the variable
        axis 1   [[0 1 2]            [[0 0]       is element [1, 2] of the tensor
                  [0 1 2]]   hook ->  [1 1]
                                      [2 2]]

    Some hooks also change the precision: `tensor.astype("float16")` would round places above 2048.
    """

    def astype(self, *_: Any, **__: Any) -> "_Probe":
        return self


def _indices(shape: Sequence[int]) -> list[Array]:
    """Returns, for each axis, the index along it, without the memory of as many full arrays."""
    return [
        np.broadcast_to(np.arange(n, dtype="int32").reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)
        for axis, n in enumerate(shape)
    ]


def find_placements(group: Sequence[Port], known: Sequence[int] | None) -> list[Placement] | None:
    """Returns the places of the variables that come from one tensor, or None if they are not clear.

    Args:
        group: all variables that come from it.
        known: its shape; None tries those that fit the variables.
    """
    for shape in [tuple(known)] if known is not None else _possible_shapes(group):
        places = [place for port in group if (place := _sent(port, shape)) is not None]
        if len(places) < len(group):
            continue
        if known is not None:
            return places
        sites = [site for port in group if (site := port.site) is not None]
        if len(sites) < len(group):
            if _disjoint(places):
                return places
            continue
        splits = [
            found for site, place in zip(sites, places, strict=True) if (found := _split(site, place)) is not None
        ]
        if len(splits) == len(group):
            outputs = np.concatenate([found[3] for found in splits])
            length = math.prod(places[0].shape[i] for i in splits[0][1])
            if np.unique(outputs).size == outputs.size and (len(group) == 1 or outputs.size == length):
                return places
    return None


def placement_key(group: Sequence[Port], known: Sequence[int] | None) -> tuple[Any, ...]:
    """Returns the key under which placements are cached.

    It is equal for the same tensor of all blocks of a transformer, so that each shape is probed once.
    """
    parts = []
    for port in group:
        site, record = port.site, port.record
        axes = () if site is None else (site.kind, site.is_convolution, site.batch_axes, site.in_axes, site.out_axes)
        hook = None if record is None else record.hook
        code = getattr(hook, "__code__", id(hook) if hook is not None else None)
        cells = [cell.cell_contents for cell in getattr(hook, "__closure__", None) or ()]
        closure = tuple(cell if isinstance(cell, (int, str, tuple)) else id(cell) for cell in cells)
        found = None if record is None else record.positions if record.axes is None else record.axes
        direct = None if found is None else id(found)
        parts.append((tuple(port.variable.shape), axes, record is None, code, closure, direct))
    return (tuple(parts), known and tuple(known))


def find_factors(port: Port, site: Site, place: Placement) -> Factors | None:
    """Returns the inputs and outputs of a kernel in its tensor, or None if they are mixed there."""
    if site.batch and port.record is not None:
        return _batched(site, place)
    if site.batch:
        inputs, outputs = np.arange(site.fan_in), np.arange(site.fan_out)
        return Factors(place.shape, inputs, outputs, (site.fan_in,), site.fan_out, False, site.batch)
    found = _split(site, place)
    if found is None:
        return None
    inner, outer, inputs, outputs = found
    input_shape = tuple(place.shape[i] for i in inner)
    length = math.prod(place.shape[i] for i in outer)
    transposed = len(place.shape) == 2 and inner[0] == 0 and site.kind != "embedding"
    return Factors(place.shape, inputs, outputs, input_shape, length, transposed)


def _batched(site: Site, place: Placement) -> Factors | None:
    """Returns the same of a batch of kernels in a tensor [batch, out, in] or [batch, in, out]."""
    first, *rest = [site.matrix(index) for index in place.axes]
    if len(rest) != 2 or (first != np.arange(len(first))[:, None, None]).any():
        return None
    by_input = [bool((m == m[:1, :, :1]).all()) for m in rest]
    by_output = [bool((m == m[:1, :1]).all()) for m in rest]
    if sorted(by_input) != [False, True] or by_input != by_output[::-1]:
        return None
    inner, outer = by_input.index(True), by_output.index(True)
    inputs, outputs = rest[inner][0, :, 0], rest[outer][0, 0]
    lengths = place.shape[1:]
    return Factors(place.shape, inputs, outputs, (lengths[inner],), lengths[outer], False, place.shape[:1])


def _sent(port: Port, shape: Sequence[int]) -> Placement | None:
    """Returns the places that the converter's hook gives in a tensor of `shape`, or None if it does not fit."""
    record, own = port.record, tuple(port.variable.shape)
    assert record is not None
    size = math.prod(own)
    if record.axes is not None:
        return Placement(tuple(shape), record.axes) if tuple(shape) == record.shape else None
    if record.positions is not None:
        flat = record.positions
        if flat.size != size or flat.max() >= math.prod(shape):
            return None
        return Placement(tuple(shape), tuple(np.unravel_index(flat.reshape(own), shape)))
    axes = []
    for index in _indices(shape):
        try:
            moved = index if record.hook is None else record.hook(index.view(_Probe), list(own))
        except (ValueError, IndexError, TypeError):
            return None
        axes.append(np.asarray(moved).view(np.ndarray))
        if axes[-1].shape != own or not np.issubdtype(axes[-1].dtype, np.integer):
            return None
    return Placement(tuple(shape), tuple(axes))


def _possible_shapes(group: Sequence[Port]) -> list[tuple[int, ...]]:
    """Returns shapes that the common tensor of `group` can have, the usual first."""
    own = tuple(group[0].variable.shape)
    total = sum(math.prod(p.variable.shape) for p in group)
    site = group[0].site
    shapes: list[tuple[int, ...]] = []
    if site is not None and not site.batch:
        outputs = sum(p.site.fan_out if p.site is not None else 0 for p in group)
        if site.is_convolution and len(own) > 2:
            shapes.append((outputs, own[-2], *own[:-2]))
        shapes += [(outputs, site.fan_in), (site.fan_in, outputs)]
        if site.kind == "embedding":
            shapes.reverse()
    elif len(own) <= 2 and group[0].parameter == "bias":
        shapes.append((total,))
    shapes += [own, (1, *own), own[::-1]]
    shapes += [(own[0] + extra, *own[1:]) for extra in range(1, 9)]  # rows that Keras lacks, as RoBERTa's first two
    return list(dict.fromkeys(shapes))


def _disjoint(places: Sequence[Placement]) -> bool:
    """Returns whether each element is taken once; a tensor in several parts must be taken whole."""
    taken = np.concatenate([np.ravel_multi_index(p.axes, p.shape).ravel() for p in places])
    distinct = np.unique(taken).size == taken.size
    return distinct and (len(places) == 1 or taken.size == math.prod(places[0].shape))


def _split(site: Site, place: Placement) -> tuple[list[int], list[int], Array, Array] | None:
    """Returns the tensor's input axes, its output axes, and where the site's inputs and outputs lie along them."""
    if site.batch:
        return None
    inner: list[int] = []
    outer: list[int] = []
    into: list[Array] = []
    out: list[Array] = []
    for axis, index in enumerate(place.axes):
        matrix = site.matrix(index)
        row, column = matrix[0], matrix[:, 0]
        by_output = bool((matrix == row).all())
        by_input = bool((matrix == column[:, None]).all())
        if by_output and not (by_input and outer):
            outer.append(axis)
            out.append(row)
        elif by_input:
            inner.append(axis)
            into.append(column)
        else:
            return None
    if not inner or not outer:
        return None
    inputs = np.ravel_multi_index(tuple(into), [place.shape[i] for i in inner])
    outputs = np.ravel_multi_index(tuple(out), [place.shape[i] for i in outer])
    if np.unique(inputs).size < inputs.size or np.unique(outputs).size < outputs.size:
        return None
    return inner, outer, inputs, outputs


def torch_placement(port: Port) -> Placement:
    """Returns the places in torch's order of axes: [out, in], [out, in, height, width], biases flat."""
    own, site = tuple(port.variable.shape), port.site
    if site is None:
        if port.parameter == "bias":
            return Placement((math.prod(own),), (np.arange(math.prod(own)).reshape(own),))
        return Placement(own, tuple(_indices(own)))
    if site.kind == "embedding":
        return Placement(own, tuple(_indices(own)))
    if site.is_convolution and site.in_axes == tuple(range(len(own) - 1)):
        order = (len(own) - 1, len(own) - 2, *range(len(own) - 2))
        return Placement(tuple(own[i] for i in order), tuple(_indices(own)[i] for i in order))
    matrix = (*site.batch, site.fan_in, site.fan_out)
    axes = [site.kernel(np.ascontiguousarray(index)) for index in _indices(matrix)]
    axes[-2:] = axes[:-3:-1]
    return Placement((*site.batch, site.fan_out, site.fan_in), tuple(axes))

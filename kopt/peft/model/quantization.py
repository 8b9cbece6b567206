"""Models whose kernels are stored in a few bits a weight, and back."""

import contextlib
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import keras
import numpy as np

from kopt.declare import Convert, checked
from kopt.peft import targets
from kopt.peft.host import as_float32
from kopt.peft.layers import (
    flatten_layers,
    forget_functions,
    named_layers,
    original_class,
    quantized_kernel,
    register_weights,
    set_class,
)
from kopt.peft.model.adapters import adapters_of
from kopt.peft.model.choice import is_wanted, site_of
from kopt.peft.model.model_class import pack_layers
from kopt.peft.model.optimizers import Optimizers
from kopt.peft.requirements import require_model
from kopt.peft.targets import matches, nearest

Names = Annotated[Any, Convert(targets.parse_names)]
_BY_KERAS = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.Embedding,
    keras.layers.ReversibleEmbedding,
)
"""The classes that Keras quantizes; it takes none of their subclasses."""


@checked
def quantize(
    model: Any,
    mode: Literal["nf4", "int8", "int4"],
    target_modules: Annotated[Any, Convert(targets.parse_targets)] = targets.ALL_LINEAR,
    exclude_modules: Names = None,
) -> Any:
    """Stores kernels of a model in a few bits a weight, in place. Adapters that are added then are trained in float32.

    "nf4" is that of QLoRA, with double quantization: 16 levels times the largest magnitude of 64 weights, which has 8
    bits itself. The levels suit weights that are distributed normally, and take 0.52 bytes a weight. What is stored are
    the numbers of bitsandbytes.

    "int8" and "int4" are the formats of Keras, as `model.quantize` has them: whole numbers times a scale, of each
    output, or for "int4" of 128 inputs of an output. With "int8", layers round their inputs to 8 bits, too.

    Args:
        model: a built model without adapters.
        mode: the format.
        target_modules: the layers, as for adapters: "all-linear" is every `Dense` and `EinsumDense`. "nf4" takes every
            layer with a kernel, Keras also `Embedding`.
        exclude_modules: layers to leave out, as a head that is trained whole.

    Returns:
        `model`, the same object.

    Raises:
        ValueError: the model is not built or has adapters; a name matches no layer; a layer is quantized already,
            cannot be, or has NaN. The model is then as before.

    Reference: Dettmers et al., 2023, arXiv:2305.14314.
    """
    require_model(model)
    if not getattr(model, "built", False):
        raise ValueError(f"The model {model.name!r} is not built. Call it once, or build(...), before quantizing it.")
    if adapters_of(model) is not None:
        raise ValueError("The model has adapters. Quantize it before they are added, or call unload(model) first.")
    chosen = _chosen(model, target_modules, exclude_modules)
    for path, layer in chosen.items():
        if getattr(layer, "quantization_mode", None):
            raise ValueError(f"{path} is quantized already ({layer.quantization_mode}).")
        if mode != "nf4" and type(layer) not in _BY_KERAS:
            raise ValueError(f"Keras cannot quantize {path} ({type(layer).__name__}). Name it in exclude_modules.")
        if mode == "int8" and layer.compute_dtype == "float16":
            raise ValueError(
                f"{path} computes in float16, for which Keras has no int8. Take 'nf4', 'int4' or bfloat16."
            )
        site = site_of(layer)
        assert site is not None
        if not np.isfinite(as_float32(site.variable)).all():
            raise ValueError(f"{path} has NaN or infinite weights, which no format of few bits has.")
    if mode == "nf4":
        pack_layers(model, chosen)
    for layer in chosen.values() if mode != "nf4" else ():
        layer.quantize(mode)
    _changed(model)
    return model


def dequantize(model: Any) -> Any:
    """Gives the quantized layers of a model float kernels again: those that they stand for, not those of before.

    Adapters stay, as they are: `merge_and_unload` is exact then. While kernels are quantized, merging rounds them
    anew. A compiled model without adapters gets a new optimizer of the same configuration.

    Args:
        model: a model with layers in int8, int4 or nf4, with adapters or without.

    Returns:
        `model`, the same object.

    Raises:
        ValueError: no layer is quantized.
    """
    require_model(model)
    kernels = [kernel for layer in flatten_layers(model) if (kernel := quantized_kernel(layer)) is not None]
    if not kernels:
        raise ValueError(f"The model {model.name!r} has no layers in int8, int4 or nf4.")
    current = adapters_of(model)
    with contextlib.nullcontext() if current is None else current.dequantizing():
        for kernel in kernels:
            kernel.release()
    if current is None:
        set_class(model, original_class(model))
    _changed(model)
    if current is None:
        Optimizers(model).choose()
    return model


def _chosen(model: Any, target_modules: Any, exclude_modules: Any) -> dict[str, Any]:
    """Returns the layers to quantize by path."""
    found = {path: (layer, site_of(layer)) for path, layer in named_layers(model)}
    sites = {path: (layer, site) for path, (layer, site) in found.items() if site is not None and site.has_kernel}
    possible = {path: layer for path, (layer, _) in sites.items()}
    for name in target_modules if isinstance(target_modules, list) else ():
        _require(name, [name], "target_modules", possible, " with a kernel")
    for name in [exclude_modules] if isinstance(exclude_modules, str) else exclude_modules or ():
        _require(name, exclude_modules if isinstance(exclude_modules, str) else [name], "exclude_modules", found)
    chosen = {path: layer for path, (layer, site) in sites.items() if is_wanted(target_modules, path, layer, site)}
    chosen = {path: layer for path, layer in chosen.items() if not matches(exclude_modules, path)}
    if not chosen:
        raise ValueError(
            f"target_modules={target_modules!r} leaves no layer to quantize. Closest layer names: "
            f"{nearest(target_modules, list(possible)) or 'none'}."
        )
    return chosen


def _require(name: str, spec: str | list[str], field: str, paths: Iterable[str], which: str = "") -> None:
    """Raises ValueError if `name`, which as a pattern is `spec`, matches none of the paths."""
    if not any(matches(spec, path) for path in paths):
        near = nearest(name, list(paths)) or "none"
        raise ValueError(f"{field}: {name!r} matches no layer{which}. Closest layer names: {near}.")


def _changed(model: Any) -> None:
    """Lets backends know that weights of the model are others now."""
    register_weights(model)
    forget_functions(model)

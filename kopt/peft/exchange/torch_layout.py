"""The weights of adapters as torch lays them out, for one module of Hugging Face, which may be several Keras layers.

In GPT-2, query, key and value are one module. Its adapter goes to three layers, and those of three layers, which may
have learned different things, become one that computes the same.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kopt.peft.adapter import Adapter, Weight
from kopt.peft.exchange.placement import Factors
from kopt.peft.layers import Site, Spot
from kopt.peft.methods import LoRA

Array = np.ndarray[Any, Any]
Axes = tuple[int | str, ...]
PROMPT = "prompt_embeddings"
TOKENS = "trainable_tokens_delta"
TOKENS_BESIDE = f"token_adapter.{TOKENS}"
"""Trainable tokens as a method, and beside a LoRA.

peft gives a tied output matrix the same rows by itself; the files of the method alone have them twice.
"""
OUTPUT_MODULE = "lm_head"
OUTPUT = {"lora_embedding_B": "lora_A.weight", "lora_embedding_A": "lora_B.weight"}
"""Tied embeddings: the factors of the embedding, and those of the output matrix, which are their transposes."""


@dataclasses.dataclass
class Part:
    """An adapter at one Keras layer.

    Args:
        path: of the layer.
        site: its kernel.
        factors: where the kernel's inputs and outputs lie in the module's.
        adapter: the method there.
        values: its weights.
    """

    path: str
    site: Site
    factors: Factors
    adapter: Any
    values: dict[str, Array]

    @property
    def declared(self) -> dict[str, Weight]:
        """The weights that a file holds for this layer."""
        return declared(self.adapter, self.site)


def declared(adapter: Adapter, site: Site) -> dict[str, Weight]:
    """Returns the weights that a file holds for a layer with an adapter."""
    own = adapter.weights(site)
    return {name: weight for name, weight in own.items() if weight.exchanged and not weight.shared}


def shared(adapter: Adapter, site: Site) -> dict[str, Weight]:
    """Returns the weights that a file holds once for all layers with an adapter."""
    return {name: weight for name, weight in adapter.weights(site).items() if weight.exchanged and weight.shared}


def spelled(adapter: Adapter, site: Site) -> list[str]:
    """Returns the names in a file of all weights that an adapter has at a site."""
    return [adapter.spell(name, site) for name in declared(adapter, site)]


def check_order(adapter: Adapter, site: Site, factors: Factors, path: str) -> None:
    """Raises ValueError if a method counts inputs or outputs that have other numbers in Hugging Face."""
    if not adapter.ordered:
        return
    inputs = np.arange(site.fan_in).reshape(site.size("channel"), -1).T.ravel()  # Keras counts channels fastest
    same = np.array_equal(factors.inputs, inputs) and np.array_equal(factors.outputs, np.arange(site.fan_out))
    whole = factors.output_length == site.fan_out and math.prod(factors.input_shape) == site.fan_in
    if not same or not whole or factors.input_shape[0] != site.size("channel"):
        raise ValueError(
            f"{path} is only a part of its module in Hugging Face, or in another order there. "
            f"{type(adapter).__name__} counts inputs and outputs, so its adapter cannot be exchanged for this layer. "
            "model.save(...) keeps it."
        )


def torch_shape(weight: Weight, axes: Axes, factors: Factors) -> tuple[int, ...]:
    """Returns the shape of a weight in a file."""
    return to_torch(weight, np.broadcast_to(np.float32(0), _lengths(axes, factors)), axes, factors).shape


def to_torch(weight: Weight, value: Array, axes: Axes, factors: Factors) -> Array:
    """Returns a weight [*batch, *axes], whose named axes are in the module's order, as torch lays it out."""
    batch = len(factors.batch)
    if weight.as_it_is:
        return value
    turned = np.transpose(value, (*range(batch), *reversed(range(batch, value.ndim))))
    window = factors.input_shape[1:]
    if "window" in axes:
        own = [n for a, n in zip(reversed(axes), turned.shape[batch:], strict=True) if a != "window"]
        return turned.reshape((*own[:-1], -1) if weight.flat else (*own, *window))
    if not window or batch or weight.flat:
        return turned
    ones, names = (1,) * len(window), [axis for axis in axes if isinstance(axis, str)]
    if not names:
        return turned
    if "in" in names:
        return turned.reshape([n for a in reversed(axes) for n in (factors.input_shape if a == "in" else (a,))])
    if len(names) == 1 and set(axes) <= {1, *names}:
        return turned.reshape((1, -1, *ones))
    return turned.reshape((*turned.shape, *ones))


def from_torch(weight: Weight, tensor: Array, axes: Axes, factors: Factors) -> Array:
    """Returns a tensor of a file as [*batch, *axes]; the inverse of `to_torch`."""
    batch, lengths = len(factors.batch), _lengths(axes, factors)
    if weight.as_it_is:
        return tensor
    turned = tensor.reshape((*factors.batch, *reversed(lengths[batch:])))
    return np.transpose(turned, (*range(batch), *reversed(range(batch, len(lengths)))))


def gather(weight: str, axes: Axes, values: Sequence[tuple[Factors, Array]], rest: Array | float | None) -> Array:
    """Returns the weights of several layers as one of their module, [*batch, *axes].

    Args:
        weight: its name.
        axes: its axes.
        values: for each layer, where it lies in the module and its weight.
        rest: what stands where no layer is; None if nothing can.

    Raises:
        ValueError: they have different values where the module has one.
    """
    first = values[0][0]
    whole = np.zeros(_lengths(axes, first), "float32")
    filled = np.zeros(whole.shape, bool)
    for factors, value in values:
        index = _index(axes, factors, whole.shape)
        if (filled[index] & (whole[index] != value)).any():
            raise ValueError(
                f"{weight} differs between Keras layers that are one module in Hugging Face, which has it once. Train "
                "them with the same factors, or adapt the output side."
            )
        whole[index], filled[index] = value, True
    if not filled.all():
        if rest is None:
            raise ValueError(f"{weight} has elements in Hugging Face that no Keras layer has.")
        whole = np.where(filled, whole, np.broadcast_to(rest, whole.shape).astype("float32"))
    return whole


def scatter(axes: Axes, factors: Factors, whole: Array) -> Array:
    """Returns a layer's part of its module's weight [*batch, *axes]."""
    return whole[_index(axes, factors, whole.shape)]


def _lengths(axes: Axes, factors: Factors) -> tuple[int, ...]:
    named = {
        "in": math.prod(factors.input_shape),
        "out": factors.output_length,
        "channel": factors.input_shape[0],
        "window": math.prod(factors.input_shape[1:]),
    }
    return (*factors.batch, *(named[a] if isinstance(a, str) else a for a in axes))


def _index(axes: Axes, factors: Factors, shape: Sequence[int]) -> tuple[Array, ...]:
    window = math.prod(factors.input_shape[1:])
    channels = factors.inputs[: factors.input_shape[0]] // window  # Keras counts channels fastest
    named = {"in": factors.inputs, "out": factors.outputs, "channel": channels, "window": np.arange(window)}
    batch = len(factors.batch)
    return np.ix_(
        *(np.arange(n) for n in shape[:batch]),
        *(named[a] if isinstance(a, str) else np.arange(n) for a, n in zip(axes, shape[batch:], strict=True)),
    )


# ------------------------------------------------------------------------------------------------- one module


@dataclasses.dataclass
class Module:
    """An adapter at one module, in the module's own order, and the arguments that differ between modules."""

    tensors: dict[str, Array]
    local: dict[str, float]


def combine(parts: Sequence[Part], lengths: Array | None) -> Module:
    """Returns the adapters of the layers of one module as one adapter that computes the same.

    Args:
        parts: the adapted layers.
        lengths: norm of the base's weights for each output of the module if some of its layers are not adapted, else
            None.

    Raises:
        ValueError: there is none.
    """
    first = parts[0]
    for part in parts:
        check_order(part.adapter, part.site, part.factors, part.path)
    local = {field: getattr(first.adapter, field) for field in first.adapter.patterned.values()}
    axes = {name: weight.axes for name, weight in first.declared.items()}
    if isinstance(first.adapter, LoRA):
        rank, alpha, parts = _one_rank(parts)
        local = {"r": rank, "lora_alpha": alpha}
        axes |= {"lora_A": ("in", rank), "lora_B": (rank, "out")}
    tensors = {}
    for name, weight in first.declared.items():
        if lengths is not None and weight.rest != 0 and "out" not in axes[name]:
            raise ValueError(
                f"{first.path}: {name} belongs to a module of Hugging Face that is several Keras layers, and not all "
                "of them are adapted. Adapt all of them, or none."
            )
        rest = lengths if name == "lora_magnitude_vector" else weight.rest
        whole = gather(name, axes[name], [(p.factors, p.values[name]) for p in parts], rest)
        turned = to_torch(weight, whole, axes[name], first.factors)
        tensors[first.adapter.spell(name, first.site)] = np.ascontiguousarray(turned, "float32")
    return Module(tensors, local)


def _one_rank(parts: Sequence[Part]) -> tuple[int, float, list[Part]]:
    """Returns parts with the same A, and its rank and α: the factors of each as a block where they differ."""
    changes = [_whole_change(p) for p in parts]
    scales = [p.adapter.scaling for p in parts]
    batch = parts[0].factors.batch
    wholes = [
        gather("lora_A", ("in", a.shape[-1]), [(p.factors, a)], 0.0) for p, (a, _) in zip(parts, changes, strict=True)
    ]
    same = all(w.shape == wholes[0].shape and np.array_equal(w, wholes[0]) for w in wholes)
    if same:
        rank, inner = wholes[0].shape[-1], wholes[0]
        outers = [b * (s / scales[0]) if s != scales[0] else b for (_, b), s in zip(changes, scales, strict=True)]
    else:
        rank, inner = sum(w.shape[-1] for w in wholes), np.concatenate(wholes, -1)
        outers, row = [], 0
        for (_, b), s in zip(changes, scales, strict=True):
            block = np.zeros((*batch, rank, b.shape[-1]), "float32")
            block[..., row : row + b.shape[-2], :] = b * (s / scales[0])
            row += b.shape[-2]
            outers.append(block)
    new = []
    for part, b in zip(parts, outers, strict=True):
        values = part.values | {"lora_A": scatter(("in", rank), part.factors, inner), "lora_B": b}
        if "lora_B_bias" in values:
            values["lora_B_bias"] = values["lora_B_bias"] * np.float32(part.adapter.scaling / scales[0])
        new.append(dataclasses.replace(part, values=values))
    alpha = scales[0] * (math.sqrt(rank) if parts[0].adapter.use_rslora else rank)
    return rank, alpha, new


def _whole_change(part: Part) -> tuple[Array, Array]:
    """Returns factors of the whole change of the kernel: with A₀, B₀ beside them where the method starts from there."""
    a, b = part.values["lora_A"], part.values["lora_B"]
    if "start_A" in part.values:
        a = np.concatenate([a, part.values["start_A"]], -1)
        b = np.concatenate([b, -part.values["start_B"]], -2)
    return a, b


def check_output(weights: Sequence[Mapping[str, Array]], output: Mapping[str, Array]) -> None:
    """Raises ValueError if what a file holds for a tied output matrix is not that of the embedding.

    Args:
        weights: tensors of each module, by name.
        output: those of the output matrix; none if the file has none.
    """
    rows = TOKENS in output
    for inner, other in ({TOKENS: TOKENS} if rows else OUTPUT if output else {}).items():
        found = [tensors[inner] if rows else tensors[inner].T for tensors in weights if inner in tensors]
        if other not in output or not any(np.array_equal(output[other], value) for value in found):
            what = "that of the embedding" if rows else f"the transpose of {inner}"
            raise ValueError(
                f"{OUTPUT_MODULE}.{other} is not {what}. In this model embedding and output matrix are one weight, so "
                "both must change alike."
            )


def join_prefix(parts: Sequence[Array]) -> Array:
    """Returns the prefix of a whole model, [tokens, numbers], from those of its layers in their order.

    Raises:
        ValueError: layers differ in size, which files cannot say.
    """
    if len({part.shape for part in parts}) > 1:
        raise ValueError(
            "The attention layers have keys of different sizes, and a file of peft has one size for all. "
            "model.save(...) keeps the prefix."
        )
    return np.ascontiguousarray(np.concatenate(parts, axis=1), "float32")


def split_prefix(tensor: Array, config: Mapping[str, Any], places: Mapping[str, Spot], tokens: int) -> dict[str, Array]:
    """Returns the prefix of each layer from that of the whole model.

    Args:
        tensor: [tokens, numbers].
        config: what the file says.
        places: the attention layers by path, in their order.
        tokens: number of virtual tokens.

    Raises:
        ValueError: it is of another shape, or the file says another number of heads.
    """
    widths = [2 * place.fan_out for place in places.values()]
    if tensor.shape != (tokens, sum(widths)):
        raise ValueError(
            f"{PROMPT} has shape {tensor.shape}, but the model takes {(tokens, sum(widths))}: {tokens} virtual tokens, "
            f"and keys and values of {len(widths)} attention layers."
        )
    heads = config.get("num_attention_heads")
    if heads is not None and any(place.heads != heads for place in places.values()):
        there = sorted({place.heads for place in places.values()})
        raise ValueError(f"num_attention_heads of the file is {heads}, but keys of the model have {there} heads.")
    return dict(zip(places, np.split(tensor, np.cumsum(widths)[:-1], axis=1), strict=True))


def divide(
    tensors: Mapping[str, Array], site: Site, factors: Factors, adapter: Adapter, path: str
) -> tuple[dict[str, Array], list[str], dict[str, tuple[int, ...]]]:
    """Returns a layer's weights from the tensors of its module.

    Args:
        tensors: what the file holds for the module, by the name after that of the module.
        site: its kernel.
        factors: where it lies in the module.
        adapter: the method there.
        path: of the layer.

    Returns:
        The weights by name, the tensors that are missing, and the right shapes of those that have another.

    Raises:
        ValueError: the method counts what has another order in the module, or the values cannot be its own.
    """
    check_order(adapter, site, factors, path)
    values: dict[str, Array] = {}
    missing: list[str] = []
    wrong: dict[str, tuple[int, ...]] = {}
    for name, weight in declared(adapter, site).items():
        key = adapter.spell(name, site)
        if key not in tensors:
            missing.append(key)
            continue
        expected = torch_shape(weight, weight.axes, factors)
        if tensors[key].shape != expected:
            wrong[key] = expected
            continue
        values[name] = scatter(weight.axes, factors, from_torch(weight, tensors[key], weight.axes, factors))
    if not missing and not wrong:
        adapter.check_values(values, site)
    return values, missing, wrong

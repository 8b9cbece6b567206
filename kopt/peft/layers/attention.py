"""Attention, and the positions of its tokens, as layers that adapters surround: they have no kernel of their own."""

from typing import Any

import keras
from typing_extensions import override

from kopt.peft.layers.keras_internals import child_layers, original_class
from kopt.peft.layers.site import Site, find_site

_CACHED = (
    "CachedGemmaAttention",
    "CachedMistralAttention",
    "CachedMixtralAttention",
    "CachedMultiHeadAttention",
    "GptOssAttention",
    "LlamaAttention",
    "Qwen3Attention",
    "Qwen3MoeAttention",
    "QwenAttention",
    "QwenMoeAttention",
)
"""Classes of KerasHub whose call takes keys and values of earlier tokens, the place of the next one, and a mask."""

_INTERLEAVED = "CachedGemmaAttention"
"""The class that keeps the halves of each key interleaved, as Hugging Face does not."""


class Spot(Site):
    """A layer that adapters surround.

    Args:
        layer: the layer, built.
        kind: "attention", or "positions" for a table of positions.
        heads: of the keys and values, which may be fewer than those of the queries.
        head_size: numbers in a key of one head, as in a value.
        cached: whether the call takes a cache of keys and values.
    """

    def __init__(self, layer: Any, kind: str, heads: int = 0, head_size: int = 0, cached: bool = False) -> None:
        self.layer, self.attr, self.kind, self.cached = layer, kind, kind, cached
        self.heads, self.head_size = heads, head_size
        self.interleaved = original_class(layer).__name__ == _INTERLEAVED
        self.variable: Any = None
        self.in_axes, self.out_axes, self.batch_axes = (), (), ()
        self.shape, self.batch = (), ()
        self.fan_in, self.fan_out = 0, heads * head_size

    @property
    def extensible(self) -> bool:
        """Whether it is an attention that takes no cache, so that its keys and values are extended once computed."""
        return self.kind == "attention" and not self.cached

    @property
    @override
    def has_kernel(self) -> bool:
        return False

    @override
    def size(self, axis: int | str) -> int:
        """Returns the length of an axis of a `Weight`: a number, or "out", the numbers of a key of all heads."""
        return axis if isinstance(axis, int) else {"out": self.fan_out}[axis]


def find_place(layer: Any) -> Site | None:
    """Returns the kernel of a built layer that adapters can change, or what they can surround; None if neither."""
    return find_site(layer) or _find_spot(layer)


def is_attention(layer: Any) -> bool:
    """Returns whether a layer is an attention that adapters can surround."""
    spot = _find_spot(layer)
    return spot is not None and spot.kind == "attention"


def _find_spot(layer: Any) -> Spot | None:
    cls = original_class(layer)
    hub = cls.__module__.startswith("keras_hub.")
    if hub and cls.__name__ == "PositionEmbedding":
        return Spot(layer, "positions")
    cached = hub and cls.__name__ in _CACHED
    attention = keras.layers.MultiHeadAttention
    if not cached and not (issubclass(cls, attention) and cls.call is attention.call):
        return None
    inner = {child.name: site for child in child_layers(layer) if (site := find_site(child)) is not None}
    if "key" not in inner or "value" not in inner:
        return None
    shapes = [tuple(inner[name].shape[i] for i in inner[name].out_axes) for name in ("key", "value")]
    if shapes[0] != shapes[1] or len(shapes[0]) != 2:
        return None
    return Spot(layer, "attention", *shapes[0], cached=cached)

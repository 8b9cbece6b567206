"""Prefix tuning."""

import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self, cast

import numpy as np
from keras import ops
from typing_extensions import override

from kopt.declare import Range
from kopt.peft.adapter import Adapter, Array, Length, Weight, constant, normal, uniform, zeros
from kopt.peft.layers import Site, Spot, Tensor, let_caches_learn

ACROSS = "cross_attention"
"""What KerasHub calls the attention of a decoder to its encoder."""
_INNER, _OUTER = "transform_0", "transform_2"


class PrefixTuning(Adapter):
    r"""Prefix tuning: learned keys and values in front of those of the sequence, in every attention.

        softmax(q [K₀; K]ᵀ / √d) [V₀; V]

        with `prefix_projection`   [K₀, V₀] = tanh(E W₁ + c₁) W₂ + c₂

    The tokens come behind the prefix: their positions, rotary or of KerasHub's `PositionEmbedding`, are higher by
    `num_virtual_tokens`, and every token sees the whole prefix. Inputs and outputs have the same shapes as without, and
    text generation works. Hosts are `keras.layers.MultiHeadAttention`, as in BERT and RoBERTa of KerasHub, and the
    attentions of its GPT-2, GPT-OSS, Llama, SmolLM2, Mistral, Mixtral, Gemma, Gemma 2, Qwen 2 and Qwen 3; not those of
    models with an encoder and a decoder.

    Weights: K₀, V₀ as [num_virtual_tokens, 2 out] at each attention, for out = heads · size of a key; they are drawn
    from N(0, 1), as in torch. With `prefix_projection` E [num_virtual_tokens, out], W₁ [out, h] and c₁ [h] that all
    layers share, and W₂ [h, 2 out] and c₂ [2 out] of each. Files have K₀, V₀ alone, so that what is read from them is
    trained further without the network.

    Args:
        num_virtual_tokens: 1 to 65,536.
        prefix_projection: whether a small network makes the prefix.
        encoder_hidden_size: h, up to 65,536; None is out.
        init_weights: "zero" starts with a prefix of zeros; None draws it. Neither is the identity.

    Switching it on or off changes shapes inside: the model's own compiled functions are traced anew, but a model that
    contains it must be compiled again. A model has one prompt or prefix at a time.

    Differs from Hugging Face peft: in a Mistral whose sequence and prefix are longer than its sliding window tokens see
    the prefix from beyond the window, too.
    Reference: Li and Liang, 2021, arXiv:2101.00190; without the network: Liu et al., 2021, arXiv:2110.07602.
    """

    peft_type = "PREFIX_TUNING"
    in_peft = True
    mergeable = False
    gated = False
    kinds = ("attention", "positions")
    takes = "keras.layers.MultiHeadAttention, attention layers of KerasHub and its PositionEmbedding"
    selects = (*Adapter.selects, "init_weights")

    num_virtual_tokens: Length = 20
    prefix_projection: bool = False
    encoder_hidden_size: Annotated[int, Range(1, 2**16, closed=True)] | None = None
    init_weights: Literal["zero"] | None = None

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        n, width, zero = self.num_virtual_tokens, site.fan_out, self.init_weights == "zero"
        if site.kind == "positions":  # hosts have weights: this one says by how much positions move
            return {"offset": Weight((1,), constant(n), trainable=False, in_files=False)}
        if not self.prefix_projection:
            return {"prefix": Weight((n, 2 * width), zeros if zero else normal(1.0), as_it_is=True)}
        hidden = self.encoder_hidden_size or width
        inner, outer = uniform(1 / math.sqrt(width)), zeros if zero else uniform(1 / math.sqrt(hidden))
        return {
            "prefix_tokens": Weight((n, width), normal(1.0), in_files=False, shared=True),
            _INNER: Weight((width, hidden), inner, in_files=False, shared=True),
            f"{_INNER}_bias": Weight((hidden,), inner, in_files=False, shared=True),
            _OUTER: Weight((hidden, 2 * width), outer, in_files=False),
            f"{_OUTER}_bias": Weight((2 * width,), outer, in_files=False),
        }

    @override
    def among(self, sites: Sequence[Site]) -> Self:
        """Looks whether there is an attention, of sizes that one network can serve, and none across.

        Raises:
            ValueError: it cannot be.
        """
        inside = [site for site in sites if site.kind == "attention"]
        if not inside:
            raise ValueError(f"{type(self).__name__} finds no attention. It takes {self.takes}.")
        if across := [site.layer.path for site in inside if ACROSS in site.layer.name]:
            raise ValueError(
                f"{across[0]} attends from a decoder to an encoder, where peft does something else than in "
                "self-attention. Name the layers of one of both in target_modules."
            )
        if self.prefix_projection and len({site.fan_out for site in inside}) > 1:
            raise ValueError(
                "prefix_projection takes attention layers of one size. Leave it out, or name fewer layers."
            )
        let_caches_learn()
        return self

    def prefix(self, p: Any) -> Tensor:
        """Returns keys and values, [num_virtual_tokens, 2 out]."""
        if not self.prefix_projection:
            return p.prefix
        hidden = ops.tanh(ops.matmul(p.prefix_tokens, getattr(p, _INNER)) + getattr(p, f"{_INNER}_bias"))
        return ops.matmul(hidden, getattr(p, _OUTER)) + getattr(p, f"{_OUTER}_bias")

    def keys_and_values(self, site: Spot, p: Any) -> Tensor:
        """Returns both in the type that the layer computes in, [2, num_virtual_tokens, heads, size]."""
        n, heads, size = self.num_virtual_tokens, site.heads, site.head_size
        both = ops.swapaxes(ops.reshape(self.prefix(p), (n, 2, heads, size)), 0, 1)
        if site.interleaved:
            halves = ops.swapaxes(ops.reshape(both[0], (n, heads, 2, size // 2)), -1, -2)
            both = ops.stack([ops.reshape(halves, (n, heads, size)), both[1]])
        return ops.cast(both, site.layer.compute_dtype)

    @override
    def surround(
        self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], site: Site, p: Any
    ) -> Any:
        """Returns what an attention gives behind its prefix, or the positions of tokens that come behind it."""
        site, given = cast(Spot, site), inspect.signature(call).bind(*args, **kwargs)
        options = given.arguments
        if site.kind == "positions":
            self._move(options, site)
        elif site.cached:
            return self._behind_cache(call, options, site, p)
        return call(*given.args, **given.kwargs)

    def _move(self, options: dict[str, Any], site: Spot) -> None:
        n, most = self.num_virtual_tokens, site.layer.sequence_length
        if options.get("positions") is not None:
            options["positions"] = options["positions"] + n
            return
        start, length = options.get("start_index", 0), options["inputs"].shape[-2]
        if isinstance(start, int) and isinstance(length, int) and start + length + n > most:
            raise ValueError(
                f"{site.layer.path} has {most} positions, too few for {length} tokens behind {n} virtual ones. Use "
                "shorter sequences or a smaller num_virtual_tokens."
            )
        options["start_index"] = start + n

    def _behind_cache(self, call: Callable[..., Any], options: dict[str, Any], site: Spot, p: Any) -> Any:
        """Hands the prefix over as the keys and values of earlier tokens, which makes the positions right, too."""
        x = options.get("value", next(iter(options.values())))
        n, cache, dtype = self.num_virtual_tokens, options.get("cache"), site.layer.compute_dtype
        rows, length = ops.shape(x)[0], ops.shape(x)[1]
        front = ops.expand_dims(self.keys_and_values(site, p), 0)
        front = ops.broadcast_to(front, (rows, 2, n, site.heads, site.head_size))
        room = ops.zeros((rows, 2, length, site.heads, site.head_size), dtype) if cache is None else cache
        if cache is not None and options.get("cache_update_index") is None:
            raise ValueError(f"{site.layer.path}: a cache behind a prefix needs its cache_update_index.")
        options["cache_update_index"] = n + (0 if cache is None else options["cache_update_index"])
        options["cache"] = ops.concatenate([front, ops.cast(room, dtype)], axis=2)
        options["attention_mask"] = in_front(options.get("attention_mask"), n)
        *found, after = call(**options)
        if cache is not None:
            return (*found, after[:, :, n:])
        return found[0] if len(found) == 1 else tuple(found)

    @override
    def extend(
        self, key: Tensor, value: Tensor, mask: Tensor | None, site: Site, p: Any
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns projected keys and values, [batch, n, heads, size], and the mask, with the prefix in front."""
        front = self.keys_and_values(cast(Spot, site), p)
        pairs = [(front[0], key), (front[1], value)]
        shape = (ops.shape(key)[0], *front.shape[1:])
        own = (ops.broadcast_to(ops.expand_dims(ops.cast(new, old.dtype), 0), shape) for new, old in pairs)
        key, value = (ops.concatenate([new, old], axis=1) for new, (_, old) in zip(own, pairs, strict=True))
        return key, value, in_front(mask, self.num_virtual_tokens)

    @override
    def fold(self, values: dict[str, Array]) -> dict[str, Array]:
        """Returns the prefix."""
        if not self.prefix_projection:
            return values
        p = types.SimpleNamespace(**{key: ops.convert_to_tensor(value) for key, value in values.items()})
        return values | {"prefix": np.asarray(ops.convert_to_numpy(self.prefix(p)))}

    @classmethod
    @override
    def unfold(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Array]
    ) -> tuple[Mapping[str, Any], Mapping[str, Array]]:
        """Leaves the network out."""
        return {**config, "prefix_projection": False, "encoder_hidden_size": None}, tensors


def in_front(mask: Tensor | None, n: int) -> Tensor | None:
    """Returns a mask [..., keys] that shows n more keys in front."""
    if mask is None:
        return None
    return ops.concatenate([ops.ones((*ops.shape(mask)[:-1], n), mask.dtype), mask], axis=-1)

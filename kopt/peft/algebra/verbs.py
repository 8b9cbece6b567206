"""New adapters from those that a model has: sums, differences, conversion to LoRA."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, cast

import numpy as np
from keras import ops

from kopt.declare import Range, checked
from kopt.peft.adapter import Array, Length
from kopt.peft.algebra.combination import Kind, combine, decompose
from kopt.peft.host import AdapterLayer, as_float32, base_value
from kopt.peft.layers import Site
from kopt.peft.methods import DoRA, LoRA
from kopt.peft.model import ModelAdapters, put_adapter, require_adapters
from kopt.peft.model.state import LARGEST

Combination = Literal[
    "svd",
    "linear",
    "cat",
    "ties",
    "ties_svd",
    "dare_ties",
    "dare_linear",
    "dare_ties_svd",
    "dare_linear_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
]
OpenShare = Annotated[float, Range(high=1, above=0, closed=True)]


@checked
def add_weighted_adapter(
    model: Any,
    adapters: Any,
    weights: Any,
    adapter_name: str,
    combination_type: Combination = "svd",
    svd_rank: Length | None = None,
    density: OpenShare | None = None,
    majority_sign_method: Literal["total", "frequency"] = "total",
    seed: int | None = None,
) -> Any:
    """Adds a LoRA that is the weighted sum of adapters of the model, and makes it the active one.

    With the weights [1, -1] it is their difference. The results are those of Hugging Face peft.

    Args:
        model: a model with the adapters.
        adapters: a list of their names.
        weights: one number for each, in [-1e6, 1e6], also below 0. The scales of `set_scale` do not count.
        adapter_name: name of the new one. If the model has one of that name, rank and layers, it gets the new weights,
            and nothing is traced anew.
        combination_type: "cat" is exact: ranks add up, the factors stand beside each other; of LoRA only. "svd" is the
            nearest of rank `svd_rank` to the sum of the changes, of any method that can be merged; changes of biases
            are added, too. "linear" adds A and B apart, which is rough; "ties", "dare_linear", "dare_ties" and
            "magnitude_prune" do the like with a share of their elements (see `kopt.peft.algebra.combination`); these
            are of LoRA of one rank. With "_svd" they take the changes themselves, of any method.
        svd_rank: rank with "svd" and "..._svd"; None is the largest of the adapters.
        density: in (0, 1], share of the elements that "ties", "dare" and "magnitude_prune" keep.
        majority_sign_method: "total" or "frequency": whose sign elements must have with "ties".
        seed: of what "dare" leaves out; None takes that of `keras.utils.set_random_seed`.

    Returns:
        `model`, the same object.

    Raises:
        ValueError: an adapter is not there, is of a method or rank that the combination does not take, or has trained
            copies of weights; it has NaN or is to be overwritten; the numbers of names and weights differ; density is
            missing.
    """
    current = require_adapters(model)
    names, numbers = _weighted(adapters, weights)
    kind = combination_type.removesuffix("_svd")
    by_change, kind = combination_type.endswith("svd"), "linear" if kind == "svd" else kind
    if kind not in ("linear", "cat") and density is None:
        raise ValueError(f"combination_type={combination_type!r} needs a density, the share of elements to keep.")
    for name in names:
        _check(current, name, adapter_name, lora=not by_change)
    rng = np.random.default_rng(np.random.randint(2**31) if seed is None else seed)
    found = list[_Found]()
    for layer, site, here in _kernels(current, names):
        own = [w for name, w in zip(names, numbers, strict=True) if name in here]
        bias = None
        if by_change:
            how, options = cast(Kind, kind), (own, density or 1.0, majority_sign_method, rng)
            total = combine(how, [change_of(layer, name, site) for name in here], *options)
            ranks = [getattr(layer.adapters[name], "r", 8) for name in here]
            a, b, _ = decompose(total, svd_rank or max(ranks), None)
            if any(layer.adapters[name].changes_bias for name in here):
                bias = combine(how, [_change_of_bias(layer, name, site) for name in here], *options)
        else:
            pairs = [_factors(layer, name, site) for name in here]
            scales = [w * cast(LoRA, layer.adapters[name]).scaling for w, name in zip(own, here, strict=True)]
            a, b = _joined(kind, pairs, scales, density or 1.0, majority_sign_method, rng, layer.path_of(site))
        found.append(_Found(layer, site, a, b, bias))
    _put(model, adapter_name, found)
    return model


@checked
def convert_to_lora(
    model: Any,
    adapter_name: str,
    new_name: str,
    rank: Length | None = None,
    energy: OpenShare | None = None,
) -> dict[str, float]:
    """Adds a LoRA that is nearest to an adapter of any method that can be merged, and makes it the active one.

    Args:
        model: a model with the adapter.
        adapter_name: the adapter.
        new_name: name of the new one, as for `add_weighted_adapter`.
        rank: rank of the LoRA; one of the two is given.
        energy: in (0, 1]: for each layer the least rank that has this share of the sum of squares of the change.

    Returns:
        The share of that sum that the LoRA has, by path of the kernel.

    Raises:
        ValueError: the adapter is not there, cannot be merged or has trained copies of weights; not one of rank and
            energy is given.
    """
    current = require_adapters(model)
    if (rank is None) == (energy is None):
        raise ValueError(f"convert_to_lora takes rank or energy. Received: rank={rank}, energy={energy}")
    _check(current, adapter_name, new_name, lora=False)
    found, shares = list[_Found](), dict[str, float]()
    for layer, site, _ in _kernels(current, [adapter_name]):
        a, b, shares[layer.path_of(site)] = decompose(change_of(layer, adapter_name, site), rank, energy)
        biased = layer.adapters[adapter_name].changes_bias
        found.append(_Found(layer, site, a, b, _change_of_bias(layer, adapter_name, site) if biased else None))
    _put(model, new_name, found)
    return shares


def adapter_difference(model: Any, first: str, second: str) -> dict[str, dict[str, float]]:
    """Returns how far the changes of two adapters are apart, by path of the kernel.

    Returns:
        "norm" of each change, "first" and "second", their "difference", and the "cosine" of the angle between them, 0
        where a change is 0. An adapter that is not at a kernel changes nothing there.

    Raises:
        ValueError: an adapter is not there or cannot be merged.
    """
    current = require_adapters(model)
    for name in (first, second):
        current.require_mergeable(name)
    found = {}
    for layer, site, here in _kernels(current, [first, second]):
        zero = np.zeros((*site.batch, site.fan_in, site.fan_out), "float32")
        a, b = (change_of(layer, name, site) if name in here else zero for name in (first, second))
        lengths = [float(np.linalg.norm(x)) for x in (a, b, a - b)]
        product = lengths[0] * lengths[1]
        cosine = float((a * b).sum() / product) if product else 0.0
        found[layer.path_of(site)] = {
            "first": lengths[0],
            "second": lengths[1],
            "difference": lengths[2],
            "cosine": cosine,
        }
    return found


def change_of(layer: AdapterLayer, name: str, site: Site) -> Array:
    """Returns W' - W of one adapter at one kernel, [*batch, in, out], from the weights of the base."""
    base = ops.convert_to_tensor(site.matrix(base_value(layer, site.attr)))
    p = layer.parameters(name, site, ops.convert_to_tensor(1.0, "float32"))
    changed = layer.adapters[name].effective(base, p)
    return _finite(np.asarray(ops.convert_to_numpy(changed - base), "float32"), layer, name, site)


def _change_of_bias(layer: AdapterLayer, name: str, site: Site) -> Array:
    """Returns b' - b of one adapter, [*batch, out]; a layer without a bias has zeros."""
    adapter, zeros = layer.adapters[name], np.zeros((*site.batch, site.fan_out), "float32")
    if not adapter.changes_bias or site is not layer.site:
        return zeros
    bias = ops.convert_to_tensor(base_value(layer, "bias") if "bias" in layer.owned else zeros)
    bias = site.vector(bias) if "bias" in layer.owned else bias
    p = layer.parameters(name, site, ops.convert_to_tensor(1.0, "float32"))
    change = np.asarray(ops.convert_to_numpy(adapter.effective_bias(bias, p) - bias), "float32")
    return _finite(change, layer, name, site)


def _finite(change: Array, layer: AdapterLayer, name: str, site: Site) -> Array:
    """Returns what an adapter makes of a kernel, or raises ValueError if these are no numbers."""
    if not np.isfinite(change).all():
        raise ValueError(f"The adapter {name!r} or its kernel has NaN or infinite values at {layer.path_of(site)}.")
    return change


def _kernels(current: ModelAdapters, names: Sequence[str]) -> Iterator[tuple[AdapterLayer, Site, list[str]]]:
    """Yields each adapted kernel: its layer, it, and the adapters that are there."""
    for layer in current.hosts.values():
        for site in layer.sites.values():
            if here := [name for name in names if layer.weights_at(name, site)]:
                yield layer, site, here


def _weighted(adapters: Any, weights: Any) -> tuple[list[str], list[float]]:
    """Returns names of adapters and as many numbers, or raises ValueError."""
    names = [adapters] if isinstance(adapters, str) else adapters
    listed = isinstance(names, (list, tuple)) and isinstance(weights, (list, tuple, np.ndarray))
    numbers = [float(w) for w in weights if isinstance(w, (int, float, np.number))] if listed else []
    bounded = all(abs(number) <= LARGEST for number in numbers)
    if not bounded or not numbers or not len(names) == len(weights) == len(numbers):
        raise ValueError(
            f"add_weighted_adapter takes a list of names, and a finite weight for each name, from -{LARGEST:g} to "
            f"{LARGEST:g}. Received: {adapters!r}, {weights!r}"
        )
    return list(names), numbers


def _check(current: ModelAdapters, name: str, new: str, lora: bool) -> None:
    """Raises ValueError if an adapter cannot be combined, or would be overwritten by the `new` one."""
    current.require_mergeable(name)
    if name == new:
        raise ValueError(f"The new adapter cannot have the name {new!r} of one that it is made from. Choose another.")
    adapter = current.adapters[name]
    if lora and (not isinstance(adapter, LoRA) or isinstance(adapter, DoRA) or adapter.lora_bias or adapter.beside):
        raise ValueError(
            f"The adapter {name!r} is {adapter!r}. This combination adds the factors of plain LoRA; take 'svd', which "
            "adds the changes of any method."
        )
    if any(layer.copies.get(name) for layer in current.hosts.values()):
        raise ValueError(
            f"The adapter {name!r} trains copies of weights (modules_to_save, biases or normalizations), which a LoRA "
            "does not have. Merge it instead, or train without."
        )


def _factors(layer: AdapterLayer, name: str, site: Site) -> tuple[Array, Array]:
    """Returns the factors of a LoRA's change, with those that it starts from, but without its scaling."""
    weights = layer.weights_at(name, site).items()
    p = {key: _finite(as_float32(variable), layer, name, site) for key, variable in weights}
    if "start_A" not in p:
        return p["lora_A"], p["lora_B"]
    return np.concatenate([p["lora_A"], p["start_A"]], -1), np.concatenate([p["lora_B"], -p["start_B"]], -2)


def _joined(
    kind: str,
    pairs: Sequence[tuple[Array, Array]],
    scales: Sequence[float],
    density: float,
    majority: Literal["total", "frequency"],
    rng: np.random.Generator,
    path: str,
) -> tuple[Array, Array]:
    """Returns the factors of a combination of factors."""
    if kind == "cat":
        inner = [a * np.float32(s) for (a, _), s in zip(pairs, scales, strict=True)]
        return np.concatenate(inner, -1), np.concatenate([b for _, b in pairs], -2)
    if len({a.shape for a, _ in pairs}) > 1:
        ranks = ", ".join(str(a.shape[-1]) for a, _ in pairs)
        raise ValueError(f"{path}: {kind!r} adds factors of one rank; these are {ranks}. Take 'cat' or 'svd'.")
    roots = [abs(s) ** 0.5 for s in scales]
    signed = [-root if s < 0 else root for root, s in zip(roots, scales, strict=True)]  # on one side of the product
    a = combine(cast(Kind, kind), [a for a, _ in pairs], signed, density, majority, rng)
    return a, combine(cast(Kind, kind), [b for _, b in pairs], roots, density, majority, rng)


@dataclasses.dataclass
class _Found:
    """What a new LoRA is at one kernel: A [*batch, in, r], B [*batch, r, out] and perhaps c [*batch, out], unscaled."""

    layer: AdapterLayer
    site: Site
    a: Array
    b: Array
    bias: Array | None = None


def _put(model: Any, name: str, found: Sequence[_Found]) -> None:
    """Adds a LoRA whose scaling is 1. The kernels of one layer have one rank: smaller ones are filled with zeros."""
    biased = any(one.bias is not None and one.bias.any() for one in found)
    ranks = dict[str, int]()
    for one in found:
        ranks[one.layer.host_path] = max(one.a.shape[-1], ranks.get(one.layer.host_path, 0))
    local, values = dict[str, dict[str, Any]](), dict[str, dict[str, Array]]()
    for one in found:
        layer, site, rank = one.layer, one.site, ranks[one.layer.host_path]
        here = biased and site.kind in ("einsum", "convolution")  # embeddings have none
        local[layer.path_of(site)] = {"r": rank, "lora_alpha": float(rank), "lora_bias": here}
        missing, front = rank - one.a.shape[-1], [(0, 0)] * (one.a.ndim - 2)
        own = {
            "lora_A": np.pad(one.a, [*front, (0, 0), (0, missing)]),
            "lora_B": np.pad(one.b, [*front, (0, missing), (0, 0)]),
        }
        if here:
            own["lora_B_bias"] = np.zeros((*site.batch, site.fan_out)) if one.bias is None else one.bias
        table = values.setdefault(layer.host_path, {})
        table |= {layer.key(site, key): np.asarray(value, "float32") for key, value in own.items()}
    widest = max(ranks.values())
    lora = LoRA(r=widest, lora_alpha=float(widest), target_modules=sorted(local), lora_bias=biased)
    put_adapter(model, lora, name, local, values, True)

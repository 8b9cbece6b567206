"""New adapters from those that a model has: sums, differences, conversion to LoRA."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, cast

import numpy as np
from keras import ops

from kopt.declare import Range, checked
from kopt.peft.adapter import Adapter, Array, Length
from kopt.peft.algebra.combination import Kind, combine, decompose
from kopt.peft.host import AdapterLayer, as_float32, base_value
from kopt.peft.layers import Site
from kopt.peft.methods import DoRA, LoRA
from kopt.peft.model import ModelAdapters, put_adapter, require_adapters

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
        adapters: their names.
        weights: one number for each, also below 0.
        adapter_name: name of the new one.
        combination_type: "cat" is exact: ranks add up, the factors stand beside each other; of LoRA only. "svd" is the
            nearest of rank `svd_rank` to the sum of the changes, of any method that can be merged. "linear" adds A and
            B apart, which is rough; "ties", "dare_linear", "dare_ties" and "magnitude_prune" do the like with a share
            of their elements (see `kopt.peft.algebra.combination`); these are of LoRA of one rank. With "_svd" they
            take the changes themselves, of any method.
        svd_rank: rank with "svd" and "..._svd"; None is the largest of the adapters.
        density: in (0, 1], share of the elements that "ties", "dare" and "magnitude_prune" keep.
        majority_sign_method: "total" or "frequency": whose sign elements must have with "ties".
        seed: of what "dare" leaves out; None takes that of `keras.utils.set_random_seed`.

    Returns:
        `model`, the same object.

    Raises:
        ValueError: an adapter is not there, is of a method or rank that the combination does not take, or has trained
            copies of weights; the numbers of names and weights differ; density is missing.
    """
    current = require_adapters(model)
    names = [adapters] if isinstance(adapters, str) else list(adapters)
    numbers = [float(w) for w in weights]
    if not names or len(names) != len(numbers) or not np.isfinite(numbers).all():
        raise ValueError(f"add_weighted_adapter takes a finite weight for each name. Received: {names}, {numbers}")
    kind = combination_type.removesuffix("_svd")
    by_change, kind = combination_type.endswith("svd"), "linear" if kind == "svd" else kind
    if kind not in ("linear", "cat") and density is None:
        raise ValueError(f"combination_type={combination_type!r} needs a density, the share of elements to keep.")
    for name in names:
        _check(current, name, lora=not by_change)
    rng = np.random.default_rng(np.random.randint(2**31) if seed is None else seed)
    local, values = dict[str, dict[str, Any]](), dict[str, dict[str, Array]]()
    for path, layer, site, here in _kernels(current, names):
        own = [w for name, w in zip(names, numbers, strict=True) if name in here]
        if by_change:
            whole = [change_of(layer, name, site) for name in here]
            total = combine(cast(Kind, kind), whole, own, density or 1.0, majority_sign_method, rng)
            ranks = [getattr(layer.adapters[name], "r", 8) for name in here]
            a, b, _ = decompose(total, svd_rank or max(ranks), None)
        else:
            pairs = [_factors(layer, name, site) for name in here]
            scales = [w * cast(LoRA, layer.adapters[name]).scaling for w, name in zip(own, here, strict=True)]
            a, b = _joined(kind, pairs, scales, density or 1.0, majority_sign_method, rng, path)
        _note(local, values, path, layer, site, {"lora_A": a, "lora_B": b})
    put_adapter(model, _lora(local), adapter_name, local, values, True)
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
        new_name: name of the new one.
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
    _check(current, adapter_name, lora=False)
    local, values, shares = dict[str, dict[str, Any]](), dict[str, dict[str, Array]](), dict[str, float]()
    biased = any(
        layer.adapters[adapter_name].changes_bias and "bias" in layer.owned
        for _, layer, _, _ in _kernels(current, [adapter_name])
    )
    for path, layer, site, _ in _kernels(current, [adapter_name]):
        a, b, shares[path] = decompose(change_of(layer, adapter_name, site), rank, energy)
        own = {"lora_A": a, "lora_B": b}
        if biased:
            own["lora_B_bias"] = _change_of_bias(layer, adapter_name, site)
        _note(local, values, path, layer, site, own)
    put_adapter(model, _lora(local, lora_bias=biased), new_name, local, values, True)
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
    for path, layer, site, here in _kernels(current, [first, second]):
        zero = np.zeros((*site.batch, site.fan_in, site.fan_out), "float32")
        a, b = (change_of(layer, name, site) if name in here else zero for name in (first, second))
        lengths = [float(np.linalg.norm(x)) for x in (a, b, a - b)]
        product = lengths[0] * lengths[1]
        cosine = float((a * b).sum() / product) if product else 0.0
        found[path] = {"first": lengths[0], "second": lengths[1], "difference": lengths[2], "cosine": cosine}
    return found


def change_of(layer: AdapterLayer, name: str, site: Site) -> Array:
    """Returns W' - W of one adapter at one kernel, [*batch, in, out], from the weights of the base."""
    base = ops.convert_to_tensor(site.matrix(base_value(layer, site.attr)))
    p = layer.parameters(name, site, ops.convert_to_tensor(1.0, "float32"))
    changed = layer.adapters[name].effective(base, p)
    return np.asarray(ops.convert_to_numpy(changed - base), "float32")


def _change_of_bias(layer: AdapterLayer, name: str, site: Site) -> Array:
    if "bias" not in layer.owned or not layer.adapters[name].changes_bias:
        return np.zeros(site.fan_out, "float32")
    bias = site.vector(ops.convert_to_tensor(base_value(layer, "bias")))
    p = layer.parameters(name, site, ops.convert_to_tensor(1.0, "float32"))
    return np.asarray(ops.convert_to_numpy(layer.adapters[name].effective_bias(bias, p) - bias), "float32")


def _kernels(current: ModelAdapters, names: Sequence[str]) -> Iterator[tuple[str, AdapterLayer, Site, list[str]]]:
    """Yields each adapted kernel: its path, its layer, it, and the adapters that are there."""
    for layer in current.hosts.values():
        for site in layer.sites.values():
            if here := [name for name in names if layer.weights_at(name, site)]:
                yield layer.path_of(site), layer, site, here


def _check(current: ModelAdapters, name: str, lora: bool) -> None:
    """Raises ValueError if an adapter cannot be combined."""
    current.require_mergeable(name)
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
    p = {key: as_float32(variable) for key, variable in layer.weights_at(name, site).items()}
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


def _note(
    local: dict[str, dict[str, Any]],
    values: dict[str, dict[str, Array]],
    path: str,
    layer: AdapterLayer,
    site: Site,
    own: dict[str, Array],
) -> None:
    """Adds what a new LoRA is at one kernel. Its scaling is 1."""
    rank = own["lora_A"].shape[-1]
    local[path] = {"r": rank, "lora_alpha": float(rank)}
    table = values.setdefault(layer.host_path, {})
    table |= {layer.key(site, key): np.asarray(value, "float32") for key, value in own.items()}


def _lora(local: dict[str, dict[str, Any]], **options: Any) -> Adapter:
    ranks = [entry["r"] for entry in local.values()]
    return LoRA(r=max(ranks), lora_alpha=float(max(ranks)), target_modules=sorted(local), **options)

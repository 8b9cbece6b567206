"""The layers of a model, and the kernels in them, that an adapter's arguments name; a name of none is an error."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras

from kopt.peft.adapter import Adapter, is_bias
from kopt.peft.layers import Site, child_of, find_place, own_variables, stored_weights
from kopt.peft.targets import ALL_LINEAR, by_pattern, is_called, layer_number, matches, nearest

_PATTERNS = ("rank_pattern", "alpha_pattern")


def site_of(layer: Any) -> Site | None:
    """Returns the kernel of a layer, or what adapters surround; of a host what its adapters know."""
    child = child_of(layer)
    return find_place(layer) if child is None else child.site


def select(adapter: Adapter, named: Mapping[str, Any], sites: Mapping[str, Site | None]) -> set[str]:
    """Returns the paths of the layers that the adapter goes to, among `named`, whose kernels are `sites`.

    Raises:
        ValueError: there are none, one cannot host the method, a name, pattern or number matches nothing, or a layer
            that has another method beside is a target too.
    """
    beside, targeted = _select_beside(adapter, sites), _select_targets(adapter, named, sites)
    twice = beside & (targeted | select_parameters(adapter, named).keys() | _saved_whole(adapter, beside))
    if twice:
        raise ValueError(
            f"{type(adapter).__name__}: {', '.join(sorted(twice))} has trainable_token_indices, so that "
            "target_modules, target_parameters and modules_to_save must leave it out. Name it in exclude_modules, or "
            "leave out its tokens."
        )
    return targeted | beside


def _saved_whole(adapter: Adapter, paths: Iterable[str]) -> set[str]:
    return {path for path in paths if matches(adapter.modules_to_save, path)}


def _select_beside(adapter: Adapter, sites: Mapping[str, Site | None]) -> set[str]:
    """Returns the paths of the layers that have another method beside, which are embeddings."""
    possible = [path for path, site in sites.items() if site is not None and site.kind == "embedding"]
    found = {name: [path for path in possible if is_called(name, path)] for name in adapter.beside}
    for name, paths in found.items():
        if not paths:
            raise ValueError(
                f"trainable_token_indices: {name!r} matches no embedding. Name it, as in trainable_token_indices="
                f"{{'name': [...]}}. Closest layer names: {nearest(name, possible) or 'none'}."
            )
    return {path for paths in found.values() for path in paths}


def _select_targets(adapter: Adapter, named: Mapping[str, Any], sites: Mapping[str, Site | None]) -> set[str]:
    """Returns the paths of the layers that `target_modules` selects."""
    parameters = getattr(adapter, "target_parameters", None)
    if parameters and adapter.target_modules is None:
        _check_names(adapter, named, [])
        _check_numbers(adapter, {p: layer_number(p, adapter.layers_pattern) for p in _parameters(adapter, named)})
        return set()
    spec = adapter.target_modules or list(adapter.default_targets) or None
    possible = [path for path, layer in named.items() if adapter.at(path).can_host(layer, sites[path])]
    wanted = [path for path, layer in named.items() if is_wanted(spec, path, layer, sites[path])]
    wanted = [p for p in wanted if not matches(adapter.exclude_modules, p) and not matches(adapter.modules_to_save, p)]
    if isinstance(spec, list):
        named_alone = [p for p in wanted if any(is_called(n, p) for n in spec)]
        if refused := [p for p in named_alone if p not in set(possible) and stored_weights(named[p])]:
            kind = type(named[refused[0]]).__name__
            takes = adapter.takes or f"layers whose kernel is of the kinds: {', '.join(adapter.kinds)}"
            raise ValueError(
                f"{type(adapter).__name__} cannot go to {', '.join(refused[:5])} ({kind}). It takes {takes}."
            )
    hosts = [p for p in wanted if p in set(possible)]
    numbers = {p: layer_number(p, adapter.layers_pattern) for p in hosts}
    if adapter.layers_to_transform is not None:
        hosts = [p for p in hosts if numbers[p] in adapter.layers_to_transform]
    if isinstance(adapter.target_modules, list):
        for name in adapter.target_modules:
            _require(name, "target_modules", any(matches([name], p) for p in possible), possible, adapter)
    if not hosts and not numbers:
        raise ValueError(
            f"target_modules={spec!r} matches no layer that can host {type(adapter).__name__}. "
            f"Closest layer names: {nearest(spec, possible) or 'none'}."
        )
    _check_names(adapter, named, hosts)
    _check_numbers(adapter, numbers)
    return set(hosts)


def _check_numbers(adapter: Adapter, numbers: Mapping[str, int | None]) -> None:
    """Raises ValueError if no target is in a block with one of the numbers that are to be adapted."""
    for number in adapter.layers_to_transform or ():
        if number not in numbers.values():
            there = sorted({n for n in numbers.values() if n is not None})
            raise ValueError(
                f"layers_to_transform: no target is in a block with the number {number}. The targets have the numbers "
                f"{', '.join(map(str, there)) or 'of no block'}."
            )


def is_wanted(spec: Any, path: str, layer: Any, site: Site | None) -> bool:
    """Returns whether `target_modules` selects a layer, whose kernel is `site`."""
    if spec == ALL_LINEAR:
        return isinstance(layer, (keras.layers.Dense, keras.layers.EinsumDense)) and site is not None
    return spec is None or matches(spec, path)


def _check_names(adapter: Adapter, named: Mapping[str, Any], hosts: list[str]) -> None:
    """Raises ValueError if a name or pattern beside the targets matches nothing."""
    excluded = adapter.exclude_modules
    for name in [excluded] if isinstance(excluded, str) else excluded or ():
        spec = name if isinstance(excluded, str) else [name]
        _require(name, "exclude_modules", any(matches(spec, p) for p in named), named, adapter)
    for name in adapter.layers_pattern or ():
        _require(name, "layers_pattern", any(layer_number(p, [name]) is not None for p in named), named, adapter)
    reached = [*hosts, *select_parameters(adapter, named)]
    for field in _PATTERNS:
        for pattern in getattr(adapter, field, {}):
            _require(pattern, field, any(by_pattern({pattern: 1.0}, p, 0.0) for p in reached), reached, adapter)


def _require(name: str, field: str, found: bool, paths: Iterable[str], adapter: Adapter) -> None:
    if not found:
        of = {
            "target_modules": f" that can host {type(adapter).__name__}",
            **dict.fromkeys(_PATTERNS, " of the targets"),
        }
        raise ValueError(
            f"{field}: {name!r} matches no layer{of.get(field, '')}. Closest layer names: "
            f"{nearest(name, list(paths)) or 'none'}."
        )


def select_parameters(adapter: Adapter, named: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the attributes with kernels that `target_parameters` names, by the path of their layer.

    As for layers, `exclude_modules` and `layers_to_transform` leave some out.
    """
    numbers, pattern = adapter.layers_to_transform, adapter.layers_pattern
    return {
        path: attributes
        for path, attributes in _parameters(adapter, named).items()
        if not matches(adapter.exclude_modules, path) and (numbers is None or layer_number(path, pattern) in numbers)
    }


def _parameters(adapter: Adapter, named: Mapping[str, Any]) -> dict[str, list[str]]:
    return parameters_of(named, getattr(adapter, "target_parameters", None) or ())


def parameters_of(named: Mapping[str, Any], wanted: Iterable[str], whole: bool = False) -> dict[str, list[str]]:
    """Returns the attributes that hold the variables called `wanted`, by the path of their layer.

    A variable is called by the end of its path, or with `whole` by all of it: the path of the layer and its own name,
    or its attribute.

    Raises:
        ValueError: there is none of a name, or it is no kernel.
    """
    spelled: dict[str, tuple[str, str]] = {}
    for path, layer in named.items():
        for attr, variable in own_variables(layer).items():
            for name in (variable.name, attr, attr.removeprefix("_")):
                spelled.setdefault(f"{path}.{name}", (path, attr))
    found: dict[str, list[str]] = {}
    for name in wanted:
        hits = [entry for full, entry in spelled.items() if full == name or (full.endswith(f".{name}") and not whole)]
        if not hits:
            kernels = [full for full, (path, attr) in spelled.items() if len(vars(named[path])[attr].shape) in (2, 3)]
            raise ValueError(
                f"target_parameters: the model has no weight {name!r}. Closest names: {nearest(name, kernels)}."
            )
        for path, attr in hits:
            shape = tuple(vars(named[path])[attr].shape)
            if len(shape) not in (2, 3):
                raise ValueError(
                    f"target_parameters: {path}.{attr} has the shape {shape}. A low-rank change takes a matrix "
                    "[in, out], or a batch of them, [batch, in, out]."
                )
            if is_bias(vars(named[path])[attr].name):
                raise ValueError(
                    f"target_parameters: {path}.{attr} is a bias, which is added and not multiplied. Train it with "
                    "bias='all' of LoRA, or with BitFit."
                )
            if attr not in found.setdefault(path, []):
                found[path].append(attr)
    return found

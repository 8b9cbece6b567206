"""The layers of a model that an adapter goes to, and what it does at each."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras

from kopt.peft.adapter import Adapter
from kopt.peft.layers import Site, child_of, direct_variables, find_site, named_layers, own_variables
from kopt.peft.targets import ALL_LINEAR, layer_number, matches, nearest


@dataclasses.dataclass
class Plan:
    """What an adapter does at one layer."""

    layer: Any
    adapter: Adapter
    targeted: bool
    whole: bool


def plan(model: Any, adapter: Adapter, targets: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Plan]:
    """Returns what `adapter` would do in `model`, by path.

    Args:
        model: a built model.
        adapter: the method.
        targets: exact paths, each with arguments that differ there; None takes those that the adapter selects.

    Raises:
        ValueError: the model is not built; nothing is selected; a layer cannot host the method; a name matches nothing.
    """
    if not getattr(model, "built", False):
        raise ValueError(f"The model {model.name!r} is not built. Call it once, or build(...), before adding adapters.")
    named = dict(named_layers(model))
    selected = _select(adapter, named) if targets is None else {path: True for path in targets}
    for path in selected:
        if path not in named:
            raise ValueError(f"The model has no layer {path!r}. Closest layer names: {nearest(path, list(named))}.")
    for name in adapter.modules_to_save or ():
        if not any(matches([name], path) and own_variables(layer) for path, layer in named.items()):
            near = nearest([name], list(named))
            raise ValueError(f"modules_to_save: no layer with weights is called {name!r}. Closest layer names: {near}.")
    plans: dict[str, Plan] = {}
    for path, layer in named.items():
        whole, targeted = matches(adapter.modules_to_save, path), path in selected
        owned = own_variables(layer)
        missing = len(direct_variables(layer)) - len(owned)
        if whole and missing:
            raise ValueError(
                f"{path}: {missing} of its weights are not attributes, so they cannot be copied and saved."
            )
        trained = whole or any(adapter.trains(v.name, targeted) for v in owned.values())
        local = adapter.at(path)
        if targets is not None and targets.get(path):
            local = type(local)(**local.get_config() | dict(targets[path])).at(path)
        site = _site(layer) if targeted else None
        if not trained and (site is None or not local.weights(site)):
            continue
        if getattr(layer, "quantization_mode", None):
            raise ValueError(
                f"{path} is quantized ({layer.quantization_mode}). Add adapters to the float model instead."
            )
        plans[path] = Plan(layer, local, targeted, whole)
    if not plans:
        raise ValueError(
            f"{type(adapter).__name__} finds nothing to train. The model has {', '.join(list(named)[:12])}."
        )
    return plans


def _select(adapter: Adapter, named: Mapping[str, Any]) -> dict[str, bool]:
    """Returns the paths of the layers that the adapter goes to."""
    spec = adapter.target_modules or list(adapter.default_targets) or None
    everywhere = spec is None
    hosts, refused = {}, []
    for path, layer in named.items():
        site = _site(layer)
        if spec == ALL_LINEAR:
            wanted = isinstance(layer, (keras.layers.Dense, keras.layers.EinsumDense)) and site is not None
        else:
            wanted = everywhere or matches(spec, path)
        if not wanted or matches(adapter.exclude_modules, path):
            continue
        if matches(adapter.modules_to_save, path):
            continue
        if adapter.layers_to_transform is not None:
            number = layer_number(path, adapter.layers_pattern)
            if number not in adapter.layers_to_transform:
                continue
        if adapter.at(path).can_host(layer, site):
            hosts[path] = True
        elif isinstance(spec, list) and any(path == n or path.endswith(f".{n}") for n in spec) and own_variables(layer):
            refused.append(path)
    if refused:
        kind = type(named[refused[0]]).__name__
        raise ValueError(
            f"{type(adapter).__name__} cannot go to {', '.join(refused[:5])} ({kind}). It takes layers whose kernel is "
            f"of the kinds: {', '.join(adapter.kinds)}."
        )
    if not hosts:
        possible = [path for path, layer in named.items() if adapter.at(path).can_host(layer, _site(layer))]
        raise ValueError(
            f"target_modules={spec!r} matches no layer that can host {type(adapter).__name__}. "
            f"Closest layer names: {nearest(spec, possible) or 'none'}."
        )
    return hosts


def _site(layer: Any) -> Site | None:
    """Returns the kernel of a layer; of a host the one that its adapters know."""
    child = child_of(layer)
    return find_site(layer) if child is None else child.site

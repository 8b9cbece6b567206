"""What an adapter does at each layer of a model."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kopt.peft.adapter import Adapter
from kopt.peft.layers import direct_variables, is_output_matrix, named_layers, own_variables, stored_weights
from kopt.peft.model.choice import parameters_of, select, select_parameters, site_of
from kopt.peft.targets import matches, nearest

_KERNELS = ("kernel", "embeddings")
"""What Keras calls the variables that it quantizes."""


@dataclasses.dataclass
class Plan:
    """What an adapter does at one layer."""

    layer: Any
    adapter: Adapter
    targeted: bool
    whole: bool
    parameters: tuple[str, ...] = ()
    """Attributes that hold other kernels than the layer's own, and are adapted."""


Targets = Mapping[str, Mapping[str, Any]]
"""The layers that an adapter goes to, by path, each with the arguments that hold there."""


def plan(model: Any, adapter: Adapter, targets: Targets | None = None) -> dict[str, Plan]:
    """Returns what `adapter` would do in `model`, by path.

    Args:
        model: a built model.
        adapter: the method.
        targets: exact paths, of layers or of other kernels in them, each with arguments that differ there; None takes
            those that the adapter selects.

    Raises:
        ValueError: the model is not built; nothing is selected; a layer cannot host the method; a name matches nothing.
    """
    if not getattr(model, "built", False):
        raise ValueError(f"The model {model.name!r} is not built. Call it once, or build(...), before adding adapters.")
    named = dict(named_layers(model))
    sites = {path: site_of(layer) for path, layer in named.items()}
    if targets is None:
        selected, others = select(adapter, named, sites), select_parameters(adapter, named)
    else:
        selected = {path for path in targets if path in named}
        others = parameters_of(named, [path for path in targets if path not in named], whole=True)
    _check_saved(model, adapter, named)
    plans: dict[str, Plan] = {}
    for path, layer in named.items():
        parameters, site = others.get(path, []), sites[path]
        targeted = path in selected or (site is not None and site.attr in parameters)
        owned = own_variables(layer)
        missing = len(direct_variables(layer)) - len(owned)
        whole = matches(adapter.modules_to_save, path) and bool(stored_weights(layer) or missing)  # else of layers
        if whole and missing:
            raise ValueError(
                f"{path}: {missing} of its weights are not attributes, so they cannot be copied and saved."
            )
        parameters = [] if whole else [attr for attr in parameters if site is None or attr != site.attr]
        trained = whole or any(adapter.trains(v.name, targeted) for v in owned.values())
        local = adapter.at(path)
        kernels = (path, *(f"{path}.{attr}" for attr in parameters))  # of one layer, which have one method
        given = next((own for name, own in (targets or {}).items() if name in kernels), {})
        if any(getattr(local, name) != value for name, value in given.items()):
            local = type(local)(**local.get_config() | dict(given)).at(path)
        changed = targeted and site is not None and local.weights(site)
        if not trained and not changed and not parameters:
            continue
        if getattr(layer, "quantization_mode", None) and (site is None or site.has_kernel):
            _check_quantized(model, path, layer, whole or any(adapter.trains(v, targeted) for v in _KERNELS))
        plans[path] = Plan(layer, local, targeted, whole, tuple(parameters))
    targeted_sites = [site for path, step in plans.items() if step.targeted and (site := sites[path]) is not None]
    for step in plans.values():
        step.adapter = step.adapter.among(targeted_sites)
    if not plans:
        raise ValueError(
            f"{type(adapter).__name__} finds nothing to train. The model has {', '.join(list(named)[:12])}."
        )
    return plans


def _check_quantized(model: Any, path: str, layer: Any, copied: bool) -> None:
    """Raises ValueError if a quantized layer cannot have an adapter; `copied` if it would be trained as a copy."""
    mode, site = layer.quantization_mode, site_of(layer)
    if site is None or not site.is_quantized:
        raise ValueError(
            f"{path} is quantized ({mode}), and adapters read float kernels, int8, int4 and nf4 only. Add adapters to "
            "such a model."
        )
    if copied:
        raise ValueError(
            f"{path} is quantized ({mode}), so that it cannot be trained whole. Leave it out when you quantize: "
            "kopt.peft.quantize(model, ..., exclude_modules=[...])."
        )
    if site.kind == "opaque" or is_output_matrix(model, layer):
        what = "computes in its own way" if site.kind == "opaque" else "is the output matrix too"
        raise ValueError(f"{path} is quantized ({mode}) and {what}, so that it takes no adapter. Exclude it.")


def _check_saved(model: Any, adapter: Adapter, named: Mapping[str, Any]) -> None:
    """Raises ValueError if a layer that shall be trained whole is not there, or is the output matrix too."""
    for name in adapter.modules_to_save or ():
        if not any(matches([name], path) and stored_weights(layer) for path, layer in named.items()):
            near = nearest([name], list(named))
            raise ValueError(f"modules_to_save: no layer with weights is called {name!r}. Closest layer names: {near}.")
    for path, layer in named.items():
        if matches(adapter.modules_to_save, path) and is_output_matrix(model, layer):
            raise ValueError(
                f"modules_to_save: the embedding {path} is the output matrix too, and a file of peft could not hold "
                "that both were trained whole as one weight. Leave it out of modules_to_save, and name it in "
                "target_modules of LoRA, which changes both uses alike; or make the model with tie_weights=False."
            )

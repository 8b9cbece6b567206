"""The adapters of one model: what they do at each layer, and how they come, switch, merge and go."""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kopt.peft.adapter import Adapter
from kopt.peft.host.adapter_layer import Bank
from kopt.peft.layers.site import BANK, Site, find_site, named_layers, original_class, own_variables
from kopt.peft.targets import ALL_LINEAR, layer_number, matches, nearest

STATE = "kopt_peft"
COMPILED = ("train_function", "test_function", "predict_function", "generate_function")


@dataclasses.dataclass
class Plan:
    """What an adapter does at one layer."""

    layer: Any
    adapter: Adapter
    targeted: bool
    whole: bool


class State:
    """The adapters of one model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.adapters: dict[str, Adapter] = {}
        self.hosts: dict[str, Bank] = {}
        self.active: list[str] = []
        self.enabled = True
        self._trainable = [
            (layer, layer._trainable, [(v, v.trainable) for v in layer._trainable_variables])
            for layer in model._flatten_layers()
        ]

    # ----------------------------------------------------------------------------------------- putting in

    def add(self, name: str, adapter: Adapter, targets: Mapping[str, Mapping[str, Any]] | None) -> None:
        """Adds an adapter, or raises ValueError and leaves the model as it was."""
        if not re.fullmatch(r"\w[\w-]*", name):
            raise ValueError(f"The name of an adapter has letters, digits, _ and - only. Received: {name!r}")
        if name in self.adapters:
            raise ValueError(f"The model has an adapter {name!r} already. Choose another name or delete_adapter first.")
        plans = plan(self.model, adapter, targets)
        rng = np.random.default_rng(np.random.randint(2**31))  # which keras.utils.set_random_seed seeds
        new: list[str] = []
        try:
            for path, step in plans.items():
                if path not in self.hosts:
                    self.hosts[path] = Bank(step.layer, path)
                    new.append(path)
                self.hosts[path].add(name, step.adapter, step.targeted, step.whole, rng)
        except Exception:
            for path in plans:
                if path in self.hosts:
                    self.hosts[path].remove(name)
            for path in new:
                self.hosts.pop(path).leave()
            raise
        self.adapters[name] = adapter

    def freeze(self) -> None:
        """Lets the active adapters learn and nothing else.

        Layers without adapters are frozen as wholes, which puts batch normalization into inference mode; hosts and what
        contains them are frozen by variable, because a frozen layer would hide the adapters in it.
        """
        for layer in self.model._flatten_layers():
            if isinstance(layer, Bank):
                layer._trainable = True
                continue
            layer._trainable = layer is self.model or any(isinstance(c, Bank) for c in layer._flatten_layers())
            for variable in layer._trainable_variables:
                variable.trainable = False
        for bank in self.hosts.values():
            bank.freeze()

    # ------------------------------------------------------------------------------------------ switching

    def switch(self, active: Sequence[str], enabled: bool = True) -> None:
        """Turns adapters on and the others off."""
        for name in active:
            self.require(name)
        fixed = [name for name in active if not self.adapters[name].gated]
        if len(fixed) > 1:
            raise ValueError(f"Only one prompt can be active at a time. Received: {', '.join(fixed)}")
        before = (self.prompts, set(self.active))
        self.active, self.enabled = list(active), enabled
        for bank in self.hosts.values():
            bank.switch(self.active, enabled)
        if (self.prompts, set(self.active)) != before:  # all else is a matter of gates
            self.forget_functions()

    @property
    def prompts(self) -> list[str]:
        """Returns the adapters at work that change the shapes of activations."""
        return [name for name in self.active if not self.adapters[name].gated] if self.enabled else []

    def prepend(self, inputs: Any) -> Any:
        """Returns the inputs of the model with what its prompts put in front."""
        for name in self.prompts:
            for bank in self.hosts.values():
                if bank.weights_of.get(name) and bank.site is not None:
                    inputs = self.adapters[name].prepend(inputs, bank.site.fan_in)
        return inputs

    def forget_functions(self) -> None:
        """Makes the model trace its functions anew, and gives it a new optimizer if other weights learn now."""
        for attr in COMPILED:
            if getattr(self.model, attr, None) is not None:
                setattr(self.model, attr, None)
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is not None and optimizer.built:
            learning = {id(v) for v in self.model.trainable_variables}
            if learning != {id(v) for v in optimizer._trainable_variables}:
                self.model.optimizer = type(optimizer).from_config(optimizer.get_config())

    def require(self, name: str) -> Adapter:
        """Returns the adapter of that name, or raises ValueError."""
        if name not in self.adapters:
            near = difflib.get_close_matches(str(name), self.adapters, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"The model has {', '.join(map(repr, self.adapters))}."
            raise ValueError(f"No adapter {name!r}. {hint}")
        return self.adapters[name]

    # ------------------------------------------------------------------------------- merging, taking out

    @property
    def merged(self) -> list[str]:
        """Returns the merged adapters."""
        return list(dict.fromkeys(name for bank in self.hosts.values() for name, _ in bank.kept))

    def merge(self, names: Sequence[str]) -> None:
        """Writes adapters into the weights of the base."""
        for name in names:
            if not self.require(name).mergeable:
                kind = type(self.adapters[name]).__name__
                raise ValueError(f"{kind} cannot be merged: no kernel stands for it. Keep it, or call unload(model).")
            if name in self.merged:
                raise ValueError(f"The adapter {name!r} is merged already.")
        done: list[Bank] = []
        try:
            for bank in self.hosts.values():
                for name in names:
                    bank.merge(name)
                done.append(bank)
        except ValueError:
            self.unmerge()
            raise
        self.switch(self.active, self.enabled)

    def unmerge(self) -> None:
        """Puts the weights of the base back, bit for bit."""
        for bank in self.hosts.values():
            bank.unmerge()
        self.switch(self.active, self.enabled)

    def remove(self, name: str) -> None:
        """Forgets an adapter."""
        self.require(name)
        if name in self.merged:
            raise ValueError(f"The adapter {name!r} is merged. Call unmerge_adapter(model) first.")
        self.switch([n for n in self.active if n != name], self.enabled)
        for bank in self.hosts.values():
            bank.remove(name)
        del self.adapters[name]
        self.forget_functions()

    def leave(self) -> None:
        """Makes the model what it was before, but for merged weights."""
        for bank in self.hosts.values():
            bank.leave()
        for layer, trainable, variables in self._trainable:
            layer._trainable = trainable
            for variable, value in variables:
                variable.trainable = value
        self.hosts, self.adapters, self.active = {}, {}, []
        object.__setattr__(self.model, "__class__", original_class(self.model))
        del vars(self.model)[STATE]
        self.forget_functions()


def state(model: Any) -> State | None:
    """Returns the adapters of a model, or None if it has none."""
    return vars(model).get(STATE)


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
            raise ValueError(f"The model has no layer {path!r}. Nearest: {nearest(path, list(named))}.")
    for name in adapter.modules_to_save or ():
        if not any(matches([name], path) and own_variables(layer) for path, layer in named.items()):
            near = nearest([name], list(named))
            raise ValueError(f"modules_to_save: no layer with weights is called {name!r}. Nearest: {near}.")
    plans: dict[str, Plan] = {}
    for path, layer in named.items():
        whole, targeted = matches(adapter.modules_to_save, path), path in selected
        owned = own_variables(layer)
        missing = len(layer._trainable_variables) - len(owned)
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
            f"Nearest: {nearest(spec, possible) or 'none'}."
        )
    return hosts


def _site(layer: Any) -> Site | None:
    return vars(layer)[BANK].site if BANK in vars(layer) else find_site(layer)

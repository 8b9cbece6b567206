"""The adapters of one model: adding, switching, merging and removing them."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kopt.peft.adapter import Adapter
from kopt.peft.host import AdapterLayer
from kopt.peft.layers import (
    direct_variables,
    flatten_layers,
    forget_functions,
    is_trainable,
    original_class,
    set_class,
    set_trainable,
    trained_by,
)
from kopt.peft.model.selection import plan

_ADAPTERS = "kopt_peft"
"""The attribute under which a model keeps its `ModelAdapters`."""


class ModelAdapters:
    """The adapters of one model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.adapters: dict[str, Adapter] = {}
        self.hosts: dict[str, AdapterLayer] = {}
        """What each host has of the adapters, by its path."""
        self.active: list[str] = []
        self.enabled = True
        self._flags_before = [
            (layer, is_trainable(layer), [(v, v.trainable) for v in direct_variables(layer)])
            for layer in flatten_layers(model)
        ]

    # ----------------------------------------------------------------------------------------- putting in

    def add(self, name: str, adapter: Adapter, targets: Mapping[str, Mapping[str, Any]] | None) -> None:
        """Adds an adapter, or raises ValueError and leaves the model as it was."""
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w-]{0,99}", name):
            raise ValueError(f"The name of an adapter has up to 100 letters, digits, _ and - only. Received: {name!r}")
        if name in self.adapters:
            raise ValueError(f"The model has an adapter {name!r} already. Choose another name or delete_adapter first.")
        plans = plan(self.model, adapter, targets)
        rng = np.random.default_rng(np.random.randint(2**31))  # which keras.utils.set_random_seed seeds
        new: list[str] = []
        try:
            for path, step in plans.items():
                if path not in self.hosts:
                    self.hosts[path] = AdapterLayer(step.layer, path)
                    new.append(path)
                self.hosts[path].add(name, step.adapter, step.targeted, step.whole, rng, step.parameters)
        except Exception:  # whatever it is, the model is left as it was
            for path in plans:
                if path in self.hosts:
                    self.hosts[path].remove(name)
            for path in new:
                self.hosts.pop(path).remove_host()
            raise
        self.adapters[name] = adapter

    def freeze(self) -> None:
        """Makes the active adapters trainable and freezes everything else.

        Layers without adapters are frozen as wholes, which puts batch normalization into inference mode; hosts and what
        contains them are frozen by variable, because a frozen layer would hide the adapters in it.
        """
        for layer in flatten_layers(self.model):
            if isinstance(layer, AdapterLayer):
                set_trainable(layer, True)
                continue
            contains_adapters = any(isinstance(c, AdapterLayer) for c in flatten_layers(layer))
            set_trainable(layer, layer is self.model or contains_adapters)
            for variable in direct_variables(layer):
                variable.trainable = False
        for layer in self.hosts.values():
            layer.freeze()

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
        for layer in self.hosts.values():
            layer.switch(self.active, enabled)
        if (self.prompts, set(self.active)) != before:  # all else is a matter of gates
            self.forget_functions()

    @property
    def prompts(self) -> list[str]:
        """The active adapters that change the shapes of activations."""
        return [name for name in self.active if not self.adapters[name].gated] if self.enabled else []

    def prepend(self, inputs: Any) -> Any:
        """Returns the inputs of the model with what its prompts put in front."""
        for name in self.prompts:
            for layer in self.hosts.values():
                if layer.weights_of.get(name) and layer.site is not None:
                    inputs = self.adapters[name].prepend(inputs, layer.site.fan_in)
        return inputs

    def forget_functions(self) -> None:
        """Makes the model trace its functions anew, and gives it a new optimizer if other weights are trainable now."""
        forget_functions(self.model)
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is not None and optimizer.built:
            trained = {id(v) for v in self.model.trainable_variables}
            if trained != {id(v) for v in trained_by(optimizer)}:
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
        """The merged adapters."""
        return list(dict.fromkeys(name for layer in self.hosts.values() for name, _ in layer.replaced))

    def merge(self, names: Sequence[str]) -> None:
        """Writes adapters into the weights of the base."""
        for name in names:
            if not self.require(name).mergeable:
                kind = type(self.adapters[name]).__name__
                raise ValueError(f"{kind} cannot be merged: no kernel stands for it. Keep it, or call unload(model).")
            if name in self.merged:
                raise ValueError(f"The adapter {name!r} is merged already.")
        done: list[AdapterLayer] = []
        try:
            for layer in self.hosts.values():
                for name in names:
                    layer.merge(name)
                done.append(layer)
        except ValueError:
            self.unmerge()
            raise
        self.switch(self.active, self.enabled)

    def unmerge(self) -> None:
        """Puts the weights of the base back, bit for bit."""
        for layer in self.hosts.values():
            layer.unmerge()
        self.switch(self.active, self.enabled)

    def remove(self, name: str) -> None:
        """Deletes an adapter and its variables."""
        self.require(name)
        if name in self.merged:
            raise ValueError(f"The adapter {name!r} is merged. Call unmerge_adapter(model) first.")
        self.switch([n for n in self.active if n != name], self.enabled)
        for layer in self.hosts.values():
            layer.remove(name)
        del self.adapters[name]
        self.forget_functions()

    def remove_all(self) -> None:
        """Removes all adapters: the model is as it was before, but for merged weights."""
        for layer in self.hosts.values():
            layer.remove_host()
        for layer, trainable, variables in self._flags_before:
            set_trainable(layer, trainable)
            for variable, value in variables:
                variable.trainable = value
        self.hosts, self.adapters, self.active = {}, {}, []
        set_class(self.model, original_class(self.model))
        del vars(self.model)[_ADAPTERS]
        self.forget_functions()

    def install(self) -> None:
        """Makes these the adapters of the model."""
        vars(self.model)[_ADAPTERS] = self


def adapters_of(model: Any) -> ModelAdapters | None:
    """Returns the adapters of a model, or None if it has none."""
    return vars(model).get(_ADAPTERS)

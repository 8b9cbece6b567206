"""The adapters of one model.

What holds at any time, whatever was done in whatever order:

- The outputs are those of the base while adapters are disabled, else those of the base with the active adapters, in the
  order in which they were added (those that act on activations come after those that change a kernel). A merged adapter
  is one whose part is computed in another place.
- The bits of the base are those that it had; only `dissolve(merge=True)` changes them. While adapters are merged, its
  bits are kept beside it.
- Trainable are the weights of the active adapters, but for those that were loaded to be used only, and nothing of the
  base. Layers that a user thaws by name stay thawed.

So no verb changes hosts. It changes what is wanted, which are a few names: `active`, `merged`, `scales`, `fixed` and
whether adapters are disabled. `settle` then brings the hosts there.
"""

import contextlib
import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kopt.peft.adapter import Adapter, Array
from kopt.peft.host import (
    AdapterLayer,
    changes_order,
    container_class,
    is_guarded,
    merge_host,
    refuse_shared,
    unmerge_host,
)
from kopt.peft.layers import (
    direct_variables,
    flatten_layers,
    is_trainable,
    original_class,
    packed_layers,
    register_weights,
    set_class,
    set_trainable,
)
from kopt.peft.model.optimizers import Optimizers
from kopt.peft.model.selection import Targets, plan
from kopt.peft.requirements import check_adapter_name, require_model

_ADAPTERS = "kopt_peft"
"""The attribute under which a model keeps its `ModelAdapters`."""
_DISABLED = "kopt_disabled"
"""The attribute under which a model keeps in how many blocks of `disabled` it is."""


class ModelAdapters:
    """The adapters of one model."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.adapters: dict[str, Adapter] = {}
        self.hosts: dict[str, AdapterLayer] = {}
        """What each host has of the adapters, by its path."""
        self.active: list[str] = []
        self.merged: list[str] = []
        """Those of the active adapters that are in the weights of the base, but while adapters are disabled."""
        self.scales: dict[str, float] = {}
        """By how much the adapters count that count otherwise than 1."""
        self.gates: dict[str, Any] = {}
        """The variable by which each adapter counts now, by adapter: 0 while it is off or merged."""
        self.fixed: set[str] = set()
        """The adapters that are never trained."""
        self.optimizers = Optimizers(model)
        self._prompted: list[str] = []
        self._flags_before = [
            (layer, is_trainable(layer), [(v, v.trainable) for v in direct_variables(layer)])
            for layer in flatten_layers(model)
        ]

    def flags_before(self) -> list[tuple[Any, bool]]:
        """Returns the layers of the model, each with whether it was trainable without adapters."""
        return [(layer, trainable) for layer, trainable, _ in self._flags_before]

    @property
    def enabled(self) -> bool:
        """Whether the model is in no block of `disabled`."""
        return not vars(self.model).get(_DISABLED)

    # ---------------------------------------------------------------------------------------- what is wanted

    def settle(self) -> None:
        """Brings hosts, trainable weights and optimizer to what is wanted."""
        scales = {name: self.scales.get(name, 1.0) for name in self.active} if self.enabled else {}
        merged = {name: scales[name] for name in self.merged} if self.enabled else {}
        trained = [name for name in self.active if name not in self.fixed]
        for layer in self.hosts.values():
            layer.settle(self.active, trained, scales, merged)
        for name, gate in self.gates.items():
            gate.assign(0.0 if name in merged else scales.get(name, 0.0))
        if self.prompts != self._prompted:  # all else is a matter of gates
            self._prompted = self.prompts
            self.optimizers.forget_functions()
        self.optimizers.choose(frozen=bool(trained))

    def choose(self, names: Sequence[str]) -> None:
        """Makes these adapters the active ones. Merged ones stay merged if they are among them and can be."""
        for name in names:
            self.require(name)
        fixed = [name for name in dict.fromkeys(names) if not self.adapters[name].gated]
        if len(fixed) > 1:
            raise ValueError(f"Only one prompt can be active at a time. Received: {', '.join(fixed)}")
        self.active = [name for name in self.adapters if name in names]
        self.merged = [name for name in self.merged if name in self.active]
        if self._changes_order(self.merged):
            self.merged = []
        self.settle()

    def merge(self, names: Sequence[str]) -> None:
        """Has active adapters in the weights of the base."""
        for name in names:
            self.require_mergeable(name)
            if name not in self.active:
                active = ", ".join(map(repr, self.active)) or "none"
                raise ValueError(f"The adapter {name!r} is not active ({active}). Call set_adapter(model, ...) first.")
            if name in self.merged:
                raise ValueError(f"The adapter {name!r} is merged already.")
        self._refuse_while_disabled("Merge")
        self._refuse_shared(names)
        wanted = [name for name in self.active if name in (*self.merged, *names)]
        if self._changes_order(wanted):
            raise ValueError(
                f"Merging {', '.join(names)} alone would change the order of the active adapters: "
                f"{', '.join(self.active)}. Merge all of them, or choose others with set_adapter."
            )
        before, self.merged = self.merged, wanted
        try:
            self.settle()
        except BaseException:
            self.merged = before
            self.settle()
            raise

    def unmerge(self) -> None:
        """Puts the weights of the base back, bit for bit."""
        self.merged = []
        self.settle()

    def _changes_order(self, merged: Sequence[str]) -> bool:
        live = [name for name in self.active if name not in merged]
        return any(changes_order(layer, merged, live) for layer in self.hosts.values())

    def set_scale(self, name: str, scale: float) -> None:
        """Lets an adapter count by a factor."""
        if not self.require(name).gated:
            raise ValueError(f"{type(self.adapters[name]).__name__} has no scale: it is there or not.")
        self.scales[name] = scale
        self.settle()

    def values_changed(self) -> None:
        """Merges anew what is merged, after weights of adapters were set."""
        for layer in self.hosts.values():
            unmerge_host(layer)
        self.settle()

    @contextlib.contextmanager
    def dequantizing(self) -> Iterator[None]:
        """Lets layers get float kernels in place of quantized ones within a block."""
        for layer in self.hosts.values():
            unmerge_host(layer)
        known = {id(v) for _, _, variables in self._flags_before for v, _ in variables}
        yield
        for layer, _, variables in self._flags_before:
            for variable in direct_variables(layer):
                if id(variable) not in known:
                    variables.append((variable, True))
                    variable.trainable = False
        for layer in self.hosts.values():
            layer.look_again()
        self.settle()

    # ------------------------------------------------------------------------------------ putting in, taking out

    def add(
        self, name: str, adapter: Adapter, targets: Targets | None, values: Mapping[str, Mapping[str, Array]]
    ) -> None:
        """Adds an adapter, or raises ValueError and leaves the model as it was; see `add_adapter`."""
        check_adapter_name(name)
        if name in self.adapters:
            raise ValueError(f"The model has an adapter {name!r} already. Choose another name or delete_adapter first.")
        own = {id(layer) for layer in self.hosts.values()}
        if any(isinstance(layer, AdapterLayer) and id(layer) not in own for layer in flatten_layers(self.model)):
            raise ValueError(
                f"Layers of {self.model.name!r} have adapters of another model. Add adapters to that one, or call "
                "merge_and_unload or unload there first."
            )
        plans = plan(self.model, adapter, targets)
        rng = np.random.default_rng(np.random.randint(2**31))  # which keras.utils.set_random_seed seeds
        new, shared = list[str](), dict[str, Any]()
        for layer in self.hosts.values():
            unmerge_host(layer)  # adapters start from the base
        try:
            for path, step in plans.items():
                if path not in self.hosts:
                    self.hosts[path] = AdapterLayer(step.layer, path)
                    new.append(path)
                given = (step.parameters, shared, self.gates.get(name), values.get(path, {}))
                self.hosts[path].add(name, step.adapter, step.targeted, step.whole, rng, *given)
                self.gates[name] = self.hosts[path].gates[name]
        except Exception:  # whatever it is, the model is left as it was
            for path in plans:
                if path in self.hosts:
                    self.hosts[path].remove(name)
            for path in new:
                self.hosts.pop(path).remove_host()
            self.gates.pop(name, None)
            self.settle()
            raise
        if not self.adapters:
            self._freeze()
        self.adapters[name] = adapter
        self._guard(name)
        register_weights(self.model)
        self.optimizers.forget_functions()

    def _freeze(self) -> None:
        """Freezes the base: its variables, and its layers as wholes, which lets batch normalization only infer."""
        for layer in flatten_layers(self.model):
            if not isinstance(layer, AdapterLayer):
                set_trainable(layer, False)
                for variable in direct_variables(layer):
                    variable.trainable = False

    def _guard(self, added: str = "") -> None:
        """Guards the layers that contain hosts, and no others, and thaws those that contain a new adapter."""
        for layer in flatten_layers(self.model):
            inside = [inner for inner in flatten_layers(layer) if isinstance(inner, AdapterLayer)]
            if inside and (isinstance(layer, AdapterLayer) or any(added in inner.adapters for inner in inside)):
                set_trainable(layer, True)
            if inside and not isinstance(layer, AdapterLayer) and not is_guarded(layer) and layer is not self.model:
                set_class(layer, container_class(original_class(layer)))
            elif not inside and is_guarded(layer):
                set_class(layer, original_class(layer))
                set_trainable(layer, False)

    def remove(self, name: str) -> None:
        """Deletes an adapter and its variables; with the last one the model is plain again."""
        self.require(name)
        if name in self.merged:
            raise ValueError(f"The adapter {name!r} is merged. Call unmerge_adapter(model) first.")
        if len(self.adapters) == 1:
            self.dissolve()
            return
        gone = self.variables_of(name)
        for path, layer in list(self.hosts.items()):
            host = layer.host()
            layer.remove(name)
            if not layer.adapters:
                self.hosts.pop(path).remove_host()
                set_trainable(host, any(isinstance(inner, AdapterLayer) for inner in flatten_layers(host)))
        del self.adapters[name]
        self.active = [n for n in self.active if n != name]
        self.scales.pop(name, None)
        del self.gates[name]
        self.fixed.discard(name)
        self._guard()
        register_weights(self.model)
        self.optimizers.forget_functions()
        self.settle()
        self.optimizers.drop(gone)

    def dissolve(self, merge: bool = False, names: Sequence[str] | None = None) -> None:
        """Removes all adapters: the model is as it was before, but for adapters in its weights with `merge`.

        Args:
            merge: whether to leave adapters in the weights.
            names: which; None is the active ones.
        """
        for name in names or ():
            self.require(name)
        merged = [name for name in self.adapters if name in (self.active if names is None else names)] if merge else []
        if merge:
            self._refuse_while_disabled("Merge")
        for name in merged:
            self.require_mergeable(name)
        self._refuse_shared(merged)
        scales = {name: self.scales.get(name, 1.0) for name in merged}
        for layer in self.hosts.values():
            unmerge_host(layer)
            merge_host(layer, scales, keep=False)
            layer.remove_host()
        for layer in flatten_layers(self.model):
            if layer is not self.model or not packed_layers(self.model):
                set_class(layer, original_class(layer))
        for layer, trainable, variables in self._flags_before:
            set_trainable(layer, trainable)
            for variable, value in variables:
                variable.trainable = value
        del vars(self.model)[_ADAPTERS]
        register_weights(self.model)
        self.optimizers.forget_functions()
        self.optimizers.choose()

    def install(self) -> None:
        """Makes these the adapters of the model."""
        vars(self.model)[_ADAPTERS] = self

    # ------------------------------------------------------------------------------------------------ looking

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

    def require(self, name: str) -> Adapter:
        """Returns the adapter of that name, or raises ValueError."""
        if not isinstance(name, str) or name not in self.adapters:
            near = difflib.get_close_matches(str(name), self.adapters, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"The model has {', '.join(map(repr, self.adapters))}."
            raise ValueError(f"No adapter {name!r}. {hint}")
        return self.adapters[name]

    def require_mergeable(self, name: str) -> None:
        """Raises ValueError if there is no such adapter, or no kernel that stands for it."""
        if not self.require(name).mergeable:
            kind = type(self.adapters[name]).__name__
            raise ValueError(f"{kind} cannot be merged: no kernel stands for it. Keep it, or call unload(model).")

    def _refuse_shared(self, names: Sequence[str]) -> None:
        """Raises ValueError if merging would change a weight that another layer computes with, too."""
        holders: dict[int, list[Any]] = {}
        for layer in flatten_layers(self.model):
            for variable in direct_variables(layer):
                holders.setdefault(id(variable), []).append(layer)
        for layer in self.hosts.values():
            refuse_shared(layer, names, holders)

    def variables_of(self, name: str) -> list[Any]:
        """Returns all variables of an adapter."""
        return [v for layer in self.hosts.values() for v in layer.variables_of(name)]

    def refuse_vain_training(self) -> None:
        """Raises ValueError where training would move weights that the model does not compute with."""
        trained = [name for name in self.active if name not in self.fixed]
        if not self.enabled and trained:
            raise ValueError("The adapters are disabled, so they cannot be trained. Leave disable_adapter's block.")
        if merged := [name for name in trained if name in self.merged]:
            raise ValueError(
                f"The adapters {', '.join(merged)} are merged, so they cannot be trained. Call unmerge_adapter(model)."
            )

    def _refuse_while_disabled(self, what: str) -> None:
        if not self.enabled:
            raise ValueError(f"The adapters are disabled. {what} them outside of the block of disable_adapter.")


def adapters_of(model: Any) -> ModelAdapters | None:
    """Returns the adapters of a model, or None if it has none.

    Raises:
        ValueError: this is no model.
    """
    require_model(model)
    found: ModelAdapters | None = vars(model).get(_ADAPTERS)
    return found


@contextlib.contextmanager
def disabled(model: Any) -> Iterator[None]:
    """Disables the adapters of a model within a block, those too that are added there."""

    def count(change: int) -> None:
        vars(model)[_DISABLED] = vars(model).get(_DISABLED, 0) + change
        if not vars(model)[_DISABLED]:
            del vars(model)[_DISABLED]
        if (current := adapters_of(model)) is not None:
            current.settle()

    try:
        count(1)
        yield
    finally:
        count(-1)


def require_adapters(model: Any) -> ModelAdapters:
    """Returns the adapters of a model, or raises ValueError if it has none."""
    found = adapters_of(model)
    if found is None:
        raise ValueError(f"The model {model.name!r} has no adapters. Add one with get_peft_model(model, adapter).")
    return found

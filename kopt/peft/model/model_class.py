"""The class of a model with adapters. Its `.keras` files keep them: nothing is merged, and loading puts them back."""

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import keras

from kopt.peft.adapter import Adapter, Array, adapters
from kopt.peft.host import TRAINABLE
from kopt.peft.layers import (
    Nf4Kernel,
    flatten_layers,
    is_trainable,
    named_layers,
    original_class,
    pack,
    packed_layers,
    plain_class,
    set_class,
    set_trainable,
    unpickler,
)
from kopt.peft.model.adapters import ModelAdapters, adapters_of
from kopt.peft.model.selection import Plan, Targets, plan
from kopt.peft.requirements import require_method

NAME = "PeftModel"


def add_adapter(
    model: Any,
    adapter: Adapter,
    adapter_name: str,
    targets: Targets | None = None,
    values: Mapping[str, Mapping[str, Array]] = MappingProxyType({}),
) -> ModelAdapters:
    """Adds an adapter to a model without making it the active one.

    Args:
        model: a built model.
        adapter: the method.
        adapter_name: its name.
        targets: as for `plan`.
        values: what weights start from instead of what the method says, by path and by key, as `AdapterLayer` has them.
    """
    require_method(model, adapter)
    if hasattr(model, "call_with_cache") and adapter.prepends:
        raise ValueError(f"{type(adapter).__name__} cannot reach text generation, which does not pass through `call`.")
    found = adapters_of(model)
    current = found or ModelAdapters(model)
    current.add(adapter_name, adapter, targets, values)
    if found is None:
        current.install()
        set_class(model, adapted_class(original_class(model)))
    current.settle()
    return current


def put_adapter(
    model: Any,
    adapter: Adapter,
    adapter_name: str,
    targets: Targets | None,
    values: Mapping[str, Mapping[str, Array]],
    is_trainable: bool,
) -> None:
    """Adds an adapter with given values and makes it the active one.

    If there is one of that name, of the same method and configuration, it gets the values. Nothing is traced anew then,
    and the state that the optimizer has of it is put back to its start.

    Args:
        model: a built model.
        adapter: the method.
        adapter_name: its name.
        targets: as for `plan`.
        values: by path and by key, as `AdapterLayer` has them.
        is_trainable: whether it is ever trained.

    Raises:
        ValueError: as for `add_adapter`, or the adapter of that name differs. The model is then as before.
    """
    current = adapters_of(model)
    swaps = current is not None and adapter_name in current.adapters
    if current is None or not swaps:
        current = add_adapter(model, adapter, adapter_name, targets, values)
    else:
        _check_same(current, adapter_name, plan(model, adapter, targets))
        for path, own in values.items():
            layer = current.hosts[path]
            variables = layer.weights_of[adapter_name] | layer.copies[adapter_name]
            for key, value in own.items():
                variables[key].assign(value)
    (current.fixed.discard if is_trainable else current.fixed.add)(adapter_name)
    if swaps:
        current.optimizers.restart(current.variables_of(adapter_name))
        current.values_changed()
    current.choose([adapter_name])


def _check_same(current: ModelAdapters, name: str, plans: Mapping[str, Plan]) -> None:
    """Raises ValueError unless the adapter is what `plans` would make."""
    there = {path: layer for path, layer in current.hosts.items() if name in layer.adapters}
    differ = [f"it goes to {path} in one of them only" for path in sorted(plans.keys() ^ there.keys())]
    for path, step in plans.items() if not differ else ():
        ours, layer = there[path].adapters[name], there[path]
        a, b = ours.get_config(), step.adapter.get_config()
        if type(ours) is not type(step.adapter):
            differ.append(f"{type(ours).__name__} and {type(step.adapter).__name__}")
        else:
            differ += [f"{k}={a[k]!r} and {b[k]!r} at {path}" for k in a if k not in ours.selects and a[k] != b[k]]
        if layer.given[name] != (step.targeted, step.whole, tuple(step.parameters)):
            differ.append(f"other weights at {path}")
            continue
        sites = [layer.site] if step.targeted and layer.site is not None else []
        sites += [layer.sites[attr] for attr in step.parameters]
        wanted = [weight.shape(site) for site in sites for weight in step.adapter.weights(site).values()]
        if [tuple(v.shape) for v in layer.weights_of[name].values()] != wanted:
            differ.append(f"other weights at {path}")
    if differ:
        raise ValueError(
            f"The model has an adapter {name!r} already, of another configuration: {'; '.join(differ[:3])}. Call "
            f"delete_adapter(model, {name!r}) first, or choose another name."
        )


def pack_layers(model: Any, paths: Iterable[str], value: bool = True) -> None:
    """Stores the kernels of layers in NF4.

    Args:
        model: a model without adapters.
        paths: of the layers.
        value: whether they get the values of the kernels, or stay zero until a file is read.
    """
    named = dict(named_layers(model))
    for path in paths:
        pack(named[path], value)
    if packed_layers(model):
        set_class(model, adapted_class(original_class(model)))


@contextlib.contextmanager
def plain_layers(model: Any) -> Iterator[None]:
    """Gives the layers of a model the classes and flags that they had before kopt changed them, within a block."""
    current = adapters_of(model)
    now = [(layer, type(layer), is_trainable(layer)) for layer in flatten_layers(model)]
    for layer, *_ in now:
        set_class(layer, plain_class(layer))
    for layer, trainable in () if current is None else current.flags_before():
        set_trainable(layer, trainable)
    try:
        yield
    finally:
        for layer, cls, trainable in now:
            set_class(layer, cls)
            set_trainable(layer, trainable)


@functools.cache
def adapted_class(base: Any) -> type:
    """Returns the subclass of `base` for models with adapters, of the same name.

    All these subclasses are registered as `kopt>PeftModel`: what their configuration says is the same for all.
    """

    class Adapted(base):
        kopt_original = base
        trainable = TRAINABLE

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return base(*args, **kwargs)  # a clone is a plain model

        @functools.wraps(base.call)
        def call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            current = adapters_of(self)
            return super().call(inputs if current is None else current.prepend(inputs), *args, **kwargs)

        def save(self, *args: Any, **kwargs: Any) -> None:
            self._refuse_if_merged()  # Keras empties the file first
            super().save(*args, **kwargs)

        def save_weights(self, *args: Any, **kwargs: Any) -> None:
            self._refuse_if_merged()
            super().save_weights(*args, **kwargs)

        def load_weights(self, *args: Any, **kwargs: Any) -> None:
            self._refuse_if_merged()
            super().load_weights(*args, **kwargs)

        @property  # Keras keeps the method in each instance, where only a property comes before it
        def quantize(self) -> Any:
            return self._refuse_quantization

        def _refuse_quantization(self, *args: object, **kwargs: object) -> None:
            what = "kernels in nf4" if adapters_of(self) is None else "adapters"  # Keras begins, and stops on the way
            raise ValueError(
                f"The model has {what}, so it cannot be quantized as a whole. Call kopt.peft.quantize before adapters "
                "are added, with target_modules or exclude_modules where only some layers are meant."
            )

        def make_train_function(self, *args: Any, **kwargs: Any) -> Any:
            current = adapters_of(self)
            if current is not None:
                current.refuse_vain_training()
            return super().make_train_function(*args, **kwargs)

        def __reduce__(self) -> Any:
            _, arguments = super().__reduce__()
            return unpickler(base), arguments  # pickle finds `base` by its name

        def _refuse_if_merged(self) -> None:
            current = adapters_of(self)
            for layer in () if current is None else current.hosts.values():
                layer.refuse_if_merged()

        def get_config(self) -> dict[str, Any]:
            current, packed = adapters_of(self), packed_layers(self)
            if current is None and not packed:
                return super().get_config()
            with plain_layers(self):
                plain = keras.saving.serialize_keras_object(self)
            plain.pop("compile_config", None)  # that of the whole stands outside
            return {
                "needs": "import kopt before this file is loaded: the model has adapters or kernels of kopt",
                "base": plain,
                "packed": {path: Nf4Kernel.mode for path in packed},
                "adapters": []
                if current is None
                else [
                    {
                        "name": name,
                        "method": type(adapter).__name__.lower(),
                        "config": adapter.get_config(),
                        "targets": {
                            p: b.adapters[name].get_config() for b in current.hosts.values() for p in b.kernels_of(name)
                        },
                        "trainable": name not in current.fixed,
                        "scale": current.scales.get(name, 1.0),
                    }
                    for name, adapter in current.adapters.items()
                ],
                "active": [] if current is None else current.active,
            }

        @classmethod
        def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
            model = keras.saving.deserialize_keras_object(config["base"], custom_objects=custom_objects)
            vars(model)["kopt_pending"] = config
            if model.built:
                _restore(model)
            else:
                set_class(model, adapted_class(original_class(model)))
            return model

        def build_from_config(self, config: dict[str, Any]) -> None:
            if not self.built:
                super().build_from_config(config)
            _restore(self)

    Adapted.__name__, Adapted.__qualname__ = base.__name__, base.__qualname__
    Adapted.__module__ = "kopt.peft"  # what Keras names where the file is loaded without `import kopt`
    keras.saving.register_keras_serializable("kopt", NAME)(Adapted)
    return Adapted


def _restore(model: Any) -> None:
    config = vars(model).pop("kopt_pending", None)
    if config is None:
        return
    set_class(model, original_class(model))
    pack_layers(model, config.get("packed", {}), value=False)
    for entry in config["adapters"]:
        method = adapters()[entry["method"]]
        current = add_adapter(model, method(**entry["config"]), entry["name"], entry["targets"] or None)
        if not entry.get("trainable", True):
            current.fixed.add(entry["name"])
        if entry.get("scale", 1.0) != 1.0:
            current.scales[entry["name"]] = entry["scale"]
    if config["adapters"]:
        current.choose(config["active"])


adapted_class(keras.Model)  # registers the name, so that a file can be loaded right after `import kopt`

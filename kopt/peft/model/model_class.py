"""The class of a model with adapters. Its `.keras` files keep them: nothing is merged, and loading puts them back."""

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from kopt.peft.adapter import Adapter, adapters, require_method
from kopt.peft.layers import original_class, set_class
from kopt.peft.model.adapters import ModelAdapters, adapters_of

NAME = "PeftModel"


def add_adapter(
    model: Any, adapter: Adapter, adapter_name: str, targets: Mapping[str, Mapping[str, Any]] | None = None
) -> ModelAdapters:
    """Adds an adapter to a model without making it the active one; `targets` is that of `plan`."""
    require_method(model, adapter)
    if hasattr(model, "call_with_cache") and not adapter.gated:
        raise ValueError(f"{type(adapter).__name__} cannot reach text generation, which does not pass through `call`.")
    found = adapters_of(model)
    current = found or ModelAdapters(model)
    current.add(adapter_name, adapter, targets)
    if found is None:
        current.install()
        set_class(model, adapted_class(original_class(model)))
    current.freeze()
    return current


@functools.cache
def adapted_class(base: Any) -> type:
    """Returns the subclass of `base` for models with adapters, of the same name.

    All these subclasses are registered as `kopt>PeftModel`: what their configuration says is the same for all.
    """

    class Adapted(base):
        kopt_original = base

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

        def _refuse_if_merged(self) -> None:
            current = adapters_of(self)
            for layer in () if current is None else current.hosts.values():
                layer.refuse_if_merged()

        def get_config(self) -> dict[str, Any]:
            current = adapters_of(self)
            if current is None:
                return super().get_config()
            with _plain(self, *(layer.host() for layer in current.hosts.values())):
                plain = keras.saving.serialize_keras_object(self)
            plain.pop("compile_config", None)  # that of the whole stands outside
            return {
                "base": plain,
                "adapters": [
                    {
                        "name": name,
                        "method": type(adapter).__name__.lower(),
                        "config": adapter.get_config(),
                        "targets": {
                            p: b.adapters[name].get_config() for b in current.hosts.values() for p in b.kernels_of(name)
                        },
                    }
                    for name, adapter in current.adapters.items()
                ],
                "active": current.active,
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

    Adapted.__name__, Adapted.__qualname__, Adapted.__module__ = base.__name__, base.__qualname__, base.__module__
    keras.saving.register_keras_serializable("kopt", NAME)(Adapted)
    return Adapted


def _restore(model: Any) -> None:
    config = vars(model).pop("kopt_pending", None)
    if config is None:
        return
    set_class(model, original_class(model))
    for entry in config["adapters"]:
        method = adapters()[entry["method"]]
        add_adapter(model, method(**entry["config"]), entry["name"], entry["targets"] or None)
    current = adapters_of(model)
    assert current is not None
    current.switch(config["active"])


@contextlib.contextmanager
def _plain(*layers: Any) -> Iterator[None]:
    """Gives layers the classes they had without adapters."""
    classes = [(layer, type(layer)) for layer in layers]
    for layer, _ in classes:
        set_class(layer, original_class(layer))
    try:
        yield
    finally:
        for layer, cls in classes:
            set_class(layer, cls)


adapted_class(keras.Model)  # registers the name, so that a file can be loaded right after `import kopt`

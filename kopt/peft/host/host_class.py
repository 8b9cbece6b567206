"""The classes of layers that hold adapters: those of the layers, but for what adapters must see or keep.

A host reads some attributes as what the adapters make of them. Hosts, and the layers that contain hosts, stay frozen
when `trainable` is set to True: what is in them learns through adapters alone.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NoReturn

from kopt.peft.host.host_tensors import tensor_of
from kopt.peft.host.pickling import reduced
from kopt.peft.host.saving import mark, without_mark
from kopt.peft.host.surrounding import extension
from kopt.peft.layers import (
    attention_through,
    child_layers,
    child_of,
    flatten_layers,
    holder_of,
    in_forward_pass,
    is_trainable,
    original_class,
    set_class,
    set_trainable,
)

ACTIVATION = "activation"


class _Attribute:
    """An attribute of a host that reads as what the adapters make of it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, host: Any, owner: type) -> Any:
        if host is None:
            return self
        try:
            value = holder_of(host, self.name)[self.name]
        except KeyError:
            raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}") from None
        child = child_of(host)
        return value if child is None else child.read(self.name, value)

    def __set__(self, host: Any, value: Any) -> None:
        holder_of(host, self.name).pop(self.name, None)
        vars(host)[self.name] = value


class _Kernel:
    """The kernel of a quantized host as its float `call` reads it: with what the adapters make of it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, host: Any, owner: type) -> Any:
        if host is None:
            return self
        site = child_of(host).site
        if not in_forward_pass():
            return getattr(original_class(host), self.name).__get__(host)
        return tensor_of(child_of(host).read(site.attr, site.variable))


def is_guarded(layer: Any) -> bool:
    """Returns whether a layer or model is a host, contains hosts, or is the model of the adapters."""
    return type(layer) is not original_class(layer)


def _set_trainable(layer: Any, value: bool) -> None:
    set_trainable(layer, bool(value))
    for child in child_layers(layer):
        if is_guarded(child) or not value:  # thawing a whole must not thaw the base
            child.trainable = value
    if (adapters := child_of(layer)) is not None:
        adapters.freeze()


TRAINABLE = property(is_trainable, _set_trainable)
"""`trainable` of a layer with adapters in it: False freezes all, True thaws adapters alone."""


@contextlib.contextmanager
def _plain(layer: Any) -> Iterator[None]:
    """Gives the layers inside of a layer the classes that they had without adapters, within a block."""
    guarded = [(inner, type(inner)) for inner in flatten_layers(layer) if is_guarded(inner) and inner is not layer]
    for inner, _ in guarded:
        set_class(inner, original_class(inner))
    try:
        yield
    finally:
        for inner, cls in guarded:
            set_class(inner, cls)


def _refuse_configuration(layer: Any) -> NoReturn:
    """Raises ValueError where Keras writes the configuration of another model: it would not tell of the adapters.

    The model that has the adapters gives its layers their plain classes before.
    """
    raise ValueError(
        f"{layer.name} has adapters of another model, which a file or copy of this model would lose. Save or copy the "
        "model that get_peft_model was given, or call kopt.peft.merge_and_unload or kopt.peft.unload on it first."
    )


@functools.cache
def container_class(base: Any) -> type:
    """Returns the subclass of `base`, of the same name, for layers that contain hosts."""

    class Container(base):
        kopt_original = base
        trainable = TRAINABLE

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return base(*args, **kwargs)

        def __reduce__(self) -> Any:
            raise ValueError(f"{self.name} contains layers with adapters. Copy or pickle the model that has them.")

        def get_config(self) -> Any:
            with _plain(self):  # Keras writes the classes of what is inside by their registered names
                return super().get_config()

        def get_build_config(self) -> Any:
            _refuse_configuration(self)

        @classmethod
        def from_config(cls, config: dict[str, Any], **kwargs: Any) -> Any:
            return base.from_config(config, **kwargs)

    Container.__name__, Container.__qualname__ = base.__name__, base.__qualname__
    Container.__module__ = base.__module__
    return Container


@functools.cache
def host_class(base: Any, attributes: frozenset[str], kernel: str | None, attends: bool = False) -> type:
    """Returns the subclass of `base` for hosts whose own variables are `attributes`.

    It has the name and the module of `base`: Keras' files contain them.

    Args:
        base: the class without adapters.
        attributes: attributes that read as what the adapters make of them.
        kernel: the attribute under which `base` shows a quantized kernel; None if it is not quantized.
        attends: whether it is an attention of Keras, whose keys and values adapters may extend.
    """

    class Host(base):
        kopt_original = base
        trainable = TRAINABLE

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return base(*args, **kwargs)  # a clone is a plain layer

        @functools.wraps(base.call)
        def call(self, *args: Any, **kwargs: Any) -> Any:
            return child_of(self).forward(super().call, args, kwargs)

        def quantized_call(self, *args: Any, **kwargs: Any) -> Any:
            return child_of(self).forward(super().quantized_call, args, kwargs, super().call)

        @property  # Keras keeps the method in each instance, where only a property comes before it
        def quantize(self) -> Any:
            return child_of(self).quantize  # which refuses

        def __reduce__(self) -> Any:
            return reduced(child_of(self))

        def save_own_variables(self, store: Any) -> None:
            super().save_own_variables(store)
            mark(store)

        def load_own_variables(self, store: Any) -> None:
            super().load_own_variables(without_mark(store))

        def get_build_config(self) -> Any:
            _refuse_configuration(self)

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> Any:
            return base.from_config(config)

    Host.__name__, Host.__qualname__, Host.__module__ = base.__name__, base.__qualname__, base.__module__
    for name in attributes:
        setattr(Host, name, _Attribute(name))
    if attends:
        attention_through(Host, lambda host: extension(child_of(host)))
    if kernel is not None:
        setattr(Host, kernel, _Kernel(kernel))
    return Host

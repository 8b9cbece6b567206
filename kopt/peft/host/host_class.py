"""The class of a host: that of the layer, but for attributes that read as what the adapters make of them."""

import functools
from typing import Any

from kopt.peft.layers import child_of, is_trainable

ACTIVATION = "activation"


class _Attribute:
    """An attribute of a host that reads as what the adapters make of it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, host: Any, owner: type) -> Any:
        if host is None:
            return self
        try:
            value = vars(host)[self.name]
        except KeyError:
            raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}") from None
        child = child_of(host)
        return value if child is None else child.read(self.name, value)

    def __set__(self, host: Any, value: Any) -> None:
        vars(host)[self.name] = value


@functools.cache
def host_class(base: Any, attributes: frozenset[str]) -> type:
    """Returns the subclass of `base` for hosts whose own variables are `attributes`.

    It has the name and the module of `base`: Keras' files contain them.
    """

    class Host(base):
        kopt_original = base

        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return base(*args, **kwargs)  # a clone is a plain layer

        @functools.wraps(base.call)
        def call(self, *args: Any, **kwargs: Any) -> Any:
            return child_of(self).forward(super().call, args, kwargs)

        @property
        def trainable(self) -> bool:
            return is_trainable(self)

        @trainable.setter
        def trainable(self, value: bool) -> None:
            base.trainable.fset(self, value)
            if child_of(self) is not None:  # thawing a whole model must not thaw the base
                child_of(self).freeze()

        @classmethod
        def from_config(cls, config: dict[str, Any]) -> Any:
            return base.from_config(config)

    Host.__name__, Host.__qualname__, Host.__module__ = base.__name__, base.__qualname__, base.__module__
    for name in attributes:
        setattr(Host, name, _Attribute(name))
    return Host

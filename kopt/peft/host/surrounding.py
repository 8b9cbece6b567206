"""How the active adapter of a host without a kernel takes part in its call."""

import functools
from collections.abc import Callable
from typing import Any

from kopt.peft.layers import Tensor


def surrounded(layer: Any, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Returns what the host of an `AdapterLayer` gives, where `call` is how its class computes."""
    for name in layer.chain(layer.site):  # one at most: such adapters are not active together
        return layer.adapters[name].surround(call, args, kwargs, layer.site, layer.parameters(name, layer.site))
    return call(*args, **kwargs)


def extension(layer: Any) -> Callable[..., tuple[Tensor, Tensor, Tensor | None]] | None:
    """Returns what the adapter makes of projected keys and values and of their mask; None if none is active."""
    for name in layer.chain(layer.site):
        return functools.partial(layer.adapters[name].extend, site=layer.site, p=layer.parameters(name, layer.site))
    return None

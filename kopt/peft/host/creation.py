"""The weights of an adapter at one kernel of a host, as they start."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from kopt.peft.adapter import Adapter, Array
from kopt.peft.host.host_tensors import as_float32
from kopt.peft.layers import Site
from kopt.peft.requirements import check_names


def create_weights(
    layer: Any,
    name: str,
    adapter: Adapter,
    site: Site,
    rng: np.random.Generator,
    shared: dict[str, keras.Variable],
    given: Mapping[str, Array],
) -> None:
    """Creates the weights of an adapter, or takes those that another host has created for all.

    Args:
        layer: the unlocked `AdapterLayer`.
        name: name of the adapter.
        adapter: the method, with the arguments that hold there.
        site: the kernel.
        rng: source of the initial values.
        shared: what hosts have created for all, by name; new ones are added.
        given: values to start from instead, by the names of the weights in the layer.

    Raises:
        ValueError: the method does not fit the kernel, a given value has another shape than the weight, or a weight
            cannot have its name.
    """
    declared = adapter.weights(site)
    adapter.check_fit(site)
    check_names(adapter, declared, layer.copies[name], layer.host_path)
    own = {key: weight for key, weight in declared.items() if not weight.shared or key not in shared}
    values = {key: np.asarray(given[full]) for key in own if (full := layer.key(site, key)) in given}
    for key, value in values.items():
        if value.shape != own[key].shape(site):
            raise ValueError(f"{layer.host_path}: {key} takes {own[key].shape(site)}. Received: {value.shape}")
    if len(values) < len(own):
        drawn = {key: weight.init(rng, weight.shape(site)) for key, weight in own.items()}
        adapter.start(drawn, lambda: site.matrix(as_float32(site.variable)), rng)
        values = drawn | values
    for key, weight in declared.items():
        full = layer.key(site, key)
        if key in own:
            options = {"regularizer": weight.penalty, "overwrite_with_gradient": weight.overwritten}
            of_replicas = "sum" if weight.overwritten else "none"  # a gradient is the sum of theirs
            made = layer.create_variable(name, full, values[key], weight.trainable, aggregation=of_replicas, **options)
            layer.weights_of[name][full] = made
        else:
            layer.weights_of[name][full] = shared[key]
            setattr(layer, f"{name}_{key}", shared[key])
            layer.borrowed[name].add(full)
        if weight.shared:
            shared[key] = layer.weights_of[name][full]

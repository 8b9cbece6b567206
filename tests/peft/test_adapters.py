"""The contract of an adapter: every method of the registry on every kind of host. No test names a method."""

import math
import re

import keras
import numpy as np
import pytest
import zoo
from keras import layers, ops
from probes import outputs, same, scramble, values
from small_adapters import fitting

from kopt import peft
from kopt.peft.adapter import Adapter
from kopt.peft.layers import find_site
from kopt.peft.model import adapters_of

METHODS = {name: cls for name, cls in peft.adapters().items() if cls.__module__.startswith("kopt.")}
EVERY_TOKEN = np.arange(12, dtype="int32").reshape(4, 3) % 9
HOSTS = {
    "dense": lambda: (layers.Dense(6, "gelu"), zoo.floats(4, 3, 5)),
    "dense-without-bias": lambda: (layers.Dense(6, use_bias=False), zoo.floats(16, 5)),
    "query": lambda: (layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de"), zoo.floats(4, 3, 5)),
    "attention-output": lambda: (layers.EinsumDense("abde,dec->abc", (None, 6), bias_axes="c"), zoo.floats(4, 3, 2, 5)),
    "output-axes-swapped": lambda: (layers.EinsumDense("abc,dce->aebd", (2, None, 3)), zoo.floats(4, 3, 5)),
    "batched": lambda: (layers.EinsumDense("nbc,ncd->nbd", (None, 6), bias_axes="nd"), zoo.floats(2, 4, 5)),
    "ellipsis-in-front": lambda: (layers.EinsumDense("...c,cd->...d", 6, bias_axes="d"), zoo.floats(4, 3, 5)),
    "conv1d-causal": lambda: (layers.Conv1D(6, 3, padding="causal", dilation_rate=2), zoo.floats(2, 7, 4)),
    "conv2d": lambda: (layers.Conv2D(6, 3, strides=2, padding="same", activation="relu"), zoo.floats(2, 5, 5, 4)),
    "conv2d-grouped": lambda: (layers.Conv2D(6, 3, groups=2), zoo.floats(2, 5, 5, 4)),
    "conv3d": lambda: (layers.Conv3D(4, 2, dilation_rate=2), zoo.floats(2, 4, 4, 4, 2)),
    "embedding": lambda: (layers.Embedding(9, 5), EVERY_TOKEN),
    "reversible": lambda: (Tied(9, 5), EVERY_TOKEN),
    "untied": lambda: (Tied(9, 5, tie_weights=False), EVERY_TOKEN),
    "transposed": lambda: (layers.Conv2DTranspose(4, 3), zoo.floats(2, 4, 4, 3)),
    "depthwise": lambda: (layers.DepthwiseConv2D(3), zoo.floats(2, 5, 5, 4)),
    "separable": lambda: (layers.SeparableConv2D(6, 3), zoo.floats(2, 5, 5, 4)),
    "recurrent": lambda: (layers.RNN(layers.GRUCell(3)), zoo.floats(2, 4, 3)),
    "unknown-call": lambda: (Squared(6), zoo.floats(4, 5)),
    "normalization": lambda: (layers.LayerNormalization(), zoo.floats(4, 5)),
}


class Tied(layers.ReversibleEmbedding):
    """Looks tokens up and gives logits of them."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.inner = layers.Dense(self.output_dim, "tanh")


class Squared(layers.Dense):
    def call(self, x):
        return ops.matmul(ops.square(x), self.kernel) + self.bias


def build(kind):
    """Returns a model around one host, and inputs."""
    layer, x = HOSTS[kind]()
    inputs = keras.Input(x.shape[1:], dtype=str(x.dtype), batch_size=x.shape[0] if kind == "batched" else None)
    if isinstance(layer, Tied):
        layer = layers.ReversibleEmbedding(9, 5, tie_weights=layer.tie_weights)
        y = layer(ops.tanh(layer(inputs)), reverse=True)
    else:
        y = layer(inputs)
    return keras.Model(inputs, y), x


def small(cls, **options):
    """Returns the method for each layer that can host it, of a rank that fits small kernels."""
    return cls(target_modules=r".*", **fitting(cls) | options)


def hosting(cls, kind):
    """Returns a model with the method on its host, the inputs, what the plain model gave and its weights.

    None if the host has nothing for the method, after a look at how that is said.
    """
    model, x = build(kind)
    plain, before = outputs(model, x), values(model.weights)
    layers_below = model._flatten_layers(include_self=False)
    adapter = small(cls)
    hosts = [layer for layer in layers_below if adapter.can_host(layer, find_site(layer))]
    trains = any(adapter.trains(v.name, True) for h in hosts for v in h.trainable_variables)
    if not trains and not any(find_site(h) is not None and adapter.weights(find_site(h)) for h in hosts):
        with pytest.raises(ValueError, match=r"can host|finds nothing to train"):
            peft.get_peft_model(model, adapter)
        assert same(values(model.weights), before)
        assert adapters_of(model) is None
        return None
    if not adapter.gated and not isinstance(x, dict):
        pytest.skip("changes the inputs of text models; test_methods.py")
    peft.get_peft_model(model, adapter)
    return model, x, plain, before


def near(x, y, bound=1e-5):
    np.testing.assert_allclose(x, y, atol=bound * max(1.0, np.abs(y).max()), rtol=0)


every_method = pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS)


def hosts(*usual):
    """Gives a test every kind of host, all but the usual ones in the slow tier."""
    return pytest.mark.parametrize(
        "kind", [kind if kind in usual else pytest.param(kind, marks=pytest.mark.slow) for kind in HOSTS]
    )


every_host, one_host = hosts("dense", "embedding"), hosts("dense")


@every_host
@every_method
def test_life_of_an_adapter(cls, kind):
    if (hosted := hosting(cls, kind)) is None:
        return
    model, x, plain, before = hosted
    near(outputs(model, x), plain, 1e-6)  # the identity at the start

    scramble(model, 0.3)
    live = outputs(model, x)
    assert np.abs(live - plain).max() > 1e-4
    with peft.disable_adapter(model):
        np.testing.assert_array_equal(outputs(model, x), plain)

    if cls.mergeable:
        peft.merge_adapter(model)
        near(outputs(model, x), live)  # forward = effective = merged
        peft.unmerge_adapter(model)
        np.testing.assert_array_equal(outputs(model, x), live)
    else:
        with pytest.raises(ValueError, match="cannot be merged"):
            peft.merge_adapter(model)
    peft.unload(model)
    assert same(values(model.weights), before)
    np.testing.assert_array_equal(outputs(model, x), plain)
    assert not any("kopt" in type(layer).__dict__ for layer in model._flatten_layers())


@one_host
@every_method
def test_only_adapters_learn(cls, kind):
    if (hosted := hosting(cls, kind)) is None:
        return
    model, x, plain, before = hosted
    expected = 0
    for layer in adapters_of(model).hosts.values():
        for name, adapter in layer.adapters.items():
            if layer.weights_of[name]:
                declared = adapter.weights(layer.site).values()
                expected += sum(math.prod(w.shape(layer.site)) for w in declared if w.trainable and not w.overwritten)
            expected += sum(math.prod(v.shape) for v in layer.copies[name].values())
    learning, everything = peft.get_nb_trainable_parameters(model)
    assert learning == expected
    assert everything >= expected + sum(math.prod(v.shape) for v in before)
    scramble(model)
    start = values(model.trainable_variables)
    model.compile("sgd", "mse", run_eagerly=True)
    model.train_on_batch(x, plain + 1)
    moved = [not np.array_equal(a, v.numpy()) for a, v in zip(start, model.trainable_variables, strict=True)]
    assert any(moved)
    if kind != "untied":  # whose second matrix is the base's alone
        assert all(moved), [v.path for v, m in zip(model.trainable_variables, moved, strict=True) if not m]
    peft.unload(model)
    assert same(values(model.weights), before)


@one_host
@every_method
def test_two_at_once(cls, kind):
    if (hosted := hosting(cls, kind)) is None:
        return
    model, x, plain, _ = hosted
    scramble(model, 0.3)
    one = outputs(model, x)
    other = small(cls)
    peft.get_peft_model(model, other, "other")
    near(outputs(model, x), plain, 1e-6)  # the new one alone
    peft.set_adapter(model, "default")
    np.testing.assert_array_equal(outputs(model, x), one)
    peft.set_adapter(model, ["default", "other"])
    scramble(model, 0.2)
    both = outputs(model, x)
    if cls.mergeable:
        peft.merge_adapter(model)
        near(outputs(model, x), both)
        peft.unmerge_adapter(model)
    np.testing.assert_array_equal(outputs(model, x), both)
    peft.delete_adapter(model, "default")
    assert peft.get_model_status(model).available_adapters == ["other"]
    assert not any("default" in v.path for v in model.weights)


@every_method
def test_configuration_round_trip(cls):
    adapter = cls(modules_to_save=["head"], layers_to_transform=3)
    assert type(adapter)(**adapter.get_config()).get_config() == adapter.get_config()
    assert "modules_to_save=['head']" in repr(adapter)


@every_method
def test_documented(cls):
    assert "Reference:" in cls.__doc__
    own = set(cls.fields) - set(Adapter.fields)
    text = " ".join(base.__doc__ or "" for base in cls.__mro__)
    for name in own:
        assert re.search(rf"\b{name}\b", text), f"{cls.__name__} does not document {name}"


def test_the_contract_names_no_method():
    from pathlib import Path

    text = Path(__file__).read_text(encoding="utf-8")
    names = [cls.__name__ for cls in METHODS.values()]
    assert not re.findall(rf"\b({'|'.join(names)})\b", text)

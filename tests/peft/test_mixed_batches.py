"""Batches whose rows have different adapters: sizes, types, adapters that come later, and what is refused."""

import contextlib

import keras
import numpy as np
import pytest
from probes import outputs, scramble
from zoo import floats

from kopt import peft


def four_rows(policy="float32"):
    """Returns a model with a LoRA and a DoRA, inputs, names of the rows, and what each row gives alone."""
    keras.utils.set_random_seed(0)
    dtype = keras.dtype_policies.get(policy)
    layers = [keras.layers.Dense(6, "tanh", name="a", dtype=dtype), keras.layers.Dense(3, name="b", dtype=dtype)]
    model = keras.Sequential([keras.Input((8,)), *layers])
    for name, adapter in {"one": peft.LoRA(r=2, target_modules=["a"]), "two": peft.DoRA(target_modules=["b"])}.items():
        peft.get_peft_model(model, adapter, name)
        scramble(model, 0.3)
    x, names, expected = floats(4, 8), ["one", "two", "__base__", "two"], []
    peft.set_scale(model, "one", 0.3)
    for i, name in enumerate(names):
        if name != "__base__":
            peft.set_adapter(model, name)
        with peft.disable_adapter(model) if name == "__base__" else contextlib.nullcontext():
            expected.append(outputs(model, x)[i])
    return model, x, names, np.array(expected)


@pytest.mark.parametrize("policy", [pytest.param("float32", marks=pytest.mark.slow), "mixed_bfloat16"])
def test_rows_in_batches_of_several_sizes(policy):
    model, x, names, expected = four_rows(policy)
    found = peft.MixedBatch(model).predict_rows(x, np.array(names), batch_size=3)
    np.testing.assert_allclose(found, expected, atol=1e-5 if policy == "float32" else 0.02)


def test_rows_cannot_have_an_adapter_that_came_later():
    model, x, names, expected = four_rows()
    mixed = peft.MixedBatch(model)
    peft.get_peft_model(model, peft.LoRA(r=2, target_modules=["a"], modules_to_save=["b"]), "head")
    scramble(model, 0.3)  # it is active, and all rows would have its head
    with pytest.raises(ValueError, match="'head', which trains copies"):
        mixed.predict_rows(x, names)
    peft.delete_adapter(model, "head")
    np.testing.assert_allclose(mixed.predict_rows(x, names), expected, atol=1e-5)
    peft.add_weighted_adapter(model, ["one"], [1.0], "sum", "cat")
    whole = outputs(model, x)
    np.testing.assert_allclose(mixed.predict_rows(x, ["sum"] * 4), whole, atol=1e-5)


def test_what_rows_are_not():
    model, x, _, _ = four_rows()
    mixed = peft.MixedBatch(model)
    for call, message in [
        (lambda: mixed.predict_rows(x, "abcd"), "a list with a name for each row. Received: 'abcd'"),
        (lambda: mixed.predict_rows(x, None), "a list with a name for each row. Received: None"),
        (lambda: mixed.predict_rows(x, [0, 1, 0, 1]), "No adapter 0"),
        (lambda: mixed.predict_rows(x[:0], []), r"at least one. Received: ndarray \(0, 8\)"),
        (lambda: mixed.predict_rows(x.tolist(), ["one"] * 4), "must be arrays"),
        (lambda: mixed.predict_rows({"a": x, "b": x[1:]}, ["one"] * 4), "with the same number of rows"),
        (lambda: mixed(x), "Call predict_rows"),
        (lambda: mixed.get_config(), "Save the model that has the adapters"),
        (lambda: peft.MixedBatch(3), "Expected a Keras model"),
        (lambda: peft.get_peft_model(model, peft.LoRA(), "__base__"), "stands for no adapter"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()

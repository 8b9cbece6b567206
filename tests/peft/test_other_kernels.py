"""Kernels that a layer holds beside its own: recurrent ones, and raw matrices and batches of them."""

import keras
import numpy as np
import pytest
import zoo
from keras import layers, ops
from probes import outputs, same, scramble, values, weights

from kopt import peft
from kopt.peft.model import adapters_of


@keras.saving.register_keras_serializable("test_other_kernels")
class Experts(layers.Layer):
    """A mixture of experts that all see each input; the weights of all experts are one array."""

    def build(self, shape):
        self._gate_up = self.add_weight(name="gate_up_proj", shape=(3, shape[-1], 4), initializer="glorot_normal")
        self.scale = self.add_weight(name="scale", shape=(4,), initializer="ones")

    def call(self, x):
        return ops.mean(ops.einsum("bi,eio->beo", x, self._gate_up), axis=1) * self.scale


def experts():
    inputs = keras.Input((5,))
    return keras.Model(inputs, layers.Dense(2)(Experts(name="experts")(inputs))), zoo.floats(8, 5)


def recurrent(kind):
    inputs = keras.Input((4, 3))
    return keras.Model(inputs, layers.Dense(2)(kind(5, name="rnn")(inputs))), zoo.floats(8, 4, 3)


LSTM = ("rnn.cell", "recurrent_kernel", lambda: recurrent(layers.LSTM), (5, 20))
CASES = [
    LSTM,
    ("rnn.cell", "recurrent_kernel", lambda: recurrent(layers.GRU), (5, 15)),
    ("rnn.cell", "recurrent_kernel", lambda: recurrent(layers.SimpleRNN), (5, 5)),
    ("experts", "_gate_up", experts, (3, 5, 4)),
]


@pytest.mark.parametrize(("path", "attr", "make", "shape"), CASES, ids=["lstm", "gru", "rnn", "experts"])
@pytest.mark.parametrize("method", [peft.LoRA, peft.DoRA])
def test_the_layer_computes_with_the_changed_kernel(path, attr, make, shape, method, tmp_path):
    model, x = make()
    plain, before = outputs(model, x), values(model.weights)
    name = {"_gate_up": "experts.gate_up_proj"}.get(attr, f"cell.{attr}")
    peft.get_peft_model(model, method(r=2, lora_alpha=4, target_parameters=[name]))
    *batch, inner, outer = shape
    extra = outer if method is peft.DoRA else 0
    assert peft.get_nb_trainable_parameters(model)[0] == int(np.prod(batch)) * (2 * (inner + outer) + extra)
    np.testing.assert_allclose(outputs(model, x), plain, atol=1e-5)
    scramble(model)
    live = outputs(model, x)
    assert np.abs(live - plain).max() > 1e-3
    with peft.disable_adapter(model):
        np.testing.assert_allclose(outputs(model, x), plain, atol=1e-6)
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(outputs(keras.models.load_model(tmp_path / "model.keras"), x), live, atol=1e-6)
    variable = adapters_of(model).hosts[path].owned[attr]
    peft.merge_adapter(model)
    np.testing.assert_allclose(outputs(model, x), live, atol=1e-5)
    if method is peft.LoRA:
        a, b = (weights(model, path, f"{attr}.{key}") for key in ("lora_A", "lora_B"))
        merged = variable.numpy()
        peft.unmerge_adapter(model)
        np.testing.assert_allclose(merged, variable.numpy() + 2 * a @ b, atol=1e-6)
    peft.unload(model)
    assert same(values(model.weights), before)
    np.testing.assert_array_equal(outputs(model, x), plain)


def test_beside_the_layers_own_kernel():
    model, x = recurrent(layers.LSTM)
    options = {"target_modules": ["cell"], "target_parameters": ["recurrent_kernel"], "rank_pattern": {"cell": 1}}
    peft.get_peft_model(model, peft.LoRA(**options))
    assert peft.get_nb_trainable_parameters(model)[0] == (3 + 20) + (5 + 20)
    assert peft.layer_status(model)[0].weights["default"]["recurrent_kernel.lora_A"] == (5, 1)
    model.compile("sgd", "mse")
    model.fit(x, zoo.floats(8, 2), verbose=0)
    for key in ("lora_B", "recurrent_kernel.lora_B"):
        assert np.abs(weights(model, "rnn.cell", key)).max() > 0
    peft.get_peft_model(
        model, peft.LoRA(target_parameters=["cell.kernel"]), "own"
    )  # the layer's own, as target_modules
    assert peft.layer_status(model)[0].weights["own"] == {"lora_A": (3, 8), "lora_B": (8, 20)}
    peft.delete_adapter(model, "default")
    assert [v.shape for v in model.trainable_variables] == [] or "own" in model.trainable_variables[0].path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cell.recurent_kernel", r"no weight 'cell.recurent_kernel'. Closest names: rnn.cell.recurrent_kernel"),
        ("cell.bias", r"rnn.cell.bias has the shape \(20,\). A low-rank change takes a matrix"),
    ],
)
def test_names_of_no_kernel(name, message):
    model, _ = recurrent(layers.LSTM)
    with pytest.raises(ValueError, match=message):
        peft.get_peft_model(model, peft.LoRA(target_parameters=[name]))
    assert type(model.get_layer("rnn").cell) is layers.LSTMCell


def test_files_of_peft_have_no_names_for_them(tmp_path):
    model, _ = recurrent(layers.LSTM)
    peft.get_peft_model(model, peft.LoRA(target_parameters=["recurrent_kernel"]))
    with pytest.raises(ValueError, match=r"rnn.cell.recurrent_kernel is adapted by target_parameters.*model.save"):
        peft.save_pretrained(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_layers_that_are_left_out():
    x = inputs = keras.Input((4, 3))
    for number in range(3):
        x = layers.GRU(3, return_sequences=True, name=f"gru_{number}")(x)
    model, given = keras.Model(inputs, x), {"target_parameters": ["recurrent_kernel"], "init_lora_weights": False}
    for options in ({"layers_to_transform": [1]}, {"exclude_modules": ["gru_0", "gru_2"]}):
        peft.get_peft_model(model, peft.LoRA(**given, **options))
        assert [status.name for status in peft.layer_status(model)] == ["gru_1.cell"]
        peft.unload(model)
    with pytest.raises(
        ValueError, match=r"no target is in a block with the number 5\. The targets have the numbers 0, 1"
    ):
        peft.get_peft_model(model, peft.LoRA(**given, layers_to_transform=[5]))


def test_a_file_names_one_of_two_kernels_of_the_same_end(tmp_path):
    inputs = keras.Input((5,))
    inner = keras.Sequential([keras.Input((5,)), Experts(name="experts"), layers.Dense(5)], name="inner")
    model, x = keras.Model(inputs, Experts(name="experts")(inner(inputs))), zoo.floats(8, 5)
    given = {"target_parameters": ["experts.gate_up_proj"], "init_lora_weights": False}
    peft.get_peft_model(model, peft.LoRA(exclude_modules=["inner"], **given))
    model.save(tmp_path / "model.keras")
    twin = keras.models.load_model(tmp_path / "model.keras")
    assert [status.name for status in peft.layer_status(twin)] == ["experts"]
    np.testing.assert_array_equal(outputs(twin, x), outputs(model, x))


def test_a_bias_is_no_matrix():
    model, _ = recurrent(layers.GRU)  # whose bias has two rows
    with pytest.raises(
        ValueError, match=r"rnn.cell.bias is a bias, which is added.*bias='all' of LoRA, or with BitFit"
    ):
        peft.get_peft_model(model, peft.LoRA(target_parameters=["cell.bias"]))


class Tied(layers.Layer):
    """A layer that holds the kernel of another one as its own weight."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def build(self, shape):
        self.kernel = self.other.kernel

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.kernel))


def test_a_kernel_of_two_layers_is_not_merged():
    inputs, dense = keras.Input((5,)), layers.Dense(3, use_bias=False, name="dense")
    hidden = dense(inputs)
    model, x = keras.Model(inputs, Tied(dense)(hidden)), zoo.floats(8, 5)
    peft.get_peft_model(model, peft.LoRA(target_modules=["dense"], init_lora_weights=False))
    live = outputs(model, x)
    for merge in (peft.merge_adapter, peft.merge_and_unload):
        with pytest.raises(ValueError, match=r"dense.kernel is a weight of tied.*too.*unload"):
            merge(model)
    np.testing.assert_array_equal(outputs(model, x), live)

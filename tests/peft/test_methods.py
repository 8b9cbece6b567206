"""What the methods beside LoRA do."""

import keras
import numpy as np
import pytest
import zoo
from keras import layers
from probes import outputs, scramble, weights
from zoo import dense

from kopt import peft


def test_ia3_scales_inputs_of_feedforward_modules():
    model, x = dense()
    peft.get_peft_model(model, peft.IA3(target_modules=["a", "b"], feedforward_modules=["b"]))
    assert weights(model, "a", "ia3_l").shape == (1, 6)
    assert weights(model, "b", "ia3_l").shape == (6, 1)
    scramble(model)
    a, b = model.get_layer("a"), model.get_layer("b")
    inner = (x @ a.kernel.numpy() + a.bias.numpy()) * weights(model, "a", "ia3_l")
    expected = (inner * weights(model, "b", "ia3_l")[:, 0]) @ b.kernel.numpy() + b.bias.numpy()
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-5)


def test_ia3_without_feedforward_modules_scales_outputs():
    model, _ = dense()
    peft.get_peft_model(model, peft.IA3(target_modules=["a", "b"], feedforward_modules=[], exclude_modules=[]))
    assert weights(model, "a", "ia3_l").shape == weights(model, "b", "ia3_l").shape == (1, 6)
    with pytest.raises(ValueError, match=r"at least one layer name.*target_modules=\[\]"):
        peft.IA3(target_modules=[])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"reduction_factor": 2}, 2 * 6 * 3 + 3 + 6),
        ({"reduction_factor": 100}, 2 * 6 + 1 + 6),
        ({"reduction_factor": 2, "parallel": True}, 5 * 3 + 3 * 6 + 3 + 6),
    ],
)
def test_bottleneck_sizes(options, expected):
    model, _ = dense(count=1)
    peft.get_peft_model(model, peft.Bottleneck(target_modules=["a"], **options))
    assert peft.get_nb_trainable_parameters(model)[0] == expected


def test_bottleneck_options_change_the_result():
    found, x = [], zoo.floats(8, 6)
    for options in ({}, {"non_linearity": "tanh"}, {"scaling": 2.0}, {"parallel": True}, {"reduction_factor": 2}):
        keras.utils.set_random_seed(0)
        model, _ = dense(6, 6, 1)
        peft.get_peft_model(model, peft.Bottleneck(target_modules=["a"], **({"reduction_factor": 3} | options)))
        scramble(model, 0.5)
        found.append(outputs(model, x))
    assert all(np.abs(found[0] - other).max() > 1e-4 for other in found[1:])


def test_layer_norm_tuning_takes_normalizations_alone():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(4)(layers.LayerNormalization()(layers.Dense(4)(inputs))))
    peft.get_peft_model(model, peft.LayerNormTuning())
    assert peft.get_nb_trainable_parameters(model)[0] == 8


def test_layer_norm_tuning_leaves_other_normalizations_alone():
    kinds = (layers.LayerNormalization, layers.RMSNormalization, layers.BatchNormalization, layers.GroupNormalization)
    normal = [kind(name=f"n{i}") if i < 3 else kind(2, name=f"n{i}") for i, kind in enumerate(kinds)]
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4), *normal, layers.UnitNormalization()])
    peft.get_peft_model(model, peft.LayerNormTuning())
    assert [status.name for status in peft.layer_status(model)] == ["n0", "n1"]
    assert peft.get_nb_trainable_parameters(model)[0] == 4 + 4 + 4
    peft.unload(model)
    with pytest.raises(ValueError, match=r"cannot go to n2 \(BatchNormalization\).*statistics of batches"):
        peft.get_peft_model(model, peft.LayerNormTuning(target_modules=["n0", "n2"]))


def test_bitfit_takes_all_shifts():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3, use_bias=False)(layers.LayerNormalization()(layers.Dense(4)(inputs))))
    peft.get_peft_model(model, peft.BitFit())
    assert peft.get_nb_trainable_parameters(model)[0] == 8


class Texts(layers.Layer):
    """Mean of embedded tokens over a mask."""

    def call(self, embedded, mask):
        mask = keras.ops.cast(mask, "float32")[..., None]
        return keras.ops.sum(embedded * mask, 1) / keras.ops.sum(mask, 1)


def text_model():
    """Returns a model of token ids and a mask, and an input."""
    inputs = {key: keras.Input((None,), dtype="int32", name=key) for key in ("padding_mask", "token_ids")}
    embedded = layers.Embedding(9, 4, name="token_embedding")(inputs["token_ids"])
    y = layers.Dense(2, name="head")(Texts()(embedded, inputs["padding_mask"]))
    x = {"token_ids": zoo.integers(9, 8, 5), "padding_mask": np.ones((8, 5), "int32")}
    return keras.Model(inputs, y), x


def test_prompts_stand_in_front(tmp_path):
    model, x = text_model()
    plain = outputs(model, x)
    table = model.get_layer("token_embedding").embeddings.numpy()
    peft.get_peft_model(model, peft.PromptTuning(num_virtual_tokens=3))
    prompt = weights(model, "token_embedding", "prompt_embeddings")
    assert prompt.shape == (3, 4)
    assert peft.get_nb_trainable_parameters(model)[0] == 12
    means = (table[x["token_ids"]].sum(1) + prompt.sum(0)) / 8
    head = model.get_layer("head")
    np.testing.assert_allclose(outputs(model, x), means @ head.kernel.numpy() + head.bias.numpy(), atol=1e-5)

    model.compile("sgd", "mse", jit_compile=True)
    np.testing.assert_allclose(model.predict(x, verbose=0), outputs(model, x), atol=1e-5)
    model.fit(x, plain + 1, verbose=0)
    assert not np.array_equal(weights(model, "token_embedding", "prompt_embeddings"), prompt)
    live = outputs(model, x)
    with peft.disable_adapter(model):
        np.testing.assert_allclose(model.predict(x, verbose=0), plain, atol=1e-6)
    np.testing.assert_allclose(model.predict(x, verbose=0), live, atol=1e-5)
    peft.get_peft_model(model, peft.PromptTuning(num_virtual_tokens=2), "second")
    with pytest.raises(ValueError, match="Only one prompt"):
        peft.set_adapter(model, ["default", "second"])
    peft.set_adapter(model, "default")
    np.testing.assert_allclose(outputs(model, x), live, atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={"Texts": Texts})
    np.testing.assert_allclose(outputs(loaded, x), live, atol=1e-6)
    with pytest.raises(ValueError, match="cannot be merged"):
        peft.merge_and_unload(model)
    peft.unload(model)
    np.testing.assert_array_equal(outputs(model, x), plain)


def test_a_network_makes_the_prompts_of_p_tuning(tmp_path):
    model, x = text_model()
    peft.get_peft_model(model, peft.PTuning(num_virtual_tokens=3, encoder_hidden_size=16))
    count = 3 * 4 + 4 * 16 + 16 + 16 * 16 + 16 + 16 * 4 + 4
    assert peft.get_nb_trainable_parameters(model)[0] == count
    scramble(model, 0.5)
    v = {key.partition(".")[2]: value for key, value in peft.get_adapter_state(model).items()}
    hidden = np.maximum(v["prompt_embeddings"] @ v["encoder_1"] + v["encoder_1_bias"], 0)
    hidden = np.maximum(hidden @ v["encoder_2"] + v["encoder_2_bias"], 0)
    prompt = hidden @ v["encoder_3"] + v["encoder_3_bias"]
    table, head = model.get_layer("token_embedding").embeddings.numpy(), model.get_layer("head")
    means = (table[x["token_ids"]].sum(1) + prompt.sum(0)) / 8
    live = outputs(model, x)
    np.testing.assert_allclose(live, means @ head.kernel.numpy() + head.bias.numpy(), atol=1e-4)
    before = peft.get_adapter_state(model)
    model.compile("sgd", "mse")
    model.fit(x, live + 1, verbose=0)
    after = peft.get_adapter_state(model)
    assert all(np.abs(after[key] - value).max() > 0 for key, value in before.items())
    peft.set_adapter_state(model, "default", before)
    peft.save_pretrained(model, tmp_path)
    peft.load_adapter(model, tmp_path, "read")  # the prompt alone
    np.testing.assert_allclose(weights(model, "token_embedding", "prompt_embeddings", "read"), prompt, atol=1e-5)
    np.testing.assert_allclose(outputs(model, x), live, atol=1e-5)
    assert peft.get_nb_trainable_parameters(model)[0] == 12
    peft.save_pretrained(model, tmp_path / "again", "read")
    peft.load_adapter(model, tmp_path / "again", "read")
    np.testing.assert_allclose(outputs(model, x), live, atol=1e-5)


def test_a_prompt_needs_token_ids():
    inputs = keras.Input((5,), dtype="int32")
    model = keras.Model(inputs, layers.Embedding(9, 4, name="token_embedding")(inputs))
    peft.get_peft_model(model, peft.PromptTuning())
    with pytest.raises(ValueError, match="'token_ids'"):
        model(zoo.integers(9, 2, 5))


def test_blocks_of_one_number_are_no_rotation():
    model = keras.Sequential([keras.Input((97,)), keras.layers.Dense(4, name="a")])  # a prime: 1 is nearest to 32
    with pytest.raises(ValueError, match=r"blocks of 1 of 97 .* oft_block_size=32"):
        peft.get_peft_model(model, peft.OFT(target_modules=["a"]))


def test_lokr_of_a_depthwise_convolution_has_no_file(tmp_path):
    model = keras.Sequential([keras.Input((6, 6, 4)), keras.layers.DepthwiseConv2D(3, name="a")])
    peft.get_peft_model(model, peft.LoKr(r=2, target_modules=["a"]))
    with pytest.raises(ValueError, match=r"cannot be exchanged for this layer. model.save"):
        peft.save_pretrained(model, tmp_path)

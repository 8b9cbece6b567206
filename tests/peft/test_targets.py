"""Which layers an adapter goes into, and what is refused."""

import keras
import numpy as np
import pytest
import zoo
from keras import layers
from probes import outputs, scramble
from zoo import dense

from kopt import peft
from kopt.peft.model import adapters_of


def test_names():
    model, _, _ = zoo.attention()
    peft.get_peft_model(model, peft.LoRA())  # query and value by default
    assert list(adapters_of(model).hosts) == ["mha.query", "mha.value", "gqa.query", "gqa.value"]
    peft.unload(model)
    for options, expected in (
        ({"target_modules": "all-linear"}, 9),
        ({"target_modules": ["mha"]}, 4),  # all inside
        ({"target_modules": r"mha\.(key|query)"}, 2),
        ({"target_modules": ["query", "dense"], "exclude_modules": ["gqa"]}, 2),
        ({"target_modules": "all-linear", "modules_to_save": ["dense"]}, 9),
    ):
        peft.get_peft_model(model, peft.LoRA(**options))
        assert len(adapters_of(model).hosts) == expected, options
        peft.unload(model)


def test_layers_to_transform():
    inputs = keras.Input((4,))
    x = inputs
    for i in range(3):
        x = layers.Dense(4, name=f"block_{i}")(x)
    model = keras.Model(inputs, layers.Dense(4, name="other_1")(x))
    for options, expected in (
        ({"layers_to_transform": 1}, ["block_1", "other_1"]),
        ({"layers_to_transform": [0, 2]}, ["block_0", "block_2"]),
        ({"layers_to_transform": [1], "layers_pattern": ["block"]}, ["block_1"]),
    ):
        peft.get_peft_model(model, peft.LoRA(target_modules=r".*", **options))
        assert list(adapters_of(model).hosts) == expected
        peft.unload(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["aa"]}, r"matches no layer.*Closest layer names: a"),
        ({"target_modules": "nothing"}, "matches no layer"),
        ({"target_modules": "("}, "regular expression"),
        ({"target_modules": 3}, "target_modules must be"),
        ({"target_modules": ["a"], "modules_to_save": ["hed"]}, "no layer with weights is called 'hed'"),
        ({"r": 0}, "r must be"),
        ({"r": 2.5}, "r must be"),
        ({"lora_alpha": -1}, "lora_alpha must be"),
        ({"lora_dropout": 1.0}, "lora_dropout must be"),
        ({"bias": "some"}, "bias must be one of"),
        ({"init_lora_weights": "kaiming"}, "init_lora_weights must be"),
        ({"rank_pattern": {"a": -2}}, "rank_pattern must be"),
        ({"lora_alfa": 8}, "Did you mean 'lora_alpha'"),
        ({"target_modules": ["a"], "r": 3, "init_lora_weights": "orthogonal"}, "even r"),
        ({"target_modules": ["a"], "r": 7, "init_lora_weights": "pissa"}, "singular values"),
        ({"target_modules": ["n"]}, "cannot go to n"),
    ],
)
def test_errors_leave_the_model_alone(options, message):
    inputs = keras.Input((5,))
    model = keras.Model(
        inputs, layers.Dense(6, name="b")(layers.LayerNormalization(name="n")(layers.Dense(6, name="a")(inputs)))
    )
    classes = [type(layer) for layer in model._flatten_layers()]
    with pytest.raises(ValueError, match=message):
        peft.get_peft_model(model, peft.LoRA(**options))
    assert [type(layer) for layer in model._flatten_layers()] == classes
    assert len(model.trainable_variables) == len(model.weights) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["a", "bb"]}, r"^target_modules: 'bb' matches no layer that can host LoRA.*names: b"),
        ({"exclude_modules": ["a", "c"]}, "^exclude_modules: 'c' matches no layer"),
        ({"exclude_modules": "c.*"}, r"^exclude_modules: 'c\.\*' matches no layer"),
        ({"target_modules": ["a"], "rank_pattern": {"b": 2}}, "^rank_pattern: 'b' matches no layer of the targets"),
        ({"alpha_pattern": {"^z$": 2}}, "^alpha_pattern: "),
        ({"modules_to_save": ["hed"]}, "^modules_to_save: "),
    ],
)
def test_every_name_matches_something(options, message):
    model, _ = dense()
    with pytest.raises(ValueError, match=message):
        peft.get_peft_model(model, peft.LoRA(**{"target_modules": "all-linear"} | options))
    peft.get_peft_model(model, peft.LoRA(target_modules=["a", "b"], exclude_modules="b", rank_pattern={"a": 2}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers_to_transform": [0, 7]}, r"no target is in a block with the number 7.*have the numbers 0, 1\."),
        ({"layers_to_transform": [0], "layers_pattern": "blok"}, "layers_pattern: 'blok' matches no layer"),
    ],
)
def test_every_number_is_that_of_a_block(options, message):
    model = keras.Sequential([keras.Input((4,)), *(layers.Dense(4, name=f"block_{i}") for i in range(2))])
    with pytest.raises(ValueError, match=message):
        peft.get_peft_model(model, peft.LoRA(target_modules="all-linear", **options))
    peft.get_peft_model(model, peft.LoRA(target_modules="all-linear", layers_to_transform=[1], layers_pattern="block"))
    assert list(adapters_of(model).hosts) == ["block_1"]


def test_a_tied_embedding_is_not_trained_whole():
    def model(tied):
        inputs = keras.Input((5,), dtype="int32")
        tokens = layers.ReversibleEmbedding(9, 4, tie_weights=tied, name="tokens")
        return keras.Model(inputs, tokens(layers.Dense(4, name="a")(tokens(inputs)), reverse=True))

    options = {"target_modules": ["a"], "modules_to_save": ["tokens"]}
    with pytest.raises(ValueError, match=r"embedding tokens is the output matrix too.*target_modules of LoRA"):
        peft.get_peft_model(tied := model(True), peft.LoRA(**options))
    assert not tied.get_config().get("adapters")
    peft.get_peft_model(model(False), peft.LoRA(**options))
    peft.get_peft_model(tied, peft.LoRA(target_modules=["a", "tokens"]))
    assert list(adapters_of(tied).hosts) == ["tokens", "a"]


def test_a_failed_second_adapter_leaves_nothing():
    model, _ = dense()
    peft.get_peft_model(model, peft.LoRA(target_modules=["a"]))
    before = [v.path for v in model.weights]
    with pytest.raises(ValueError, match="singular values"):
        peft.get_peft_model(
            model, peft.LoRA(r=7, target_modules=["a", "b"], bias="all", init_lora_weights="pissa"), "second"
        )
    assert [v.path for v in model.weights] == before
    assert peft.get_model_status(model).available_adapters == ["default"]


def test_a_merged_model_is_not_saved_with_its_adapters(tmp_path):
    model, x = dense()
    peft.get_peft_model(model, peft.LoRA(target_modules=["a"]))
    scramble(model)
    live = outputs(model, x)
    peft.merge_adapter(model)
    for save in (lambda: model.save(tmp_path / "m.keras"), lambda: model.save_weights(tmp_path / "m.weights.h5")):
        with pytest.raises(ValueError, match="adapters are merged"):
            save()
    assert not (tmp_path / "m.keras").exists()
    peft.unmerge_adapter(model)
    model.save(tmp_path / "m.keras")
    np.testing.assert_allclose(outputs(keras.models.load_model(tmp_path / "m.keras"), x), live, atol=1e-6)


def test_more_errors():
    model, _ = dense()
    for function in (peft.unload, peft.merge_adapter, peft.get_model_status):
        with pytest.raises(ValueError, match="has no adapters"):
            function(model)
    with pytest.raises(ValueError, match="Expected an adapter"):
        peft.get_peft_model(model, {"r": 8})
    with pytest.raises(ValueError, match="is not built"):
        peft.get_peft_model(keras.Sequential([layers.Dense(2)]), peft.LoRA())
    peft.get_peft_model(model, peft.LoRA(target_modules=["a"]))
    with pytest.raises(ValueError, match="already"):
        peft.get_peft_model(model, peft.LoRA(target_modules=["a"]))
    with pytest.raises(ValueError, match="letters, digits"):
        peft.get_peft_model(model, peft.LoRA(target_modules=["a"]), "a.b")
    with pytest.raises(ValueError, match="Did you mean 'default'"):
        peft.set_adapter(model, "defualt")
    with pytest.raises(ValueError, match="has adapters, so it cannot be quantized"):
        model.quantize("int8")
    peft.merge_adapter(model)
    with pytest.raises(ValueError, match="merged already"):
        peft.merge_adapter(model)
    with pytest.raises(ValueError, match="is merged"):
        peft.delete_adapter(model, "default")

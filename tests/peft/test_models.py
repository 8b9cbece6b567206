"""Adapters in models of every kind: Sequential, Functional, nested, subclassed, applications, KerasHub."""

import copy
import pickle

import keras
import numpy as np
import pytest
import zoo
from probes import outputs, same, scramble, values

from kopt import peft
from kopt.peft.model import adapters_of

MODELS = [pytest.param(make, id=make.__name__) for make in zoo.SMALL]
MODELS += [pytest.param(make, id=make.__name__, marks=pytest.mark.slow) for make in zoo.LARGE]


def adapted(make, **options):
    """Returns a model with LoRA on every kernel, its base's weights before, inputs and targets."""
    model, x, y = make()
    before = values(model.weights)
    plain = outputs(model, x)
    peft.get_peft_model(model, peft.LoRA(r=2, target_modules=zoo.EVERY_KERNEL, **options))
    return model, x, y, before, plain


@pytest.mark.few(2)
@pytest.mark.filterwarnings(
    "ignore:Skipping variable loading for optimizer"
)  # KerasHub's tasks lose it, adapted or not
@pytest.mark.parametrize("make", MODELS)
def test_from_injection_to_removal(make, tmp_path):
    model, x, y, before, plain = adapted(make)
    owned = [v for layer in adapters_of(model).hosts.values() for v in layer.owned.values()]
    np.testing.assert_allclose(outputs(model, x), plain, atol=1e-6)

    loss = "mse" if y.dtype == "float32" else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, jit_compile=True)
    model.fit(x, y, shuffle=False, verbose=0)
    assert same(values(v for v in model.weights if "adapters" not in v.path), before)
    assert not any(v.trainable for v in owned)
    assert all("adapters" in v.path for v in model.trainable_variables)

    scramble(model)
    live = outputs(model, x)
    scale = np.abs(live).max()
    assert np.abs(live - plain).max() > 1e-4
    with peft.disable_adapter(model):
        np.testing.assert_allclose(outputs(model, x), plain, atol=1e-6)
    np.testing.assert_array_equal(outputs(model, x), live)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_allclose(outputs(loaded, x), live, atol=1e-6 * scale)
    assert len(loaded.trainable_variables) == len(model.trainable_variables)
    model.save_weights(tmp_path / "all.weights.h5")
    scramble(loaded)
    loaded.load_weights(tmp_path / "all.weights.h5")
    np.testing.assert_allclose(outputs(loaded, x), live, atol=1e-6 * scale)

    peft.merge_adapter(model)
    np.testing.assert_allclose(outputs(model, x), live, atol=2e-5 * scale)
    peft.unmerge_adapter(model)
    np.testing.assert_array_equal(outputs(model, x), live)
    peft.unload(model)
    assert same(values(model.weights), before)
    np.testing.assert_allclose(outputs(model, x), plain, atol=1e-6)


# Keras says on its way to the error that it skips containers whose layers it has refused before
@pytest.mark.filterwarnings("ignore:Skipping nested container")
@pytest.mark.parametrize("make", MODELS)
def test_files_of_the_plain_model(make, tmp_path):
    plain, x, _ = make()
    plain.save_weights(tmp_path / "plain.weights.h5")
    expected = outputs(plain, x)
    model, *_ = adapted(make)
    model.load_weights(tmp_path / "plain.weights.h5")
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-6)
    scramble(model)
    model.save_weights(tmp_path / "adapted.weights.h5")
    fresh, *_ = make()
    with pytest.raises(ValueError, match=r"expected \d+ variables, but received \d+ variables|could not be loaded"):
        fresh.load_weights(tmp_path / "adapted.weights.h5")  # its adapters would be lost
    peft.unload(model)
    model.save_weights(tmp_path / "base.weights.h5")
    fresh.load_weights(tmp_path / "base.weights.h5")
    np.testing.assert_allclose(outputs(fresh, x), expected, atol=1e-6)


def test_a_shared_layer_is_adapted_once():
    model, *_ = adapted(zoo.shared)
    assert sum("twice" in path for path in adapters_of(model).hosts) == 1


@pytest.mark.slow
def test_generation_sees_the_adapters():
    model, x, _ = zoo.gpt2()
    prompt = {key: value[:2].astype("int32") for key, value in x.items()}
    prompt = {key: np.pad(value, ((0, 0), (0, 6))) for key, value in prompt.items()}
    prompt["padding_mask"][:] = prompt["token_ids"] > 0
    model.compile(sampler="greedy")

    def text():
        return np.asarray(model.generate(prompt, stop_token_ids=None)["token_ids"])

    plain = text()
    peft.get_peft_model(model, peft.LoRA(r=2, target_modules="all-linear"))
    np.testing.assert_array_equal(text(), plain)
    scramble(model, 0.5)
    live = text()
    assert not np.array_equal(live, plain)
    with peft.disable_adapter(model):
        np.testing.assert_array_equal(text(), plain)
    with pytest.raises(ValueError, match="text generation"):
        peft.get_peft_model(model, peft.PromptTuning(), "prompt")
    peft.merge_and_unload(model)
    np.testing.assert_array_equal(text(), live)


def test_a_layer_of_layers_is_saved_whole():
    model, _, _ = zoo.nested()
    peft.get_peft_model(model, peft.LoRA(target_modules=r".*", modules_to_save=["inner"]))
    saved = [key for key in peft.get_adapter_state(model) if key.startswith("inner.")]
    assert [key.rpartition(".")[2] for key in saved] == ["kernel", "bias"]


def test_a_part_of_a_model_does_not_lose_adapters_silently(tmp_path):
    model, x, _ = zoo.nested()
    peft.get_peft_model(model, peft.LoRA(target_modules=r".*", init_lora_weights=False))
    part = keras.Model(model.input, model.get_layer("inner").output)
    for copied in (copy.deepcopy, pickle.dumps, lambda m: m.save(tmp_path / "part.keras")):
        with pytest.raises(ValueError, match=r"inner has adapters of another model.*kopt.peft.unload on it first"):
            copied(part)
    peft.merge_and_unload(model)
    np.testing.assert_array_equal(outputs(copy.deepcopy(part), x), outputs(part, x))


@keras.saving.register_keras_serializable("test_models")
class Plain(keras.layers.Dense):
    """A layer that Keras knows by its registered name alone."""


def test_a_clone_of_own_layers_inside_others():
    inputs = keras.Input((4, 6))
    inner = keras.Sequential([keras.Input((4, 6)), keras.layers.TimeDistributed(Plain(6))], name="inner")
    model = keras.Model(inputs, inner(inputs))
    peft.get_peft_model(model, peft.LoRA(target_modules=r".*"))
    assert len(keras.models.clone_model(model).trainable_variables) == 2
    assert len(model.trainable_variables) == 2 and "lora" in model.trainable_variables[0].path

"""Adapter files hold everything, in peft's form, and are written whole or not at all."""

import concurrent.futures
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from files import CONFIG, IMAGES, METHODS, WEIGHTS, filled, image_model, rewrite
from probes import outputs, same, scramble
from safetensors.numpy import load_file

from kopt import peft
from kopt.declare.registry import ADAPTERS
from kopt.peft.adapter import Adapter, Weight, ones
from kopt.peft.exchange.tensor_file import read_tensors
from kopt.peft.model import adapters_of


def text_model():
    tokens = keras.Input((7,), dtype="int32", name="token_ids")
    x = keras.layers.Embedding(20, 6, name="token_embedding")(tokens)
    x = keras.layers.Dense(8, name="dense")(x)
    return filled(keras.Model({"token_ids": tokens}, x), 0.5)


TEXT = {"token_ids": np.arange(14, dtype="int32").reshape(2, 7)}


@pytest.mark.few(10)
@pytest.mark.parametrize("method", METHODS)
def test_round_trip(method, tmp_path):
    model = peft.get_peft_model(image_model(), METHODS[method]())
    scramble(model)
    expected = outputs(model, IMAGES)
    peft.save_pretrained(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, WEIGHTS]

    again = image_model()
    plain = outputs(again, IMAGES)
    assert peft.load_adapter(again, tmp_path, "second") is again
    np.testing.assert_allclose(outputs(again, IMAGES), expected, atol=1e-5)
    assert np.abs(expected - plain).max() > 1e-2
    assert type(adapters_of(again).adapters["second"]) is type(METHODS[method]())
    with peft.disable_adapter(again):
        np.testing.assert_array_equal(outputs(again, IMAGES), plain)
    if method != "pissa":  # its file holds a plain LoRA of twice the rank
        assert peft.get_nb_trainable_parameters(again) == peft.get_nb_trainable_parameters(model)
        peft.save_pretrained(again, tmp_path / "twice", "second")
        assert (tmp_path / "twice" / CONFIG).read_bytes() == (tmp_path / CONFIG).read_bytes()
        first, second = (load_file(folder / WEIGHTS) for folder in (tmp_path, tmp_path / "twice"))
        assert list(first) == list(second)
        assert same(list(first.values()), list(second.values()))


@pytest.mark.few(10)
@pytest.mark.parametrize("method", METHODS)
def test_the_file_of_the_whole_model(method, tmp_path):
    model = peft.get_peft_model(image_model(), METHODS[method]())
    scramble(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(outputs(loaded, IMAGES), outputs(model, IMAGES))


@pytest.mark.parametrize(
    "method",
    [
        lambda: peft.LoRA(r=2, target_modules=["token_embedding", "dense"]),
        lambda: peft.DoRA(r=2, target_modules=["token_embedding"]),
        lambda: peft.PromptTuning(num_virtual_tokens=3),
        lambda: peft.TrainableTokens(token_indices=[1, 3]),
        lambda: peft.HiRA(r=2, target_modules=["token_embedding", "dense"]),
        lambda: peft.OFT(oft_block_size=3, target_modules=["token_embedding", "dense"]),
    ],
    ids=["lora", "dora", "prompt", "tokens", "hira", "oft"],
)
def test_round_trip_of_embeddings(method, tmp_path):
    model = peft.get_peft_model(text_model(), method())
    scramble(model)
    peft.save_pretrained(model, tmp_path)
    again = peft.load_adapter(text_model(), tmp_path)
    np.testing.assert_allclose(outputs(again, TEXT), outputs(model, TEXT), atol=1e-6)


def test_tensors_are_laid_out_as_in_torch(adapted, saved):
    tensors = load_file(saved / WEIGHTS)
    weights = adapters_of(adapted).hosts["query"].weights_of["default"]
    start = "base_model.model"
    assert {key: value.shape for key, value in tensors.items()} == {
        f"{start}.conv.lora_A.weight": (2, 3, 3, 3),
        f"{start}.conv.lora_B.weight": (4, 2, 1, 1),
        f"{start}.query.lora_A.weight": (2, 4),
        f"{start}.query.lora_B.weight": (6, 2),
        f"{start}.feedforward_output_dense.lora_A.weight": (2, 6),
        f"{start}.feedforward_output_dense.lora_B.weight": (5, 2),
    }
    np.testing.assert_array_equal(tensors[f"{start}.query.lora_A.weight"], weights["lora_A"].numpy().T)
    # The change of a convolution, as torch would merge it.
    a, b = tensors[f"{start}.conv.lora_A.weight"], tensors[f"{start}.conv.lora_B.weight"]
    change = np.einsum("or,rihw->oihw", b[:, :, 0, 0], a) * 8 / 2
    before = np.array(adapters_of(adapted).hosts["conv"].owned["_kernel"])
    peft.merge_adapter(adapted)
    after = np.array(adapters_of(adapted).hosts["conv"].owned["_kernel"])
    np.testing.assert_allclose((after - before).transpose(3, 2, 0, 1), change, atol=1e-5)


def test_what_is_merged_is_saved_as_what_it_was(adapted, saved, tmp_path):
    peft.merge_adapter(adapted)
    peft.save_pretrained(adapted, tmp_path / "merged")
    assert (tmp_path / "merged" / CONFIG).read_bytes() == (saved / CONFIG).read_bytes()
    first, second = (load_file(folder / WEIGHTS) for folder in (saved, tmp_path / "merged"))
    assert list(first) == list(second) and same(list(first.values()), list(second.values()))
    peft.unmerge_adapter(adapted)
    peft.load_adapter(adapted, tmp_path / "merged", "again")


def test_several_adapters_have_files_of_their_own(adapted, tmp_path):
    first = outputs(adapted, IMAGES)
    peft.get_peft_model(adapted, METHODS["ia3"](), "second")
    scramble(adapted)
    second = outputs(adapted, IMAGES)
    peft.save_pretrained(adapted, tmp_path, "second")
    model = peft.load_adapter(image_model(), tmp_path)
    np.testing.assert_allclose(outputs(model, IMAGES), second, atol=1e-5)
    peft.load_adapter(adapted, tmp_path, "third")
    assert peft.get_model_status(adapted).active_adapters == ["third"]
    np.testing.assert_allclose(outputs(adapted, IMAGES), second, atol=1e-5)
    assert np.abs(first - second).max() > 1e-3


def test_unknown_entries_survive(adapted, saved, tmp_path):
    extra = {"revision": "abc", "auto_mapping": {"base_model_class": "Net"}, "base_model_name_or_path": "someone/net"}
    config = json.loads((saved / CONFIG).read_text())
    extra |= {"future": [], "tokenizer_kwargs": {"revision": "1"}}
    rewrite(saved, **extra)
    model = peft.load_adapter(image_model(), saved)
    peft.save_pretrained(model, tmp_path / "again")
    again = json.loads((tmp_path / "again" / CONFIG).read_text())
    assert again == config | extra


def test_the_configuration_is_the_one_of_peft(adapted, saved):
    config = json.loads((saved / CONFIG).read_text())
    assert config["peft_type"] == "LORA"
    assert config["inference_mode"] is True
    assert config["use_dora"] is False
    assert config["r"] == 2 and config["lora_alpha"] == 8
    assert config["target_modules"] == ["conv", "feedforward_output_dense", "query"]
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert read_tensors(saved / WEIGHTS)[1]["format"] == "pt"


def test_modules_by_name(tmp_path):
    model = peft.get_peft_model(image_model(), METHODS["modules_to_save"]())
    scramble(model)
    peft.save_pretrained(model, tmp_path, modules={"head": "classifier"})
    assert json.loads((tmp_path / CONFIG).read_text())["modules_to_save"] == ["conv", "norm", "classifier"]
    assert load_file(tmp_path / WEIGHTS)["base_model.model.classifier.weight"].shape == (3, 80)
    again = peft.load_adapter(image_model(), tmp_path, modules={"head": "classifier"})
    np.testing.assert_allclose(outputs(again, IMAGES), outputs(model, IMAGES), atol=1e-6)
    with pytest.raises(ValueError, match=r"base_model\.model\.classifier.*modules="):
        peft.load_adapter(image_model(), tmp_path)


def test_nothing_to_save(tmp_path):
    with pytest.raises(ValueError, match="has no adapters"):
        peft.save_pretrained(image_model(), tmp_path / "a")
    with pytest.raises(ValueError, match="No adapter 'other'"):
        peft.save_pretrained(peft.get_peft_model(image_model(), METHODS["lora"]()), tmp_path / "a", "other")
    assert not (tmp_path / "a").exists()


def test_broken_weights_are_not_saved(adapted, tmp_path):
    adapters_of(adapted).hosts["query"].weights_of["default"]["lora_B"].assign(np.full((2, 6), np.nan))
    with pytest.raises(ValueError, match=r"query\.lora_B\.weight has NaN"):
        peft.save_pretrained(adapted, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_nothing_is_written_half(adapted, saved, monkeypatch):
    before = {name: (saved / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    scramble(adapted)
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        peft.save_pretrained(adapted, saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


@pytest.mark.slow
def test_imports_are_few():
    heavy = ("torch", "peft", "transformers", "keras_hub", "safetensors")
    program = f"import sys, kopt.peft; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def scale_method(name, copies=()):
    """Returns a method of a user's own with one weight of that name, which trains copies of some variables too."""

    class Scale(Adapter):
        peft_type = "SCALE"

        def weights(self, site):
            return {name: Weight(("out",), ones)}

        def effective(self, w, p):
            return w * (1 + p.gate * (getattr(p, name) - 1))

        def trains(self, variable, targeted):
            return targeted and variable in copies

    return Scale


@pytest.mark.parametrize("name", ["adapter_scale", "scale", "weight", "bias", "lora_A", "prefix", "_scale"])
def test_a_method_that_peft_does_not_know(tmp_path, monkeypatch, name):
    monkeypatch.setattr(ADAPTERS, "_classes", ADAPTERS.classes())
    model = peft.get_peft_model(image_model(), scale_method(name)(target_modules="all-linear"))
    scramble(model)
    peft.save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["method"] == "scale"
    np.testing.assert_allclose(outputs(peft.load_adapter(image_model(), tmp_path), IMAGES), outputs(model, IMAGES))


@pytest.mark.parametrize("name", ["a.b", "", "gate", "dropout", "bias"])
def test_names_of_weights_that_mean_something_else(monkeypatch, name):
    monkeypatch.setattr(ADAPTERS, "_classes", ADAPTERS.classes())
    model = image_model()
    with pytest.raises(ValueError, match=f"Scale cannot have a weight '{name}' at query.*'adapter_scale'"):
        peft.get_peft_model(model, scale_method(name, ["bias"])(target_modules="all-linear"))
    assert adapters_of(model) is None and not peft.layer_status(model)


@pytest.mark.parametrize(("name", "copies"), [("weight", ["kernel"]), ("prompt_embeddings", [])])
def test_weights_with_one_name_in_the_file(tmp_path, monkeypatch, name, copies):
    monkeypatch.setattr(ADAPTERS, "_classes", ADAPTERS.classes())
    model = peft.get_peft_model(image_model(), scale_method(name, copies)(target_modules="all-linear"))
    with pytest.raises(ValueError, match=rf"Two weights of Scale would both be .*{name} in the file.*adapter_scale"):
        peft.save_pretrained(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_layers_that_are_called_as_weights_are(tmp_path):
    def make():
        inner = keras.Sequential([keras.layers.Dense(4, name="query"), keras.layers.Dense(3, name="adapter_head")])
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(5, name="block"), inner])
        inner.name = "block_1"
        return filled(model, 0.5)

    model = peft.get_peft_model(make(), peft.LoRA(r=2, target_modules=["query"], modules_to_save=["adapter_head"]))
    scramble(model)
    peft.save_pretrained(model, tmp_path)
    x = np.ones((2, 5), "float32")
    np.testing.assert_allclose(outputs(peft.load_adapter(make(), tmp_path), x), outputs(model, x), atol=1e-6)


def test_a_method_that_the_file_names(saved, tmp_path):
    model = peft.get_peft_model(image_model(), METHODS["bottleneck"]())
    peft.save_pretrained(model, tmp_path / "b")
    for folder, method in ((saved, "bottleneck"), (tmp_path / "b", "lora"), (tmp_path / "b", "elsewhere")):
        rewrite(folder, method=method)
        with pytest.raises(ValueError, match=f"{CONFIG}: there is no method '{method}' of the peft_type.*import its"):
            peft.load_adapter(image_model(), folder)


def test_names_that_look_like_patterns(tmp_path):
    def make():
        layers = [keras.Input((5,)), keras.layers.Dense(4, name="query"), keras.layers.Dense(3, name="head+(1")]
        return filled(keras.Sequential(layers), 0.5)

    model = peft.get_peft_model(make(), peft.LoRA(r=2, target_modules=["query"], modules_to_save=["head+(1"]))
    scramble(model)
    peft.save_pretrained(model, tmp_path)
    x = np.ones((2, 5), "float32")
    np.testing.assert_allclose(outputs(peft.load_adapter(make(), tmp_path), x), outputs(model, x), atol=1e-6)


def test_a_file_without_tensors(saved):
    rewrite(saved, lambda tensors: tensors.clear())
    with pytest.raises(ValueError, match=rf"{WEIGHTS} has no tensors\. Save or download it again"):
        peft.load_adapter(image_model(), saved)


def test_threads_may_write_into_one_folder(adapted, tmp_path):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: peft.save_pretrained(adapted, tmp_path), range(24)))
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, WEIGHTS]
    np.testing.assert_allclose(
        outputs(peft.load_adapter(image_model(), tmp_path), IMAGES), outputs(adapted, IMAGES), atol=1e-5
    )


@pytest.mark.parametrize(
    "name", ["x.base_layer", "y.lora_A", "a\nb", "x" * 990, "prompt_embeddings", "lora_A", "model.q"]
)
def test_names_of_layers_that_mean_something_else(tmp_path, name):
    def make():
        layers = [keras.Input((5,)), keras.layers.Dense(4, name="query"), keras.layers.Dense(3, name=name)]
        return filled(keras.Sequential(layers), 0.5)

    x = np.ones((2, 5), "float32")
    for method in (peft.LoRA(r=2, target_modules=[name]), peft.LoRA(target_modules=["query"], modules_to_save=[name])):
        model = peft.get_peft_model(make(), method)
        scramble(model)
        folder = tmp_path / str(id(method))
        try:
            peft.save_pretrained(model, folder)
        except ValueError as error:
            assert "could not be read again" in str(error) and "ename" in str(error) and not folder.exists()
            continue
        np.testing.assert_allclose(outputs(peft.load_adapter(make(), folder), x), outputs(model, x), atol=1e-6)

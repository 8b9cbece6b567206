"""Prefix tuning: learned keys and values in front of those of the tokens."""

import json
import pickle

import keras
import numpy as np
import pytest
from files import CONFIG, WEIGHTS, filled, rewrite
from probes import outputs, same, scramble, values, weights
from safetensors.numpy import load_file

import kopt
from kopt import peft
from kopt.peft.layers import attention
from kopt.peft.model import adapters_of

X = np.random.default_rng(0).normal(size=(2, 5, 6)).astype("float32")


def model_of(across=False, dtype=None, **options):
    """Returns a model of one attention, whose queries, keys and values are the input; `across` only the first three."""
    inputs = keras.Input((5, 6))
    others = inputs[:, :3] if across else inputs
    y = keras.layers.MultiHeadAttention(2, 3, name="attention", dtype=dtype)(inputs, others, **options)
    return filled(keras.Model(inputs, keras.layers.Dense(4, name="head")(y)), 0.5)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("kind", ["all", "causal", "across", "mixed"])
def test_keys_and_values_stand_in_front(kind):
    causal, dtype = kind == "causal", "mixed_bfloat16" if kind == "mixed" else None
    model = model_of(across=kind == "across", dtype=dtype, use_causal_mask=causal)
    layer = model.get_layer("attention")
    plain = outputs(model, X)
    own = X[:, :3] if kind == "across" else X
    parts = [(layer.query_dense, X), (layer.key_dense, own), (layer.value_dense, own)]
    q, k, v = (np.einsum("bni,ihd->bnhd", x, d.kernel.numpy()) + d.bias.numpy() for d, x in parts)
    peft.get_peft_model(model, peft.PrefixTuning(num_virtual_tokens=3))
    prefix = weights(model, "attention", "prefix")
    assert prefix.shape == (3, 2 * 6) and peft.get_nb_trainable_parameters(model)[0] == 36
    front = np.broadcast_to(prefix.reshape(1, 3, 2, 2, 3), (2, 3, 2, 2, 3))
    k, v = (np.concatenate([front[:, :, i], own], axis=1) for i, own in enumerate((k, v)))
    scores = np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(3)
    if causal:
        scores = np.where(np.arange(8) <= np.arange(5)[:, None] + 3, scores, -1e9)
    y = np.einsum("bhnm,bmhd->bnhd", softmax(scores), v)
    dense, head = (layer.output_dense, model.get_layer("head"))
    y = np.einsum("bnhd,hdo->bno", y, dense.kernel.numpy()) + dense.bias.numpy()
    atol = 0.05 if kind == "mixed" else 1e-5
    np.testing.assert_allclose(outputs(model, X), y @ head.kernel.numpy() + head.bias.numpy(), atol=atol)
    with peft.disable_adapter(model):
        np.testing.assert_array_equal(outputs(model, X), plain)


def test_a_life(tmp_path):
    model = model_of()
    plain, before = outputs(model, X), values(model.weights)
    model.compile("sgd", "mse")
    np.testing.assert_allclose(model.predict(X, verbose=0), plain, atol=1e-6)
    peft.get_peft_model(model, peft.PrefixTuning(num_virtual_tokens=2, modules_to_save=["head"]))
    live = outputs(model, X)
    np.testing.assert_allclose(model.predict(X, verbose=0), live, atol=1e-6)  # which was compiled without
    start = weights(model, "attention", "prefix")
    model.train_on_batch(X, plain + 1)
    assert np.abs(weights(model, "attention", "prefix") - start).max() > 1e-4
    live = outputs(model, X)
    peft.save_pretrained(model, tmp_path, task_type="SEQ_CLS")
    np.testing.assert_allclose(outputs(peft.load_adapter(model_of(), tmp_path), X), live, atol=1e-6)
    peft.get_peft_model(model, peft.LoRA(r=2, target_modules=["query", "head"]), "lora")  # inside of the attention
    scramble(model)
    peft.delete_adapter(model, "default")
    assert sum(np.prod(v.shape) for v in model.trainable_variables) == 2 * (6 + 6) + 2 * (6 + 4)
    lora = outputs(model, X)
    peft.get_peft_model(model, peft.PrefixTuning(num_virtual_tokens=2, init_weights="zero"), "zero")
    assert not weights(model, "attention", "prefix", "zero").any()
    both = peft.set_adapter(model, ["lora", "zero"]) or outputs(model, X)
    assert np.abs(both - lora).max() > 1e-3
    peft.get_peft_model(model, peft.PrefixTuning(), "third")
    with pytest.raises(ValueError, match="Only one prompt"):
        peft.set_adapter(model, ["zero", "third"])
    with pytest.raises(ValueError, match="PrefixTuning has no scale"):
        peft.set_scale(model, "zero", 0.5)
    with pytest.raises(ValueError, match="PrefixTuning cannot be merged"):
        peft.merge_adapter(model)
    with pytest.raises(ValueError, match="Rows cannot have the adapter 'zero', which is in front of all tokens"):
        peft.MixedBatch(model)
    peft.set_adapter(model, ["lora", "zero"])
    np.testing.assert_array_equal(outputs(pickle.loads(pickle.dumps(model)), X), both)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(outputs(keras.saving.load_model(tmp_path / "model.keras"), X), both)
    peft.unload(model)
    assert same(values(model.weights), before)
    np.testing.assert_array_equal(outputs(model, X), plain)


def test_a_network_makes_the_prefixes_of_all_layers(hub, tmp_path):
    model, x = hub("bert")
    adapter = peft.PrefixTuning(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=5)
    peft.get_peft_model(model, adapter)
    assert peft.get_nb_trainable_parameters(model)[0] == 3 * 16 + 16 * 5 + 5 + 2 * (5 * 32 + 32)  # as peft has
    counted = [sum(layer.trainable_params.values()) for layer in peft.layer_status(model)]
    assert sum(counted) == peft.get_nb_trainable_parameters(model)[0]  # what all layers share counts once
    scramble(model)
    live = outputs(model, x)
    peft.save_pretrained(model, tmp_path)
    assert {k: v.shape for k, v in load_file(tmp_path / WEIGHTS).items()} == {"prompt_embeddings": (3, 64)}
    config = json.loads((tmp_path / CONFIG).read_text())
    assert {key: config[key] for key in ("num_layers", "num_attention_heads", "token_dim", "num_virtual_tokens")} == {
        "num_layers": 2,
        "num_attention_heads": 2,
        "token_dim": 16,
        "num_virtual_tokens": 3,
    }
    read = peft.load_adapter(hub("bert")[0], tmp_path)
    np.testing.assert_allclose(outputs(read, x), live, atol=1e-5)
    assert peft.get_nb_trainable_parameters(read)[0] == 3 * 2 * 32  # the prefixes alone


@pytest.fixture
def hub():
    models = pytest.importorskip("keras_hub").models
    x = {
        "token_ids": np.arange(12, dtype="int32").reshape(2, 6) + 3,
        "padding_mask": np.array([[1] * 6, [1] * 4 + [0] * 2]),
    }
    options = {"vocabulary_size": 50, "num_layers": 2, "hidden_dim": 16, "intermediate_dim": 24}

    def make(name):
        if name == "bert":
            backbone = models.BertBackbone(**options, num_heads=2, max_sequence_length=9, dropout=0.0)
            return filled(backbone, 0.3), x | {"segment_ids": np.zeros((2, 6), "int32")}
        if name == "gpt2":
            backbone = models.GPT2Backbone(**options, num_heads=2, max_sequence_length=20, dropout=0.0)
            return filled(models.GPT2CausalLM(backbone), 0.5), x
        if name == "gemma":
            heads = {"num_query_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
            return filled(models.GemmaCausalLM(models.GemmaBackbone(**options, **heads)), 0.5), x
        if name == "bart":
            backbone = models.BartBackbone(**options, num_heads=2, max_sequence_length=20)
            return backbone, x
        backbone = models.Llama3Backbone(**options, num_query_heads=4, num_key_value_heads=2)
        return filled(models.Llama3CausalLM(backbone), 0.5), x

    return make


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma"])
def test_gradients_pass_through_the_cache(name, hub):
    model, x = hub(name)
    peft.get_peft_model(model, peft.PrefixTuning(num_virtual_tokens=3))
    target, rng = outputs(model, x) + 1, np.random.default_rng(1)
    prefixes = [layer.weights_of["default"].get("prefix") for layer in adapters_of(model).hosts.values()]
    prefixes = [variable for variable in prefixes if variable is not None]
    start = values(prefixes)
    along = [rng.normal(size=value.shape) for value in start]

    def loss(step):
        for variable, value, way in zip(prefixes, start, along, strict=True):
            variable.assign(value + step * way)
        return float(((outputs(model, x) - target) ** 2).mean())

    slope = (loss(1e-3) - loss(-1e-3)) / 2e-3
    loss(0)
    model.compile(keras.optimizers.SGD(1.0), "mse", weighted_metrics=[], run_eagerly=True)
    model.preprocessor = None
    model.train_on_batch(x, target)
    steps = [before - after for before, after in zip(start, values(prefixes), strict=True)]
    found = sum((step * way).sum() for step, way in zip(steps, along, strict=True))
    np.testing.assert_allclose(found, slope, rtol=0.02, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma"])
def test_text_is_generated_behind_the_prefix(name, hub):
    """Token by token, with the cache of keys and values, as without it."""
    model, _ = hub(name)
    peft.get_peft_model(model, peft.PrefixTuning(num_virtual_tokens=3))
    ids = np.array([[7, 9, 11, 0, 0, 0, 0, 0]], "int32")
    given = {"token_ids": ids, "padding_mask": (ids > 0).astype("int32")}
    model.compile(sampler="greedy", run_eagerly=name == "gpt2")
    model.preprocessor = None
    found = np.asarray(model.generate(given, stop_token_ids=None)["token_ids"])
    for place in range(3, 8):
        logits = outputs(model, {"token_ids": found, "padding_mask": np.ones_like(found)})
        assert logits[0, place - 1].argmax() == found[0, place]
    with peft.disable_adapter(model):
        plain = np.asarray(model.generate(given, stop_token_ids=None)["token_ids"])
    np.testing.assert_array_equal(np.asarray(model.generate(given, stop_token_ids=None)["token_ids"]), found)
    peft.unload(model)
    np.testing.assert_array_equal(np.asarray(model.generate(given, stop_token_ids=None)["token_ids"]), plain)


def test_what_cannot_be_is_said(hub, tmp_path):
    model, x = hub("bert")
    with pytest.raises(ValueError, match="matches no layer that can host PrefixTuning"):
        peft.get_peft_model(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), peft.PrefixTuning())
    with pytest.raises(ValueError, match=r"PrefixTuning finds no attention\. It takes keras"):
        peft.get_peft_model(model, peft.PrefixTuning(target_modules=["position_embedding"]))
    with pytest.raises(ValueError, match=r"PrefixTuning cannot go to .*query \(EinsumDense\)\. It takes keras"):
        peft.get_peft_model(model, peft.PrefixTuning(target_modules=["query"]))
    peft.get_peft_model(model, peft.PrefixTuning(num_virtual_tokens=4))
    with pytest.raises(ValueError, match="has 9 positions, too few for 6 tokens behind 4 virtual ones"):
        model(x)
    peft.get_peft_model(model, peft.PrefixTuning(num_virtual_tokens=3, target_modules=["transformer_layer_0"]), "one")
    with pytest.raises(ValueError, match="has no prefix, and a file of peft has one for every attention"):
        peft.save_pretrained(model, tmp_path / "one", "one")
    with pytest.raises(ValueError, match="cross_attention attends from a decoder to an encoder"):
        peft.get_peft_model(hub("bart")[0], peft.PrefixTuning())

    peft.save_pretrained(model, tmp_path)
    saved = load_file(tmp_path / WEIGHTS)["prompt_embeddings"]
    rewrite(tmp_path, num_attention_heads=4)
    with pytest.raises(
        ValueError, match=r"num_attention_heads of the file is 4, but keys of the model have \[2\] heads"
    ):
        peft.load_adapter(hub("bert")[0], tmp_path)
    rewrite(tmp_path, lambda t: t.update({"prompt_embeddings": saved[:, :32].copy()}), num_attention_heads=2)
    with pytest.raises(ValueError, match=r"prompt_embeddings has shape \(4, 32\), but the model takes \(4, 64\)"):
        peft.load_adapter(hub("bert")[0], tmp_path)


def test_keys_and_values_of_two_sizes_have_no_place_in_files():
    layer = keras.layers.MultiHeadAttention(2, 3, value_dim=4)
    layer(X, X)
    assert not attention.is_attention(layer)


@pytest.mark.slow
def test_a_quantized_attention_has_a_prefix(hub):
    model, x = hub("llama")
    peft.quantize(model, "int8")
    plain = outputs(model, x)
    peft.get_peft_model(model, peft.PrefixTuning(num_virtual_tokens=3))
    assert np.abs(outputs(model, x) - plain).max() > 0.01
    assert set(adapters_of(model).hosts) == {p for p in adapters_of(model).hosts if p.endswith("self_attention")}
    peft.unload(model)
    np.testing.assert_array_equal(outputs(model, x), plain)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_activations_can_be_computed_again(name, hub):
    def trained(again):
        keras.utils.set_random_seed(1)
        model, x = hub(name)
        peft.get_peft_model(model, peft.PrefixTuning(num_virtual_tokens=3, prefix_projection=True))
        start = values(model.trainable_weights)
        if again:
            kopt.remat(model, [r"transformer_layer_\d+$"])
        pooled = model.output["sequence_output"] if name == "bert" else model.output
        net = keras.Model(model.input, pooled)
        net.compile(keras.optimizers.SGD(0.1), "mse")
        net.train_on_batch(x, np.zeros((*x["token_ids"].shape, pooled.shape[-1]), "float32"))
        return start, values(model.trainable_weights)

    (start, kept), (_, again) = trained(False), trained(True)
    assert max(np.abs(a - b).max() for a, b in zip(kept, start, strict=True)) > 1e-3
    for ours, theirs in zip(again, kept, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.slow
def test_an_exported_model_has_the_prefix(tmp_path):
    import tensorflow as tf

    model = model_of()
    peft.get_peft_model(model, peft.PrefixTuning(num_virtual_tokens=3, prefix_projection=True))
    model.export(tmp_path / "model", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "model"))
    np.testing.assert_allclose(served.serve(X), outputs(model, X), atol=1e-6)

"""Adapter files of KerasHub's models have the names that Hugging Face gives their weights."""

import json

import keras
import numpy as np
import pytest
from files import CONFIG, WEIGHTS, filled, rewrite
from probes import outputs, scramble
from safetensors.numpy import load_file, save_file

from kopt import peft
from kopt.peft.model import adapters_of


@pytest.fixture
def bert():
    hub = pytest.importorskip("keras_hub")

    return lambda: filled(hub.models.BertBackbone(50, 2, 2, 16, 32, max_sequence_length=20, dropout=0.0), 0.3)


@pytest.fixture
def gpt2():
    hub = pytest.importorskip("keras_hub")

    return lambda: filled(hub.models.GPT2Backbone(50, 2, 2, 16, 64, max_sequence_length=20, dropout=0.0), 0.3)


TOKENS = {
    "token_ids": np.arange(12, dtype="int32").reshape(2, 6),
    "padding_mask": np.ones((2, 6), "int32"),
}
BERT_TOKENS = TOKENS | {"segment_ids": np.zeros((2, 6), "int32")}
LAYER = "base_model.model.encoder.layer.0"


def test_keys_of_lora(bert, tmp_path):
    model = peft.get_peft_model(bert(), peft.DoRA(r=2, target_modules=["query", "token_embedding"], bias="all"))
    peft.save_pretrained(model, tmp_path)
    shapes = {k: v.shape for k, v in load_file(tmp_path / WEIGHTS).items() if ".layer.1." not in k}
    assert shapes == {
        "base_model.model.embeddings.word_embeddings.lora_embedding_A": (2, 50),
        "base_model.model.embeddings.word_embeddings.lora_embedding_B": (16, 2),
        "base_model.model.embeddings.word_embeddings.lora_magnitude_vector": (16,),
        "base_model.model.embeddings.LayerNorm.bias": (16,),
        f"{LAYER}.attention.self.query.lora_A.weight": (2, 16),
        f"{LAYER}.attention.self.query.lora_B.weight": (16, 2),
        f"{LAYER}.attention.self.query.lora_magnitude_vector": (16,),
        f"{LAYER}.attention.self.query.base_layer.bias": (16,),
        f"{LAYER}.attention.self.key.bias": (16,),
        f"{LAYER}.attention.self.value.bias": (16,),
        f"{LAYER}.attention.output.dense.bias": (16,),
        f"{LAYER}.attention.output.LayerNorm.bias": (16,),
        f"{LAYER}.intermediate.dense.bias": (32,),
        f"{LAYER}.output.dense.bias": (16,),
        f"{LAYER}.output.LayerNorm.bias": (16,),
        "base_model.model.pooler.dense.bias": (16,),
    }
    assert json.loads((tmp_path / CONFIG).read_text())["target_modules"] == ["word_embeddings", "query"]


def test_keys_of_other_methods(bert, tmp_path):
    peft.save_pretrained(peft.get_peft_model(bert(), peft.IA3()), tmp_path / "ia3")
    shapes = {k: v.shape for k, v in load_file(tmp_path / "ia3" / WEIGHTS).items() if ".layer.0." in k}
    assert shapes == {
        f"{LAYER}.attention.self.key.ia3_l": (16, 1),
        f"{LAYER}.attention.self.value.ia3_l": (16, 1),
        f"{LAYER}.output.dense.ia3_l": (1, 32),
    }
    config = json.loads((tmp_path / "ia3" / CONFIG).read_text())
    assert config["feedforward_modules"] == ["0.output.dense", "1.output.dense"]
    assert set(config["feedforward_modules"]) < set(config["target_modules"])
    peft.save_pretrained(peft.get_peft_model(bert(), peft.LayerNormTuning()), tmp_path / "ln")
    keys = set(load_file(tmp_path / "ln" / WEIGHTS))
    assert f"{LAYER}.attention.output.LayerNorm.ln_tuning_layers.weight" in keys and len(keys) == 10
    assert json.loads((tmp_path / "ln" / CONFIG).read_text())["target_modules"] == ["LayerNorm"]
    peft.save_pretrained(peft.get_peft_model(bert(), peft.PromptTuning(num_virtual_tokens=3)), tmp_path / "prompt")
    assert {k: v.shape for k, v in load_file(tmp_path / "prompt" / WEIGHTS).items()} == {"prompt_embeddings": (3, 16)}
    config = json.loads((tmp_path / "prompt" / CONFIG).read_text())
    assert config["token_dim"] == 16 and config["task_type"] == "FEATURE_EXTRACTION"
    assert "target_modules" not in config


def test_a_head_brings_the_prefix(bert, tmp_path):
    backbone = bert()
    head = keras.layers.Dense(2, name="logits")
    model = keras.Model(backbone.input, head(backbone(backbone.input)["pooled_output"]))
    peft.get_peft_model(model, peft.LoRA(r=2, modules_to_save=["logits"]))
    scramble(model)
    peft.save_pretrained(model, tmp_path, modules={"logits": "classifier"})
    keys = {k.split(".encoder")[0] for k in load_file(tmp_path / WEIGHTS)}
    assert keys == {"base_model.model.bert", "base_model.model.classifier.weight", "base_model.model.classifier.bias"}
    # A backbone of its own takes the same adapter without the head.
    with pytest.raises(ValueError, match=r"base_model\.model\.classifier"):
        peft.load_adapter(bert(), tmp_path)


def test_a_task_without_a_head_is_refused(bert, tmp_path):
    model = peft.get_peft_model(bert(), peft.LoRA(r=2))
    with pytest.raises(ValueError, match=r"task_type='SEQ_CLS' peft expects a head"):
        peft.save_pretrained(model, tmp_path, task_type="SEQ_CLS")
    model = peft.get_peft_model(bert(), peft.PromptTuning(modules_to_save=["pooled_dense"]))
    peft.save_pretrained(model, tmp_path / "a")
    assert not (tmp_path / CONFIG).exists()


def test_a_base_without_the_tensor_is_refused(bert, tmp_path):
    model = peft.get_peft_model(bert(), peft.LoRA(r=2))
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file(
        {"encoder.layer.0.attention.self.query.weight": np.zeros((16, 16), "float32")}, folder / "model.safetensors"
    )
    with pytest.raises(ValueError, match=r"has no tensor encoder\.layer\.0\.attention\.self\.value\.weight"):
        peft.save_pretrained(model, tmp_path / "a", base_model=folder)
    assert not (tmp_path / "a").exists()


def test_the_embedding_that_peft_writes_beside_its_adapter(bert, tmp_path):
    model = peft.get_peft_model(bert(), peft.LoRA(r=2, target_modules=["token_embedding"]))
    scramble(model)
    peft.save_pretrained(model, tmp_path)
    key = "base_model.model.embeddings.word_embeddings.base_layer.weight"
    own = np.array(adapters_of(model).hosts["token_embedding"].owned["_embeddings"])
    rewrite(tmp_path, lambda t: t.update({key: own}))
    again = peft.load_adapter(bert(), tmp_path)
    np.testing.assert_allclose(outputs(again, BERT_TOKENS), outputs(model, BERT_TOKENS), atol=1e-5)
    rewrite(tmp_path, lambda t: t.update({key: np.concatenate([own, own[:2]])}))
    with pytest.raises(ValueError, match=r"shape \(52, 16\).*\(50, 16\).*perhaps with more tokens"):
        peft.load_adapter(bert(), tmp_path)


@pytest.mark.few(4)
@pytest.mark.parametrize("targets", [["query", "key", "value"], ["query", "value"]], ids=["whole", "part"])
@pytest.mark.parametrize("method", [peft.LoRA, peft.DoRA])
@pytest.mark.parametrize("same", [True, False])
def test_fused_modules_are_exact(gpt2, tmp_path, targets, method, same):
    model = peft.get_peft_model(gpt2(), method(r=2, target_modules=targets, alpha_pattern={"query": 5}))
    scramble(model)
    if same:
        for path, layer in adapters_of(model).hosts.items():
            a = adapters_of(model).hosts[path.rpartition(".")[0] + ".query"].weights_of["default"]["lora_A"]
            layer.weights_of["default"]["lora_A"].assign(a.numpy())
    peft.save_pretrained(model, tmp_path)
    config, tensors = json.loads((tmp_path / CONFIG).read_text()), load_file(tmp_path / WEIGHTS)
    assert config["fan_in_fan_out"] and config["target_modules"] == ["c_attn"]
    assert config["r"] == (2 if same else 2 * len(targets))
    assert tensors["base_model.model.h.0.attn.c_attn.lora_B.weight"].shape == (48, config["r"])
    again = peft.load_adapter(gpt2(), tmp_path)
    np.testing.assert_allclose(outputs(again, TOKENS), outputs(model, TOKENS), atol=1e-5)


def test_fused_modules_that_peft_cannot_have(gpt2, tmp_path):
    model = peft.get_peft_model(
        gpt2(), peft.IA3(target_modules=["query", "key", "value"], feedforward_modules=["query", "key", "value"])
    )
    peft.save_pretrained(model, tmp_path / "a")
    scramble(model)
    with pytest.raises(ValueError, match=r"ia3_l differs between Keras layers that are one module"):
        peft.save_pretrained(model, tmp_path / "b")
    model = peft.get_peft_model(gpt2(), peft.IA3(target_modules=["query"], feedforward_modules=["query"]))
    with pytest.raises(ValueError, match="not all of them are adapted"):
        peft.save_pretrained(model, tmp_path / "c")


def test_a_part_of_a_fused_bias(gpt2, tmp_path):
    model = peft.get_peft_model(gpt2(), peft.LoRA(r=2, target_modules=["query"], bias="lora_only"))
    scramble(model)
    peft.save_pretrained(model, tmp_path)
    bias = load_file(tmp_path / WEIGHTS)["base_model.model.h.0.attn.c_attn.base_layer.bias"]
    layer = adapters_of(model).hosts["transformer_layer_0.self_attention.query"]
    np.testing.assert_array_equal(bias[:16], layer.copies["default"]["bias"].numpy().ravel())
    key = gpt2().get_layer("transformer_layer_0")._self_attention_layer.key_dense.bias
    np.testing.assert_array_equal(bias[16:32], key.numpy().ravel())
    again = peft.load_adapter(gpt2(), tmp_path)
    np.testing.assert_allclose(outputs(again, TOKENS), outputs(model, TOKENS), atol=1e-5)


def test_an_embedding_that_is_the_output_matrix_too(tmp_path):
    hub = pytest.importorskip("keras_hub")

    def make():
        backbone = hub.models.Llama3Backbone(20, 1, 2, 8, 12, 2, tie_word_embeddings=True)
        return filled(hub.models.Llama3CausalLM(backbone), 0.3)

    model = peft.get_peft_model(make(), peft.LoRA(r=2, target_modules=["token_embedding"]))
    scramble(model)
    peft.save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["task_type"] == "CAUSAL_LM"
    tensors = load_file(tmp_path / WEIGHTS)
    start = "base_model.model"
    assert {key: value.shape for key, value in tensors.items()} == {
        f"{start}.lm_head.lora_A.weight": (2, 8),
        f"{start}.lm_head.lora_B.weight": (20, 2),
        f"{start}.model.embed_tokens.lora_embedding_A": (2, 20),
        f"{start}.model.embed_tokens.lora_embedding_B": (8, 2),
    }
    assert json.loads((tmp_path / CONFIG).read_text())["ensure_weight_tying"] is True
    again = peft.load_adapter(make(), tmp_path)
    np.testing.assert_allclose(outputs(again, TOKENS), outputs(model, TOKENS), atol=1e-6)

    rewrite(tmp_path, lambda t: t.update({f"{start}.lm_head.lora_B.weight": np.ones((20, 2), "float32")}))
    with pytest.raises(ValueError, match=r"lm_head\.lora_B\.weight is not the transpose of lora_embedding_A"):
        peft.load_adapter(make(), tmp_path)
    rewrite(tmp_path, lambda t: [t.pop(key) for key in list(t) if "lm_head" in key], ensure_weight_tying=False)
    with pytest.raises(ValueError, match="but not the output matrix, which is the same weight"):
        peft.load_adapter(make(), tmp_path)
    for method in (peft.DoRA(r=2, target_modules=["token_embedding"]), peft.IA3(target_modules=["token_embedding"])):
        other = peft.get_peft_model(make(), method)
        with pytest.raises(ValueError, match="token_embedding is the output matrix too"):
            peft.save_pretrained(other, tmp_path / "other")


def test_embeddings_and_an_output_matrix_of_its_own(tmp_path):
    hub = pytest.importorskip("keras_hub")
    model = filled(hub.models.LlamaBackbone(50, 1, 2, 16, 24, 2, tie_word_embeddings=False), 0.3)
    model = hub.models.LlamaCausalLM(backbone=model, preprocessor=None)
    peft.get_peft_model(model, peft.LoRA(r=2, target_modules=["query"], modules_to_save=["token_embedding"]))
    scramble(model)
    changed = outputs(model, TOKENS)
    peft.save_pretrained(model, tmp_path / "both")
    layer = adapters_of(model).hosts["llama_backbone.token_embedding"]
    rows, columns = (layer.copies["default"][name].numpy() for name in ("_embeddings", "reverse_embeddings"))
    tensors = load_file(tmp_path / "both" / WEIGHTS)
    assert np.array_equal(tensors["base_model.model.model.embed_tokens.weight"], rows)
    assert np.array_equal(tensors["base_model.model.lm_head.weight"], columns.T)  # [out, in], without a base_model too
    peft.unload(model)
    peft.load_adapter(model, tmp_path / "both")
    np.testing.assert_allclose(outputs(model, TOKENS), changed, atol=1e-5)

    rewrite(tmp_path / "both", lambda t: t.pop("base_model.model.lm_head.weight"))
    peft.unload(model)
    with pytest.raises(ValueError, match=r"1 missing tensor\(s\): lm_head.weight"):
        peft.load_adapter(model, tmp_path / "both")
    rewrite(tmp_path / "both", modules_to_save=["embed_tokens"])  # as peft writes it that trains the embedding alone
    peft.load_adapter(model, tmp_path / "both")
    layer = adapters_of(model).hosts["llama_backbone.token_embedding"]
    assert np.array_equal(layer.copies["default"]["_embeddings"].numpy(), rows)
    start = layer.host().reverse_embeddings.numpy()
    assert np.array_equal(layer.copies["default"]["reverse_embeddings"].numpy(), start)


@pytest.mark.parametrize(("name", "prefix"), [("GPT2LMHeadModel", "transformer."), ("GPT2Model", "")])
def test_the_class_that_peft_trained_says_whether_there_is_a_head(gpt2, tmp_path, name, prefix):
    model = peft.get_peft_model(gpt2(), peft.LoRA(r=2, target_modules=["query"]))
    model_adapter = adapters_of(model).adapters["default"]
    model_adapter.extra["auto_mapping"] = {"base_model_class": name, "parent_library": "transformers"}
    peft.save_pretrained(model, tmp_path)
    assert f"base_model.model.{prefix}h.0.attn.c_attn.lora_A.weight" in load_file(tmp_path / WEIGHTS)

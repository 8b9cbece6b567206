"""Adapters of every architecture in both directions between kopt and Hugging Face peft on torch."""

import dataclasses

import numpy as np
import pytest
from torch_peers import (
    LIMIT,
    MARKS,
    Base,
    check_both_ways,
    disturb_keras,
    keras_hub,
    keras_text,
    peft,
    set_exact_gelu,
    text_inputs,
    torch,
    torch_text,
    transformers,
)

import kopt.peft

pytestmark = MARKS


def tiny_text(auto, config, backbone, exact_gelu=False):
    """A random model of a small configuration, as a checkpoint of a task model, for these converters expect one."""

    def make(directory):
        torch.manual_seed(3)
        model = getattr(transformers, auto).from_config(config)
        randomize(model)
        if hasattr(model, "roberta"):  # KerasHub leaves out what is zero in all published checkpoints
            model.roberta.embeddings.token_type_embeddings.weight.data.zero_()
        model.save_pretrained(directory)

        def keras_model():
            built = getattr(keras_hub.models, backbone).from_preset(str(directory), dtype="float32")
            if exact_gelu:
                set_exact_gelu(built)
            return built

        x = text_inputs(config.vocab_size)
        return Base(
            directory,
            lambda: transformers.AutoModel.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32),
            keras_model,
            torch_text,
            keras_text,
            x,
            x["mask"].astype(bool),
        )

    return make


def tiny_vit(directory):
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=4
    )
    config.layer_norm_eps = 1e-6  # KerasHub's
    torch.manual_seed(3)
    model = transformers.ViTForImageClassification(config)
    randomize(model)
    model.save_pretrained(directory)

    def torch_output(model, x):
        model.eval()
        with torch.no_grad():
            return model(pixel_values=torch.tensor(x)).last_hidden_state.numpy()

    return Base(
        directory,
        lambda: transformers.ViTModel.from_pretrained(directory, add_pooling_layer=False, attn_implementation="eager"),
        lambda: keras_hub.models.ViTBackbone.from_preset(str(directory), dtype="float32"),
        torch_output,
        lambda model, x: np.asarray(model(np.transpose(x, (0, 2, 3, 1)), training=False)),
        np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype("float32"),
    )


def randomize(model):
    for parameter in model.parameters():
        scale, start = (0.08, 0.0) if parameter.ndim > 1 else (0.05, parameter.data)
        parameter.data = start + torch.randn(parameter.shape) * scale


SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 60}
TINY = {
    "bert": (
        tiny_text(
            "AutoModelForSequenceClassification",
            transformers.BertConfig(**SIZES, hidden_size=24, max_position_embeddings=40),
            "BertBackbone",
            exact_gelu=True,
        ),
        ["query", "value", "output.dense", "word_embeddings"],
    ),
    "roberta": (
        tiny_text(
            "AutoModelForMaskedLM",
            transformers.RobertaConfig(
                **SIZES, hidden_size=24, max_position_embeddings=40, pad_token_id=1, layer_norm_eps=1e-5
            ),
            "RobertaBackbone",
            exact_gelu=True,
        ),
        ["query", "key", "intermediate.dense", "output.dense", "word_embeddings"],
    ),
    "distilbert": (
        tiny_text(
            "AutoModelForMaskedLM",
            transformers.DistilBertConfig(
                vocab_size=60, dim=24, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40
            ),
            "DistilBertBackbone",
            exact_gelu=True,
        ),
        ["q_lin", "out_lin", "lin1", "lin2"],
    ),
    "gpt2": (
        tiny_text(
            "AutoModelForCausalLM",
            transformers.GPT2Config(vocab_size=60, n_embd=24, n_layer=2, n_head=4, n_positions=32),
            "GPT2Backbone",
        ),
        ["c_attn", "c_proj", "c_fc", "wte"],
    ),
    "llama": (
        tiny_text(
            "AutoModelForCausalLM",
            transformers.LlamaConfig(
                **SIZES, hidden_size=32, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True
            ),
            "Llama3Backbone",
        ),
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens"],
    ),
    "vit": (tiny_vit, ["q_proj", "o_proj", "fc1", "fc2", "projection"]),
}


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("architecture", TINY)
def test_architectures(architecture, dora, tmp_path):
    make, targets = TINY[architecture]
    base = make(tmp_path / "base")
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets, use_dora=dora)
    # What is one module in GPT-2 is three layers, each with an A of its own.
    saved = check_both_ways(base, config, tmp_path, same_count=architecture != "gpt2")
    if architecture != "gpt2":
        assert set(saved["target_modules"]) == set(targets)
    else:
        assert saved["fan_in_fan_out"]
        assert saved["rank_pattern"] == {"c_attn": 9}


def test_ia3_on_a_fused_module(tmp_path):
    base = TINY["gpt2"][0](tmp_path / "base")
    check_both_ways(
        base, peft.IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"]), tmp_path
    )


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "vit"])
def test_names_below_a_head(architecture, tmp_path):
    """What is written with a task type are modules of the task model, all of them and no others."""
    base = TINY[architecture][0](tmp_path / "base")
    model = base.keras_model()
    target = "all-linear" if architecture != "vit" else ["query", "dense_1"]
    kopt.peft.get_peft_model(model, kopt.peft.LoRA(r=2, target_modules=target))
    disturb_keras(model)
    task = "IMAGE_CLASSIFICATION" if architecture == "vit" else "CAUSAL_LM"
    kopt.peft.save_pretrained(model, tmp_path / "adapter", base_model=base.directory, task_type=task)
    image, text = transformers.AutoModelForImageClassification, transformers.AutoModelForCausalLM
    auto = image if architecture == "vit" else text
    there = auto.from_pretrained(base.directory, attn_implementation="eager", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(there, str(tmp_path / "adapter"))
    inside = theirs.base_model.model.base_model
    ours = base.keras_output(model, base.inputs)
    assert base.difference(ours, base.torch_output(inside, base.inputs)) < LIMIT


def tied(tmp_path):
    tiny = TINY["llama"][0](tmp_path / "base")
    return dataclasses.replace(
        tiny,
        torch_model=lambda: transformers.AutoModelForCausalLM.from_pretrained(
            tiny.directory, attn_implementation="eager", dtype=torch.float32
        ),
        keras_model=lambda: keras_hub.models.Llama3CausalLM(tiny.keras_model()),
    )


def test_an_embedding_that_is_the_output_matrix_too(tmp_path):
    """Keras has one weight for both; peft changes both alike if asked to."""
    config = peft.LoraConfig(
        r=2, target_modules=["embed_tokens", "q_proj"], task_type="CAUSAL_LM", ensure_weight_tying=True
    )
    saved = check_both_ways(tied(tmp_path), config, tmp_path, same_count=False)  # peft counts the shared ones twice
    assert saved["ensure_weight_tying"]


@pytest.mark.parametrize("kind", ["list", "named", "alone"])
def test_tokens_of_an_embedding_that_is_the_output_matrix_too(kind, tmp_path):
    """peft gives both the new rows, without being asked."""
    base = tied(tmp_path)
    tokens, task = base.inputs["ids"][0, :3].tolist(), {"task_type": "CAUSAL_LM"}
    indices = tokens if kind == "list" else {"embed_tokens": tokens}
    config = peft.TrainableTokensConfig(token_indices=tokens, target_modules=["embed_tokens"], **task)
    if kind != "alone":
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=indices, **task)
    saved = check_both_ways(base, config, tmp_path)
    assert saved.get("trainable_token_indices", saved.get("token_indices")) in ({"embed_tokens": tokens}, tokens)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_tokens_beside_lora(architecture, tmp_path):
    make, targets = TINY[architecture]
    base = make(tmp_path / "base")
    tokens = {targets[-1]: base.inputs["ids"][0, :3].tolist()}
    config = peft.LoraConfig(r=3, target_modules=targets[:-1], trainable_token_indices=tokens)
    saved = check_both_ways(base, config, tmp_path, same_count=architecture != "gpt2")
    assert saved["trainable_token_indices"] == tokens

"""Adapters of the weights of experts in files of Hugging Face peft."""

import json
import math

import numpy as np
import pytest
from files import CONFIG, WEIGHTS, filled, rewrite
from probes import outputs, scramble
from safetensors.numpy import load_file, save_file

from kopt import peft
from kopt.peft.exchange.task_names import join_experts
from kopt.peft.model import adapters_of

EXPERTS, WIDTH, INNER = 3, 8, 12
BANK = "experts.expert_feedforward_{}_dense"
GATE, UP, DOWN = (BANK.format(name) for name in ("gate", "intermediate", "output"))
TOKENS = {"token_ids": np.arange(12, dtype="int32").reshape(2, 6), "padding_mask": np.ones((2, 6), "int32")}
MODULE = "base_model.model.layers.0.mlp.experts"


@pytest.fixture
def mixtral():
    hub = pytest.importorskip("keras_hub")

    return lambda: filled(hub.models.MixtralBackbone(20, 1, 2, WIDTH, INNER, 1, EXPERTS, 2), 0.3)


@pytest.fixture
def base(tmp_path):
    """A folder with a configuration and tensors of the right shapes, as Mixtral is published."""
    layer, folder = "model.layers.0", tmp_path / "base"
    attention = {"q": (WIDTH, WIDTH), "k": (4, WIDTH), "v": (4, WIDTH), "o": (WIDTH, WIDTH)}
    shapes = {f"{layer}.self_attn.{name}_proj.weight": shape for name, shape in attention.items()}
    shapes |= {f"{layer}.{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    for expert in range(EXPERTS):
        own = f"{layer}.block_sparse_moe.experts.{expert}"
        shapes |= {
            f"{own}.w1.weight": (INNER, WIDTH),
            f"{own}.w2.weight": (WIDTH, INNER),
            f"{own}.w3.weight": (INNER, WIDTH),
        }
    shapes |= {f"{layer}.block_sparse_moe.gate.weight": (EXPERTS, WIDTH), "model.norm.weight": (WIDTH,)}
    shapes |= {"model.embed_tokens.weight": (20, WIDTH), "lm_head.weight": (20, WIDTH)}
    folder.mkdir()
    (folder / CONFIG.replace("adapter_", "")).write_text(json.dumps({"model_type": "mixtral"}))
    save_file({key: np.zeros(shape, "float32") for key, shape in shapes.items()}, folder / "model.safetensors")
    return folder


def change(tensors, module, scaling, experts=EXPERTS):
    """The change of a parameter [experts, out, in] as peft computes it."""
    a, b = (tensors[f"{module}.lora_{name}.weight"] for name in "AB")
    a, b = a.reshape(experts, -1, a.shape[-1]), b.reshape(b.shape[0], -1, experts)
    return scaling * np.einsum("ore,eri->eoi", b, a)


def ours(model, attr):
    """The change of a weight [experts, in, out] of the only bank of experts."""
    (layer,) = [layer for path, layer in adapters_of(model).hosts.items() if path.endswith(".experts")]
    p = layer.weights_at("default", layer.sites[attr])
    return layer.adapters["default"].scaling * (p["lora_A"].numpy() @ p["lora_B"].numpy()).swapaxes(1, 2)


def test_experts_become_one_tensor():
    keys = [f"a.experts.{n}.{name}.weight" for n in (0, 1) for name in ("gate_proj", "up_proj")]
    joined = join_experts([(key, (4, 3)) for key in keys])
    assert joined == ("a.experts.gate_up_proj", (2, 8, 3), [0, 12, 24, 36])
    assert join_experts([("a.experts.1.w3.weight", (4, 3))]) == ("a.experts.gate_up_proj", (2, 8, 3), [36])
    assert join_experts([("a.experts.0.w2.weight", (3, 4))]) == ("a.experts.down_proj", (1, 3, 4), [0])
    for other in ("a.experts.0.gate.weight", "a.0.w1.weight"):
        assert join_experts([(other, (4, 3))]) is None
    assert join_experts([("a.experts.0.w1.weight", (4, 3)), ("a.experts.0.w2.weight", (4, 3))]) is None


@pytest.mark.parametrize("rslora", [False, True])
def test_factors_of_experts_are_those_of_peft(mixtral, base, tmp_path, rslora):
    model = peft.get_peft_model(mixtral(), peft.LoRA(r=2, target_parameters=[GATE, UP, DOWN], use_rslora=rslora))
    scramble(model)
    peft.save_pretrained(model, tmp_path / "a", base_model=base)
    tensors, config = load_file(tmp_path / "a" / WEIGHTS), json.loads((tmp_path / "a" / CONFIG).read_text())
    assert {key: value.shape for key, value in tensors.items()} == {
        f"{MODULE}.base_layer.lora_A.weight": (EXPERTS * 4, WIDTH),  # the factors of gate and up, one after the other
        f"{MODULE}.base_layer.lora_B.weight": (2 * INNER, EXPERTS * 4),
        f"{MODULE}.lora_A.weight": (EXPERTS * 2, INNER),
        f"{MODULE}.lora_B.weight": (WIDTH, EXPERTS * 2),
    }
    assert config["target_modules"] == [] and config["target_parameters"] == ["down_proj", "gate_up_proj"]
    rank = {"gate_up_proj": 4, "down_proj": 2}
    assert config["r"] == 4 and config["rank_pattern"] == {"down_proj": 2}
    alpha = {name: config["alpha_pattern"].get(name, config["lora_alpha"]) for name in rank}
    s = {name: alpha[name] / (math.sqrt(rank[name]) if rslora else rank[name]) for name in rank}
    both = change(tensors, f"{MODULE}.base_layer", s["gate_up_proj"])
    parts = {
        "gate": both[:, :INNER],
        "intermediate": both[:, INNER:],
        "output": change(tensors, MODULE, s["down_proj"]),
    }
    for name, value in parts.items():
        np.testing.assert_allclose(value, ours(model, f"_expert_feedforward_{name}_dense"), atol=1e-6)
    again = peft.load_adapter(mixtral(), tmp_path / "a", base_model=base)
    np.testing.assert_allclose(outputs(again, TOKENS), outputs(model, TOKENS), atol=1e-6)
    with peft.disable_adapter(again):
        assert np.abs(outputs(again, TOKENS) - outputs(model, TOKENS)).max() > 0.01


def test_a_part_of_the_joined_tensor_and_an_attention_layer(mixtral, base, tmp_path):
    model = peft.get_peft_model(mixtral(), peft.LoRA(r=2, target_modules=["query"], target_parameters=[UP]))
    scramble(model)
    peft.save_pretrained(model, tmp_path / "a", base_model=base)
    tensors, config = load_file(tmp_path / "a" / WEIGHTS), json.loads((tmp_path / "a" / CONFIG).read_text())
    assert config["target_modules"] == ["q_proj"] and config["target_parameters"] == ["gate_up_proj"]
    assert not tensors[f"{MODULE}.lora_B.weight"][:INNER].any() and tensors[f"{MODULE}.lora_B.weight"][INNER:].all()
    again = peft.load_adapter(mixtral(), tmp_path / "a", base_model=base)
    np.testing.assert_allclose(outputs(again, TOKENS), outputs(model, TOKENS), atol=1e-6)


def test_a_bank_that_is_trained_whole(mixtral, base, tmp_path):
    model = peft.get_peft_model(mixtral(), peft.LoRA(r=2, target_modules=["query"], modules_to_save=["experts"]))
    scramble(model)
    peft.save_pretrained(model, tmp_path / "a", base_model=base)
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    (layer,) = [layer for path, layer in adapters_of(model).hosts.items() if path.endswith(".experts")]
    copies = layer.copies["default"]
    halves = [copies[f"_expert_feedforward_{name}_dense"].numpy().swapaxes(1, 2) for name in ("gate", "intermediate")]
    np.testing.assert_array_equal(tensors[f"{MODULE}.gate_up_proj"], np.concatenate(halves, 1))
    again = peft.load_adapter(mixtral(), tmp_path / "a", base_model=base)
    np.testing.assert_array_equal(outputs(again, TOKENS), outputs(model, TOKENS))


def test_files_that_do_not_fit(mixtral, base, tmp_path):
    folder = tmp_path / "a"
    model = peft.get_peft_model(mixtral(), peft.LoRA(r=2, target_parameters=[DOWN]))
    peft.save_pretrained(model, folder, base_model=base)
    plain = mixtral()
    rewrite(folder, lambda tensors: None, target_parameters=["down_proj", "router.weight"])
    with pytest.raises(ValueError, match=r"names 'router\.weight', for which it holds no weights"):
        peft.load_adapter(plain, folder, base_model=base)
    rewrite(folder, lambda t: t.update({f"{MODULE}.lora_B.weight": np.ones((WIDTH + 1, EXPERTS * 2), "float32")}))
    with pytest.raises(
        ValueError, match=r"\(9, 6\).*no factors of gate_up_proj or down_proj in layers\.0\.mlp\.experts"
    ):
        peft.load_adapter(plain, folder, base_model=base)
    peft.save_pretrained(model, folder, base_model=base)
    rewrite(folder, lambda tensors: None, r=3)
    with pytest.raises(ValueError, match=r"lora_[AB]\.weight has the rank 2, but adapter_config\.json says 3"):
        peft.load_adapter(plain, folder, base_model=base)
    assert adapters_of(plain) is None


@pytest.mark.parametrize(
    "method", [peft.DoRA(target_parameters=[DOWN]), peft.LoRA(target_parameters=[DOWN], lora_dropout=0.1)]
)
def test_what_peft_does_not_do_to_parameters_is_refused(mixtral, base, tmp_path, method):
    model = peft.get_peft_model(mixtral(), method)
    with pytest.raises(ValueError, match=r"expert_feedforward_output_dense is adapted by \w+ with target_parameters\."):
        peft.save_pretrained(model, tmp_path / "a", base_model=base)
    assert not (tmp_path / "a").exists()

"""Adapters of every architecture that KerasHub converts go to Hugging Face peft and come back."""

import pathlib
import pkgutil

import pytest
from hub_cases import CASES

import kopt.peft
from kopt.peft.exchange import task_names
from kopt.peft.exchange.name_map import Checkpoint, Names
from kopt.peft.exchange.task_names import PREFIXES, find_prefix


def test_every_converter_is_tried():
    package = pytest.importorskip("keras_hub.src.utils.transformers")
    names = {
        m.name.removeprefix("convert_") for m in pkgutil.iter_modules(package.__path__) if m.name[:8] == "convert_"
    }
    assert {case.converter for case in CASES.values()} == names


def test_the_prefix_below_a_head():
    """From the checkpoint, then from the converter, then from what is known of it."""
    bare = ["layers.0.q_proj.weight", "norm.weight", "lm_head.weight"]
    assert find_prefix("unheard_of", bare, ["x.model.layers.0.q_proj.weight"], {}) == "x.model"
    assert find_prefix("unheard_of", [f"model.{key}" for key in bare[:2]], ["layers.0.q_proj.weight"], {}) == "model"
    assert find_prefix("qwen3", bare, ["layers.0.q_proj.weight"], {}) == "model"
    assert find_prefix("unheard_of", bare, [], {}) is None


@pytest.mark.slow
def test_an_unknown_prefix_is_refused(monkeypatch, tmp_path):
    hub = pytest.importorskip("keras_hub")
    monkeypatch.setattr(task_names, "PREFIXES", {})
    model = kopt.peft.get_peft_model(hub.models.BertBackbone(50, 1, 2, 16, 32), kopt.peft.LoRA(r=2))
    kopt.peft.save_pretrained(model, tmp_path / "base")
    with pytest.raises(ValueError, match=r"not known what models with a head call .*Pass base_model=DIRECTORY"):
        kopt.peft.save_pretrained(model, tmp_path / "task", task_type="CAUSAL_LM")
    assert not (tmp_path / "task").exists()


def test_a_layer_that_hugging_face_does_not_have_is_warned_of():
    hub = pytest.importorskip("keras_hub")
    backbone = hub.models.SwinTransformerBackbone((16, 16, 3), 8, (1,), (2,), 4, patch_size=2)
    start = "encoder.layers.0.blocks.0.attention.self"
    shapes = {
        f"{start}.{name}.{kind}": (8, 8)[: 2 - (kind == "bias")]
        for name in ("query", "key", "value")
        for kind in ("weight", "bias")
    }
    names = Names(backbone, Checkpoint(shapes=shapes))
    (fused,) = [module for module in names.by_module if module.endswith("qkv")]
    with pytest.warns(UserWarning, match="qkv is no module of its own at Hugging Face"):
        names.check(fused, "weight")


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
@pytest.mark.filterwarnings("ignore")  # of torch, transformers and peft
@pytest.mark.parametrize("name", CASES)
def test_adapters_go_both_ways(name, tmp_path):
    for module in ("torch", "transformers", "peft", "keras_hub"):
        pytest.importorskip(module)
    from hub_peers import measure

    found = measure(CASES[name], pathlib.Path(tmp_path))
    limit = 2 * found["base"] + 1e-5
    assert found["effect"] > max(0.1, 20 * limit)
    for way in {"in", "out", "head"} & set(found):
        assert found[way] < limit, (way, found)


@pytest.mark.slow
def test_prefixes_are_those_of_transformers():
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    types = {"swin_transformer": "swin", "xlm_roberta": "xlm-roberta", "pali_gemma": "paligemma"}
    for converter, prefix in PREFIXES.items():
        model_type = types.get(converter, converter)
        assert transformers.MODEL_MAPPING[transformers.CONFIG_MAPPING[model_type]].base_model_prefix == prefix
        assert find_prefix("unheard_of", ["a.weight", "b.weight"], [], {"model_type": model_type}) == prefix

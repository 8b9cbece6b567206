"""The configurations of Hugging Face peft, as tutorials write them."""

import dataclasses
import enum
import json
import pathlib
import re

import pytest
from files import CONFIG, image_model, rewrite
from zoo import dense

from kopt import peft
from kopt.peft.peft_fields import FIELDS


class TaskType(str, enum.Enum):  # noqa: UP042 - as in peft
    SEQ_CLS = "SEQ_CLS"


TUTORIAL = {
    "task_type": TaskType.SEQ_CLS,
    "inference_mode": False,
    "lora_alpha": 16,
    "lora_dropout": 0.1,
    "target_modules": ["a"],
    "bias": "none",
    "fan_in_fan_out": False,
    "base_model_name_or_path": "bert-base",
    "revision": None,
}


def test_a_tutorial_works_and_its_fields_come_into_the_file(tmp_path):
    config = peft.LoraConfig(4, **TUTORIAL)
    assert (config.r, config.lora_alpha, config.target_modules) == (4, 16.0, ["a"])
    assert config.extra == {"task_type": "SEQ_CLS", "base_model_name_or_path": "bert-base"}
    model, _ = dense()
    peft.save_pretrained(peft.get_peft_model(model, config), tmp_path)
    written = json.loads((tmp_path / CONFIG).read_text())
    assert (written["task_type"], written["base_model_name_or_path"]) == ("SEQ_CLS", "bert-base")


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            peft.LoraConfig,
            {"layer_replication": [[0, 2]]},
            r"^LoraConfig: layer_replication is not supported\. Received",
        ),
        (peft.LoraConfig, {"loftq_config": {"loftq_bits": 4}}, "LoraConfig: loftq_config is not supported"),
        (peft.LoraConfig, {"inference_mode": True}, "inference_mode=True is an adapter that is never trained"),
        (peft.LoraConfig, {"peft_type": "IA3"}, "peft_type must be 'LORA'"),
        (peft.LoraConfig, {"task_typ": "SEQ_CLS"}, "^LoraConfig has no argument 'task_typ'. Did you mean 'task_type'"),
        (peft.LoraConfig, {"rank": 8}, "Here it is called r"),
        (peft.IA3Config, {"init_ia3_weights": False}, "IA3Config: init_ia3_weights is not supported"),
        (peft.PromptTuningConfig, {"prompt_tuning_init": "TEXT"}, "prompt_tuning_init is not supported"),
        (peft.LNTuningConfig, {"r": 8}, "LNTuningConfig has no argument 'r'"),
    ],
)
def test_fields_that_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_fields_at_values_that_do_nothing():
    assert peft.LoraConfig(layer_replication=None, loftq_config={}, use_bdlora=None, lora_bias=False).extra == {}
    assert (
        peft.PromptTuningConfig(prompt_tuning_init="RANDOM", token_dim=8, num_virtual_tokens=3).num_virtual_tokens == 3
    )
    assert peft.LoraConfig(target_modules=[], target_parameters=["cell.kernel"]).target_modules is None


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: peft.LoRA(8), TypeError, "write r=8"),
        (lambda: peft.LoRA(["query"]), TypeError, r"write target_modules=\['query'\]"),
        (lambda: peft.IA3({"r": 8}), TypeError, r"write \*\*"),
        (lambda: peft.LoRA(lora_r=8), ValueError, "Here it is called r"),
        (lambda: peft.LoRA(rank=8), ValueError, "Here it is called r"),
        (lambda: peft.LoRA(alpha=8), ValueError, "called lora_alpha"),
        (lambda: peft.LoRA(dropout=0.1), ValueError, "called lora_dropout"),
        (lambda: peft.BitFit(targets=["a"]), ValueError, "That is target_modules here"),
        (lambda: peft.LoRA(task_type="SEQ_CLS"), ValueError, "an argument of LoraConfig"),
    ],
)
def test_calls_that_miss_say_what_to_write(call, error, message):
    with pytest.raises(error, match=message):
        call()


class Foreign:
    peft_type = "LORA"


@pytest.mark.parametrize(
    ("swap", "adapter", "message"),
    [
        (True, peft.LoRA(), "Expected the model first"),
        (False, {"r": 8}, r"not its arguments: write kopt.peft.LoraConfig\(\*\*"),
        (False, peft.DoRA, r"not its class: write DoRA\(\)"),
        (False, "lora", "Expected an adapter, as in"),
        (False, Foreign(), "Expected an adapter of kopt: write kopt.peft.Foreign"),
    ],
)
def test_what_is_no_model_and_method(swap, adapter, message):
    model, _ = dense()
    with pytest.raises(ValueError, match=message):
        peft.get_peft_model(*((adapter, model) if swap else (model, adapter)))


def test_the_method_of_a_folder_without_its_weights(saved):
    (saved / "adapter_model.safetensors").unlink()
    method = peft.load_config(saved, r=5)
    assert (type(method), method.r) == (peft.LoRA, 5)
    assert method.target_modules == ["conv", "feedforward_output_dense", "query"]
    assert "inference_mode" not in method.extra
    with pytest.raises(ValueError, match="has no adapter_config"):
        peft.load_config(saved / "nothing")


def test_a_file_may_name_what_other_models_have(saved):
    rewrite(saved, target_modules=["conv", "query", "feedforward_output_dense", "gate_proj"])
    with pytest.warns(UserWarning, match="names 'gate_proj', for which it holds no weights"):
        model = peft.load_adapter(image_model(), saved)
    assert len(peft.layer_status(model)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name in vars(peft) if name.endswith("Config")))
def test_every_field_of_peft_is_known(name):
    theirs = pytest.importorskip("peft")
    known = {*type(getattr(peft, name)()).fields, *FIELDS, "use_dora"}
    if name == "AdaLoraConfig":  # has all fields of LoraConfig, also those that peft does not look at there
        known |= {"alpha_pattern", "lora_bias", "r", "rank_pattern", "target_parameters", "use_rslora"}
    fields = {field.name for field in dataclasses.fields(getattr(theirs, name))}
    assert fields <= known
    getattr(peft, name)(task_type=theirs.TaskType.SEQ_CLS)


def test_the_page_for_users_of_peft_names_functions_of_kopt():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "peft.md").read_text(encoding="utf-8")
    rows = [line.split("|")[2] for line in page.splitlines() if line.startswith("| `")]
    called = {name for row in rows for name in re.findall(r"(?<![.\w])([a-z_]+)\(", row)}
    assert len(called) >= 16 and all(callable(getattr(peft, name)) for name in called)

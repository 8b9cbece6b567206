"""What configurations of peft ask for is done, or refused by name; nothing in them is ignored in silence."""

import dataclasses
import json
import pathlib

import pytest
from files import CONFIG

from kopt import peft
from kopt.peft.exchange.config_file import arguments, find_method, read_config

EXAMPLES = json.loads((pathlib.Path(__file__).parent / "peft_examples.json").read_text())["configurations"]
CLASSES = {"IA3": peft.IA3, "LN_TUNING": peft.LayerNormTuning, "PROMPT_TUNING": peft.PromptTuning}
NOT_DONE = {"use_bdlora": "use_bdlora={", "kasa_config": "kasa_config={", "mica": "init_lora_weights='mica'"}


def write(folder, config):
    (folder / CONFIG).write_text(json.dumps(config))
    return folder / CONFIG


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e["files"][0].split("/", 1)[1])
def test_examples_of_peft(example, tmp_path):
    config = example["config"]
    path = write(tmp_path, config)
    asked = [reason for key, reason in NOT_DONE.items() if config.get(key) or config.get("init_lora_weights") == key]
    if asked:
        with pytest.raises(ValueError) as caught:
            find_method(read_config(path), path)
        assert str(path) in str(caught.value) and asked[0] in str(caught.value)
        return
    method = find_method(read_config(path), path)
    assert method is CLASSES.get(config["peft_type"], peft.DoRA if config.get("use_dora") else peft.LoRA)
    made = method(**arguments(config, method))
    for key in ("r", "lora_alpha", "lora_dropout", "use_rslora", "num_virtual_tokens", "bias"):
        assert config.get(key) is None or getattr(made, key) == config[key]
    for key in ("target_modules", "feedforward_modules"):
        assert not config.get(key) or set(getattr(made, key)) == set(config[key])


def test_enough_examples_are_there():
    refused = [
        e
        for e in EXAMPLES
        if any(e["config"].get(k) for k in NOT_DONE) or e["config"].get("init_lora_weights") == "mica"
    ]
    assert (len(EXAMPLES), sum(len(e["files"]) for e in EXAMPLES), len(refused)) == (37, 44, 6)


# A value for each field that is not its default; with what peft wants beside it.
LISTS = {"target_modules": ["q"], "exclude_modules": ["k"], "modules_to_save": ["score"]}
COMMON = LISTS | {
    "task_type": "CAUSAL_LM",
    "auto_mapping": {"base_model_class": "Net"},
    "peft_version": "0.0.1",
    "base_model_name_or_path": "someone/net",
    "revision": "main",
    "inference_mode": True,
}
BLOCKS = {"layers_to_transform": [1], "layers_pattern": "layers"}
LYCORIS = {
    "r": 4,
    "alpha": 5,
    "rank_dropout": 0.5,
    "module_dropout": 0.5,
    "use_effective_conv2d": True,
    "rank_pattern": {"q": 3},
    "alpha_pattern": {"q": 3},
}
PROMPT = {k: v for k, v in COMMON.items() if k not in LISTS} | {
    "num_virtual_tokens": 7,
    "token_dim": 8,
    "num_transformer_submodules": 2,
    "num_attention_heads": 2,
    "num_layers": 2,
    "modules_to_save": ["score"],
}
VALUES = {
    "LoraConfig": COMMON
    | {
        "r": 4,
        "lora_alpha": 5,
        "lora_dropout": 0.25,
        "fan_in_fan_out": True,
        "bias": "lora_only",
        "use_rslora": True,
        "init_lora_weights": "gaussian",
        "layers_to_transform": [1],
        "layers_pattern": "layers",
        "rank_pattern": {"q": 3},
        "alpha_pattern": {"q": 3},
        "megatron_config": {"a": 1},
        "megatron_core": "other",
        "trainable_token_indices": [1],
        "loftq_config": {"loftq_bits": 4},
        "eva_config": {"rho": 3.0},
        "corda_config": {"corda_method": "kpm"},
        "lora_ga_config": {"scale": "unit"},
        "use_dora": True,
        "velora_config": {"num_groups": 3},
        "alora_invocation_tokens": [1],
        "use_qalora": True,
        "qalora_group_size": 8,
        "monteclora_config": {"num_samples": 3},
        "layer_replication": [[0, 1]],
        "lora_bias": True,
        "target_parameters": ["p"],
        "use_bdlora": {"nblocks": 2},
        "arrow_config": {"top_k": 2},
        "kasa_config": {"beta": 0.1},
        "ensure_weight_tying": True,
    },
    "IA3Config": COMMON | {"feedforward_modules": ["q"], "fan_in_fan_out": True, "init_ia3_weights": False},
    "LNTuningConfig": COMMON,
    "C3AConfig": {k: v for k, v in COMMON.items() if k != "exclude_modules"}
    | {"block_size": 4, "block_size_pattern": {"q": 2}, "init_weights": "gaussian", "bias": "all"}
    | BLOCKS,
    "DeloraConfig": COMMON
    | {"r": 4, "delora_lambda": 3, "module_dropout": 0.25, "rank_pattern": {"q": 3}, "lambda_pattern": {"q": 3}}
    | {"init_weights": False, "bias": "all"}
    | BLOCKS,
    "FourierFTConfig": COMMON
    | {"n_frequency": 3, "scaling": 2, "random_loc_seed": 5, "n_frequency_pattern": {"q": 3}, "fan_in_fan_out": True}
    | {"init_weights": True, "bias": "all"}
    | BLOCKS,
    "RoadConfig": {k: v for k, v in COMMON.items() if k != "exclude_modules"}
    | {"variant": "road_2", "group_size": 2, "init_weights": False},
    "GraloraConfig": {k: v for k, v in COMMON.items() if k != "exclude_modules"}
    | {"r": 4, "hybrid_r": 2, "alpha": 3, "gralora_dropout": 0.25, "gralora_k": 4, "fan_in_fan_out": True}
    | {"init_weights": False, "bias": "all"}
    | BLOCKS,
    "HRAConfig": COMMON | {"r": 4, "apply_GS": True, "init_weights": False, "bias": "all"} | BLOCKS,
    "HiraConfig": COMMON
    | BLOCKS
    | {"r": 4, "hira_dropout": 0.25, "fan_in_fan_out": True, "init_weights": "gaussian", "rank_pattern": {"q": 3}},
    "LoHaConfig": COMMON | BLOCKS | LYCORIS | {"init_weights": False},
    "LoKrConfig": COMMON
    | BLOCKS
    | LYCORIS
    | {"decompose_both": True, "decompose_factor": 3, "rank_dropout_scale": True, "init_weights": "lycoris"},
    "MissConfig": COMMON | BLOCKS | {"r": 4, "miss_dropout": 0.25, "mini_r": 2, "init_weights": "mini", "bias": "all"},
    "OFTConfig": COMMON
    | BLOCKS
    | {
        "r": 4,
        "oft_block_size": 8,
        "module_dropout": 0.5,
        "fan_in_fan_out": True,
        "bias": "all",
        "init_weights": False,
        "coft": True,
        "eps": 1e-3,
        "block_share": True,
        "use_cayley_neumann": False,
        "num_cayley_neumann_terms": 3,
    },
    "RandLoraConfig": {k: v for k, v in COMMON.items() if k != "exclude_modules"}
    | BLOCKS
    | {
        "r": 4,
        "projection_prng_key": 5,
        "save_projection": False,
        "sparse": True,
        "very_sparse": True,
        "randlora_dropout": 0.25,
        "fan_in_fan_out": True,
        "randlora_alpha": 5,
        "bias": "all",
        "init_weights": False,
    },
    "ShiraConfig": {k: v for k, v in COMMON.items() if k != "exclude_modules"}
    | {"r": 4, "mask_type": "own", "random_seed": 3, "fan_in_fan_out": True, "init_weights": False},
    "TrainableTokensConfig": {k: v for k, v in COMMON.items() if k not in ("exclude_modules", "modules_to_save")}
    | {"token_indices": [3], "init_weights": False},
    "PrefixTuningConfig": PROMPT | {"encoder_hidden_size": 8, "prefix_projection": True, "init_weights": "zero"},
    "PromptEncoderConfig": PROMPT
    | {
        "encoder_reparameterization_type": "LSTM",
        "encoder_hidden_size": 8,
        "encoder_num_layers": 3,
        "encoder_dropout": 0.25,
    },
    "VeraConfig": {k: v for k, v in COMMON.items() if k != "exclude_modules"}
    | BLOCKS
    | {
        "r": 4,
        "projection_prng_key": 5,
        "save_projection": False,
        "vera_dropout": 0.25,
        "d_initial": 0.5,
        "fan_in_fan_out": True,
        "bias": "all",
        "init_weights": False,
    },
    "PromptTuningConfig": PROMPT
    | {
        "prompt_tuning_init": "SAMPLE_VOCAB",
        "prompt_tuning_init_text": "a b",
        "tokenizer_name_or_path": "someone/net",
        "tokenizer_kwargs": {"a": 1},
    },
}
VALUES["AdaLoraConfig"] = VALUES["LoraConfig"] | {
    "target_r": 4,
    "init_r": 16,
    "tinit": 1,
    "tfinal": 1,
    "deltaT": 2,
    "beta1": 0.5,
    "beta2": 0.5,
    "orth_reg_weight": 0.25,
    "total_step": 10,
    "rank_pattern": {"q.lora_E": [True, False]},
}
NEEDED = {"AdaLoraConfig": {"total_step": 9}}
BESIDE = {"layers_pattern": {"layers_to_transform": [1]}}
OTHERS = {("OFTConfig", "r"): {"oft_block_size": 0}}
ABOUT_THE_START_OR_ORIGIN = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "encoder_dropout",
    "encoder_num_layers",
    "encoder_reparameterization_type",
    "eps",
    "module_dropout",
    "rank_dropout",
    "rank_dropout_scale",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "init_ia3_weights",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "num_attention_heads",
    "num_layers",
    "peft_version",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "qalora_group_size",
    "revision",
    "task_type",
    "token_dim",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
}
"""Fields that change nothing in what a trained adapter does, or, the tying of weights, that are seen in its tensors."""


@pytest.mark.slow
@pytest.mark.parametrize("name", VALUES)
def test_every_field_of_peft(name, tmp_path):
    theirs = pytest.importorskip("peft")
    cls = getattr(theirs, name)
    own = {"peft_type", "runtime_config"}
    assert {field.name for field in dataclasses.fields(cls)} - own == set(VALUES[name]), "peft has other fields now"
    outcomes = {}
    for field, value in VALUES[name].items():
        base = json.loads(json.dumps(cls(**NEEDED.get(name, {})).to_dict(), default=list))
        assert base.get(field) != value
        config = base | BESIDE.get(field, {}) | OTHERS.get((name, field), {}) | {field: value}
        path = write(tmp_path, config)
        try:
            method = find_method(read_config(path), path)
        except ValueError as error:
            assert f"{field}=" in str(error), field
            outcomes[field] = "refused"
            continue
        made = method(**arguments(config, method))
        if field in made.fields:
            wanted = [value] if field == "layers_pattern" else value
            assert getattr(made, field) == wanted
            outcomes[field] = "honoured"
        elif field == "use_dora":
            assert method is peft.DoRA
        elif field in method.only_in_files:
            outcomes[field] = "read with the tensors"
        else:
            assert field in ABOUT_THE_START_OR_ORIGIN
            outcomes[field] = "changes nothing"
    refused = {field for field, outcome in outcomes.items() if outcome == "refused"}
    assert refused == {
        "LoraConfig": {
            "alora_invocation_tokens",
            "arrow_config",
            "kasa_config",
            "layer_replication",
            "monteclora_config",
            "use_bdlora",
            "use_qalora",
            "velora_config",
        },
        "AdaLoraConfig": {
            "alora_invocation_tokens",
            "alpha_pattern",
            "arrow_config",
            "init_lora_weights",
            "kasa_config",
            "layer_replication",
            "lora_bias",
            "monteclora_config",
            "target_parameters",
            "trainable_token_indices",
            "use_bdlora",
            "use_dora",
            "use_qalora",
            "use_rslora",
            "velora_config",
        },
        "PromptTuningConfig": {"num_transformer_submodules"},
        "PrefixTuningConfig": {"num_transformer_submodules"},
        "PromptEncoderConfig": {"num_transformer_submodules"},
        "LoHaConfig": {"use_effective_conv2d"},
        "LoKrConfig": {"use_effective_conv2d"},
        "C3AConfig": {"bias"},
        "DeloraConfig": {"bias"},
        "FourierFTConfig": {"bias"},
        "GraloraConfig": {"bias"},
        "HRAConfig": {"apply_GS", "bias"},
        "MissConfig": {"bias"},
        "OFTConfig": {"bias", "coft"},
        "RandLoraConfig": {"bias", "save_projection"},
        "ShiraConfig": {"mask_type"},
        "VeraConfig": {"bias"},
    }.get(name, set())

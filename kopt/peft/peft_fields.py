"""The fields of the configurations of Hugging Face peft that no method of kopt has as an argument.

What people write, and what files say: the functions `LoraConfig`, ... and the readers of files share these tables.
"""

from typing import Any

CARRIED: dict[str, type] = {
    "auto_mapping": dict,
    "base_model_name_or_path": str,
    "megatron_config": dict,
    "megatron_core": str,
    "peft_version": str,
    "revision": str,
    "task_type": str,
    "tokenizer_kwargs": dict,
    "tokenizer_name_or_path": str,
}
"""Say where an adapter belongs, with the type of each. They are kept, and written into files."""
FOUND: dict[str, type] = {
    "ensure_weight_tying": bool,
    "fan_in_fan_out": bool,
    "inference_mode": bool,
    "num_attention_heads": int,
    "num_layers": int,
    "num_transformer_submodules": int,
    "peft_type": str,
    "qalora_group_size": int,
    "runtime_config": dict,
    "token_dim": int,
}
"""Say what kopt finds in the model or does anyway, and what matters only beside an option that is not supported."""
STARTS: dict[str, type] = {
    "corda_config": dict,
    "encoder_dropout": float,
    "encoder_num_layers": int,
    "encoder_reparameterization_type": str,
    "eva_config": dict,
    "init_ia3_weights": bool,
    "loftq_config": dict,
    "lora_ga_config": dict,
    "prompt_tuning_init": str,
    "prompt_tuning_init_text": str,
}
"""Say how weights start. In files the saved weights have replaced it."""
TRAINING: dict[str, type] = {"module_dropout": float, "rank_dropout": float, "rank_dropout_scale": bool, "eps": float}
"""Say what happens in training alone, or beside an option that is not supported. kopt does none of it."""
USUAL_STARTS: dict[str, Any] = {
    "encoder_dropout": 0.0,
    "encoder_num_layers": 2,
    "encoder_reparameterization_type": "MLP",
    "init_ia3_weights": True,
    "prompt_tuning_init": "RANDOM",
}
"""What kopt does; of the others it does none."""
UNSUPPORTED = (
    "alora_invocation_tokens",
    "apply_GS",
    "arrow_config",
    "coft",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "trainable_token_indices",
    "use_bdlora",
    "use_effective_conv2d",
    "use_qalora",
    "velora_config",
)
"""Change the result, so no file of peft with them can be read, but for a method that has them as arguments."""
FIELDS = (*CARRIED, *FOUND, *STARTS, *TRAINING, *UNSUPPORTED)

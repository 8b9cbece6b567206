"""The fields of the configurations of Hugging Face peft that no method of kopt has as an argument.

What people write, and what files say: the functions `LoraConfig`, ... and the readers of files share these lists.
"""

from typing import Any

CARRIED = (
    "auto_mapping",
    "base_model_name_or_path",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "revision",
    "task_type",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
)
"""Say where an adapter belongs. They are kept, and written into files."""
FOUND = (
    "ensure_weight_tying",
    "fan_in_fan_out",
    "inference_mode",
    "num_attention_heads",
    "num_layers",
    "num_transformer_submodules",
    "peft_type",
    "qalora_group_size",
    "runtime_config",
    "token_dim",
)
"""Say what kopt finds in the model or does anyway, and what matters only beside an option that is not supported."""
UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
"""Change the result, and kopt does not do it."""
STARTS: dict[str, tuple[Any, ...]] = {
    "corda_config": (),
    "eva_config": (),
    "init_ia3_weights": (True,),
    "loftq_config": (),
    "lora_ga_config": (),
    "prompt_tuning_init": ("RANDOM",),
    "prompt_tuning_init_text": (),
}
"""Say how weights start, with what kopt does; None and {} are nothing. In files the saved weights have replaced it."""
FIELDS = (*CARRIED, *FOUND, *UNSUPPORTED, *STARTS)

"""The names that Hugging Face peft has for the configurations of methods."""

from typing import Any

from kopt.peft.methods.dora import DoRA
from kopt.peft.methods.ia3 import IA3
from kopt.peft.methods.layer_norm_tuning import LayerNormTuning
from kopt.peft.methods.lora import LoRA
from kopt.peft.methods.prompt import PromptTuning

IA3Config = IA3
LNTuningConfig = LayerNormTuning
PromptTuningConfig = PromptTuning


def LoraConfig(*, use_dora: bool = False, **options: Any) -> LoRA:  # noqa: N802
    """Returns `LoRA(**options)`, or `DoRA(**options)` with `use_dora`."""
    return DoRA(**options) if use_dora else LoRA(**options)

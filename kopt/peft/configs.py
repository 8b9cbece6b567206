"""The names that Hugging Face peft has for the configurations of methods."""

from typing import Any

from kopt.peft.dora import DoRA
from kopt.peft.ia3 import IA3 as IA3Config
from kopt.peft.lora import LoRA
from kopt.peft.prompt import PromptTuning as PromptTuningConfig
from kopt.peft.tuning import LayerNormTuning as LNTuningConfig

__all__ = ["IA3Config", "LNTuningConfig", "LoraConfig", "PromptTuningConfig"]


def LoraConfig(*, use_dora: bool = False, **options: Any) -> LoRA:  # noqa: N802
    """Returns `LoRA(**options)`, or `DoRA(**options)` with `use_dora`."""
    return DoRA(**options) if use_dora else LoRA(**options)

"""The methods, one file each."""

from kopt.peft.methods.bitfit import BitFit as BitFit
from kopt.peft.methods.bottleneck import Bottleneck as Bottleneck
from kopt.peft.methods.bottleneck import Houlsby as Houlsby
from kopt.peft.methods.bottleneck import ParallelAdapter as ParallelAdapter
from kopt.peft.methods.bottleneck import Pfeiffer as Pfeiffer
from kopt.peft.methods.configs import IA3Config as IA3Config
from kopt.peft.methods.configs import LNTuningConfig as LNTuningConfig
from kopt.peft.methods.configs import LoraConfig as LoraConfig
from kopt.peft.methods.configs import PromptTuningConfig as PromptTuningConfig
from kopt.peft.methods.dora import DoRA as DoRA
from kopt.peft.methods.ia3 import IA3 as IA3
from kopt.peft.methods.layer_norm_tuning import LayerNormTuning as LayerNormTuning
from kopt.peft.methods.lora import LoRA as LoRA
from kopt.peft.methods.lora import lora_plus as lora_plus
from kopt.peft.methods.prompt import PromptTuning as PromptTuning

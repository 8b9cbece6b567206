"""Adapters from adapters, and several at once."""

from kopt.peft.algebra.mixed_batch import MixedBatch as MixedBatch
from kopt.peft.algebra.verbs import adapter_difference as adapter_difference
from kopt.peft.algebra.verbs import add_weighted_adapter as add_weighted_adapter
from kopt.peft.algebra.verbs import convert_to_lora as convert_to_lora

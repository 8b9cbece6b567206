"""Adapters as files in the form of Hugging Face peft."""

from kopt.peft.exchange.adapter_folder import load_adapter as load_adapter
from kopt.peft.exchange.adapter_folder import save_pretrained as save_pretrained

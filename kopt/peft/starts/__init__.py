"""Starts of LoRA that are computed from batches of data."""

from kopt.peft.starts.initialize import initialize as initialize

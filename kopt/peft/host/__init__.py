"""Layers that carry adapters."""

from kopt.peft.host.adapter_layer import AdapterLayer as AdapterLayer
from kopt.peft.host.host_tensors import as_float32 as as_float32

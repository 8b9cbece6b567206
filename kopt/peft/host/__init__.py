"""Layers that carry adapters."""

from kopt.peft.host.adapter_layer import AdapterLayer as AdapterLayer
from kopt.peft.host.host_class import TRAINABLE as TRAINABLE
from kopt.peft.host.host_class import container_class as container_class
from kopt.peft.host.host_class import is_guarded as is_guarded
from kopt.peft.host.host_tensors import as_float32 as as_float32
from kopt.peft.host.in_use import rows as rows
from kopt.peft.host.merging import base_value as base_value
from kopt.peft.host.merging import changes_order as changes_order
from kopt.peft.host.merging import merge_host as merge_host
from kopt.peft.host.merging import refuse_shared as refuse_shared
from kopt.peft.host.merging import unmerge_host as unmerge_host

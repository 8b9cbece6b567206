"""The method of an adapter in a folder, without its weights."""

import os
import pathlib

from kopt.peft.adapter import Adapter
from kopt.peft.exchange.adapter_folder import CONFIG, _method, _read_config

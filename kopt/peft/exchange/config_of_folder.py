"""The method of an adapter in a folder, without its weights."""

import os
import pathlib
from typing import Any

from kopt.peft.adapter import Adapter
from kopt.peft.exchange.adapter_folder import CONFIG
from kopt.peft.exchange.config_file import arguments, find_method, read_config
from kopt.peft.peft_fields import CARRIED, FIELDS


def load_config(directory: str | os.PathLike[str], **changes: Any) -> Adapter:
    """Returns the method that the `adapter_config.json` in a folder describes, to train a new adapter like it.

    This is what `PeftConfig.from_pretrained(folder)` is in Hugging Face peft. It is a function and no method of `LoRA`,
    because the file says which method it is. `PeftModel.from_pretrained(base, folder)`, which takes the trained weights
    too, is `load_adapter(model, folder)` here, and `config.save_pretrained(folder)` is a part of `save_pretrained`.

    Args:
        directory: the folder; it needs no weights.
        **changes: arguments that shall be others, as r=16. Names of layers are as they stand in the file, where models
            of KerasHub have the names of Hugging Face: give `target_modules` with Keras' names for these.

    Raises:
        ValueError: there is no such file, it is damaged, its method or one of its options is not supported, or an
            argument is unknown or out of range.
    """
    path = pathlib.Path(directory) / CONFIG
    if not path.is_file():
        raise ValueError(f"{directory} has no {CONFIG}. An adapter is a folder with that file.")
    config = read_config(path)
    method = find_method(config, path)
    own = {k: v for k, v in arguments(config, method).items() if k not in FIELDS}
    extra = {k: v for k, v in config.items() if k in CARRIED and v is not None}
    return method(**{"extra": extra} | own | changes)

"""Adapters as files, in the form of Hugging Face peft: `adapter_config.json` and `adapter_model.safetensors`."""

import json
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kopt.checkpoint.atomic_files import write_files
from kopt.peft.exchange import kerashub_converter
from kopt.peft.exchange.config_file import digest_of, find_method, read_config
from kopt.peft.exchange.fingerprint import find_differences, fingerprint, rounding
from kopt.peft.exchange.name_map import Names, read_checkpoint
from kopt.peft.exchange.pickled_file import read_pickled
from kopt.peft.exchange.reader import Reader
from kopt.peft.exchange.tensor_file import LONGEST_NAME, encode, read_tensors
from kopt.peft.exchange.writer import Writer
from kopt.peft.model import plan, put_adapter, require_adapters
from kopt.peft.requirements import require_model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PICKLED = "adapter_model.bin"
"""What old versions of peft wrote in place of the weights."""
_BASE, _ROUNDED, _PROMPTED, _CONFIG = "kopt_base", "kopt_base_rounding", "kopt_prompted", "kopt_config_sha256"
"""Entries of the metadata that kopt adds."""


def save_pretrained(
    model: Any,
    directory: str | os.PathLike[str],
    adapter_name: str = "default",
    *,
    base_model: Any = None,
    task_type: str | None = None,
    modules: Mapping[str, str] | None = None,
) -> None:
    """Writes an adapter as Hugging Face peft does, so that peft loads it if the model is one of KerasHub's.

    Layers that Hugging Face does not know are named by their Keras paths; `load_adapter` reads those as well. The
    weights are written as they were trained, whatever `set_scale` says.

    Args:
        model: a model with adapters.
        directory: the folder to write to, made if need be. The two files there are replaced.
        adapter_name: which adapter.
        base_model: the Hugging Face model that the base was made from: its folder, or its configuration as a dict. With
            a folder every name is looked up in its checkpoint. Needed where the names cannot be told without, and for a
            model made from the inputs and outputs of a backbone.
        task_type: peft's name for the kind of head, as "SEQ_CLS" or "CAUSAL_LM". The names of the base then get the
            prefix that they have below a head; a name that peft does not know, as "IMAGE_CLASSIFICATION", does no more
            than that. None keeps what the adapter was loaded with; without that, a model that generates text is a
            "CAUSAL_LM", and another has a head if `modules_to_save` names a layer outside of the backbone.
        modules: Hugging Face modules by Keras path, for such layers: `{"logits": "classifier"}`.

    Raises:
        ValueError: there is no such adapter, or it cannot be written in this form. Nothing is written then.
    """
    current = require_adapters(model)
    if not isinstance(task_type, str | None):
        raise ValueError(f"task_type must be a text, as 'CAUSAL_LM'. Received: task_type={task_type!r}")
    adapter = current.require(adapter_name)
    base, named = read_checkpoint(base_model), adapter.extra.get("base_model_name_or_path")
    names = Names(model, base, modules)
    if (
        not names.known
        and base_model is None
        and any(kerashub_converter.is_of_keras_hub(layer) for layer in names.paths.values())
    ):
        warnings.warn(
            "The model has layers of KerasHub but no backbone that KerasHub converts, so the adapter is saved under "
            "Keras' names, which kopt loads and Hugging Face does not. If the model was made from the inputs and "
            f"outputs of a backbone, pass base_model, or call the backbone as a layer.{_named_base(named)}",
            stacklevel=2,
        )
    writer = Writer(names, adapter, adapter_name, task_type or adapter.extra.get("task_type"))
    for path, layer in current.hosts.items():
        if adapter_name in layer.adapters:
            writer.add(path, layer)
    tensors, config = writer.finish()
    _check_readable(writer, tensors, config)
    if base.directory is not None:
        config["base_model_name_or_path"] = named or base.directory
    written = json.dumps(dict(sorted(config.items())), indent=2)
    metadata = {
        "format": "pt",
        _BASE: fingerprint(names, writer.sampled),
        _CONFIG: digest_of(json.loads(written)),
    }
    if rounded := rounding(writer.sampled):
        metadata[_ROUNDED] = repr(rounded)
    if not adapter.gated and writer.parts:
        metadata[_PROMPTED] = next(iter(writer.parts))
    files = {
        WEIGHTS: encode(tensors, metadata),
        CONFIG: f"{written}\n".encode(),
    }
    write_files(pathlib.Path(directory), files)


def load_adapter(
    model: Any,
    directory: str | os.PathLike[str],
    adapter_name: str = "default",
    *,
    base_model: Any = None,
    modules: Mapping[str, str] | None = None,
    verify: bool = True,
    is_trainable: bool = True,
) -> Any:
    """Adds an adapter from files that `save_pretrained` or Hugging Face peft wrote, and makes it the active one.

    If the model has an adapter of that name, of the same method and configuration, it gets the weights of the files:
    nothing is traced anew, which makes it a quick exchange. Moments of other values are stale, so the state that
    optimizers have of it is put back to its start; counters start anew too, the learning rate stays.

    A layer that is two modules of Hugging Face, as embeddings with an output matrix of their own, becomes trained whole
    if the file has one of them in `modules_to_save`; the other one starts from the base.

    Args:
        model: a built model whose base has the weights that the adapter was trained with.
        directory: the folder with `adapter_config.json` and `adapter_model.safetensors`, or `adapter_model.bin` of old
            versions of peft, which needs torch and is read without running code.
        adapter_name: its name in this model.
        base_model: as for `save_pretrained`. What the file names as its base is never opened.
        modules: as for `save_pretrained`.
        verify: whether the files must have the SHA-256 that kopt saved with them; files of peft have none. False
            takes files that were changed on purpose.
        is_trainable: False if the adapter is used but never trained, also after `set_adapter`, in `.keras` files and in
            pickles.

    Returns:
        `model`, the same object.

    Raises:
        ValueError: a file is missing, damaged or changed; the method or one of its options is not supported or out of
            range; a tensor is missing, unexpected, not finite or of another shape; the base is another; the adapter of
            that name is of another configuration. The model is then as before.
    """
    require_model(model)
    if not getattr(model, "built", False):
        raise ValueError(
            f"The model {model.name!r} is not built. Call it once, or build(...), before loading adapters."
        )
    folder = pathlib.Path(directory)
    if not (folder / CONFIG).is_file():
        fetch = (
            f" Nothing is downloaded: huggingface_hub.snapshot_download({str(folder)!r}) would return such a folder."
        )
        raise ValueError(
            f"{folder} has no {CONFIG}. An adapter is a folder with {CONFIG} and {WEIGHTS}."
            f"{'' if folder.exists() or folder.is_absolute() else fetch}"
        )
    config = read_config(folder / CONFIG)
    method = find_method(config, folder / CONFIG)
    tensors, metadata, file = _read_weights(folder, verify, method.whole_numbers)
    if verify and _CONFIG in metadata and metadata[_CONFIG] != digest_of(config):
        raise ValueError(
            f"{folder / CONFIG} is not as it was saved with {file}: an entry was changed by hand, or the file is "
            "damaged. Undo the change or save the adapter again; if the change is meant, pass verify=False."
        )
    base = read_checkpoint(base_model)
    try:
        unfolded = method.unfold(config, tensors)
        reader = Reader(Names(model, base, modules), *unfolded, metadata.get(_PROMPTED), method)
        adapter, targets = reader.adapter()
        values = reader.values(plan(model, adapter, targets))
    except ValueError as error:
        if base_model is not None or "base_model" not in str(error):
            raise
        raise ValueError(f"{error}{_named_base(config.get('base_model_name_or_path'))}") from None
    where = f"{_BASE} in the metadata of {folder / file}"
    differ: list[str] = []
    if _BASE in metadata:
        differ = find_differences(reader.names, metadata[_BASE], where, metadata.get(_ROUNDED, "0"))
    if differ:
        raise ValueError(
            f"The adapter in {folder} was trained on another base: weights differ in {', '.join(differ[:3])}"
            f"{' and others' if len(differ) > 3 else ''}. Load it into the model that it was trained on."
        )
    put_adapter(model, adapter, adapter_name, targets, values, is_trainable)
    return model


def _check_readable(writer: Writer, tensors: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Raises ValueError if a key would be read as another weight, as where a layer is called `lora_A`."""
    rename = "A layer has a name that means something else in a file: rename it. Nothing was written."
    try:
        reader = Reader(writer.names, config, tensors, None, type(writer.adapter))
    except ValueError as error:
        raise ValueError(f"The adapter could not be read again from a file: {error} {rename}") from None
    found = {key: entry for entry, key in reader.keys.items()}
    for key, entry in writer.entries.items():
        if found.get(key) != entry:
            raise ValueError(f"{key} could not be read again from a file. {rename}")
        if len(key) > LONGEST_NAME:
            raise ValueError(
                f"{key[:100]}... could not be read again from a file: it is longer than {LONGEST_NAME} characters. "
                "Rename the layer. Nothing was written."
            )


def _read_weights(
    folder: pathlib.Path, verify: bool, whole: Sequence[str]
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, str], str]:
    """Returns the tensors of a folder, the metadata, and the name of the file that they are in."""
    if not (folder / WEIGHTS).exists() and (folder / _PICKLED).is_file():
        tensors, metadata, file = read_pickled(folder / _PICKLED), dict[str, str](), _PICKLED
    elif (folder / WEIGHTS).is_file():
        (tensors, metadata), file = read_tensors(folder / WEIGHTS, verify, whole), WEIGHTS
    else:
        raise ValueError(f"{folder} has no {WEIGHTS}. An adapter is a folder with {CONFIG} and {WEIGHTS}.")
    if not tensors:
        raise ValueError(f"{folder / file} has no tensors. Save or download it again.")
    for key, value in tensors.items():
        if not np.isfinite(value).all():
            raise ValueError(f"{folder / file}: {key} has NaN or infinite values.")
    return tensors, metadata, file


def _named_base(name: Any) -> str:
    """Returns what to add to a text that asks for base_model, where the adapter's file names its base."""
    return f" The file of the adapter names {name!r}, which is opened only if you pass it." if name else ""

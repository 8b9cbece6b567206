"""Adapters as files, in the form of Hugging Face peft: `adapter_config.json` and `adapter_model.safetensors`."""

import json
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from kopt.peft.adapter import Adapter
from kopt.peft.adapter import adapters as methods
from kopt.peft.exchange import kerashub_converter
from kopt.peft.exchange.fingerprint import find_differences, fingerprint
from kopt.peft.exchange.name_map import Names, read_checkpoint
from kopt.peft.exchange.reader import Reader
from kopt.peft.exchange.tensor_file import encode, read_tensors, write_files
from kopt.peft.exchange.writer import Writer
from kopt.peft.model import adapters_of, plan, put_adapter

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_BASE, _PROMPTED = "kopt_base", "kopt_prompted"
"""Entries of the metadata that kopt adds."""
# What an adapter_config.json can ask for that changes the result and kopt does not do.
_UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
_REBASED = ("corda", "lora_ga", "loftq", "mica")  # initializations that change the base


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
    current = adapters_of(model)
    if current is None:
        raise ValueError(f"The model {model.name!r} has no adapters. Add one with get_peft_model(model, adapter).")
    adapter = current.require(adapter_name)
    base = read_checkpoint(base_model)
    if base_model is None:
        base = read_checkpoint(adapter.extra.get("base_model_name_or_path"), required=False)
    names = Names(model, base, modules)
    if (
        not names.known
        and base_model is None
        and any(kerashub_converter.is_of_keras_hub(layer) for layer in names.paths.values())
    ):
        warnings.warn(
            "The model has layers of KerasHub but no backbone that KerasHub converts, so the adapter is saved under "
            "Keras' names, which kopt loads and Hugging Face does not. If the model was made from the inputs and "
            "outputs of a backbone, pass base_model, or call the backbone as a layer.",
            stacklevel=2,
        )
    writer = Writer(names, adapter, adapter_name, task_type or adapter.extra.get("task_type"))
    for path, layer in current.hosts.items():
        if adapter_name in layer.adapters:
            writer.add(path, layer)
    tensors, config = writer.finish()
    if base.directory is not None:
        config["base_model_name_or_path"] = adapter.extra.get("base_model_name_or_path") or base.directory
    metadata = {"format": "pt", _BASE: fingerprint(names, writer.sampled)}
    if adapter.peft_type == "PROMPT_TUNING":
        metadata[_PROMPTED] = next(iter(writer.parts))
    files = {
        WEIGHTS: encode(tensors, metadata),
        CONFIG: (json.dumps(dict(sorted(config.items())), indent=2) + "\n").encode(),
    }
    write_files(pathlib.Path(directory), files)


def load_adapter(
    model: Any,
    directory: str | os.PathLike[str],
    adapter_name: str = "default",
    *,
    base_model: Any = None,
    modules: Mapping[str, str] | None = None,
    is_trainable: bool = True,
) -> Any:
    """Adds an adapter from files that `save_pretrained` or Hugging Face peft wrote, and makes it the active one.

    If the model has an adapter of that name, of the same method and configuration, it gets the weights of the files:
    nothing is traced anew, which makes it a quick exchange. Moments of other values are stale, so the state that
    optimizers have of it is put back to its start; counters start anew too, the learning rate stays.

    Args:
        model: a built model whose base has the weights that the adapter was trained with.
        directory: the folder with `adapter_config.json` and `adapter_model.safetensors`.
        adapter_name: its name in this model.
        base_model: as for `save_pretrained`.
        modules: as for `save_pretrained`.
        is_trainable: False if the adapter is used but never trained, also after `set_adapter`, in `.keras` files and in
            pickles.

    Returns:
        `model`, the same object.

    Raises:
        ValueError: a file is missing or damaged; the method or one of its options is not supported; a tensor is
            missing, unexpected, not finite or of another shape; the base is another; the adapter of that name is of
            another configuration. The model is then as before.
    """
    if not getattr(model, "built", False):
        raise ValueError(
            f"The model {model.name!r} is not built. Call it once, or build(...), before loading adapters."
        )
    folder = pathlib.Path(directory)
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise ValueError(f"{folder} has no {file}. An adapter is a folder with {CONFIG} and {WEIGHTS}.")
    config = _read_config(folder / CONFIG)
    tensors, metadata = read_tensors(folder / WEIGHTS)
    for key, value in tensors.items():
        if not np.isfinite(value).all():
            raise ValueError(f"{folder / WEIGHTS}: {key} has NaN or infinite values.")
    base = read_checkpoint(base_model)
    if base_model is None:
        base = read_checkpoint(config.get("base_model_name_or_path"), required=False)
    reader = Reader(Names(model, base, modules), config, tensors, metadata.get(_PROMPTED))
    adapter, targets = reader.adapter(_method(config, folder))
    values = reader.values(plan(model, adapter, targets))
    differ = find_differences(reader.names, metadata[_BASE]) if _BASE in metadata else []
    if differ:
        raise ValueError(
            f"The adapter in {folder} was trained on another base: weights differ in {', '.join(differ[:3])}"
            f"{' and others' if len(differ) > 3 else ''}. Load it into the model that it was trained on."
        )
    put_adapter(model, adapter, adapter_name, targets, values, is_trainable)
    return model


def _read_config(path: pathlib.Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(config, dict) or "peft_type" not in config:
        raise ValueError(f"{path} is no configuration of an adapter: it has no peft_type.")
    refused = [f"{key}={config[key]!r}" for key in _UNSUPPORTED if config.get(key)]
    kind = config.get("init_lora_weights")
    if isinstance(kind, str) and kind in _REBASED:
        refused.append(f"init_lora_weights={kind!r}, which changes the base")
    if isinstance(kind, str) and "_niter_" in kind:
        refused.append(f"init_lora_weights={kind!r}, whose random start is not in the file (nor can peft repeat it)")
    if refused:
        raise ValueError(f"{path} asks for what kopt does not do: {', '.join(refused)}.")
    return config


def _method(config: Mapping[str, Any], folder: pathlib.Path) -> type[Adapter]:
    kind = config["peft_type"]
    found = [cls for cls in methods().values() if cls.peft_type == kind]
    fitting = [c for c in found if all((config.get(k) or False) == v for k, v in c.fixed.items())]
    if not fitting:
        known = ", ".join(sorted({cls.peft_type for cls in methods().values()}))
        raise ValueError(f"{folder / CONFIG}: peft_type {kind!r} is not supported. Supported: {known}.")
    named = [cls for cls in fitting if cls.__name__.lower() == config.get("method")]
    return (named or fitting)[0]

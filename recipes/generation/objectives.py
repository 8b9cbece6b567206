"""What is learnt: a model from tokens to the loss of each next token, and what is made of these losses.

Inputs are `token_ids`, `targets` (the tokens that come next) and `documents` (which text of its row a token belongs to,
from 1; 0 is padding), all int32 [n, tokens].
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from ..run.batches import Array
from .tokens import INPUTS

APART = ("LlamaBackbone", "MistralBackbone", "QwenBackbone", "Qwen3Backbone", "Phi3Backbone")
"""Backbones of KerasHub whose layers take a mask, and know of positions nothing but their distance."""


class NextTokenLoss(keras.layers.Layer):
    """Cross-entropy of each next token in nats, [n, tokens], from logits [n, tokens, vocabulary]."""

    def call(self, logits: Any, targets: Any) -> Any:
        """Returns the losses in float32."""
        logits = ops.cast(logits, "float32")
        return ops.sparse_categorical_crossentropy(targets, logits, from_logits=True)

    def compute_output_shape(self, logits_shape: Any, targets_shape: Any) -> Any:
        """Returns that of the targets."""
        return targets_shape


class SameDocument(keras.layers.Layer):
    """Which tokens may see each other, int32 [n, tokens, tokens]: those of one document."""

    def call(self, documents: Any) -> Any:
        """Returns the mask."""
        return ops.cast(ops.equal(documents[:, :, None], documents[:, None, :]), "int32")

    def compute_output_shape(self, documents_shape: Any) -> Any:
        """Returns that of the mask."""
        return (*documents_shape, documents_shape[-1])


def keeps_apart(causal_lm: Any) -> bool:
    """Returns whether texts in one row do not see each other in `build(causal_lm)`."""
    import keras_hub

    return isinstance(causal_lm.backbone, tuple(getattr(keras_hub.models, name) for name in APART))


def build(causal_lm: Any) -> Any:
    """Returns the model of the losses, which shares the layers of a KerasHub model that generates text.

    Where `keeps_apart` says no, a text sees those before it in its row.
    """
    inputs = {name: keras.Input((None,), dtype="int32", name=name) for name in INPUTS}
    tokens, documents, backbone = inputs["token_ids"], inputs["documents"], causal_lm.backbone
    if keeps_apart(causal_lm):
        mask, x = SameDocument(name="same_document")(documents), backbone.token_embedding(tokens)
        for layer in backbone.transformer_layers:
            x = layer(x, decoder_attention_mask=mask)
        logits = backbone.token_embedding(backbone.layer_norm(x), reverse=True)
    else:
        padding = ops.cast(documents > 0, "int32")
        logits = causal_lm({"token_ids": tokens, "padding_mask": padding})
    losses = NextTokenLoss(dtype="float32", name="next_token_loss")(logits, inputs["targets"])
    return keras.Model(inputs, losses, name="next_token_losses")


# ------------------------------------------------------------------------------------------------------- continuation


def token_mean(weights: Any, losses: Any) -> Any:
    """Returns the mean loss of the tokens that count."""
    return ops.sum(weights * losses) / ops.maximum(ops.sum(weights), 1.0)


class Perplexity(keras.metrics.Metric):
    """exp of the mean loss of all tokens that count."""

    def __init__(self, name: str = "perplexity") -> None:
        super().__init__(name=name, dtype="float32")
        self.total = self.add_weight(name="total", initializer="zeros")
        self.count = self.add_weight(name="count", initializer="zeros")

    def update_state(self, weights: Any, losses: Any, sample_weight: Any = None) -> None:
        """Adds a batch: weights and losses [n, tokens]."""
        self.total.assign_add(ops.sum(weights * losses))
        self.count.assign_add(ops.sum(weights))

    def result(self) -> Any:
        """Returns the perplexity."""
        return ops.exp(self.total / ops.maximum(self.count, 1.0))


# --------------------------------------------------------------------------------------------------------- preference


class Preference:
    r"""DPO: the log-odds of the chosen answer over the rejected one, against those of a reference.

        margin = β ((log π(c) - log ρ(c)) - (log π(r) - log ρ(r)))          loss = -log σ(margin)

    Batches hold both answers of a pair one after the other. Their targets [2 n, tokens + 1] are the weights of the
    tokens, and in the last column the log-probability of the whole answer under the reference.

    Args:
        beta: β, > 0: how much a step away from the reference costs.

    Reference: Rafailov et al., 2023, arXiv:2305.18290.
    """

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def margins(self, targets: Any, losses: Any) -> Any:
        """Returns the margin of each pair."""
        gains = -ops.sum(targets[:, :-1] * losses, axis=-1) - targets[:, -1]
        return self.beta * (gains[0::2] - gains[1::2])

    def loss(self, targets: Any, losses: Any) -> Any:
        """Returns the mean loss of the pairs."""
        return ops.mean(ops.softplus(-self.margins(targets, losses)))

    def metrics(self) -> list[Any]:
        """Returns the mean margin, and the share of the pairs whose chosen answer has gained more than the other."""

        def accuracy(targets: Any, losses: Any) -> Any:
            return ops.cast(self.margins(targets, losses) > 0, "float32")

        wrap = keras.metrics.MeanMetricWrapper
        return [wrap(self.margins, "margin"), wrap(accuracy, "accuracy")]


def log_probabilities(model: Any, batches: Any) -> Array:
    """Returns the log-probability of the answer in each row of all batches, under the model as it is.

    Args:
        model: from `build`.
        batches: of inputs and weights, in a fixed order.
    """
    found = [
        -np.sum(np.asarray(weights) * np.asarray(model.predict_on_batch(inputs)), axis=-1)
        for inputs, weights in batches
    ]
    return np.concatenate(found).astype(np.float32)

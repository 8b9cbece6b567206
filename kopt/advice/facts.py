"""What a recommendation depends on: facts of a model, of its data, and what its user wants."""

import dataclasses
import math
from typing import Any, Literal

import keras
import numpy as np

from kopt.optimizers.engine.state.layout import Layout, layouts
from kopt.optimizers.engine.state.start import path_of
from kopt.peft.layers import flatten_layers
from kopt.peft.model import adapters_of

Goal = Literal["fast", "generalize", "no-tuning", "memory", "exact"]
CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)
NOISE = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.AlphaDropout,
)
SHORT = ("bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the conditions of `situations.py` look at.

    Attributes:
        weights: trained numbers.
        tables: layouts of the tables of which a step reads rows.
        table_weights: those of the weights that are in them.
        width: inputs or outputs, whichever are fewer, of the kernel that has the most of them; 1 without such.
        weight_bytes: of all weights, trained or not.
        gradient_bytes: of the gradients, one for each trained weight.
        attention: whether a layer is one of attention, by its name.
        convolution: whether a layer is a convolution.
        recurrent: whether a layer is recurrent.
        batch_norm: whether a layer is a batch normalization.
        noise: whether a layer draws random numbers in training, as dropout does.
        adapters: whether the model has adapters of `kopt.peft`.
        short: whether trained weights are bfloat16 or float16.
        float16: whether a layer computes in float16.
        squares: whether the model is compiled with the mean of squared errors, has one output, and adds no loss of its
            own, as a regularizer does.
        goal: see `recommend`, as all that follows.
        batch_size: examples a step.
        dataset_size: examples.
        budget: epochs.
        workers: processes that share each batch.
        pretrained: whether the weights were trained before.
    """

    weights: int
    tables: tuple[Layout, ...]
    table_weights: int
    width: int
    weight_bytes: int
    gradient_bytes: int
    attention: bool
    convolution: bool
    recurrent: bool
    batch_norm: bool
    noise: bool
    adapters: bool
    short: bool
    float16: bool
    squares: bool
    goal: Goal
    batch_size: int
    dataset_size: int
    budget: float
    workers: int
    pretrained: bool

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return -(-self.dataset_size // self.batch_size)

    @property
    def updates(self) -> int:
        """Updates within the budget, one a batch."""
        return max(1, math.ceil(round(self.budget * self.batches, 6)))  # 260 / 203 epochs of 203 batches are 260

    @property
    def full_batch(self) -> bool:
        """Whether every step sees all examples."""
        return self.batches == 1

    @property
    def table_share(self) -> float:
        """Share of the tables in the trained weights, from 0 to 1."""
        return self.table_weights / self.weights

    def __str__(self) -> str:
        kinds = {
            "attention": self.attention,
            "convolutions": self.convolution,
            "recurrent layers": self.recurrent,
            "batch normalization": self.batch_norm,
            "adapters": self.adapters,
            "16-bit weights": self.short,
            "tables": self.table_weights > 0,
        }
        found = ", ".join(name for name, there in kinds.items() if there) or "neither attention nor convolutions"
        trained = f"{self.weights:,} trained weights ({found})"
        data = f"{self.batch_size:,} of {self.dataset_size:,} examples a step"
        return f"{trained}, {data}, {self.budget:g} epochs, goal {self.goal}"


def facts_of(model: Any, **run: Any) -> Facts:
    """Returns the facts of a model that is built.

    Args:
        model: Keras model.
        run: the facts that are not of the model.
    """
    layers, trained = flatten_layers(model), model.trainable_variables
    known = layouts(trained, [path_of(v) for v in trained])
    loss = getattr(model, "loss", None) if getattr(model, "compiled", False) else None
    name = loss if isinstance(loss, str) else getattr(loss, "name", None) or getattr(loss, "__name__", None)

    alone = len(getattr(model, "outputs", None) or [model]) == 1 and not model.losses

    def has(kinds: type | tuple[type, ...]) -> bool:
        return any(isinstance(layer, kinds) for layer in layers)

    return Facts(
        weights=sum(math.prod(layout) for layout in known),
        tables=tuple(layout for layout in known if layout.is_table),
        table_weights=sum(math.prod(layout) for layout in known if layout.is_table),
        width=max((min(layout.fan_in, layout.fan_out) for layout in known if layout.is_matrix), default=1),
        weight_bytes=_size(model.weights),
        gradient_bytes=_size(trained),
        attention=any("attention" in type(layer).__name__.lower() for layer in layers),
        convolution=has(CONVOLUTIONS),
        recurrent=has(keras.layers.RNN),
        batch_norm=has(keras.layers.BatchNormalization),
        noise=any(isinstance(layer, NOISE) and getattr(layer, "rate", 1) for layer in layers),
        adapters=adapters_of(model) is not None,
        short=any(keras.backend.standardize_dtype(v.dtype) in SHORT for v in trained),
        float16=any(getattr(layer, "compute_dtype", None) == "float16" for layer in layers),
        squares=alone and str(name) in ("mse", "MSE", "mean_squared_error", "MeanSquaredError"),
        **run,
    )


def _size(variables: Any) -> int:
    return sum(math.prod(v.shape) * _width(v) for v in variables)


def _width(variable: Any) -> int:
    dtype = keras.backend.standardize_dtype(variable.dtype)
    return np.dtype("float16" if dtype == "bfloat16" else dtype).itemsize

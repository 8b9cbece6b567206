"""Learning rates that fall from the output of a model to its input."""

import re
from typing import Annotated, Any

import keras

from kopt.declare import Range, checked


@checked
def layerwise_decay(model: Any, rate: Annotated[float, Range(above=0, high=1, closed=True)]) -> list[tuple[str, float]]:
    """Returns multipliers that make layers near the input of a pretrained model learn more slowly.

    The last layer with trainable weights keeps the learning rate, the one before has `rate` times that, and so on. A
    layer is what stands in `model.layers`, such as a whole transformer block; models inside of the model are looked
    into.

        optimizer = kopt.AdamW(1e-4, multipliers=kopt.layerwise_decay(model, 0.9))

    Args:
        model: a built Keras model.
        rate: factor from one layer to the one before, in (0, 1].

    Returns:
        (regular expression, factor) pairs for `multipliers`.

    Raises:
        ValueError: the rate is out of range, two weights have one path, or the model has no trainable weights, perhaps
            as it is not built.

    Reference: Howard and Ruder, 2018, arXiv:1801.06146 (there 1/2.6); Clark et al., 2020, arXiv:2003.10555.
    """
    levels = [[v.path for v in layer.trainable_variables] for layer in _layers(model)]
    levels = [level for level in levels if level]
    depths: dict[str, set[int]] = {}
    for layer in _layers(model):
        for v in layer.trainable_variables:
            depths.setdefault(v.path, set()).add(id(v))
    if twice := [path for path, weights in depths.items() if len(weights) > 1]:
        raise ValueError(
            f"layerwise_decay: {len(depths[twice[0]])} weights have the path {twice[0]!r}, and no pattern tells them "
            "apart. Give the layers names of their own."
        )
    if not levels:
        raise ValueError(f"layerwise_decay: {model.name!r} has no trainable weights. Build it first, and unfreeze it.")
    name, seen = f"{model.name}/", set[str]()
    front = f"({re.escape(name)})?"  # which the paths lose when the model is loaded
    pairs = []
    for depth, level in enumerate(reversed(levels)):
        if own := [path for path in level if path not in seen]:  # a shared layer counts where it stands last
            pairs.append((f"^{front}({'|'.join(re.escape(path.removeprefix(name)) for path in own)})$", rate**depth))
            seen |= set(own)
    return pairs


def _layers(model: Any) -> list[Any]:
    """Returns the layers of a model from input to output, those of models inside of it one by one."""
    found = []
    for layer in model.layers:
        found += _layers(layer) if isinstance(layer, keras.Model) else [layer]
    return found

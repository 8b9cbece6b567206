"""Learning rates that fall from the output of a model to its input."""

import re
from typing import Annotated, Any

import keras

from kopt.declare import Range, checked
from kopt.declare.path_rules import resolve


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
    layers = _layers(model)
    levels = [level for layer in layers if (level := [v.path for v in layer.trainable_variables])]
    weights: dict[str, set[int]] = {}
    for v in (v for layer in layers for v in layer.trainable_variables):
        weights.setdefault(v.path, set()).add(id(v))
    if twice := [path for path, each in weights.items() if len(each) > 1]:
        raise ValueError(
            f"layerwise_decay: {len(weights[twice[0]])} weights have the path {twice[0]!r}, and no pattern tells them "
            "apart. Give the layers names of their own."
        )
    if not levels:
        raise ValueError(f"layerwise_decay: {model.name!r} has no trainable weights. Build it first, and unfreeze it.")
    seen: set[str] = set()
    groups = []
    for depth, level in enumerate(reversed(levels)):
        if own := [path for path in level if path not in seen]:  # a shared layer counts where it stands last
            groups.append((own, rate**depth))
            seen |= set(own)
    paths, factors = [path for own, _ in groups for path in own], [factor for own, factor in groups for _ in own]
    for pattern_of in (_without_front, re.escape):
        pairs = [(f"^({'|'.join(map(pattern_of, own))})$", factor) for own, factor in groups]
        if resolve("layerwise_decay", pairs, paths) == factors:
            break
    return pairs


def _without_front(path: str) -> str:
    """Returns a pattern of a path that may lack names at its front, as those of models do that were loaded."""
    *front, layer, variable = path.split("/") if "/" in path else ("", path)
    optional = "".join(f"({re.escape(name)}/" for name in front) + ")?" * len(front)
    return (optional if front else "") + re.escape("/".join(filter(None, (layer, variable))))


def _layers(model: Any) -> list[Any]:
    """Returns the layers of a model from input to output, those of models inside of it one by one."""
    found = []
    for layer in model.layers:
        found += _layers(layer) if isinstance(layer, keras.Model) else [layer]
    return found

"""How much memory an optimizer takes beside the weights."""

import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from kopt.optimizers.engine.contract import Options, Rule
from kopt.optimizers.engine.setup import PART
from kopt.optimizers.engine.state.codecs import codec
from kopt.optimizers.engine.state.layout import Layout, layouts
from kopt.optimizers.engine.state.start import path_of
from kopt.optimizers.optimizer import Optimizer


def state_bytes(optimizer: Optimizer, weights: Any = None) -> int:
    """Returns the bytes that an optimizer keeps for weights: slots, averages, accumulated gradients, rounding errors.

        kopt.state_bytes(kopt.Adam(), [(1024, 4096)])       # 33,554,432: 8 bytes a parameter

    Args:
        optimizer: one of kopt. It may be built, and makes nothing here.
        weights: a model, variables, or shapes, which count as float32; None: the weights the optimizer is built for.

    Returns:
        Bytes on one device. The few scalars that do not grow with the weights are left out.

    Raises:
        ValueError: `optimizer` is none of kopt, or not built, and no weights are given.
    """
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"state_bytes takes an optimizer of kopt. Received: {optimizer!r}")
    if weights is None:
        weights = [p.variable for p in optimizer.setup.parameters]
    variables = weights.trainable_variables if isinstance(weights, keras.Model) else list(weights)
    rules, options = optimizer.rules_by_key(), Options.of(optimizer)
    shaped = [not hasattr(v, "dtype") for v in variables]
    if any(shaped):
        known, short = [Layout(shape) for shape in variables], [False] * len(variables)
    else:
        paths = [path_of(v) for v in variables]
        known = layouts(variables, paths)
        short = [keras.backend.standardize_dtype(v.dtype) in ("bfloat16", "float16") for v in variables]
    return sum(
        _of_slots(layout, rules[optimizer.key_of(layout.path)], options)
        + _around(layout, rules[optimizer.key_of(layout.path)], options, is_short)
        for layout, is_short in zip(known, short, strict=True)
    )


def update_bytes(optimizer: Optimizer, model: keras.Model) -> int:
    """Returns about what an update of a model needs for a while, beside weights, gradients and state.

    Weights are moved in parts. While one is moved, its new slots stand beside the old ones. A rule that looks at a
    whole weight makes the gradient of an embedding dense, and needs `work` arrays of the size of the part: its sums are
    products on a CPU, so that squares and the like are written out, and so are the products of rules for matrices.

    Args:
        optimizer: one of kopt. It may be built, and makes nothing here.
        model: built.
    """
    variables, rules = model.trainable_variables, optimizer.rules_by_key()
    known = layouts(variables, [path_of(v) for v in variables])
    sizes = [_size(layout, "float32") for layout in known]
    if not sum(sizes):
        return 0
    part = max(PART, *sizes)
    own = [(layout, rules[optimizer.key_of(layout.path)]) for layout in known]
    whole = [layout for layout, rule in own if not rule.is_row_wise(layout)]
    arrays = sum(rule.work * _size(layout, "float32") for layout, rule in own if not rule.is_row_wise(layout))
    together = min(1.0, part / max(1, sum(_size(layout, "float32") for layout in whole)))
    dense = sum(_size(layout, "float32") for layout in whole if layout.is_table)
    return int(min(1.0, part / sum(sizes)) * state_bytes(optimizer, model) + together * arrays) + dense


def _of_slots(layout: Layout, rule: Rule, options: Options) -> int:
    return sum(
        _size(shape, dtype)
        for slot in rule.slots.values()
        for shape, dtype in codec(slot, options.state_dtype, layout).parts(slot.shape_for(layout), "float32").values()
    )


def _around(layout: Layout, rule: Rule, options: Options, is_short: bool) -> int:
    own, rows = _size(layout, "float32"), _size(layout[:1], "int32")
    averages = own + rows if options.use_ema else 0
    marks = _size(layout[:1], "bool") if layout and options.sparse == "lazy" and rule.is_row_wise(layout) else 0
    accumulated = own + marks if options.gradient_accumulation_steps else 0
    return averages + accumulated + (_size(layout, "float16") if is_short and options.rounding == "kahan" else 0)


def _size(shape: Iterable[int], dtype: str) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize

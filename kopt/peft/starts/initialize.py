"""The verb: a LoRA that starts from data."""

import inspect
import re
from typing import Any

import numpy as np

from kopt.peft.adapter import Adapter
from kopt.peft.layers import child_of, find_site
from kopt.peft.methods import LoRA
from kopt.peft.model import Plan, add_adapter, plan, put_adapter
from kopt.peft.requirements import require_method
from kopt.peft.starts.batches import lora_of
from kopt.peft.starts.corda import corda
from kopt.peft.starts.eva import eva
from kopt.peft.starts.loftq import loftq
from kopt.peft.starts.lora_ga import lora_ga

_STARTS: dict[str, Any] = {"eva": eva, "corda": corda, "lora_ga": lora_ga, "loftq": loftq}
_RANKS = {"eva": 1, "corda": 1, "lora_ga": 2, "loftq": 1}
"""How many times the rank the kernel must have."""


def initialize(model: Any, adapter: Adapter, batches: Any = None, adapter_name: str = "default", **options: Any) -> Any:
    r"""Adds a LoRA whose factors start from what the base does with some batches, and makes it the active one.

    Its `init_lora_weights` says how:

    - "eva": A are the first principal components of the inputs of the layer; B = 0. Components that explain more of the
      variance of their inputs take ranks from others: a layer gets up to `rho` times its rank, another less or none,
      with the sum as before. Options: `rho` ≥ 1 (2), where 1 leaves the ranks alone, and `whiten` (False), whether
      components are divided by the roots of their singular values. Keeps in² numbers for each layer while it looks.
    - "corda": A B are the singular values of the kernel, weighed by the products of the inputs, that matter most to the
      batches, or least. Option: `corda_method`, "ipm" (most, for learning more of the same; the default) or "kpm"
      (least: what the batches need is kept).
    - "lora_ga": A B are singular vectors of the gradient of the loss, with which the first step goes along that of full
      fine-tuning. The model must be compiled, and batches have targets, (x, y). Option: `gamma` > 0 (16), which scales
      them down. The authors train with `use_rslora`.
    - "loftq": the layers are quantized, and A B are the nearest to what that takes from their kernels, so that the
      model is nearer to what it was than with `quantize` alone. No batches. Options: `mode`, "int4" (default) or
      "int8", and `iterations` ≥ 1 (1), how often kernels are quantized, each time without what A B hold.

    "corda" and "lora_ga" keep their start A₀, B₀ beside A and B, W' = W + s (A B - A₀ B₀): the base stays as it is, the
    model computes what it did, and files are plain LoRA of rank 2 r. Inputs at positions that a "padding_mask" leaves
    out are not looked at. The adapters that the model has are off meanwhile.

    Args:
        model: a built model.
        adapter: the `LoRA`, or a variant of it.
        batches: a list or data set of some batches, as `fit` takes them; None for "loftq".
        adapter_name: its name in this model.
        **options: as above.

    Returns:
        `model`, the same object.

    Raises:
        ValueError: the adapter does not start from data, a layer is of a kind that the start does not take, its kernel
            is too small for the rank, there are no batches, or as for `get_peft_model`. The model is then as before.
        TypeError: an option is not one of this start.

    Differs from Hugging Face peft: EVA looks at each batch once and is exact, where peft goes round until its
    approximation settles. LoRA-GA follows the paper; peft multiplies B by the singular values. Convolutions and
    embeddings are taken by "lora_ga" alone. LoftQ counts s, which peft takes for 1, and the formats are those of Keras.
    Reference: EVA: Paischer et al., 2024, arXiv:2410.07170; CorDA: Yang et al., 2024, arXiv:2406.05223; LoRA-GA: Wang,
    Yu and Li, 2024, arXiv:2407.05000; LoftQ: Li et al., 2023, arXiv:2310.08659.
    """
    require_method(model, adapter)
    if not isinstance(adapter, LoRA) or not adapter.from_data:
        raise ValueError(
            f"initialize takes a LoRA with init_lora_weights of {', '.join(map(repr, _STARTS))}; others are put in by "
            f"get_peft_model(model, adapter). Received: {adapter!r}"
        )
    kind = str(adapter.init_lora_weights)
    known = list(inspect.signature(_STARTS[kind]).parameters)[3:]
    if unknown := [name for name in options if name not in known]:
        raise TypeError(f"initialize: {kind!r} has no option {unknown[0]!r}, but {', '.join(known)}.")
    plans = plan(model, adapter)
    beside = {path for path, step in plans.items() if step.targeted and not isinstance(step.adapter, LoRA)}
    targeted = {path: step for path, step in plans.items() if step.targeted and path not in beside}
    for path, step in plans.items():
        if path not in beside:
            _check(kind, path, step)
    trial = type(adapter)(**adapter.get_config() | {"init_lora_weights": True})
    add_adapter(model, trial, adapter_name).remove(adapter_name)  # refuses what it does before batches are looked at
    starts = _STARTS[kind](model, targeted, batches, **options)  # and before LoftQ quantizes the base
    own = {path: {key: start.pop(key) for key in ("r", "lora_alpha") if key in start} for path, start in starts.items()}
    config = adapter.get_config() | {"target_modules": sorted(own)}
    if kind == "eva":  # patterns that name a path are looked at before others that fit it
        for field, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
            config[pattern] = {re.escape(path): own[path][field] for path in sorted(own, key=len, reverse=True)}
    for path, start in starts.items():
        if kind in ("corda", "lora_ga"):
            start |= {"start_A": start["lora_A"], "start_B": start["lora_B"]}
        starts[path] = {key: np.asarray(value, "float32") for key, value in start.items()}
    own |= {path: {} for path in beside}
    put_adapter(model, type(adapter)(**config), adapter_name, own, starts, True)
    return model


def _check(kind: str, path: str, step: Plan) -> None:
    """Raises ValueError if a start does not go to a layer."""
    if step.parameters:
        raise ValueError(f"init_lora_weights={kind!r} takes layers, not target_parameters. Received: {path}")
    child = child_of(step.layer)
    site = find_site(step.layer) if child is None else child.site
    if not step.targeted or site is None:
        return
    if kind in ("eva", "corda") and (site.kind != "einsum" or site.batch):
        raise ValueError(
            f"init_lora_weights={kind!r} takes Dense and EinsumDense layers whose call is their own. Leave out {path} "
            f"({type(step.layer).__name__}) with exclude_modules."
        )
    largest, wanted = min(site.fan_in, site.fan_out), _RANKS[kind] * lora_of(step).r
    if wanted > largest:
        raise ValueError(
            f"init_lora_weights={kind!r} takes {wanted} singular vectors of the kernel of {path}, which has {largest}. "
            f"Received: r={lora_of(step).r}"
        )

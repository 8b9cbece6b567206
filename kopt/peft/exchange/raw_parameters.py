"""Adapters of `target_parameters`: how Hugging Face peft lays out those of a tensor that is no module's weight.

For a tensor of all experts, [experts, out, in], peft keeps the factors of all of them in two matrices,

    lora_A [experts · r, in]         lora_B [out, r · experts]

and each adapted tensor of a module wraps the module once more. The last one has the name of the module, those before it
are its `base_layer`, the `base_layer` of that, and so on:

    experts.base_layer.lora_A        gate_up_proj, the first parameter of the module
    experts.lora_A                   down_proj
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from kopt.peft.adapter import Adapter, Array
from kopt.peft.exchange.placement import Factors
from kopt.peft.methods import LoRA

_A, _B = "lora_A.weight", "lora_B.weight"
_WRAPPED = ".base_layer"


def wrapped(parameters: Sequence[str]) -> dict[str, str]:
    """Returns what peft puts after the name of a module, by parameter; they are given in the module's order."""
    return {name: _WRAPPED * (len(parameters) - 1 - i) for i, name in enumerate(parameters)}


def split(name: str) -> tuple[str, str, str] | None:
    """Returns module, wrappers and kind of a factor's name in a file; None of another name."""
    kind = next((kind for kind in (_A, _B) if name.endswith(f".{kind}")), None)
    if kind is None:
        return None
    outer = name.removesuffix(f".{kind}")
    end = len(outer)
    while outer.endswith(_WRAPPED, 0, end):
        end -= len(_WRAPPED)
    return outer[:end], outer[end:], kind


def to_peft(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Returns factors [experts, r, in] and [experts, out, r] as peft lays them out."""
    a, b = tensors[_A], tensors[_B]
    return {
        _A: np.ascontiguousarray(a.reshape(-1, a.shape[-1])),
        _B: np.ascontiguousarray(b.transpose(1, 2, 0).reshape(b.shape[1], -1)),
    }


def from_peft(tensors: Mapping[str, Array], experts: int) -> dict[str, Array]:
    """Returns the factors as [experts, r, in] and [experts, out, r]; the inverse of `to_peft`."""
    a, b = tensors[_A], tensors[_B]
    return {
        _A: a.reshape(experts, -1, a.shape[-1]),
        _B: b.reshape(b.shape[0], -1, experts).transpose(2, 0, 1),
    }


def fits(tensors: Mapping[str, Array], factors: Factors) -> bool:
    """Returns whether factors as peft lays them out can be those of a tensor."""
    if set(tensors) != {_A, _B} or any(tensor.ndim != 2 for tensor in tensors.values()):
        return False
    a, b, (experts,) = tensors[_A], tensors[_B], factors.batch
    shapes = a.shape[1] == factors.input_shape[0] and b.shape[0] == factors.output_length
    return shapes and a.shape[0] == b.shape[1] and a.shape[0] > 0 and a.shape[0] % experts == 0


def with_rank(tensors: Mapping[str, Array], scaling: float, adapter: LoRA) -> dict[str, Array]:
    """Returns factors of the same change with the rank and the scaling of an adapter.

    Args:
        tensors: [experts, r, in] and [experts, out, r].
        scaling: their own factor s.
        adapter: the method; its rank is not less than theirs.
    """
    a, b = tensors[_A], tensors[_B] * np.float32(scaling / adapter.scaling)
    missing = adapter.r - a.shape[1]
    return {_A: np.pad(a, ((0, 0), (0, missing), (0, 0))), _B: np.pad(b, ((0, 0), (0, 0), (0, missing)))}


def check_method(adapter: Adapter, path: str) -> None:
    """Raises ValueError unless peft has the method for parameters."""
    if not isinstance(adapter, LoRA) or not adapter.in_peft or adapter.fixed["use_dora"] or adapter.lora_dropout:
        what = f"lora_dropout={adapter.lora_dropout}" if isinstance(adapter, LoRA) and adapter.lora_dropout else "this"
        raise ValueError(
            f"{path} is adapted by {type(adapter).__name__} with target_parameters. For these peft has LoRA without "
            f"dropout, and not {what}, so the adapter cannot be written in its form. model.save(...) keeps it."
        )


def scaling_of(alpha: float, rank: int, use_rslora: bool) -> float:
    """Returns the factor s of LoRA."""
    return alpha / (math.sqrt(rank) if use_rslora else rank)


def alpha_of(scaling: float, rank: int, use_rslora: bool) -> float:
    """Returns the α with which LoRA of that rank has the factor s."""
    return scaling * (math.sqrt(rank) if use_rslora else rank)

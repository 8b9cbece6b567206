"""The names that Hugging Face peft has for the configurations of methods, with all fields that they have there."""

from collections.abc import Mapping
from typing import Any, TypeVar

from kopt.declare.fields import plain
from kopt.peft.adapter import Adapter
from kopt.peft.methods.adalora import AdaLoRA
from kopt.peft.methods.c3a import C3A
from kopt.peft.methods.delora import DeLoRA
from kopt.peft.methods.dora import DoRA
from kopt.peft.methods.fourierft import FourierFT
from kopt.peft.methods.gralora import GraLoRA
from kopt.peft.methods.hira import HiRA
from kopt.peft.methods.hra import HRA
from kopt.peft.methods.ia3 import IA3
from kopt.peft.methods.layer_norm_tuning import LayerNormTuning
from kopt.peft.methods.loha import LoHa
from kopt.peft.methods.lokr import LoKr
from kopt.peft.methods.lora import LoRA
from kopt.peft.methods.miss import MiSS
from kopt.peft.methods.oft import OFT
from kopt.peft.methods.p_tuning import PTuning
from kopt.peft.methods.prefix import PrefixTuning
from kopt.peft.methods.prompt import PromptTuning
from kopt.peft.methods.randlora import RandLoRA
from kopt.peft.methods.road import RoAd
from kopt.peft.methods.shira import SHiRA
from kopt.peft.methods.trainable_tokens import TrainableTokens
from kopt.peft.methods.vera import VeRA
from kopt.peft.peft_fields import CARRIED, FIELDS, FOUND, STARTS, TRAINING, UNSUPPORTED, USUAL_STARTS

Method = TypeVar("Method", bound=Adapter)


def LoraConfig(r: int = 8, *, use_dora: bool = False, **options: Any) -> LoRA:
    """Returns `LoRA(r=r, **options)`, or `DoRA(...)` with `use_dora`, from any fields of peft's `LoraConfig`.

    `task_type`, `base_model_name_or_path`, `revision` and others that say where an adapter belongs are kept in `extra`
    and written by `save_pretrained`; `fan_in_fan_out` and others that kopt finds in the model need not be given.

    Args:
        r: ≥ 1, rank of the change.
        use_dora: whether the lengths of the outputs' weights are learned apart.
        **options: arguments of `LoRA`, and fields of peft.

    Raises:
        ValueError: a field is unknown or out of range, or asks for what kopt does not do.
    """
    if not isinstance(use_dora, bool):
        raise ValueError(f"LoraConfig: use_dora must be True or False. Received: use_dora={use_dora!r}")
    return _from_peft("LoraConfig", DoRA if use_dora else LoRA, {"r": r} | options)


def IA3Config(**options: Any) -> IA3:
    """Returns `IA3(**options)` from any fields of peft's `IA3Config`; see `LoraConfig`.

    Raises:
        ValueError: a field is unknown or out of range, or asks for what kopt does not do.
    """
    return _from_peft("IA3Config", IA3, options)


def LNTuningConfig(**options: Any) -> LayerNormTuning:
    """Returns `LayerNormTuning(**options)` from any fields of peft's `LNTuningConfig`; see `LoraConfig`.

    Raises:
        ValueError: a field is unknown or out of range, or asks for what kopt does not do.
    """
    return _from_peft("LNTuningConfig", LayerNormTuning, options)


def PromptTuningConfig(**options: Any) -> PromptTuning:
    """Returns `PromptTuning(**options)` from any fields of peft's `PromptTuningConfig`; see `LoraConfig`.

    Raises:
        ValueError: a field is unknown or out of range, or asks for what kopt does not do.
    """
    return _from_peft("PromptTuningConfig", PromptTuning, options)


def PrefixTuningConfig(**options: Any) -> PrefixTuning:
    """Returns `PrefixTuning(**options)` from any fields of peft's `PrefixTuningConfig`; see `LoraConfig`.

    Raises:
        ValueError: a field is unknown or out of range, or asks for what kopt does not do.
    """
    return _from_peft("PrefixTuningConfig", PrefixTuning, options)


def AdaLoraConfig(**options: Any) -> AdaLoRA:
    """Returns `AdaLoRA(**options)` from any fields of peft's `AdaLoraConfig`; see `LoraConfig`.

    Raises:
        ValueError: a field is unknown or out of range, or asks for what kopt does not do.
    """
    return _from_peft("AdaLoraConfig", AdaLoRA, options)


def PromptEncoderConfig(**options: Any) -> PTuning:
    """Returns `PTuning(**options)` from any fields of peft's `PromptEncoderConfig`; see `LoraConfig`.

    Raises:
        ValueError: a field is unknown or out of range, or asks for what kopt does not do.
    """
    return _from_peft("PromptEncoderConfig", PTuning, options)


def HiraConfig(**options: Any) -> HiRA:
    """Returns `HiRA(**options)` from any fields of peft's `HiraConfig`; see `LoraConfig`.

    Raises:
        ValueError: a field is unknown or out of range, or asks for what kopt does not do.
    """
    return _from_peft("HiraConfig", HiRA, options)


def LoHaConfig(**options: Any) -> LoHa:
    """Returns `LoHa(**options)` from any fields of peft's `LoHaConfig`; see `LoraConfig`.

    Raises:
        ValueError: a field is unknown or out of range, or asks for what kopt does not do.
    """
    return _from_peft("LoHaConfig", LoHa, options)


def LoKrConfig(**options: Any) -> LoKr:
    """Returns `LoKr(**options)` from any fields of peft's `LoKrConfig`; see `LoraConfig`.

    Raises:
        ValueError: a field is unknown or out of range, or asks for what kopt does not do.
    """
    return _from_peft("LoKrConfig", LoKr, options)


def MissConfig(**options: Any) -> MiSS:
    """Returns `MiSS(**options)` from any fields of peft's `MissConfig`; see `LoraConfig`.

    Raises:
        ValueError: a field is unknown or out of range, or asks for what kopt does not do.
    """
    return _from_peft("MissConfig", MiSS, options)


def OFTConfig(**options: Any) -> OFT:
    """Returns `OFT(**options)` from any fields of peft's `OFTConfig`; see `LoraConfig`.

    Raises:
        ValueError: a field is unknown or out of range, or asks for what kopt does not do.
    """
    return _from_peft("OFTConfig", OFT, options)


def RandLoraConfig(**options: Any) -> RandLoRA:
    """Returns `RandLoRA(**options)` from any fields of peft's `RandLoraConfig`; see `LoraConfig`.

    Raises:
        ValueError: a field is unknown or out of range, or asks for what kopt does not do.
    """
    return _from_peft("RandLoraConfig", RandLoRA, options)


def ShiraConfig(**options: Any) -> SHiRA:
    """Returns `SHiRA(**options)` from any fields of peft's `ShiraConfig`; see `LoraConfig`.

    Raises:
        ValueError: a field is unknown or out of range, or asks for what kopt does not do.
    """
    return _from_peft("ShiraConfig", SHiRA, options)


def VeraConfig(**options: Any) -> VeRA:
    """Returns `VeRA(**options)` from any fields of peft's `VeraConfig`; see `LoraConfig`.

    Raises:
        ValueError: a field is unknown or out of range, or asks for what kopt does not do.
    """
    return _from_peft("VeraConfig", VeRA, options)


def TrainableTokensConfig(**options: Any) -> TrainableTokens:
    """Returns `TrainableTokens(**options)` from any fields of peft's `TrainableTokensConfig`; see `LoraConfig`.

    Raises:
        ValueError: a field is unknown or out of range, or asks for what kopt does not do.
    """
    return _from_peft("TrainableTokensConfig", TrainableTokens, options)


def C3AConfig(**options: Any) -> C3A:
    """Returns `C3A(**options)` from any fields of peft's `C3AConfig`; see `LoraConfig`.

    Raises:
        ValueError: a field is unknown or out of range, or asks for what kopt does not do.
    """
    return _from_peft("C3AConfig", C3A, options)


def DeloraConfig(**options: Any) -> DeLoRA:
    """Returns `DeLoRA(**options)` from any fields of peft's `DeloraConfig`; see `LoraConfig`.

    Raises:
        ValueError: a field is unknown or out of range, or asks for what kopt does not do.
    """
    return _from_peft("DeloraConfig", DeLoRA, options)


def GraloraConfig(**options: Any) -> GraLoRA:
    """Returns `GraLoRA(**options)` from any fields of peft's `GraloraConfig`; see `LoraConfig`.

    Raises:
        ValueError: a field is unknown or out of range, or asks for what kopt does not do.
    """
    return _from_peft("GraloraConfig", GraLoRA, options)


def HRAConfig(**options: Any) -> HRA:
    """Returns `HRA(**options)` from any fields of peft's `HRAConfig`; see `LoraConfig`.

    Raises:
        ValueError: a field is unknown or out of range, or asks for what kopt does not do.
    """
    return _from_peft("HRAConfig", HRA, options)


def RoadConfig(**options: Any) -> RoAd:
    """Returns `RoAd(**options)` from any fields of peft's `RoadConfig`; see `LoraConfig`.

    Raises:
        ValueError: a field is unknown or out of range, or asks for what kopt does not do.
    """
    return _from_peft("RoadConfig", RoAd, options)


def FourierFTConfig(**options: Any) -> FourierFT:
    """Returns `FourierFT(**options)` from any fields of peft's `FourierFTConfig`; see `LoraConfig`.

    Raises:
        ValueError: a field is unknown or out of range, or asks for what kopt does not do.
    """
    return _from_peft("FourierFTConfig", FourierFT, options)


def _from_peft(owner: str, method: type[Method], options: Mapping[str, Any]) -> Method:
    """Returns the method that fields of peft ask for."""
    own = {name: value for name, value in options.items() if name in method.fields or name == "extra"}
    foreign = {name: plain(value) for name, value in options.items() if name not in own}
    for name, value in foreign.items():
        kind = (CARRIED | FOUND).get(name)
        if kind is not None and value is not None and type(value) is not kind:
            raise ValueError(f"{owner}: {name} must be of the type {kind.__name__}. Received: {name}={value!r}")
        if name not in FIELDS:
            raise ValueError(f"{owner} has no argument {name!r}. {method.hint(name, FIELDS)}")
        beyond = name in UNSUPPORTED or (name in TRAINING and name != "eps")
        if (beyond and value) or (name in STARTS and value not in (None, {}, USUAL_STARTS.get(name))):
            raise ValueError(f"{owner}: {name} is not supported. Received: {name}={value!r}")
    if foreign.get("inference_mode"):
        raise ValueError(
            f"{owner}: inference_mode=True is an adapter that is never trained. Leave it out; a trained adapter comes "
            "with load_adapter(model, folder). Received: inference_mode=True"
        )
    if (kind := foreign.get("peft_type")) not in (None, method.peft_type):
        raise ValueError(f"{owner}: peft_type must be {method.peft_type!r}. Received: peft_type={kind!r}")
    if own.get("target_parameters") and own.get("target_modules") == []:
        own["target_modules"] = None  # so peft says that only the parameters are meant
    carried = {name: value for name, value in foreign.items() if name in CARRIED and value is not None}
    return method(**own | {"extra": carried | dict(own.get("extra", {}))})

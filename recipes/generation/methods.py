"""The methods of fine-tuning that a language model can be trained by, and their adapters."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..fine_tuning import adapter_files, methods
from ..fine_tuning.methods import TARGETS, Method, grouped, low_rank, plain, ranked
from ..fine_tuning.methods import count_parameters as count_parameters
from ..readers.pretrained import Pretrained
from ..run.errors import UsageError
from ..run.flags import OptionalCount, OptionalNumber, OptionalPath, OptionalPositive, Range, optional
from ..run.optimizer_flags import OptimizerFlags
from .language_model import BASE

BASES = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct", "bytes": BASE}
"""What `transformers` loads for models that have another name here: a name on the Hub, or a folder of the run."""
Name = Literal[
    "lora",
    "dora",
    "lora-fa",
    "gralora",
    "hira",
    "miss",
    "loha",
    "lokr",
    "vera",
    "randlora",
    "shira",
    "oft",
    "hra",
    "road",
    "ia3",
    "full",
]
OWN = ("rank", "alpha", "dropout", "target", "lora_plus_ratio", "quantize", "adapter")
_ANY = frozenset({"target", "quantize", "adapter"})
_RANKED = _ANY | {"rank"}
_DROPPED = _RANKED | {"dropout"}
METHODS = {
    "lora": Method(1e-3, None, low_rank("LoRA"), frozenset(OWN), (TARGETS,)),
    "dora": Method(1e-3, None, low_rank("DoRA"), frozenset(OWN), (TARGETS,)),
    "lora-fa": Method(1e-3, None, low_rank("LoRAFA"), _DROPPED | {"alpha"}, (TARGETS,)),
    "gralora": Method(1e-3, None, ranked("GraLoRA", 16, "alpha", "gralora_dropout"), _DROPPED | {"alpha"}, (TARGETS,)),
    "hira": Method(1e-3, None, ranked("HiRA", 32, dropout="hira_dropout"), _DROPPED, (TARGETS,)),
    "miss": Method(1e-3, None, ranked("MiSS", 32, dropout="miss_dropout"), _DROPPED, (TARGETS,)),
    "loha": Method(1e-3, None, ranked("LoHa", 16, "alpha"), _RANKED | {"alpha"}, (TARGETS,)),
    "lokr": Method(1e-3, None, ranked("LoKr", 16, "alpha"), _RANKED | {"alpha"}, (TARGETS,)),
    "vera": Method(1e-2, None, ranked("VeRA", 256, dropout="vera_dropout"), _DROPPED, (TARGETS,)),
    "randlora": Method(
        1e-3, None, ranked("RandLoRA", 32, "randlora_alpha", "randlora_dropout"), _DROPPED | {"alpha"}, (TARGETS,)
    ),
    "shira": Method(1e-3, None, ranked("SHiRA", 32), _RANKED, (TARGETS,)),
    "oft": Method(1e-3, None, plain("OFT"), _ANY, (TARGETS,)),
    "hra": Method(3e-4, None, ranked("HRA", 8), _RANKED, (TARGETS,)),
    "road": Method(1e-2, None, grouped("RoAd", 16), _ANY, (TARGETS,)),
    "ia3": Method(1e-2, None, plain("IA3"), _ANY, (TARGETS,)),
    "full": Method(1e-4, None, None),
}


@dataclasses.dataclass(frozen=True)
class AdapterFlags:
    """The method of fine-tuning."""

    method: Name = "lora"
    """What is trained: an adapter, or all weights (full)."""
    rank: OptionalCount = None
    """Rank of the adapter. Default: one that suits the method, 16 of lora."""
    alpha: OptionalPositive = None
    """Numerator of the adapter's scale. Default: twice the rank."""
    dropout: Annotated[OptionalNumber, Range(0, 1)] = None
    """Share of the inputs that an adapter does not see while training. Default: none."""
    target: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Layer to adapt: a name (can be repeated), or a regular expression of the whole path. Default: all-linear."""
    quantize: Annotated[Literal["nf4", "int8", "int4"] | None, optional("nf4|int8|int4")] = None
    """Keep the kernels of the model below the adapter in so few bits; with nf4 that is QLoRA."""
    lora_plus_ratio: Annotated[OptionalNumber, Range(1)] = None
    """Learning rate of the factor B of lora and dora as a multiple of that of A (LoRA+)."""
    adapter: OptionalPath = None
    """Adapter to start from: a run, or an adapter folder written by kopt or Hugging Face peft."""

    @property
    def adapts(self) -> bool:
        """Returns whether the method has an adapter."""
        return METHODS[self.method].make is not None


def check(flags: AdapterFlags) -> None:
    """Checks that the method uses every flag that is given.

    Raises:
        UsageError: it does not use one of them.
    """
    methods.check(flags, METHODS, OWN)


def add_adapter(model: Any, flags: AdapterFlags, pretrained: Pretrained) -> None:
    """Freezes the model, quantizes it if it is to be, and adds the adapter of the flags, or the one to start from.

    Raises:
        UsageError: the adapter does not fit the model.
        DataError: the saved one cannot be read, or is of another method or model.
    """
    method = METHODS[flags.method]
    if method.make is None:
        return
    from kopt import peft

    if flags.quantize is not None:
        try:
            peft.quantize(model, flags.quantize)
        except ValueError as error:
            raise UsageError(f"--quantize {flags.quantize}: {' '.join(str(error).split())}") from error
    if flags.adapter is not None:
        load_adapter(model, flags.adapter, flags.method, pretrained)
        return
    cls, options = method.make(peft, flags.rank, flags.alpha, flags.dropout or 0.0, model.backbone.hidden_dim)
    options["target_modules"] = methods.names_or_pattern(flags.target or method.target)
    if (name := base_name(pretrained)) is not None:
        options["extra"] = {"base_model_name_or_path": name}
    methods.add(model, flags.method, cls, options)


def base_name(pretrained: Pretrained) -> str | None:
    """Returns the base as `transformers` loads it: a name on the Hub, or a folder; `None` for KerasHub's presets."""
    if pretrained.config is None:
        return None
    return BASES.get(pretrained.name, pretrained.name if Path(pretrained.name).is_dir() else pretrained.place)


def learning_rate(flags: AdapterFlags, optim: OptimizerFlags) -> float:
    """Returns the learning rate: the given one, else for AdamW that of the method, else the optimizer's own."""
    return METHODS[flags.method].rate(optim)


def multipliers(flags: AdapterFlags) -> list[tuple[str, float]]:
    """Returns the factors of the learning rate by path of a weight."""
    if flags.lora_plus_ratio is None:
        return []
    from kopt import peft

    found: list[tuple[str, float]] = peft.lora_plus(flags.lora_plus_ratio)
    return found


# -------------------------------------------------------------------------------------------------------------- files


def load_adapter(model: Any, path: Path, method: str, pretrained: Pretrained) -> None:
    """Puts a saved adapter into the model.

    Raises:
        UsageError: the adapter is of another method.
        DataError: it cannot be read or does not fit the model.
    """
    adapter_files.check_kind(path, method, METHODS[method])
    adapter_files.load(model, path, _base(pretrained))


def save_adapter(model: Any, folder: Path, pretrained: Pretrained) -> None:
    """Writes the adapter of the model as Hugging Face peft does."""
    adapter_files.save(model, folder, _base(pretrained), "CAUSAL_LM")


def _base(pretrained: Pretrained) -> str | None:
    return None if pretrained.config is None else pretrained.place


def merge(model: Any, flags: AdapterFlags) -> Any:
    """Merges the adapters into the model, whose kernels are floats again, and returns it without them.

    Raises:
        UsageError: the method has none that can be merged.
    """
    from kopt import peft

    try:
        if flags.quantize is not None:
            peft.dequantize(model)
        return peft.merge_and_unload(model)
    except ValueError as error:
        raise UsageError(f"--merge: {' '.join(str(error).split())}") from error

"""Methods of fine-tuning by name: the adapter of each, its learning rate, and the flags that it uses."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..readers.pretrained import Pretrained
from ..run.errors import DataError, UsageError
from ..run.flags import OptionalCount, OptionalNumber, OptionalPath, OptionalPositive, Range, optional
from ..run.optimizer_flags import OptimizerFlags, default_learning_rate
from .language_model import BASE

CONFIG = "adapter_config.json"
PATTERN = r"*+?[](){}|\^$"
BASES = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct", "bytes": BASE}
"""What `transformers` loads for models that have another name here: a name on the Hub, or a folder of the run."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of fine-tuning.

    Args:
        adapter: class of kopt.peft; `None` trains all weights.
        learning_rate: default for AdamW.
        rank: default of --rank; `None` takes none.
        alpha: its argument for --alpha.
        dropout: its argument for --dropout.
        plus: whether it takes --lora-plus-ratio.
    """

    adapter: str | None
    learning_rate: float
    rank: int | None = None
    alpha: str | None = None
    dropout: str | None = None
    plus: bool = False


Name = Literal[
    "lora", "dora", "lora-fa", "hira", "miss", "loha", "lokr", "vera", "randlora", "shira", "oft", "ia3", "full"
]
METHODS: dict[str, Method] = {
    "lora": Method("LoRA", 1e-3, 16, "lora_alpha", "lora_dropout", plus=True),
    "dora": Method("DoRA", 1e-3, 16, "lora_alpha", "lora_dropout", plus=True),
    "lora-fa": Method("LoRAFA", 1e-3, 16, "lora_alpha", "lora_dropout"),
    "hira": Method("HiRA", 1e-3, 32, None, "hira_dropout"),
    "miss": Method("MiSS", 1e-3, 32, None, "miss_dropout"),
    "loha": Method("LoHa", 1e-3, 16, "alpha"),
    "lokr": Method("LoKr", 1e-3, 16, "alpha"),
    "vera": Method("VeRA", 1e-2, 256, None, "vera_dropout"),
    "randlora": Method("RandLoRA", 1e-3, 32, "randlora_alpha", "randlora_dropout"),
    "shira": Method("SHiRA", 1e-3, 32),
    "oft": Method("OFT", 1e-3),
    "ia3": Method("IA3", 1e-2),
    "full": Method(None, 1e-4),
}
FROZEN = ("rank", "alpha", "dropout", "target")
"""Flags whose values are those of the saved adapter."""


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
        return METHODS[self.method].adapter is not None


def check(flags: AdapterFlags) -> None:
    """Checks that the method uses every flag that is given.

    Raises:
        UsageError: it does not use one of them.
    """
    method = METHODS[flags.method]
    takes = {
        "rank": method.rank,
        "alpha": method.alpha,
        "dropout": method.dropout,
        "lora_plus_ratio": method.plus,
        "target": method.adapter,
        "quantize": method.adapter,
        "adapter": method.adapter,
    }
    for name, used in takes.items():
        if getattr(flags, name) in (None, False, ()):
            continue
        if not used:
            raise UsageError(f"--{name.replace('_', '-')} has no effect with --method {flags.method}. Leave it out.")
        if flags.adapter is not None and name in FROZEN:
            raise UsageError(f"--{name} is fixed by --adapter {flags.adapter}. Leave it out.")


def add_adapter(model: Any, flags: AdapterFlags, pretrained: Pretrained) -> None:
    """Freezes the model, quantizes it if it is to be, and adds the adapter of the flags, or the one to start from.

    Raises:
        UsageError: the adapter does not fit the model.
        DataError: the saved one cannot be read, or is of another method or model.
    """
    method = METHODS[flags.method]
    if method.adapter is None:
        return
    from kopt import peft

    if flags.quantize is not None:
        peft.quantize(model, flags.quantize)
    if flags.adapter is not None:
        load_adapter(model, flags.adapter, flags.method, pretrained)
        return
    options: dict[str, Any] = {"target_modules": _names_or_pattern(flags.target)}
    if method.rank is not None:
        options["r"] = rank = flags.rank or method.rank
        if method.alpha is not None:
            options[method.alpha] = 2.0 * rank if flags.alpha is None else flags.alpha
    if flags.dropout is not None and method.dropout is not None:
        options[method.dropout] = flags.dropout
    name = base_name(pretrained)
    try:
        cls = getattr(peft, method.adapter)
        peft.get_peft_model(model, cls(**options, extra={} if name is None else {"base_model_name_or_path": name}))
    except ValueError as error:
        raise UsageError(f"--method {flags.method}: {' '.join(str(error).split())}") from error


def _names_or_pattern(target: Sequence[str]) -> list[str] | str:
    if not target:
        return "all-linear"
    single = len(target) == 1 and (target[0] == "all-linear" or any(letter in target[0] for letter in PATTERN))
    return target[0] if single else list(target)


def base_name(pretrained: Pretrained) -> str | None:
    """Returns the base as `transformers` loads it: a name on the Hub, or a folder; `None` for KerasHub's presets."""
    if pretrained.config is None:
        return None
    return BASES.get(pretrained.name, pretrained.name if Path(pretrained.name).is_dir() else pretrained.place)


def learning_rate(flags: AdapterFlags, optim: OptimizerFlags) -> float:
    """Returns the learning rate: the given one, else for AdamW that of the method, else the optimizer's own."""
    if optim.learning_rate is not None:
        return optim.learning_rate
    if optim.optimizer.lower() == "adamw":
        return METHODS[flags.method].learning_rate
    return default_learning_rate(optim.optimizer)


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
    from kopt import peft

    folder = next((place for place in (path, path / "adapter") if (place / CONFIG).is_file()), None)
    if folder is None:
        raise DataError(f"--adapter {path}: no {CONFIG} there. Give a folder that save_pretrained wrote, or a run.")
    cls = getattr(peft, METHODS[method].adapter or "")
    try:
        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        found = (kind.get("peft_type"), bool(kind.get("use_dora")))
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / CONFIG}: not a readable configuration of an adapter.") from error
    if found != (cls.peft_type, bool(cls.fixed.get("use_dora"))):
        name = "DoRA" if found[1] else found[0]
        raise UsageError(f"--adapter {path}: holds {name}, which --method {method} does not make.")
    try:
        peft.load_adapter(model, folder, base_model=_base(pretrained))
    except ValueError as error:
        raise DataError(f"--adapter {path}: {' '.join(str(error).split())}") from error


def save_adapter(model: Any, folder: Path, pretrained: Pretrained) -> None:
    """Writes the adapter of the model as Hugging Face peft does."""
    from kopt import peft

    peft.save_pretrained(model, folder, base_model=_base(pretrained), task_type="CAUSAL_LM")


def _base(pretrained: Pretrained) -> str | None:
    return None if pretrained.config is None else pretrained.place


def count_parameters(model: Any) -> tuple[int, int]:
    """Returns the number of trainable parameters, and of all."""
    from kopt import peft

    trained, everything = peft.get_nb_trainable_parameters(model)
    return trained, everything


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

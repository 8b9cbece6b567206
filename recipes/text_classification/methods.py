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
from ..run.flags import OptionalCount, OptionalNumber, OptionalPath, OptionalPositive, Range
from ..run.optimizer_flags import OptimizerFlags
from .labels import FILE as LABELS
from .language_model import HEAD, backbone_of, flatten_backbone, unused_layers

PROMPT = 20
"""Default number of virtual tokens of a prompt."""


def _bottleneck(peft: Any, rank: int | None, alpha: float | None, dropout: float, width: int) -> Any:
    if rank is None:
        return peft.Pfeiffer, {}
    if rank > width:
        raise UsageError(f"--rank {rank}: a bottleneck is no wider than the model, {width}.")
    # The layer's width over the factor is rounded down: half a unit more keeps it from falling below the rank.
    return peft.Pfeiffer, {"reduction_factor": max(1.0, width / (rank + 0.5))}


def virtual_tokens(flags: "AdapterFlags") -> int:
    """Returns how many positions a method takes in front of each text."""
    return (flags.rank or PROMPT) if flags.method == "prompt" and flags.adapter is None else 0


def _prompt(peft: Any, rank: int | None, alpha: float | None, dropout: float, width: int) -> Any:
    return peft.PromptTuning, {"num_virtual_tokens": rank or PROMPT}


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
    "adapter",
    "ia3",
    "bitfit",
    "prompt",
    "head",
    "full",
]
OWN = ("rank", "alpha", "target", "lora_plus_ratio", "head_learning_rate", "adapter", "merge")
_ANY = frozenset({"adapter", "head_learning_rate"})
_TARGETED = _ANY | {"target", "merge"}
_RANKED = _TARGETED | {"rank"}
METHODS = {
    # The rates of gralora, hra, miss, road, shira and prompt are those that `benchmarks.method_rates` found.
    # All layers, at about ten times the rate of full fine-tuning: Schulman et al., "LoRA without regret", 2025.
    "lora": Method(2e-3, 1e-2, low_rank("LoRA"), frozenset(OWN), (TARGETS,)),
    "dora": Method(2e-3, 1e-2, low_rank("DoRA"), frozenset(OWN), (TARGETS,)),
    "lora-fa": Method(2e-3, 1e-2, low_rank("LoRAFA"), _RANKED | {"alpha"}, (TARGETS,)),
    "gralora": Method(2e-3, 1e-2, ranked("GraLoRA", 16, "alpha", "gralora_dropout"), _RANKED | {"alpha"}, (TARGETS,)),
    "hira": Method(2e-3, 1e-2, ranked("HiRA", 32, dropout="hira_dropout"), _RANKED, (TARGETS,)),
    "miss": Method(2e-4, 1e-2, ranked("MiSS", 32, dropout="miss_dropout"), _RANKED, (TARGETS,)),
    "loha": Method(2e-3, 1e-2, ranked("LoHa", 16, "alpha"), _RANKED | {"alpha"}, (TARGETS,)),
    "lokr": Method(2e-3, 1e-2, ranked("LoKr", 16, "alpha"), _RANKED | {"alpha"}, (TARGETS,)),
    "vera": Method(2e-2, 1e-2, ranked("VeRA", 256, dropout="vera_dropout"), _RANKED, (TARGETS,)),
    "randlora": Method(
        2e-3, 1e-2, ranked("RandLoRA", 32, "randlora_alpha", "randlora_dropout"), _RANKED | {"alpha"}, (TARGETS,)
    ),
    "shira": Method(6e-4, 1e-2, ranked("SHiRA", 32), _RANKED, (TARGETS,)),
    "oft": Method(2e-3, 1e-2, plain("OFT"), _TARGETED, (TARGETS,)),
    "hra": Method(6e-4, 1e-2, ranked("HRA", 8), _RANKED, (TARGETS,)),
    "road": Method(2e-2, 1e-2, grouped("RoAd", 16), _TARGETED, (TARGETS,)),
    "adapter": Method(1e-3, 1e-2, _bottleneck, _ANY | {"rank", "target"}),
    "ia3": Method(2e-2, None, plain("IA3"), _TARGETED),
    "bitfit": Method(2e-3, 1e-2, plain("BitFit"), _TARGETED),
    "prompt": Method(2e-2, None, _prompt, _ANY | {"rank"}),
    "head": Method(1e-2, None, None),
    "full": Method(2e-4, 5e-3, None, frozenset({"head_learning_rate"})),
}


@dataclasses.dataclass(frozen=True)
class AdapterFlags:
    """The method of fine-tuning."""

    method: Name = "lora"
    """What is trained: an adapter and the head, only the head (head), or all weights (full)."""
    rank: OptionalCount = None
    """Rank (default: as suits the method, 16 of lora), width of adapter (1/16 of the model), tokens of prompt (20)."""
    alpha: OptionalPositive = None
    """Numerator of the scale alpha/rank, where the method has one. Default: twice the rank."""
    target: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Layer to adapt: a name (can be repeated), all-linear (default of most) or a regular expression of paths."""
    head_learning_rate: OptionalPositive = None
    """Learning rate of the head. Default: with adamw one that suits the method, else --learning-rate."""
    lora_plus_ratio: Annotated[OptionalNumber, Range(1)] = None
    """Learning rate of the factor B of lora and dora as a multiple of that of A (LoRA+)."""
    adapter: OptionalPath = None
    """Adapter to start from: a run, or an adapter folder written by kopt or Hugging Face peft."""
    merge: bool = False
    """Also save the model with the adapter merged into it, as model.keras."""

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


def add_adapter(model: Any, flags: AdapterFlags, dropout: float, pretrained: Pretrained) -> None:
    """Freezes what the method does not train, and adds its adapter to the model.

    Raises:
        UsageError: the adapter does not fit the model.
    """
    make, backbone = METHODS[flags.method].make, backbone_of(model)
    if make is None:
        if flags.method == "head":
            backbone.trainable = False
        return
    from kopt import peft

    width = model.get_layer(HEAD).kernel.shape[0]
    cls, options = make(peft, flags.rank, flags.alpha, dropout, width)
    options["modules_to_save"] = [HEAD]
    if target := flags.target or METHODS[flags.method].target:
        options["target_modules"] = methods.names_or_pattern(target)
    unused = [f"{backbone.name}.{layer.name}" for layer in unused_layers(model) if layer.weights]
    if unused:
        options["exclude_modules"] = unused
    methods.add(model, flags.method, cls, options | {"extra": _extra(pretrained)})


def merge(model: Any) -> Any:
    """Merges the adapters into the model and returns it in a form that can be saved."""
    from kopt import peft

    return flatten_backbone(peft.merge_and_unload(model))


def base_name(pretrained: Pretrained) -> str | None:
    """Returns the name of the base in an adapter's file: on the Hub, or a folder; `None` for KerasHub's presets."""
    if pretrained.config is None:
        return None
    # Not the folder of a package, which is another one on every machine.
    return {"minilm": "sentence-transformers/all-MiniLM-L6-v2"}.get(pretrained.name, pretrained.name)


def _extra(pretrained: Pretrained) -> dict[str, Any]:
    name = base_name(pretrained)
    return {} if name is None else {"base_model_name_or_path": name}


def learning_rate(flags: AdapterFlags, optim: OptimizerFlags) -> float:
    """Returns the learning rate: the given one, else for AdamW that of the method, else the optimizer's own."""
    return METHODS[flags.method].rate(optim)


def multipliers(flags: AdapterFlags, optim: OptimizerFlags) -> list[tuple[str, float]]:
    """Returns the factors of the learning rate by path of a weight."""
    plus, found = flags.lora_plus_ratio, list[tuple[str, float]]()
    if (factor := METHODS[flags.method].head_factor(optim, flags.head_learning_rate)) is not None:
        found.append((rf"(^|/){HEAD}/", factor))
    if plus is not None:
        from kopt import peft

        found += peft.lora_plus(plus)
    return found


# -------------------------------------------------------------------------------------------------------------- files


def labels_of(path: Path) -> Path | None:
    """Returns the folder with what the outputs of an adapter mean, if that was saved with it."""
    folder = adapter_files.folder_of(path)
    return next((place for place in (folder, folder.parent) if (place / LABELS).is_file()), None)


def load_adapter(model: Any, path: Path, method: str, pretrained: Pretrained) -> None:
    """Puts a saved adapter into the model.

    Raises:
        UsageError: the adapter is of another method.
        DataError: it cannot be read or does not fit the model.
    """
    adapter_files.check_kind(path, method, METHODS[method])
    adapter_files.load(model, path, _base(pretrained))


def save_adapter(model: Any, folder: Path, pretrained: Pretrained, method: str) -> None:
    """Writes the adapter of the model as Hugging Face peft does."""
    adapter_files.save(model, folder, _base(pretrained), "SEQ_CLS" if method == "prompt" else None)


def _base(pretrained: Pretrained) -> str | None:
    return None if pretrained.config is None else pretrained.place

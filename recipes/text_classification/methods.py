"""Methods of fine-tuning by name: what each one trains, which flags it uses, and its adapter."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ..readers.pretrained import Pretrained
from ..run.errors import DataError, UsageError
from ..run.flags import OptionalCount, OptionalNumber, OptionalPath, OptionalPositive, Range
from ..run.optimizer_flags import OptimizerFlags, default_learning_rate
from .corpus import LABELS
from .language_model import HEAD, backbone_of, flatten_backbone, unused_layers

CONFIG = "adapter_config.json"
TARGETS = "all-linear"
PROMPT = 20
"""Default number of virtual tokens of a prompt."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of fine-tuning.

    Args:
        learning_rate: default for AdamW.
        head_learning_rate: default for AdamW and the head, which starts from random weights; `None` takes
            `learning_rate`.
        make: function of kopt.peft, rank, alpha, dropout and width of the model that returns the class and its
            arguments; `None` trains without an adapter.
        flags: those of `OWN` that it uses.
    """

    learning_rate: float
    head_learning_rate: float | None
    make: Callable[..., tuple[Any, dict[str, Any]]] | None
    flags: frozenset[str] = frozenset()


def _low_rank(name: str) -> Callable[..., tuple[Any, dict[str, Any]]]:
    def make(peft: Any, rank: int | None, alpha: float | None, dropout: float, width: int) -> Any:
        r = rank or 8
        return getattr(peft, name), {"r": r, "lora_alpha": 2.0 * r if alpha is None else alpha, "lora_dropout": dropout}

    return make


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


def _plain(name: str) -> Callable[..., tuple[Any, dict[str, Any]]]:
    return lambda peft, rank, alpha, dropout, width: (getattr(peft, name), {})


def _prompt(peft: Any, rank: int | None, alpha: float | None, dropout: float, width: int) -> Any:
    return peft.PromptTuning, {"num_virtual_tokens": rank or PROMPT}


Name = Literal["lora", "dora", "adapter", "ia3", "bitfit", "prompt", "head", "full"]
OWN = ("rank", "alpha", "target", "lora_plus_ratio", "head_learning_rate", "adapter", "merge")
_ANY = frozenset({"adapter", "head_learning_rate"})
METHODS = {
    "lora": Method(2e-3, 1e-2, _low_rank("LoRA"), frozenset(OWN)),
    "dora": Method(2e-3, 1e-2, _low_rank("DoRA"), frozenset(OWN)),
    "adapter": Method(1e-3, 1e-2, _bottleneck, _ANY | {"rank", "target"}),
    "ia3": Method(2e-2, None, _plain("IA3"), _ANY | {"target", "merge"}),
    "bitfit": Method(2e-3, 1e-2, _plain("BitFit"), _ANY | {"target", "merge"}),
    "prompt": Method(1e-2, None, _prompt, _ANY | {"rank"}),
    "head": Method(1e-2, None, None),
    "full": Method(2e-4, 5e-3, None, frozenset({"head_learning_rate"})),
}
FROZEN = ("rank", "alpha", "target")
"""Flags whose values are those of the saved adapter."""


@dataclasses.dataclass(frozen=True)
class AdapterFlags:
    """The method of fine-tuning."""

    method: Name = "lora"
    """What is trained: an adapter and the head, only the head (head), or all weights (full)."""
    rank: OptionalCount = None
    """Rank of lora, dora (default 8), width of adapter (default 1/16 of the model), tokens of prompt (default 20)."""
    alpha: OptionalPositive = None
    """Numerator of the scale alpha/rank of lora and dora. Default: twice the rank."""
    target: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Layer to adapt: a name (can be repeated), all-linear, or a regular expression that matches the whole path."""
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
    for name in OWN:
        flag = "--" + name.replace("_", "-")
        if getattr(flags, name) in (None, False, ()):
            continue
        if name not in METHODS[flags.method].flags:
            takers = ", ".join(method for method, known in METHODS.items() if name in known.flags)
            raise UsageError(f"{flag} has no effect with --method {flags.method}; it is for {takers}.")
        if flags.adapter is not None and name in FROZEN:
            raise UsageError(f"{flag} is fixed by --adapter {flags.adapter}. Leave it out.")


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
    if flags.target:
        options["target_modules"] = _names_or_pattern(flags.target)
    unused = [f"{backbone.name}.{layer.name}" for layer in unused_layers(model) if layer.weights]
    if unused:
        options["exclude_modules"] = unused
    try:
        peft.get_peft_model(model, cls(**options, extra=_extra(pretrained)))
    except ValueError as error:
        raise UsageError(f"--method {flags.method}: {' '.join(str(error).split())}") from error


def merge(model: Any) -> Any:
    """Merges the adapters into the model and returns it in a form that can be saved."""
    from kopt import peft

    return flatten_backbone(peft.merge_and_unload(model))


def _names_or_pattern(target: Sequence[str]) -> list[str] | str:
    single = len(target) == 1 and (target[0] == TARGETS or any(c in target[0] for c in r"*+?[](){}|\^$"))
    return target[0] if single else list(target)


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
    if optim.learning_rate is not None:
        return optim.learning_rate
    if _has_defaults_for(optim):
        return METHODS[flags.method].learning_rate
    return default_learning_rate(optim.optimizer)


def _has_defaults_for(optim: OptimizerFlags) -> bool:
    return optim.optimizer.lower() == "adamw"


def multipliers(flags: AdapterFlags, optim: OptimizerFlags) -> list[tuple[str, float]]:
    """Returns the factors of the learning rate by path of a weight."""
    rate, head_rate = learning_rate(flags, optim), flags.head_learning_rate
    plus, found = flags.lora_plus_ratio, list[tuple[str, float]]()
    if head_rate is None and _has_defaults_for(optim):
        head_rate = METHODS[flags.method].head_learning_rate
    if head_rate is not None:
        found.append((rf"(^|/){HEAD}/", head_rate / rate))
    if plus is not None:
        from kopt import peft

        found += peft.lora_plus(plus)
    return found


# -------------------------------------------------------------------------------------------------------------- files


def folder_of(path: Path) -> Path:
    """Returns the folder of the adapter that `--adapter` names, which may be a run.

    Raises:
        DataError: there is none.
    """
    for folder in (path, path / "adapter"):
        if (folder / CONFIG).is_file():
            return folder
    raise DataError(f"--adapter {path}: no {CONFIG} there. Give a folder that save_pretrained wrote, or a run.")


def labels_of(path: Path) -> Path | None:
    """Returns the folder with the names of the classes of an adapter, if they were saved with it."""
    folder = folder_of(path)
    return next((place for place in (folder, folder.parent) if (place / LABELS).is_file()), None)


def load_adapter(model: Any, path: Path, method: str, pretrained: Pretrained) -> None:
    """Puts a saved adapter into the model.

    Raises:
        UsageError: the adapter is of another method.
        DataError: it cannot be read or does not fit the model.
    """
    from kopt import peft

    make = METHODS[method].make
    assert make is not None
    wanted, _ = make(peft, None, None, 0.0, 1)
    folder = folder_of(path)
    try:
        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        found = (kind.get("peft_type"), bool(kind.get("use_dora")))
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{folder / CONFIG}: not a readable configuration of an adapter.") from error
    if found != (wanted.peft_type, bool(wanted.fixed.get("use_dora"))):
        name = "DoRA" if found[1] else found[0]
        raise UsageError(f"--adapter {path}: holds {name}, which --method {method} does not make.")
    try:
        peft.load_adapter(model, folder, base_model=_base(pretrained))
    except ValueError as error:
        raise DataError(f"--adapter {path}: {' '.join(str(error).split())}") from error


def save_adapter(model: Any, folder: Path, pretrained: Pretrained, method: str) -> None:
    """Writes the adapter of the model as Hugging Face peft does."""
    from kopt import peft

    task = "SEQ_CLS" if method == "prompt" else None
    peft.save_pretrained(model, folder, base_model=_base(pretrained), task_type=task)


def _base(pretrained: Pretrained) -> str | None:
    return None if pretrained.config is None else pretrained.place


def count_parameters(model: Any) -> tuple[int, int]:
    """Returns the number of trainable parameters, and of all."""
    from kopt import peft

    trained, everything = peft.get_nb_trainable_parameters(model)
    return trained, everything

"""The flags of the recipe: one dataclass for each command."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..readers.records import OptionalPolicy
from ..run.flags import Count, NonNegative, OptionalPath, Range, RunFlags, RunPath, optional
from ..run.optimizer_flags import OptimizerFlags
from .examples import DataFlags
from .methods import AdapterFlags
from .tokens import Template


@dataclasses.dataclass(frozen=True)
class Train:
    """Fine-tune a causal language model."""

    model: str = "auto"
    """smollm2, bytes (small, trained here), a Hugging Face folder, a GGUF file, or a preset of KerasHub."""
    objective: Literal["sft", "dpo"] = "sft"
    """sft: the next token, of answers where there are prompts; dpo: chosen answers rather than rejected ones."""
    beta: Annotated[float, Range(0, above=True)] = 0.1
    """With dpo, how much a step away from the model without its adapter costs."""
    template: Template = "auto"
    """How prompts are written: by the model's chat template, on lines with who speaks (roles) or without, or none."""
    max_length: Annotated[int, Range(2)] = 256
    """Tokens of a row. Longer plain texts become several, of longer answers the end is left out."""
    packing: bool = True
    """Put several texts into a row, which do not see each other."""
    remat: bool = False
    """Keep the inputs of the blocks alone for the gradient: less memory, and up to two thirds more time."""
    epochs: Count = 1
    """Passes over the training set."""
    batch_size: Count = 4
    """Rows per step; with dpo pairs."""
    data: DataFlags = dataclasses.field(default_factory=DataFlags)
    tune: AdapterFlags = dataclasses.field(default_factory=AdapterFlags)
    optim: OptimizerFlags = dataclasses.field(
        default_factory=lambda: OptimizerFlags(optimizer="adamw", lr_schedule="cosine", warmup="5%", clip_norm=1.0)
    )
    run: RunFlags = dataclasses.field(default_factory=RunFlags)


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Print the test metrics of a run as JSON."""

    model: RunPath
    """Folder of a run."""
    test_data: OptionalPath = None
    """Test file of the same kind as the training data. Default: the test set of the run."""
    on_bad_row: OptionalPolicy = None
    """As for train, of --test-data. Default: as the run."""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Print what the model writes, as it writes it."""

    model: RunPath
    """Folder of a run."""
    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What to answer, or to go on from; can be repeated."""
    system: Annotated[str | None, optional("TEXT")] = None
    """System message before each prompt, as in the chats that were trained on."""
    max_tokens: Count = 128
    """At most this many tokens."""
    temperature: NonNegative = 0.7
    """More makes rare words more frequent; 0 takes the most probable token always."""
    top_p: Annotated[float, Range(0, above=True)] = 0.9
    """Draw from the most probable tokens that have this probability together; 1 draws from all."""
    seed: Annotated[int, Range(0)] = 0
    """Seed of the draws."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Copy the adapter of a run to a folder, or the whole model to model/ in it if the run has no adapter."""

    model: RunPath
    """Folder of a run."""
    to: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder to write, which must be empty or new."""
    merge: bool = False
    """Write the model with the adapter merged into it instead."""

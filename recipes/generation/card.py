"""What is written about a run of the recipe: the model card, and samples."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..run.command_line import program
from ..run.facts import rows_of_card, table

MOST = 1000
"""Characters of a text in the table of samples."""

TEXT = """# {model} fine-tuned by {method}

    {command}

{table}

{measure}

    {program} predict --model {folder} --prompt "..."

{use}The settings are in `config.yaml`.
"""

WHOLE = """`model/` is the whole model: a folder of Hugging Face where KerasHub can write one, else its own preset.

"""

ADAPTER = """`adapter/` loads in Hugging Face peft:

```python
import peft, transformers

model = transformers.AutoModelForCausalLM.from_pretrained("{base}")
model = peft.PeftModel.from_pretrained(model, "adapter").eval()
```

"""


def card(folder: Path, command: str, flags: Any, metrics: Mapping[str, Any], in_peft: bool) -> str:
    """Returns the model card of a run.

    Args:
        folder: of the run.
        command: that of the run.
        flags: all flags.
        metrics: of the run.
        in_peft: whether Hugging Face peft knows the adapter.
    """
    dpo, held = flags.objective == "dpo", metrics["validation_data"]
    names = {"margin": "Margin", "accuracy": "Pairs ordered as they should be", "loss": "Loss"}
    if not dpo:
        names = {"perplexity": "Perplexity", "loss": "Loss"}
    rows = {f"{title}, test set": f"{metrics[f'test_{name}']:.4f}" for name, title in names.items()}
    if not dpo:
        rows["Perplexity before the training, test set"] = f"{metrics['test_perplexity_before']:.4f}"
    rows |= {
        "Trained parameters": f"{metrics['trained_parameters']:,} of {metrics['parameters']:,}",
        "Kernels of the base": metrics["quantize"] or "as they were",
        "Peak memory": "unknown" if metrics["peak_memory_mb"] is None else f"{metrics['peak_memory_mb']:,.0f} MB",
        "Training data": f"{metrics['data']}, {metrics['train_examples']:,} examples",
        "Tokens that are learnt": f"{metrics['train_tokens']:,}",
        "Validation data": f"{held}, {metrics['validation_examples']:,} examples" if held else "none",
        "Test data": f"{metrics['test_data']}, {metrics['test_examples']:,} examples",
        **rows_of_card(metrics),
    }
    use = "" if flags.tune.adapts else WHOLE
    if in_peft and metrics["base"] is not None:
        use += ADAPTER.format(base=metrics["base"])
    return TEXT.format(
        model=metrics["model"],
        method=metrics["method"] + (" and DPO" if dpo else ""),
        command=command,
        table=table(rows),
        measure="The margin is how much more the chosen answers have gained than the others, in nats times --beta."
        if dpo
        else "Perplexity is that of the tokens that are learnt: of answers where there are prompts, else of all.",
        program=program("generation"),
        folder=shlex.quote(str(folder)),
        use=use,
    )


def tabulate_samples(samples: Sequence[tuple[str, str, str]]) -> str:
    """Returns a Markdown table of prompts, what the model wrote, and what stood there."""
    lines = ["| prompt | written | the data |", "|---|---|---|"]
    return "\n".join([*lines, *("| " + " | ".join(map(_escape, sample)) + " |" for sample in samples)])


def _escape(text: str) -> str:
    line = text if len(text) <= MOST else text[:MOST] + "..."
    for character in "\\|<>`*_#":
        line = line.replace(character, f"\\{character}")
    return line.replace("\n", "<br>")

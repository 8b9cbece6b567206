"""What is written about a run of the recipe: the model card, and samples with predictions."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..run.batches import Array
from ..run.command_line import program
from ..run.facts import rows_of_card, table
from .corpus import Split
from .labels import Labels

WORST = 10
OTHERS = 10
MAX_CHARACTERS = 200
"""Of a text in the table of samples."""

PREDICT = """    {program} predict --model {folder} --text "..."
"""

WHOLE = """`model.keras` takes dictionaries of `token_ids` and `padding_mask`{segments} [n, tokens] and gives {given}:

```python
import keras
import keras_hub  # so that Keras knows the layers

model = keras.models.load_model("model.keras")
```
"""

POOLER = """
```python
import peft, transformers

model = transformers.AutoModelForSequenceClassification.from_pretrained("{base}", num_labels={classes})
model = peft.PeftModel.from_pretrained(model, "adapter").eval()
```
"""

MEAN = """
```python
import peft, torch, transformers

class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.{prefix} = transformers.AutoModel.from_pretrained("{base}")
        self.classifier = torch.nn.Linear(self.{prefix}.config.hidden_size, {classes})

    def forward(self, attention_mask, **inputs):
        states = self.{prefix}(attention_mask=attention_mask, **inputs).last_hidden_state
        mask = attention_mask[..., None]
        return self.classifier((states * mask).sum(1) / mask.sum(1))

model = peft.PeftModel.from_pretrained(Classifier(), "adapter").eval()
```
"""


def card(
    folder: Path,
    command: str,
    flags: Any,
    metrics: Mapping[str, Any],
    labels: Labels,
    figures: Mapping[str, str],
    notes: str,
) -> str:
    """Returns the model card of a run; the adapter must already be in its folder.

    Args:
        folder: of the run.
        command: that of the run.
        flags: all flags.
        metrics: of the run.
        labels: what the outputs are.
        figures: what to call the metrics, by name.
        notes: what there is to say of the outputs.
    """
    result = {
        f"{title[0].upper()}{title[1:]} on the {part} set": f"{metrics[f'{part}_{name}']:.4f}"
        for part in ("test", "validation")
        for name, title in figures.items()
        if f"{part}_{name}" in metrics
    }
    held = metrics["validation_data"]
    result |= {
        "Trained parameters": f"{metrics['trained_parameters']:,} of {metrics['parameters']:,}",
        "Peak memory": "unknown" if metrics["peak_memory_mb"] is None else f"{metrics['peak_memory_mb']:,.0f} MB",
        "Training data": f"{metrics['data']}, {metrics['train_examples']:,} texts",
        "Validation data": f"{held}, {metrics['validation_examples']:,} texts" if held else "none",
        "Test data": f"{metrics['test_data']}, {metrics['test_examples']:,} texts",
        **rows_of_card(metrics),
    }
    kinds = {"single-label": "classes of texts", "multi-label": "labels of texts, any number of them each"}
    subject = f"{labels.outputs} {kinds[labels.task]}" if labels.task in kinds else "a number for each text"
    return f"""# {metrics["model"]} fine-tuned by {metrics["method"]}: {subject}

    {command}

{table(result)}

All measures of quality are of the test set.

{notes}

{PREDICT.format(program=program("text_classification"), folder=shlex.quote(str(folder)))}
{_describe_use(folder / "adapter", flags, metrics, labels)}
The settings are in `config.yaml`.
"""


def _describe_use(adapter: Path, flags: Any, metrics: Mapping[str, Any], labels: Labels) -> str:
    text, numbers = "", labels.task == "regression"
    if flags.tune.merge or not flags.tune.adapts:
        given = "numbers" if numbers else "logits"
        text += WHOLE.format(segments=" (and `segment_ids`, if the tokenizer gives them)", given=given) + "\n"
    base, prefix = metrics.get("base"), _find_prefix(adapter)
    if flags.tune.method in ("lora", "dora", "ia3") and base and prefix:
        # A head of its own, because the mean over the tokens is in none of Hugging Face's classes.
        form = POOLER if flags.pooling == "pooler" else MEAN
        text += (
            f"`adapter/` loads in Hugging Face peft:\n{form.format(base=base, classes=labels.outputs, prefix=prefix)}"
        )
        if numbers:
            text += f"\nWhat it gives times {labels.deviation!r} plus {labels.mean!r} is the number.\n"
    return text


def _find_prefix(adapter: Path) -> str | None:
    """Returns what Hugging Face calls the backbone below a head, as the keys of the adapter have it."""
    from safetensors import safe_open

    if not adapter.is_dir():
        return None
    with safe_open(adapter / "adapter_model.safetensors", "numpy") as file:
        parts = [key.removeprefix("base_model.model.").split(".") for key in file.keys()]  # noqa: SIM118
    return next((first for first, *rest in parts if first != "classifier" and len(rest) > 2), None)


def tabulate_samples(split: Split, names: Sequence[str], probabilities: Array) -> str:
    """Returns a Markdown table of the worst errors and of others, evenly spread, with what was predicted."""
    of_true_class = probabilities[np.arange(len(split)), split.y]
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != split.y)
    worst = wrong[np.argsort(of_true_class[wrong], kind="stable")].tolist()

    def cells(i: int) -> list[str]:
        best = int(probabilities[i].argmax())
        return [names[split.y[i]], names[best], f"{probabilities[i, best]:.4f}"]

    return samples(split, worst, ("true", "predicted", "probability"), cells)


def samples(split: Split, worst: Sequence[int], titles: Sequence[str], cells: Callable[[int], Sequence[str]]) -> str:
    """Returns a Markdown table of the worst errors and of others, evenly spread.

    Args:
        split: of the texts.
        worst: rows of the errors, the worst first.
        titles: of the columns after the text.
        cells: function of a row that returns these columns; the last one is a number.
    """
    others = np.unique(np.linspace(0, len(split) - 1, min(OTHERS, len(split))).astype(int))
    lines = [f"| text | {' | '.join(titles)} |", "|---|" + "---|" * (len(titles) - 1) + "---:|"]
    for i in dict.fromkeys([*worst[:WORST], *others.tolist()]):
        text = split.texts.texts[i] + ("" if split.texts.pairs is None else f" ⏵ {split.texts.pairs[i]}")
        lines.append("| " + " | ".join([_escape(text), *map(_escape, cells(i))]) + " |")
    return "\n".join(lines)


def _escape(text: str) -> str:
    line = " ".join(text.split())
    line = line if len(line) <= MAX_CHARACTERS else line[:MAX_CHARACTERS] + "..."
    for character in "\\|<>`*_":
        line = line.replace(character, f"\\{character}")
    return line

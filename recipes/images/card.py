"""The model card of a run on pictures."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..run.command_line import program
from ..run.facts import rows_of_card, table
from .classifier import TuneFlags

WHOLE = """
`model.keras` takes bytes `[n, {side}, {side}, 3]` and gives the logits of the classes:

```python
import keras
import kopt  # so that Keras knows the optimizer

model = keras.models.load_model("model.keras")
probabilities = keras.ops.softmax(model(pictures))
```
"""


def card(folder: Path, command: str, tune: TuneFlags, metrics: Mapping[str, Any], names: Sequence[str]) -> str:
    """Returns the model card of a run.

    Args:
        folder: of the run.
        command: that of the run.
        tune: the method.
        metrics: of the run.
        names: of the classes.
    """
    figures = {"accuracy": "Accuracy", "macro_f1": "Macro-F1", "loss": "Loss"}
    result = {
        f"{title} on the {part} set": f"{metrics[f'{part}_{name}']:.4f}"
        for part in ("test", "validation")
        for name, title in figures.items()
        if f"{part}_{name}" in metrics
    }
    held = metrics["validation_data"]
    memory = metrics["peak_memory_mb"]
    result |= {
        "Weights of the backbone": metrics["weights"],
        "Trained parameters": f"{metrics['trained_parameters']:,} of {metrics['parameters']:,}",
        "Peak memory": "unknown" if memory is None else f"{memory:,.0f} MB",
        "Training data": f"{metrics['data']}, {metrics['train_examples']:,} pictures",
        "Validation data": f"{held}, {metrics['validation_examples']:,} pictures" if held else "none",
        "Test data": f"{metrics['test_data']}, {metrics['test_examples']:,} pictures",
        **rows_of_card(metrics),
    }
    shown = f"{', '.join(names[:20])}{', ...' * (len(names) > 20)}"
    recall = list(metrics["test_recall"].items())[:20]
    use = ""
    if tune.adapts:
        use += "\n`adapter/` has what was trained, without the backbone; `predict` puts it into the backbone again.\n"
    if tune.merge or not tune.adapts:
        use += WHOLE.format(side=metrics["side"])
    return f"""# Pictures: {metrics["model"]} trained by {metrics["method"]}, {len(names)} classes

    {command}

{table(result)}

All measures of quality are of the test set.

The classes, in the order of the logits, are in `labels.json`: {shown}.

    {program("images")} predict --model {shlex.quote(str(folder))} PICTURE
{use}
Recall on the test set: {", ".join(f"{name} {share:.1%}" for name, share in recall)}.
The worst errors are in `errors.png`, all by class in `confusion.png`, the settings in `config.yaml`.
"""

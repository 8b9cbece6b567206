"""What is written about a run of the recipe: the line at its end, and the model card."""

from collections.abc import Mapping
from typing import Any

from ..run.command_line import PACKAGE, program
from ..run.facts import rows_of_card, table


def summary(metrics: Mapping[str, Any]) -> str:
    """Returns the metrics in one line, each beside its baseline."""
    parts = []
    for name in (k.removeprefix("test_") for k in metrics if k.startswith("test_") and k != "test_examples"):
        baseline = metrics.get(f"baseline_{name}")
        beside = "" if baseline is None else f" (baseline {baseline:.4f})"
        parts.append(f"test {name.replace('_', ' ')} {metrics[f'test_{name}']:.4f}{beside}")
    if "floor_rmse" in metrics:
        parts.append(f"best reachable rmse {metrics['floor_rmse']:.4f}")
    return ", ".join(parts)


def card(command: str, metrics: Mapping[str, Any]) -> str:
    """Returns the model card of a run.

    Args:
        command: that of the run.
        metrics: of the run.
    """
    baseline = "the biases alone" if metrics["task"] == "rating" else "the most popular items"
    rows = {
        **{
            part.rpartition(" ")[0]: part.rpartition(" ")[2] for part in summary(metrics).split(", ") if "(" not in part
        },
        "Trainable parameters": f"{metrics['trained_parameters']:,}",
        "Training data": f"{metrics['data']}, {metrics['train_examples']:,} interactions",
        "Test data": f"{metrics['test_examples']:,} interactions",
        **rows_of_card(metrics),
    }
    return f"""# Recommendation ({metrics["task"]}): {metrics["model"]} trained with {metrics["optimizer"]}

    {command}

{summary(metrics)}. The baseline is {baseline}, on the same split. All measures of
quality are of the test set.

{table(rows)}

    {program("recommendation")} predict --model RUN --user ID --k 10 --exclude-seen

`vocabulary.json` holds the ids of the numbers in `model.keras`, `interactions.npz` the interactions of the
training, `config.yaml` the settings. `import {PACKAGE}.recommendation.models` before loading the model with Keras.
"""

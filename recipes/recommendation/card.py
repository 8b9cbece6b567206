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
    for name in ("rmse", "mae"):
        if f"folds_test_{name}_mean" in metrics:
            mean, deviation = metrics[f"folds_test_{name}_mean"], metrics[f"folds_test_{name}_deviation"]
            parts.append(f"{len(metrics['folds'][f'test_{name}'])} folds {name} {mean:.4f} ± {deviation:.4f}")
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
            f"{name.removeprefix(f'{part}_')} on the {part} set": f"{value:.4f}"
            for part in ("test", "validation")
            for name, value in metrics.items()
            if name.startswith(f"{part}_") and isinstance(value, float)
        },
        "Trainable parameters": f"{metrics['trained_parameters']:,}",
        "Training data": f"{metrics['data']}, {metrics['train_examples']:,} interactions",
        "Validation data": f"{metrics['validation_examples']:,} interactions",
        "Test data": f"{metrics['test_examples']:,} interactions",
        **rows_of_card(metrics),
    }
    return f"""# Recommendation ({metrics["task"]}): {metrics["model"]} trained with {metrics["optimizer"]}

    {command}

{summary(metrics)}. The baseline is {baseline}, on the same split.{_describe_choice(metrics)}

{table(rows)}

    {program("recommendation")} predict --model RUN --user ID --k 10 --exclude-seen

`vocabulary.json` holds the ids and features of the numbers in `model.keras`, `interactions.npz` the interactions of the
training, `config.yaml` the settings. `import {PACKAGE}.recommendation.models` before loading the model with Keras.
"""


def _describe_choice(metrics: Mapping[str, Any]) -> str:
    """Returns which model each figure is of."""
    epochs, held = metrics["refit_epochs"], metrics["validation_examples"]
    if epochs is None:
        return "" if held else " There was no validation set."
    return (
        " The figures of the validation set are those of a model trained without it; "
        f"after {epochs} epochs it was best there. The model that is "
        "saved, and measured on the test set, was trained for as many epochs on both."
    )

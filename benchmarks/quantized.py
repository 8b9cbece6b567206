"""LoRA on MiniLM over quantized bases: test accuracy beside that over the base in floats, on the same texts and seeds.

    python -m benchmarks.quantized --data sst2 [--seeds 1 2 3 4 5] [--examples 1000] [--found quantized.jsonl] [--write]

One epoch of texts in batches of 16, LoRA of rank 16 on all linear layers, AdamW, the rates of the text recipe. A seed
draws the order of the texts, dropout and the first weights of adapter and head; the texts are the same for all. The
base is quantized before the adapter is added, the head stays in floats. `--data` is a folder of SST-2 as GLUE has it
(train.tsv, dev.tsv); without it the texts are those that the recipe has in a package. Each run is a line in `--found`
and is not trained again.

Differences are of runs with the same seed; the aim is a mean difference of at most one point.
"""

import argparse
import importlib
import json
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks import _turns

FORMATS = ("float32", "int8", "int4", "nf4")
LENGTH, BATCH = 64, 16


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Returns the mean, and its standard error (NaN of one value)."""
    spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return statistics.mean(values), spread


def read(data: Path | None, examples: int) -> Any:
    """Returns the texts."""
    from recipes.text_classification import corpus

    files: dict[str, Any] = {}
    if data is not None:
        files = {"train_file": data / "train.tsv", "test_file": data / "dev.tsv", "text_column": "sentence"}
    flags = corpus.TextFlags(**files, validation_split=0.0, max_train_examples=examples, max_eval_examples=1000)
    return corpus.load(corpus.choose(flags))


def train(data: Any, form: str, seed: int) -> float:
    """Returns the accuracy on the test set after an epoch over a base in a format."""
    import keras

    import kopt
    from recipes.text_classification import batches, language_model, tasks

    importlib.import_module("keras_hub")  # registers what the base is made of
    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    pretrained, task = language_model.find_model("minilm"), tasks.task_of(data.labels)
    encode = language_model.Tokenizer(pretrained)
    model = language_model.build(language_model.load_backbone(pretrained, LENGTH), data.labels.outputs, 0.1)
    head = language_model.HEAD
    unused = [layer.name for layer in language_model.unused_layers(model) if layer.weights]
    if form != "float32":
        kopt.peft.quantize(model, form, exclude_modules=[head, *unused])
    lora = kopt.peft.LoRA(r=16, lora_alpha=32.0, lora_dropout=0.1, target_modules="all-linear", modules_to_save=[head])
    lora.exclude_modules = unused or None
    kopt.peft.get_peft_model(model, lora)
    encoded = encode(data.train.texts.texts, None, LENGTH)
    training = batches.batches(encoded, task.targets(data.train.y), BATCH, shuffle_seed=seed)
    steps = -(-len(data.train) // BATCH)
    rate = kopt.schedules.WarmupLinear(2e-3, steps=steps, warmup=max(1, round(0.06 * steps)))
    task.compile(model, kopt.AdamW(rate, multipliers=[(rf"(^|/){head}/", 5.0)]), False)
    model.fit(training, epochs=1, shuffle=False, verbose=0)
    found = task.predict(model, encode(data.test.texts.texts, None, LENGTH))
    return float(task.measure(found, data.test.y)["accuracy"])


def runs(flags: argparse.Namespace, data: Any) -> dict[str, dict[int, float]]:
    """Returns the accuracies by format and seed; makes those that are missing."""
    known = [json.loads(line) for line in flags.found.read_text().splitlines()] if flags.found.exists() else []
    found: dict[str, dict[int, float]] = {form: {} for form in FORMATS}
    same = {"examples": len(data.train), "tested": len(data.test), "data": data.source}
    for row in known:
        if all(row[key] == value for key, value in same.items()) and row["seed"] in flags.seeds:
            found[row["format"]][row["seed"]] = row["accuracy"]
    for seed in flags.seeds:
        for form in FORMATS:
            if seed in found[form]:
                continue
            began = time.perf_counter()
            found[form][seed] = accuracy = train(data, form, seed)
            row = same | {"format": form, "seed": seed, "accuracy": accuracy}
            with flags.found.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{form}, seed {seed}: {accuracy:.4f}, {time.perf_counter() - began:.0f} s", flush=True)
    return found


def table(found: dict[str, dict[int, float]], data: Any) -> list[str]:
    """Returns the results as lines of Markdown."""
    lines = ["| base | test accuracy | standard error | less float32, points | its standard error |"]
    lines.append("|---|---:|---:|---:|---:|")
    for form, own in found.items():
        mean, error = mean_and_error([*own.values()])
        gap, noise = mean_and_error([100 * (own[seed] - found["float32"][seed]) for seed in own])
        rest = "| - | - |" if form == "float32" else f"| {gap:+.2f} | {noise:.2f} |"
        lines.append(f"| {form} | {mean:.4f} | {error:.4f} {rest}")
    seeds = len(found["float32"])
    scope = f"{data.source}: {len(data.train):,} texts, tested on {len(data.test):,}; {seeds} seeds"
    return [*lines, "", f"{scope}; {_turns.machine('Keras', 'TensorFlow', 'Keras-Hub')}"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of SST-2 with train.tsv and dev.tsv")
    parser.add_argument("--examples", type=int, default=1000, help="texts to train on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--found", type=Path, default=Path("quantized.jsonl"), help="file of runs")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/README.md")
    flags = parser.parse_args(argv)
    data = read(flags.data, flags.examples)
    result = "\n".join(table(runs(flags, data), data))
    print(result)
    if flags.write:
        _turns.insert(result, "quantized")


if __name__ == "__main__":
    main()

"""LoRA at its defaults beside full fine-tuning at the best of several rates, over several seeds.

    python -m benchmarks.text_methods --train-file train.tsv --test-file dev.tsv --text-column sentence [--write]

Both train on the same texts, by default 6,000 sentences for one epoch, and are measured on at most 1,000 others. The
rate of full fine-tuning is the one with the best mean accuracy on the validation set, which is held out of the training
file, over the first `--rate-seeds` seeds; the test set chooses nothing. At that rate all seeds are run.

Every run is a folder of `--runs`: what is complete there is not trained again, so that the command can be interrupted.
Prints the means with their standard errors, and whether LoRA is within one point, or two standard errors of the
difference, of full fine-tuning.
"""

import argparse
import json
import math
import pathlib
import statistics
import sys
import textwrap

from benchmarks import _turns
from recipes.text_classification import main as recipe

RATES = (5e-5, 1e-4, 2e-4, 4e-4, 8e-4)
SEEDS = (1, 2, 3, 4, 5)
POINT = 0.01
EVALUATED = 1000
"""Texts of the validation set, and of the test set, that are looked at."""


def add_data(parser, examples):
    """Adds the flags that say what is trained on; `examples` is the default number of texts."""
    parser.add_argument("--train-file", type=pathlib.Path, required=True)
    parser.add_argument("--test-file", type=pathlib.Path, required=True)
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--examples", type=int, default=examples, help="texts to train on")
    parser.add_argument("--epochs", type=int, default=1)


def train(flags, method, rate, seed):
    """Returns the metrics of a run, trained unless it is there."""
    folder = flags.runs / f"{method}{'' if rate is None else f'-{rate:g}'}-{seed}"
    if not (folder / "metrics.json").is_file():
        argv = ["--train-file", flags.train_file, "--test-file", flags.test_file, "--text-column", flags.text_column]
        argv += ["--max-train-examples", flags.examples, "--epochs", flags.epochs, "--batch-size", 32]
        argv += ["--max-length", 64, "--method", method, "--seed", seed, "--progress", "none", "--track", "none"]
        argv += ["--max-eval-examples", EVALUATED]
        argv += [] if rate is None else ["--learning-rate", rate]
        code = recipe([*map(str, argv), "--output-dir", str(folder), "--resume", "auto", "--keep", "1"])
        if code:
            sys.exit(code)
    metrics = json.loads((folder / "metrics.json").read_text())
    print(
        f"{folder.name}: validation {metrics['validation_accuracy']:.4f}, test {metrics['test_accuracy']:.4f}, "
        f"{metrics['train_seconds']:.0f} s",
        flush=True,
    )
    return metrics


def mean_and_error(values):
    """Returns the mean, and its standard error (0 of one value)."""
    spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return statistics.mean(values), spread


def compare(ours, theirs):
    """Returns the lines that say how LoRA's test accuracies compare with those of full fine-tuning."""
    (mean, error), (full, full_error) = mean_and_error(ours), mean_and_error(theirs)
    gap, noise = full - mean, math.hypot(error, full_error)
    within = gap <= max(POINT, 2 * noise)
    return [
        "| method | test accuracy | standard error |",
        "|---|---:|---:|",
        f"| lora, defaults | {mean:.4f} | {error:.4f} |",
        f"| full, best of its rates | {full:.4f} | {full_error:.4f} |",
        "",
        f"LoRA is {100 * abs(gap):.2f} points {'below' if gap > 0 else 'above'} full fine-tuning, "
        f"two standard errors of the difference are {200 * noise:.2f}: {'within' if within else 'not within'} "
        "one point or two standard errors.",
    ]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data(parser, 6000)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--rate-seeds", type=int, default=1, help="of them, how many choose the rate")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="of full fine-tuning")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/text_methods"))
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/README.md")
    flags = parser.parse_args(argv)
    if not 1 <= flags.rate_seeds <= len(flags.seeds):
        parser.error(f"--rate-seeds must be 1 to {len(flags.seeds)}, as many as --seeds. Received: {flags.rate_seeds}")
    first = flags.seeds[: flags.rate_seeds]
    tried = {
        rate: statistics.mean(train(flags, "full", rate, seed)["validation_accuracy"] for seed in first)
        for rate in flags.rates
    }
    best = max(tried, key=tried.__getitem__)
    full = [train(flags, "full", best, seed) for seed in flags.seeds]
    ours = [train(flags, "lora", None, seed) for seed in flags.seeds]
    lines = compare([m["test_accuracy"] for m in ours], [m["test_accuracy"] for m in full])
    listed = ", ".join(f"{accuracy:.4f} at {rate:g}" for rate, accuracy in tried.items())
    scope = f"{flags.examples:,} texts, epochs: {flags.epochs}, seeds: {', '.join(map(str, flags.seeds))}."
    chosen = (
        f"Validation accuracy of full fine-tuning by rate, mean of {len(first)} seed{'s' * (len(first) > 1)}: {listed}."
    )
    result = "\n".join([*lines, "", textwrap.fill(f"{scope} {chosen}", 120)])
    print(result)
    if flags.write:
        _turns.insert(result, "lora-and-full")


if __name__ == "__main__":
    main()

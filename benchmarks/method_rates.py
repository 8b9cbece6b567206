"""The learning rate of each method of the text recipe: the default beside others.

    python -m benchmarks.method_rates --train-file train.tsv --test-file dev.tsv --text-column sentence [--write]

Every method trains one epoch on the same texts, by default 2,000, at each rate and with each seed; the accuracy is that
on a validation set held out of the training file, at most 1,000 texts. Every run is a folder of `--runs`, as in
`benchmarks.text_methods`: what is complete there is not trained again.
"""

import argparse
import pathlib
import statistics

from benchmarks import _turns
from benchmarks.text_methods import add_data, train
from recipes.text_classification.methods import METHODS

RATES = (2e-4, 6e-4, 2e-3, 6e-3, 2e-2)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data(parser, 2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=(1,))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=tuple(METHODS))
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/method_rates"))
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/README.md")
    flags = parser.parse_args(argv)
    lines = [f"| method | default | {' | '.join(f'{rate:g}' for rate in flags.rates)} |"]
    lines.append("|---|---:" + "|---:" * len(flags.rates) + "|")
    for method in flags.methods:
        runs = [[train(flags, method, rate, seed) for seed in flags.seeds] for rate in flags.rates]
        reached = [statistics.mean(metrics["validation_accuracy"] for metrics in found) for found in runs]
        cells = [f"**{value:.4f}**" if value == max(reached) else f"{value:.4f}" for value in reached]
        lines.append(f"| {method} | {METHODS[method].learning_rate:g} | {' | '.join(cells)} |")
    seeds = f"seed{'s' * (len(flags.seeds) > 1)} {', '.join(map(str, flags.seeds))}"
    lines += ["", f"Validation accuracy after {flags.examples:,} texts, epochs: {flags.epochs}, {seeds}."]
    result = "\n".join(lines)
    print(result)
    if flags.write:
        _turns.insert(result, "method-rates")


if __name__ == "__main__":
    main()

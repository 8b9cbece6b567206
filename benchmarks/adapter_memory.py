"""What training MiniLM with LoRA holds in memory at its peak, less the imports, beside peft on torch.

    python -m benchmarks.adapter_memory [--rounds 1] [--write]

The steps of `benchmarks.lora`, without XLA, three in a process that does nothing else; its peak resident memory less
that after the imports. SGD, or one bias alone to learn, shows what the optimizer takes; one short text, what is there
without activations. The aim is 1.2 of peft's.
"""

import statistics

from benchmarks import _turns

PEFT, SHORT = "peft on torch, AdamW", "kopt, AdamW of Keras, one text of 8 tokens"
MAKES = {
    "kopt, AdamW of Keras": "step('minilm', 'kopt', False)",
    "kopt, AdamW of kopt": "step('minilm', 'kopt', False, 'AdamW', 'kopt')",
    "kopt, SGD of Keras": "step('minilm', 'kopt', False, 'SGD')",
    SHORT: "step('minilm', 'kopt', False)",
    "one bias alone, AdamW": "step('minilm', 'floor', False)",
    "LoRA of Keras, AdamW": "step('minilm', 'keras', False)",
    "full fine-tuning, AdamW": "step('minilm', 'full', False)",
    PEFT: "torch_step()",
}


def peak(name: str) -> tuple[int, int]:
    """Returns the peak memory in MB of a process, and of it what the imports take."""
    packages = "torch, transformers, peft" if name == PEFT else "keras_hub, tensorflow, kopt.peft"
    small = "lora.BATCH, lora.LENGTH = 1, 8" if name == SHORT else "pass"
    return _turns.peak(f"from benchmarks import lora; import {packages}; {small}", f"lora.{MAKES[name]}")[:2]


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

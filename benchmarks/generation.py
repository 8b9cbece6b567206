"""What a step of `recipes.generation --method lora` costs on SmolLM2-135M, beside transformers and peft on torch.

    python -m benchmarks.generation [--rounds 4] [--write]

The same 4 rows of 256 tokens of Python's language reference, LoRA of rank 16 on all linear layers, AdamW, float32.
The contestants take turns, round after round, peft in a process of its own with as many threads; ratios are medians of
those within a round. Peak memory is that of a process that does nothing else. The aims are 1.0 of the time and 1.3 of
the memory. Needs the packages that recipes/README.md names for the recipe, and `[interop]`.
"""

import os
from collections.abc import Callable
from typing import Any

from benchmarks import _turns

RANK, ROWS, LENGTH = 16, 4, 256
COMPARISONS = [
    ("kopt / peft", "kopt", "peft on torch", "1.0"),
    ("kopt with XLA / peft", "kopt, XLA", "peft on torch", "1.0"),
    ("kopt with remat / kopt", "kopt, remat", "kopt", "-"),
]
AIM = 1.3
"""Of peft's peak memory."""


def rows() -> tuple[str, Any]:
    """Returns the folder of the model, and tokens [4, 257]."""
    import numpy as np

    from recipes.generation import language_model, python_texts
    from recipes.generation.tokens import Tokenizer

    pretrained = language_model.find_model("smollm2")
    ids = Tokenizer(pretrained).encode("\n\n".join(python_texts.read_topics()[:8]))
    return pretrained.place, np.array(ids[: ROWS * (LENGTH + 1)], np.int32).reshape(ROWS, LENGTH + 1)


def kopt_step(jit: bool, remat: bool) -> Callable[[], Any]:
    """Returns a function that does one training step of the recipe."""
    import keras
    import numpy as np
    import tensorflow as tf

    import kopt
    from recipes.generation import language_model, objectives, recipe
    from recipes.generation.methods import AdapterFlags

    flags = recipe.Train(model="smollm2", remat=remat, tune=AdapterFlags(rank=RANK))
    _, model = recipe.build(flags, language_model.find_model(flags.model))
    recipe.compile_model(flags, model, kopt.AdamW(1e-3), jit)
    tokens = rows()[1]
    ones = np.ones((ROWS, LENGTH), np.int32)
    inputs = dict(zip(objectives.INPUTS, (tokens[:, :-1], tokens[:, 1:], ones), strict=True))
    iterator = iter(tf.data.Dataset.from_tensors((inputs, ones.astype("float32"))).repeat())
    train = model.make_train_function() or model.train_function

    def once() -> float:
        model.reset_metrics()  # else the loss is the mean of all steps so far
        return float(keras.tree.flatten(train(iterator))[0])

    return once


def peft_step() -> Callable[[], Any]:
    """Returns a function that does one training step of peft on torch."""
    import peft
    import torch
    import transformers

    place, tokens = rows()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(os.cpu_count() or 1)
    base = transformers.AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    model = peft.get_peft_model(base, config).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    ids = torch.tensor(tokens).long()

    def once() -> float:
        optimizer.zero_grad()
        logits = model(input_ids=ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return once


PEFT = "peft on torch"
MAKES = {
    "kopt": "kopt_step(False, False)",
    "kopt, XLA": "kopt_step(True, False)",
    "kopt, remat": "kopt_step(False, True)",
    PEFT: "peft_step()",
}


def memory() -> list[str]:
    """Returns the table of peak memory; to be called while this process is small."""
    rows()  # converted before, if need be
    found = {}
    for name, make in MAKES.items():
        packages = "torch, transformers, peft" if name == PEFT else "keras_hub, transformers, tensorflow, kopt"
        found[name] = _turns.peak(f"from benchmarks import generation; import {packages}", f"generation.{make}")
    most = found[PEFT]
    lines = [
        "| contestant | peak, MB | without imports | of peft's | mean loss of three steps |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, (all_of_it, imported, loss) in found.items():
        share = f"{all_of_it / most[0]:.2f}, {(all_of_it - imported) / (most[0] - most[1]):.2f} without imports"
        lines.append(f"| {name} | {all_of_it:,} | {all_of_it - imported:,} | {share} | {loss:.4f} |")
    return [*lines, "", f"The aim is {AIM} of peft's peak."]


def started(make: Callable[..., Callable[[], Any]], *options: bool) -> Callable[[], float]:
    """Returns a function that times a round of steps that were done once before."""
    once = make(*options)
    once()
    return lambda: _turns.clock(once)


def table(rounds: int) -> list[str]:
    """Returns the results as lines of Markdown."""
    lines = memory()
    contestants = {
        "kopt": started(kopt_step, False, False),
        "kopt, XLA": started(kopt_step, True, False),
        "kopt, remat": started(kopt_step, False, True),
    }
    with _turns.apart(peft_step) as torch_steps:
        times = _turns.take_turns(contestants | {"peft on torch": torch_steps}, rounds)
    scope = f"{rounds} rounds of {_turns.CALLS} steps; {_turns.machine('Keras', 'TensorFlow', 'torch', 'peft')}"
    return [*_turns.compare(times, COMPARISONS, 0), "", *lines, "", scope]


if __name__ == "__main__":
    _turns.main(__doc__, "generation", 4, table)

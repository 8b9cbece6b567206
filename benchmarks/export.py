"""Adapters in exported models: the largest difference from Keras, bytes of the file, by format, base and state.

    python -m benchmarks.export [--sizes 4 256]

A transformer of KerasHub with random weights (layers, width) and LoRA of rank 8 on all linear layers, whose factors are
random too, for one input of 32 tokens. A format whose packages are not installed is left out: ONNX needs tf2onnx and
onnxruntime.
"""

import argparse
import importlib.util
import os
import tempfile
from pathlib import Path

FORMATS = {"tf_saved_model": "", "litert": ".tflite", "onnx": ".onnx"}
NEEDS = {"onnx": ("tf2onnx", "onnxruntime")}


def build(sizes, base):
    """Returns an encoder with adapters over a base."""
    import keras
    from keras_hub.layers import TokenAndPositionEmbedding, TransformerEncoder

    from kopt import peft

    keras.utils.set_random_seed(0)
    layers, width = sizes
    inputs = keras.Input((32,), dtype="int32", batch_size=1)
    x = TokenAndPositionEmbedding(1000, 32, width)(inputs)
    for _ in range(layers):
        x = TransformerEncoder(4 * width, width // 64, activation="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x[:, 0]))
    if base is not None:
        peft.quantize(model, base, exclude_modules=["head"])
    lora = peft.LoRA(r=8, target_modules="all-linear", exclude_modules=["head"], init_lora_weights=False)
    return peft.get_peft_model(model, lora)


def read(path, form, x):
    """Returns what an exported model gives."""
    if form == "tf_saved_model":
        import tensorflow as tf

        served = tf.saved_model.load(path)
        return served.serve(x).numpy()
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        return session.run(None, {session.get_inputs()[0].name: x})[0]
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(path)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def size_of(path):
    """Returns the bytes of a file, or of all files of a folder."""
    files = [Path(path)] if os.path.isfile(path) else [p for p in Path(path).rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs=2, default=(4, 256), help="layers and width")
    flags = parser.parse_args()
    import numpy as np

    from kopt import peft

    x = np.random.default_rng(0).integers(0, 1000, (1, 32)).astype("int32")
    print("| base | adapters | format | largest difference | MB |\n|---|---|---|---|---|")
    for base in (None, "nf4"):
        model = build(flags.sizes, base)
        for state in ("live", "merged"):
            if state == "merged":
                peft.merge_and_unload(model)
            wanted = np.asarray(model(x, training=False))
            for form, end in FORMATS.items():
                if not all(importlib.util.find_spec(name) for name in NEEDS.get(form, ())):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    path = f"{folder}/model{end}"
                    model.export(path, format=form, verbose=False)
                    found = np.abs(read(path, form, x) - wanted).max() / np.abs(wanted).max()
                    row = (base or "float32", state, form, f"{found:.0e}", f"{size_of(path) / 1e6:.1f}")
                    print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()

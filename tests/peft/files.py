"""A model, adapters and their files, for tests of files."""

import json

import keras
import numpy as np
from safetensors.numpy import load_file, save_file

from kopt import peft
from kopt.peft.exchange.tensor_file import read_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def filled(model, stddev):
    """Returns the model with random weights, the same each time."""
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, stddev, w.shape) for w in model.get_weights()])
    return model


def image_model():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            keras.layers.Conv2D(4, 3, activation="relu", name="conv"),
            keras.layers.Reshape((16, 4)),
            keras.layers.LayerNormalization(name="norm"),
            keras.layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de", name="query"),
            keras.layers.Reshape((16, 6)),
            keras.layers.Dense(5, activation="tanh", name="feedforward_output_dense"),
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="head"),
        ]
    )
    return filled(model, 0.5)


IMAGES = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("float32")
METHODS = {
    "lora": lambda: peft.LoRA(r=2, target_modules=["conv", "query", "feedforward_output_dense"]),
    "patterns": lambda: peft.LoRA(
        r=2,
        target_modules="all-linear",
        use_rslora=True,
        rank_pattern={"query": 3},
        alpha_pattern={"head": 2.5},
        lora_dropout=0.25,
    ),
    "bias_all": lambda: peft.LoRA(r=2, target_modules=["query"], bias="all"),
    "bias_lora_only": lambda: peft.LoRA(r=2, target_modules=["query"], bias="lora_only"),
    "pissa": lambda: peft.LoRA(r=2, target_modules=["query", "conv"], init_lora_weights="pissa"),
    "dora": lambda: peft.DoRA(r=2, target_modules=["conv", "query", "head"]),
    "lora_bias": lambda: peft.LoRA(r=2, target_modules=["query", "conv", "head"], lora_bias=True),
    "adalora": lambda: peft.AdaLoRA(init_r=3, target_r=2, target_modules=["conv", "query", "head"], bias="lora_only"),
    "c3a": lambda: peft.C3A(block_size=2, target_modules=["query"], block_size_pattern={"query": 1}),
    "delora": lambda: peft.DeLoRA(r=2, target_modules=["query", "head"], lambda_pattern={"head": 2.0}),
    "fourierft": lambda: peft.FourierFT(
        n_frequency=5, target_modules=["query", "head"], n_frequency_pattern={"head": 3}
    ),
    "road": lambda: peft.RoAd(variant="road_4", group_size=2, target_modules=["query"]),
    "gralora": lambda: peft.GraLoRA(r=4, hybrid_r=1, target_modules=["query"]),
    "hra": lambda: peft.HRA(r=4, target_modules=["query", "head"]),
    "hira": lambda: peft.HiRA(r=2, target_modules=["conv", "query", "head"], rank_pattern={"query": 3}),
    "loha": lambda: peft.LoHa(r=2, target_modules=["conv", "query"], alpha_pattern={"query": 3.0}),
    "lokr": lambda: peft.LoKr(r=1, target_modules=["conv", "query", "head"], init_weights="lycoris"),
    "miss": lambda: peft.MiSS(r=2, target_modules=["query", "head"]),
    "miss_mini": lambda: peft.MiSS(r=3, mini_r=3, target_modules=["query", "head"], init_weights="mini"),
    "oft": lambda: peft.OFT(r=2, oft_block_size=0, target_modules=["query", "head"]),
    "randlora": lambda: peft.RandLoRA(r=2, target_modules=["query", "head"], sparse=True),
    "shira": lambda: peft.SHiRA(r=1, target_modules=["query", "head"], random_seed=3),
    "vera": lambda: peft.VeRA(r=3, d_initial=0.5, target_modules=["query", "head"]),
    "vera_drawn": lambda: peft.VeRA(r=3, d_initial=0.5, target_modules=["query", "head"], save_projection=False),
    "ia3": lambda: peft.IA3(
        target_modules=["conv", "query", "feedforward_output_dense"],
        feedforward_modules=["feedforward_output_dense", "conv"],
    ),
    "layer_norm": lambda: peft.LayerNormTuning(modules_to_save=["head"]),
    "bitfit": lambda: peft.BitFit(),
    "bottleneck": lambda: peft.Bottleneck(reduction_factor=2, target_modules=["feedforward_output_dense"]),
    "pfeiffer": lambda: peft.Pfeiffer(reduction_factor=3, non_linearity="tanh"),
    "parallel": lambda: peft.ParallelAdapter(target_modules=["feedforward_output_dense", "head"]),
    "modules_to_save": lambda: peft.LoRA(r=2, target_modules=["query"], modules_to_save=["head", "norm", "conv"]),
}


def rewrite(folder, change=None, **fields):
    """Changes tensors by a function and entries of the configuration, and drops the hashes, as peft does."""
    _, metadata = read_tensors(folder / WEIGHTS)
    tensors = load_file(folder / WEIGHTS)
    if change is not None:
        change(tensors)
    save_file(tensors, folder / WEIGHTS, {k: v for k, v in metadata.items() if "sha256" not in k})
    config = json.loads((folder / CONFIG).read_text()) | fields
    (folder / CONFIG).write_text(json.dumps(config))

"""Every method that Hugging Face peft has, too, on one layer of each kind in Keras and in torch, in both directions.

`python tests/peft/method_peers.py` prints a JSON of what `compare` finds for all of them; KERAS_BACKEND says on which
backend. Models have the same layer names on both sides, so that files fit both.
"""

import json
import pathlib
import sys
import tempfile
import warnings

import keras
import numpy as np
import pytest
from keras import layers

import kopt.peft
from kopt.peft.model import adapters_of, get_adapter_state, set_adapter_state

KINDS = ("Dense", "EinsumDense", "Conv2D", "Embedding")
TWO = ["host", "second"]
CASES: dict[str, tuple[str, dict]] = {  # configuration of peft, and its arguments
    "LoRA": ("LoraConfig", dict(r=2, lora_alpha=3)),
    "LoRA, rsLoRA": ("LoraConfig", dict(r=2, use_rslora=True)),
    "LoRA, lora_bias": ("LoraConfig", dict(r=2, lora_bias=True)),
    "DoRA": ("LoraConfig", dict(r=2, use_dora=True)),
    "AdaLoRA": ("AdaLoraConfig", dict(init_r=3, target_r=2, lora_alpha=5, total_step=9)),
    "IA3": ("IA3Config", dict(feedforward_modules=[])),
    "C3A": ("C3AConfig", dict(block_size=2, init_weights=True)),
    "DeLoRA": ("DeloraConfig", dict(r=2, delora_lambda=3)),
    "FourierFT": ("FourierFTConfig", dict(n_frequency=7, scaling=5.0, init_weights=True)),
    "RoAd": ("RoadConfig", dict(group_size=4)),
    "RoAd, 2": ("RoadConfig", dict(group_size=4, variant="road_2")),
    "RoAd, 4": ("RoadConfig", dict(group_size=2, variant="road_4")),
    "GraLoRA": ("GraloraConfig", dict(r=4, alpha=6)),
    "GraLoRA, hybrid": ("GraloraConfig", dict(r=2, hybrid_r=1)),
    "HRA": ("HRAConfig", dict(r=2)),
    "HiRA": ("HiraConfig", dict(r=2)),
    "LoHa": ("LoHaConfig", dict(r=2, alpha=3)),
    "LoKr": ("LoKrConfig", dict(r=1, alpha=3)),
    "LoKr, whole D": ("LoKrConfig", dict(r=8, decompose_factor=2)),
    "LoKr, both": ("LoKrConfig", dict(r=1, decompose_both=True, decompose_factor=4)),
    "MiSS": ("MissConfig", dict(r=4)),
    "MiSS, mini": ("MissConfig", dict(r=3, mini_r=2, init_weights="mini")),
    "MiSS, bat": ("MissConfig", dict(r=2, init_weights="bat")),
    "OFT": ("OFTConfig", dict(oft_block_size=3)),
    "OFT, by r": ("OFTConfig", dict(r=2, oft_block_size=0, num_cayley_neumann_terms=3)),
    "OFT, exact, shared": ("OFTConfig", dict(oft_block_size=2, use_cayley_neumann=False, block_share=True)),
    "RandLoRA": ("RandLoraConfig", dict(r=3)),
    "SHiRA": ("ShiraConfig", dict(r=1)),
    "TrainableTokens": ("TrainableTokensConfig", dict(token_indices=[1, 3])),
    "VeRA": ("VeraConfig", dict(r=4)),
    "VeRA, not saved": ("VeraConfig", dict(r=4, save_projection=False)),
}

NOT_HERE = {("OFT", "Conv2D"), ("TrainableTokens", "Dense"), ("TrainableTokens", "EinsumDense")}
"""What only peft has: OFT on convolutions, where its outputs are not those merged, and tokens as outputs."""


def build(kind):
    """Returns a Keras model around a layer "host" of a kind, the same each time, and an input."""
    rng = np.random.default_rng(3)
    floats = lambda *shape: rng.normal(size=shape).astype("float32")  # noqa: E731
    hosts = {
        "Dense": lambda: (layers.Dense(8, activation="tanh", name="host"), floats(4, 3, 6)),
        "EinsumDense": lambda: (
            layers.EinsumDense("abc,cde->abde", (None, 2, 4), bias_axes="de", name="host"),
            floats(4, 3, 6),
        ),
        "Conv2D": lambda: (layers.Conv2D(8, 3, name="host"), floats(2, 5, 5, 2)),
        "Embedding": lambda: (layers.Embedding(9, 6, name="host"), rng.integers(0, 9, (4, 3)).astype("int32")),
    }
    layer, x = hosts[kind]()
    inputs = keras.Input(x.shape[1:], dtype=str(x.dtype))
    y = layer(inputs)
    model = keras.Model(inputs, layers.Dense(4, name="second")(y) if kind == "Dense" else y)
    model.set_weights([0.5 * floats(*w.shape) for w in model.get_weights()])
    return model, x


def compare(case, kind):
    """Returns what an exchange in both directions shows of one method at one kind of layer.

    Returns:
        None if peft or kopt refuses it; else the largest differences of outputs "peft to kopt", "kopt to peft" and
        "merged", the "effect", and the trainable parameters "count" on both sides.
    """
    import peft
    import torch
    from torch_twin import Twin

    model, x = build(kind)
    weights = model.get_weights()
    inputs = torch.tensor(x).long() if kind == "Embedding" else torch.tensor(x)
    config, options = CASES[case]
    made = getattr(peft, config)(target_modules=TWO if kind == "Dense" else ["host"], **options)
    torch.manual_seed(0)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # peft's
        try:
            theirs = peft.get_peft_model(Twin(kind, weights), made)
            theirs.eval()
            theirs(inputs)
        except (TypeError, ValueError, NotImplementedError, AttributeError, RuntimeError, AssertionError):
            return None
        with torch.no_grad():
            for parameter in (p for p in theirs.parameters() if p.requires_grad):
                parameter += torch.randn(parameter.shape) * 0.2
            theirs.save_pretrained(folder)
            expected = theirs(inputs).numpy()
        if (case.split(",")[0], kind) in NOT_HERE:
            with pytest.raises(ValueError, match="does not have"):
                kopt.peft.load_adapter(model, folder)
            return None
        kopt.peft.load_adapter(model, folder)
        loaded = outputs(model, x, expected)
        count = kopt.peft.get_nb_trainable_parameters(model)[0]
        trained = {id(v) for v in model.trainable_variables}
        state, rng = get_adapter_state(model), np.random.default_rng(4)
        variables = {k: v for k, v in zip(state, _variables(model), strict=True)}
        new = {k: v + 0.1 * rng.normal(size=v.shape) * (id(variables[k]) in trained) for k, v in state.items()}
        set_adapter_state(model, "default", new)
        changed = outputs(model, x, expected)
        kopt.peft.save_pretrained(model, f"{folder}/back")
        back = peft.PeftModel.from_pretrained(Twin(kind, weights), f"{folder}/back").eval()
        with torch.no_grad():
            returned = back(inputs).numpy()
        kopt.peft.merge_adapter(model)
        return {
            "peft to kopt": float(np.abs(loaded - expected).max()),
            "kopt to peft": float(np.abs(changed - returned).max()),
            "merged": float(np.abs(outputs(model, x, expected) - changed).max()),
            "effect": float(np.abs(changed - outputs(build(kind)[0], x, expected)).max()),
            "count": [count, sum(p.numel() for p in theirs.parameters() if p.requires_grad)],
        }


def _variables(model):
    return [v for layer in adapters_of(model).hosts.values() for v in layer.saved_of("default").values()]


def outputs(model, x, like):
    """Returns the outputs of a Keras model, in the shape that torch gives."""
    return keras.ops.convert_to_numpy(model(x, training=False)).reshape(like.shape)


def main():
    """Prints all as JSON."""
    found = {case: {kind: compare(case, kind) for kind in KINDS} for case in CASES}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
    main()

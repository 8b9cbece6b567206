"""Adapters as cases for every backend: what they compute, train, switch, save and read."""

import copy
import os
import pathlib
import pickle
import tempfile
from collections.abc import Callable, Iterator

import keras
import numpy as np
from backend_models import HOSTS, attention, bert, dense, einsum, floats, hub, llama, prompted, recurrent
from backend_runs import Case
from keras import layers

import kopt
from kopt import peft
from kopt.peft.model import adapters_of

FOLDER = "KOPT_BACKEND_FILES"
"""The variable of the environment with the folder in which backends leave files for each other."""
STEPS = {"batch_size": 8, "epochs": 4, "shuffle": False, "verbose": 0}
"""20 steps on 40 examples."""


# ------------------------------------------------------------------------------------------------- what is done


def scramble(model, name: str = "default", scale: float = 0.2) -> None:
    """Gives an adapter the same weights on every backend."""
    state = peft.model.get_adapter_state(model, name)
    hosts = [layer for layer in adapters_of(model).hosts.values() if name in layer.adapters]
    learns = [variable.trainable for layer in hosts for variable in layer.saved_of(name).values()]
    new = {
        key: value + learns[i] * scale * floats(*value.shape, seed=i) for i, (key, value) in enumerate(state.items())
    }
    peft.model.set_adapter_state(model, name, new)


def weights(model, name: str = "default") -> list[np.ndarray]:
    """Returns the weights of an adapter."""
    return list(peft.model.get_adapter_state(model, name).values())


def predict(model, x) -> np.ndarray:
    """Returns what a model predicts."""
    return model.predict(x, verbose=0)


def close(a, b, tolerance: float = 1e-5) -> None:
    """Asserts that arrays are equal but for rounding."""
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def train(model, x, **options) -> None:
    """Fits for 20 steps, or as `options` say."""
    model.fit(x, floats(40, 3, seed=9), **{**STEPS, **options})


def compiled(model) -> keras.Model:
    """Returns the model, ready to be trained."""
    model.compile(
        kopt.AdamW(0.02, weight_decay=0.05, epsilon=1e-2, sparse="exact"), "mse"
    )  # lazy rows are TensorFlow's
    return model


def base_of(model) -> list[np.ndarray]:
    """Returns the frozen weights of the model itself."""
    adapters = {id(v) for layer in peft.model.adapter_layers(model) for v in layer.variables}
    return [v.numpy() for v in model.variables if id(v) not in adapters and "seed" not in v.name]


def life(make: Callable, adapter: Callable) -> Iterator[np.ndarray]:
    """Adds an adapter, trains it, merges it and removes it."""
    model, x = make()
    plain, before = predict(model, x), base_of(model)
    peft.get_peft_model(model, adapter())
    if adapter().gated:
        close(predict(model, x), plain)
    scramble(model)
    yield predict(model, x)
    compiled(model)
    start = weights(model)
    train(model, x)
    assert all(np.array_equal(a, b) for a, b in zip(base_of(model), before, strict=True)), "the base has moved"
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(weights(model), start, strict=True)), "nothing is trained"
    live = predict(model, x)
    yield live
    yield from weights(model)
    with peft.disable_adapter(model):
        close(predict(model, x), plain)
    if adapter().mergeable:
        peft.merge_adapter(model)
        close(predict(model, x), live)
        yield predict(model, x)
        peft.unmerge_adapter(model)
    np.testing.assert_array_equal(predict(model, x), live)
    peft.unload(model)
    np.testing.assert_array_equal(predict(model, x), plain)
    assert type(model).__name__ in ("Functional", "Prompted")


def prefixed(make: Callable) -> Iterator[np.ndarray]:
    """Trains a prefix of a model of KerasHub, and takes it out."""
    backbone, model, x = hub(make)
    x = {key: value[:, :3] for key, value in x.items()}  # three of six positions are the prefix's
    plain = predict(model, x)
    peft.get_peft_model(backbone, peft.PrefixTuning(num_virtual_tokens=3, prefix_projection=True))
    scramble(backbone)
    model.layers[-1].trainable = False
    train(compiled(model), x, epochs=1)
    yield predict(model, x)
    yield from weights(backbone)
    peft.unload(backbone)
    compiled(model)  # what holds a model is not told of its prefix
    np.testing.assert_array_equal(predict(model, x), plain)


def switched() -> Iterator[np.ndarray]:
    """Uses the verbs between trainings, on adapters of the same shapes."""
    model, x = dense()
    plain = predict(model, x)
    for name in ("one", "two"):
        peft.get_peft_model(model, peft.LoRA(r=2, target_modules=["host"], modules_to_save=["head"]), name)
        scramble(model, name, 0.2 if name == "one" else 0.4)
    compiled(model)
    for name in ("one", "two", "one", "two"):
        peft.set_adapter(model, name)
        yield predict(model, x)
        train(model, x, epochs=1)
        yield predict(model, x)
        model.evaluate(x, floats(40, 3), verbose=0)
    peft.set_adapter(model, ["one", "two"])
    train(model, x, epochs=1)
    yield predict(model, x)
    peft.model.set_scale(model, "two", 0.5)
    yield predict(model, x)
    with peft.disable_adapter(model):
        close(predict(model, x), plain)
    peft.merge_adapter(model)
    yield predict(model, x)
    peft.unmerge_adapter(model)
    peft.delete_adapter(model, "one")
    train(model, x, epochs=1)
    yield predict(model, x)
    yield from weights(model, "two")
    peft.merge_and_unload(model)
    yield predict(model, x)
    compiled(model)
    train(model, x, epochs=1)
    yield from model.get_weights()


def started() -> Iterator[np.ndarray]:
    """Starts LoRA from batches, and trains it."""
    for start in ("eva", "corda", "lora_ga"):
        model, x = dense()
        batches = [(x[i : i + 20], floats(20, 3, seed=i)) for i in (0, 20)]
        adapter = peft.LoRA(r=1, target_modules=["host"], init_lora_weights=start)
        peft.initialize(compiled(model), adapter, batches)
        yield from map(np.abs, weights(model))  # the signs of a pair of singular vectors are free
        train(model, x, epochs=1)
        yield predict(model, x)


def around() -> Iterator[np.ndarray]:
    """Switches adapters of a model within another one, which was compiled before."""
    inner, x = dense()
    inputs = keras.Input((6,))
    outer = keras.Model(inputs, layers.Dense(3, name="outer")(inner(inputs)))
    outer.layers[-1].set_weights([floats(3, 3), floats(3)])
    outer.predict(x, verbose=0)
    for name in ("one", "two"):
        peft.get_peft_model(inner, peft.LoRA(r=2, target_modules=["host"], modules_to_save=["head"]), name)
        scramble(inner, name, 0.2 if name == "one" else 0.4)
    outer = keras.Model(inputs, outer.output) if keras.backend.backend() == "tensorflow" else outer
    for name in ("one", "two", "one"):
        peft.set_adapter(inner, name)
        yield predict(outer, x)
    outer.layers[-1].trainable = False
    train(compiled(outer), x)
    yield predict(outer, x)
    yield from weights(inner, "one")
    peft.unload(inner)
    peft.get_peft_model(inner, peft.IA3(target_modules=["host"], feedforward_modules=[]))
    scramble(inner)
    outer = keras.Model(inputs, outer.output) if keras.backend.backend() == "tensorflow" else outer
    yield predict(outer, x)


def copied() -> Iterator[np.ndarray]:
    """Saves, loads, pickles and copies a model with adapters, and trains the copies on."""
    for make in (dense, einsum):
        model, x = make()
        peft.get_peft_model(model, peft.DoRA(r=2, target_modules=["host"], modules_to_save=["head"]))
        scramble(model)
        train(compiled(model), x, epochs=1)
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "model.keras")
            model.save(file)
            loaded = keras.models.load_model(file)
        copies = [loaded, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)]
        expected = predict(model, x)
        yield expected
        for other in copies:
            np.testing.assert_array_equal(predict(other, x), expected)
            train(other, x, epochs=1)
            yield predict(other, x)


def dropped() -> Iterator[np.ndarray]:
    """Trains with dropout, whose random numbers each backend draws in its own way: what is without it is returned."""
    model, x = dense()
    peft.get_peft_model(model, peft.LoRA(r=2, target_modules=["host"], lora_dropout=0.5))
    scramble(model)
    still = predict(model, x)
    assert np.abs(np.asarray(keras.ops.convert_to_numpy(model(x, training=True))) - still).max() > 1e-3
    np.testing.assert_array_equal(predict(model, x), still)
    start = weights(model)
    train(compiled(model), x, epochs=1)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(weights(model), start, strict=True))
    yield still


def exchanged(make: Callable) -> Iterator[np.ndarray]:
    """Trains an adapter of a KerasHub model, saves it for Hugging Face peft, and reads it into another model."""
    backbone, model, x = hub(make)
    peft.get_peft_model(backbone, peft.LoRA(r=2))
    scramble(backbone)
    model.layers[-1].trainable = False
    train(compiled(model), x, epochs=1)
    expected = predict(model, x)
    yield expected
    yield from weights(backbone)
    with tempfile.TemporaryDirectory() as folder:
        peft.save_pretrained(backbone, folder)
        twin, other, _ = hub(make)
        peft.load_adapter(twin, folder)
        close(predict(other, x), expected, 1e-6)


def left() -> Iterator[np.ndarray]:
    """Leaves files for other backends, and returns what the model with the adapter gives."""
    with shared_folder() as folder:
        yield from left_in(folder / keras.backend.backend())


def found() -> Iterator[np.ndarray]:
    """Reads what other backends have left."""
    with shared_folder() as folder:
        if not any(folder.iterdir()):
            list(left_in(folder / keras.backend.backend()))
        _, x = dense()
        for own in sorted(folder.iterdir()):
            yield predict(keras.models.load_model(own / "model.keras"), x)
            for method in FILED:
                plain, _ = dense()
                peft.load_adapter(plain, own / method)
                yield predict(plain, x)


FILED = {
    "lora": lambda: peft.LoRA(r=2, target_modules=["host"], modules_to_save=["head"]),
    "dora": lambda: peft.DoRA(r=2, target_modules=["host"]),
    "ia3": lambda: peft.IA3(target_modules=["host"], feedforward_modules=[]),
}


def shared_folder():
    """Returns the folder that all backends see, or one for this run alone."""
    if FOLDER not in os.environ:
        return _Temporary()
    return pathlib.Path(os.environ[FOLDER])


class _Temporary(tempfile.TemporaryDirectory):
    def __enter__(self) -> pathlib.Path:
        return pathlib.Path(super().__enter__())


def left_in(folder: pathlib.Path) -> Iterator[np.ndarray]:
    """Writes a model with an adapter, and adapters alone."""
    for method, make in FILED.items():
        model, x = dense()
        peft.get_peft_model(model, make())
        scramble(model)
        train(compiled(model), x, epochs=1)
        peft.save_pretrained(model, folder / method)
        yield predict(model, x)
        if method == "dora":
            model.save(folder / "model.keras")


# ------------------------------------------------------------------------------------------------- what is compared


def _options(method: str, host: str) -> dict:
    """Returns the arguments with which a method goes to a host.

    A shift of all keys changes no attention, so the gradient of one is made of rounding errors: keys are left out.
    """
    at = ["host"] if host != "MultiHeadAttention" else ["host.query", "host.value", "host.attention_output"]
    own: dict[str, dict] = {"LoRA": {"r": 2, "lora_alpha": 4}}
    # What multiplies a change multiplies the rounding in it: these are compared with a factor of 1.
    own |= {name: {"r": 2, "lora_alpha": 2} for name in ("DoRA", "LoRAFA")}
    own |= (
        {"AdaLoRA": {"init_r": 3, "target_r": 2}}
        | {name: {"r": 2} for name in ("HiRA", "LoHa", "MiSS")}
        | {
            "C3A": {"block_size": 2},
            "FourierFT": {"n_frequency": 5, "scaling": 1},
            "RoAd": {"group_size": 2},
            "GraLoRA": {"r": 2, "alpha": 2},
            "DeLoRA": {"r": 2, "delora_lambda": 1},
            "HRA": {"r": 2},
        }
        | {"RandLoRA": {"r": 2, "randlora_alpha": 2}}
    )
    own |= {"IA3": {"feedforward_modules": []}, "OFT": {"oft_block_size": 2}, "SHiRA": {"r": 1, "random_seed": 3}}
    own |= {
        "LoKr": {"r": 1, "alpha": 1.0},
        "VeRA": {"r": 4, "d_initial": 0.5},
        "TrainableTokens": {"token_indices": [1, 3]},
    }
    return own.get(method, {}) | ({} if method == "LayerNormTuning" else {"target_modules": at})


def _lives() -> dict[str, Case]:
    methods = {cls.__name__: cls for cls in peft.adapters().values() if cls.__module__.startswith("kopt.")}
    cases = {}
    for method, cls in methods.items():
        for host, make in HOSTS.items():
            if {"Conv2D": "convolution", "Embedding": "embedding"}.get(host, "einsum") not in cls.kinds:
                continue
            few = "Bottleneck" in [base.__name__ for base in cls.__mro__] or method == "BitFit"
            if not cls.gated or (method == "LayerNormTuning" and host != "Dense"):
                continue
            if few and host not in ("Dense", "MultiHeadAttention"):
                continue
            options = _options(method, host)
            cases[f"{method}, {host}"] = lambda make=make, cls=cls, options=options: life(make, lambda: cls(**options))
    at = {"target_modules": ["host"]}
    cases |= {
        "PromptTuning": lambda: life(prompted, lambda: peft.PromptTuning(num_virtual_tokens=3)),
        "PTuning": lambda: life(prompted, lambda: peft.PTuning(num_virtual_tokens=3, encoder_hidden_size=5)),
        "PrefixTuning": lambda: life(attention, lambda: peft.PrefixTuning(num_virtual_tokens=3)),
        "PrefixTuning, BertBackbone": lambda: prefixed(bert),
        "PrefixTuning, Llama3Backbone": lambda: prefixed(llama),
        "IA3, input of Dense": lambda: life(dense, lambda: peft.IA3(**at, feedforward_modules=["host"])),
        "LoRA, bias='all', modules_to_save": lambda: life(
            dense, lambda: peft.LoRA(r=2, bias="all", modules_to_save=["head"], **at)
        ),
        "LoRA, init_lora_weights='pissa'": lambda: life(dense, lambda: peft.LoRA(r=2, init_lora_weights="pissa", **at)),
        "LoRA, target_parameters": lambda: life(
            recurrent, lambda: peft.LoRA(r=2, target_parameters=["cell.kernel", "cell.recurrent_kernel"])
        ),
    }
    rounded = {"bound": 1e-5, "remark": "reflections that nearly undo each other"}
    return {
        name: Case(lambda run=run: list(run()), **(rounded if name.startswith("HRA, ") else {}))
        for name, run in cases.items()
    }


ADAPTERS = _lives() | {
    "verbs while training": Case(lambda: list(switched()), remark="seven trainings, one after the other"),
    "EVA, CorDA, LoRA-GA": Case(lambda: list(started()), bound=1e-5, remark="singular vectors, from float32 sums"),
    "a model around it, compiled before": Case(lambda: list(around())),
    "`.keras`, pickle, deepcopy": Case(lambda: list(copied())),
    "`lora_dropout`": Case(lambda: list(dropped()), remark="its random numbers are those of the backend"),
    "BertBackbone, `save_pretrained`": Case(lambda: list(exchanged(bert))),
    "Llama3Backbone, `save_pretrained`": Case(lambda: list(exchanged(llama))),
    "files that it wrote": Case(lambda: list(left())),
    "files that others wrote": Case(lambda: list(found())),
}

"""Adapters in a program: switched, trained, saved, copied, counted."""

import contextlib
import copy
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import zoo
from keras import layers
from probes import outputs, same, scramble, values, weights
from zoo import dense

import kopt
from kopt import peft
from kopt.peft.model import adapters_of


def test_switching_reaches_a_model_compiled_before():
    inner, x = dense()
    plain = outputs(inner, x)
    peft.get_peft_model(inner, peft.LoRA(target_modules=["a"]))
    scramble(inner)
    inputs = keras.Input((5,))
    outer = keras.Model(inputs, inner(inputs))
    live = outer.predict(x, verbose=0)
    assert np.abs(live - plain).max() > 1e-3
    with peft.disable_adapter(inner):
        np.testing.assert_allclose(outer.predict(x, verbose=0), plain, atol=1e-6)
    np.testing.assert_array_equal(outer.predict(x, verbose=0), live)


def test_copies_switch_in_a_model_compiled_before():
    inner, x = dense()
    for name in ("one", "two"):
        peft.get_peft_model(inner, peft.LoRA(target_modules=["a"], modules_to_save=["b"]), name)
        scramble(inner)
    inputs = keras.Input((5,))
    outer = keras.Model(inputs, inner(inputs))
    seen = []
    for name in ("one", "two", "one"):
        peft.set_adapter(inner, name)
        seen.append(outer.predict(x, verbose=0))
        np.testing.assert_allclose(seen[-1], outputs(inner, x), atol=1e-6)
    np.testing.assert_array_equal(seen[0], seen[2])
    assert np.abs(seen[0] - seen[1]).max() > 1e-3


def test_fit_goes_on_with_another_adapter():
    model, x = dense()
    y = np.ones((8, 6), "float32")
    peft.get_peft_model(model, peft.LoRA(target_modules=["a"]), "one")
    model.compile(kopt.AdamW(1e-2), "mse")
    model.fit(x, y, verbose=0)
    peft.get_peft_model(model, peft.LoRA(target_modules=["b"]), "two")
    one = weights(model, "a", "lora_B", "one")
    model.fit(x, y, verbose=0)
    np.testing.assert_array_equal(weights(model, "a", "lora_B", "one"), one)
    assert np.abs(weights(model, "b", "lora_B", "two")).max() > 0
    peft.set_adapter(model, ["one", "two"])
    model.fit(x, y, verbose=0)
    assert not np.array_equal(weights(model, "a", "lora_B", "one"), one)


@pytest.mark.few(1)
@pytest.mark.parametrize("optimizer", ["kopt", pytest.param("adam", marks=pytest.mark.slow)])
@pytest.mark.parametrize("jit", [True, False, pytest.param(None, marks=pytest.mark.slow)])
def test_fit_with_any_compilation(optimizer, jit):
    model, x = dense()
    peft.get_peft_model(model, peft.DoRA(target_modules=["a"], modules_to_save=["b"]))
    model.compile(
        kopt.Adam(1e-2) if optimizer == "kopt" else "adam", "mse", jit_compile=bool(jit), run_eagerly=jit is None
    )
    history = model.fit(x, np.ones((8, 6), "float32"), epochs=20, verbose=0).history["loss"]
    assert history[-1] < history[0]


def test_resumes_bit_for_bit(tmp_path):
    def train(model, epochs):
        model.fit(x, np.ones((8, 6), "float32"), epochs=epochs, shuffle=False, verbose=0)

    model, x = dense()
    peft.get_peft_model(model, peft.LoRA(target_modules=["a"], modules_to_save=["b"]))
    model.compile(kopt.AdamW(1e-2), "mse")
    train(model, 2)
    model.save(tmp_path / "model.keras")
    train(model, 2)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    train(loaded, 2)
    assert same(values(loaded.weights), values(model.weights))


@pytest.mark.slow
def test_loads_in_a_new_process_without_custom_objects(tmp_path):
    model, x = dense()
    peft.get_peft_model(model, peft.LoRA(target_modules=["a"]))
    scramble(model)
    model.save(tmp_path / "model.keras")
    program = """
import sys, keras, kopt, json
model = keras.models.load_model(sys.argv[1])
print(json.dumps([kopt.peft.get_model_status(model).active_adapters, model(json.loads(sys.argv[2])).numpy().tolist()]))
""".replace("json.loads(sys.argv[2])", "keras.ops.convert_to_tensor(json.loads(sys.argv[2]), 'float32')")
    command = [sys.executable, "-c", program, str(tmp_path / "model.keras"), json.dumps(x.tolist())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    active, y = json.loads(done.stdout.splitlines()[-1])
    assert active == ["default"]
    np.testing.assert_allclose(y, outputs(model, x), atol=1e-6)


@pytest.mark.parametrize("make", [zoo.sequential, zoo.shared, zoo.subclassed], ids=["sequential", "functional", "own"])
def test_copies(make, tmp_path):
    model, x, _ = make()
    plain, cls = outputs(model, x), type(model)
    peft.get_peft_model(model, peft.LoRA(target_modules=r".*"))
    scramble(model)
    twin = copy.deepcopy(model)
    np.testing.assert_array_equal(outputs(twin, x), outputs(model, x))
    assert peft.get_model_status(twin).active_adapters == ["default"]
    if make is zoo.subclassed:  # which Keras cannot clone
        return
    clone = keras.models.clone_model(model)
    assert type(clone) is cls
    assert adapters_of(clone) is None
    clone.set_weights([v.numpy() for v in model.weights if "adapters" not in v.path])
    np.testing.assert_array_equal(outputs(clone, x), plain)
    clone.save(tmp_path / "clone.keras")
    np.testing.assert_array_equal(outputs(keras.models.load_model(tmp_path / "clone.keras"), x), plain)


def test_thawing_the_model_thaws_no_host():
    model, _ = dense()
    peft.get_peft_model(model, peft.LoRA(target_modules=["a", "b"]))
    count = len(model.trainable_variables)
    model.trainable = False
    assert not model.trainable_variables
    model.trainable = True
    assert len(model.trainable_variables) == count


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy", ["mixed_float16", *(pytest.param(p, marks=pytest.mark.slow) for p in ("mixed_bfloat16", "bfloat16"))]
)
def test_low_precision(policy):
    keras.config.set_dtype_policy(policy)
    try:
        inputs = keras.Input((4, 5))
        x = layers.EinsumDense("abc,cd->abd", (None, 6), bias_axes="d", name="q")(inputs)
        model = keras.Model(inputs, layers.Dense(2, "relu", name="head")(layers.LayerNormalization()(x)))
    finally:
        keras.config.set_dtype_policy("float32")
    data = zoo.floats(8, 4, 5)
    plain = outputs(model, data).astype("float32")
    for name, adapter in (
        ("lora", peft.LoRA(target_modules=["q"], modules_to_save=["head"], bias="all")),
        ("dora", peft.DoRA(target_modules=["q", "head"])),
        ("adapter", peft.Bottleneck(target_modules=["q"])),
    ):
        before = values(model.weights)
        peft.get_peft_model(model, adapter)
        np.testing.assert_allclose(outputs(model, data).astype("float32"), plain, atol=0.02)
        assert all(v.dtype == "float32" for v in model.trainable_variables), name
        model.compile("adam", "mse")
        start = values(model.trainable_variables)
        model.fit(data, np.ones((8, 4, 2)), verbose=0)
        assert all(np.isfinite(v.numpy()).all() for v in model.trainable_variables)
        assert not same(start, values(model.trainable_variables))
        peft.unload(model)
        assert same(values(model.weights), before)


@pytest.mark.slow
def test_mirrored_strategy(two_devices):
    def run(scope):
        keras.utils.set_random_seed(0)
        with scope():
            model, _ = dense()
            x = np.random.default_rng(3).normal(size=(8, 5)).astype("float32")
        peft.get_peft_model(model, peft.LoRA(target_modules=["a"], modules_to_save=["b"]))  # outside of the scope
        with scope():
            model.compile(kopt.Adam(1e-2), "mse")
        model.fit(x, np.ones((8, 6), "float32"), batch_size=8, epochs=3, shuffle=False, verbose=0)
        live = model.predict(x, verbose=0)
        with peft.disable_adapter(model):
            off = model.predict(x, verbose=0)
        peft.get_peft_model(model, peft.LoRA(target_modules=["a"]), "next")  # with an optimizer of its own
        model.fit(x, np.ones((8, 6), "float32"), batch_size=8, epochs=2, shuffle=False, verbose=0)
        assert int(model.optimizer.iterations.numpy()) == 2
        return live, off, model.predict(x, verbose=0)

    for one, two in zip(run(contextlib.nullcontext), run(two_devices.scope), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_names_of_hugging_face():
    assert type(peft.LoraConfig(r=4, use_dora=True)) is peft.DoRA
    assert type(peft.LoraConfig(r=4)) is peft.LoRA
    assert type(peft.IA3Config()) is peft.IA3
    assert type(peft.PromptTuningConfig()) is peft.PromptTuning
    assert type(peft.LNTuningConfig()) is peft.LayerNormTuning


def test_status_and_counts(capsys):
    model, _ = dense(count=1)
    peft.get_peft_model(model, peft.LoRA(r=2, target_modules=["a"]))
    assert peft.get_nb_trainable_parameters(model) == (22, 36 + 22)
    peft.print_trainable_parameters(model)
    assert capsys.readouterr().out == "trainable params: 22 || all params: 58 || trainable%: 37.9310\n"
    status = peft.get_model_status(model)
    assert status.base_model_type == "Functional"
    assert status.peft_types == {"default": "LORA"}
    assert (status.trainable_params, status.total_params, status.num_adapter_layers) == (22, 58, 1)
    assert status.enabled
    assert not status.merged_adapters
    with peft.disable_adapter(model):
        assert not peft.get_model_status(model).enabled
    peft.merge_adapter(model)
    assert peft.get_model_status(model).merged_adapters == ["default"]
    text = []
    model.summary(print_fn=lambda line, **_: text.append(line))
    assert "Trainable params: 22" in "\n".join(text)

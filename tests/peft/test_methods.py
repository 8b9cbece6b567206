"""What single methods promise, and what users meet: names, errors, switching, strategies, precision."""

import contextlib
import copy
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import zoo
from conftest import outputs, same, scramble, values
from keras import layers

import kopt
from kopt import peft
from kopt.peft._state import state


def dense(units=6, width=5, count=2):
    """Returns a small stack of Dense layers called "a", "b", ... and an input."""
    x = inputs = keras.Input((width,))
    for name in "abcdef"[:count]:
        x = layers.Dense(units, name=name)(x)
    return keras.Model(inputs, x), zoo.floats(8, width)


def weights(model, path, name, adapter="default"):
    """Returns one weight of an adapter."""
    return state(model).hosts[path].weights_of[adapter][name].numpy()


# ------------------------------------------------------------------------------------------------------- LoRA


@pytest.mark.parametrize("kind", [True, "gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora"])
def test_starts_as_the_identity(kind):
    model, x = dense()
    plain, before = outputs(model, x), values(model.weights)
    peft.get_peft_model(model, peft.LoRA(r=4, target_modules=["a", "b"], init_lora_weights=kind))
    np.testing.assert_allclose(outputs(model, x), plain, atol=1e-6)
    assert np.abs(weights(model, "a", "lora_A")).max() > 0
    scramble(model)
    live = outputs(model, x)
    peft.merge_adapter(model)
    np.testing.assert_allclose(outputs(model, x), live, atol=1e-5)
    peft.unload(model)
    assert same(values(model.weights), before)


def test_no_initialization_is_not_the_identity():
    model, x = dense()
    plain = outputs(model, x)
    peft.get_peft_model(model, peft.LoRA(target_modules=["a"], init_lora_weights=False))
    assert np.abs(outputs(model, x) - plain).max() > 1e-3


def test_the_default_start_is_that_of_torch():
    model, _ = dense(64, 64)
    peft.get_peft_model(model, peft.LoRA(r=16, target_modules=["a"]))
    a = weights(model, "a", "lora_A")
    assert np.abs(a).max() <= 1 / 8  # uniform in ±1/√in
    assert abs(a.std() - 1 / 8 / np.sqrt(3)) < 0.005
    peft.get_peft_model(model, peft.LoRA(r=16, target_modules=["a"], init_lora_weights="gaussian"), "g")
    assert abs(weights(model, "a", "lora_A", "g").std() - 1 / 16) < 0.005


def test_pissa_takes_the_largest_singular_values():
    model, _ = dense(6, 6, 1)
    w = model.get_layer("a").kernel.numpy()
    peft.get_peft_model(model, peft.LoRA(r=2, lora_alpha=4, target_modules=["a"], init_lora_weights="pissa"))
    u, s, v = np.linalg.svd(w)
    product = 2 * weights(model, "a", "lora_A") @ weights(model, "a", "lora_B")
    np.testing.assert_allclose(product, (u[:, :2] * s[:2]) @ v[:2], atol=1e-5)


def test_seed_repeats_the_start():
    starts = []
    for _ in range(2):
        keras.utils.set_random_seed(7)
        model, _ = dense()
        peft.get_peft_model(model, peft.LoRA(target_modules=["a"]))
        starts.append(weights(model, "a", "lora_A"))
    np.testing.assert_array_equal(*starts)


@pytest.mark.parametrize(("rs", "scale"), [(False, 4.0), (True, 8.0)])
def test_scaling(rs, scale):
    model, x = dense(count=1)
    plain = outputs(model, x)
    peft.get_peft_model(model, peft.LoRA(r=4, lora_alpha=16, use_rslora=rs, target_modules=["a"]))
    scramble(model)
    change = scale * x @ weights(model, "a", "lora_A") @ weights(model, "a", "lora_B")
    np.testing.assert_allclose(outputs(model, x) - plain, change, atol=1e-5)


def test_patterns_set_rank_and_alpha():
    model, _ = dense(count=3)
    adapter = peft.LoRA(
        r=2, lora_alpha=4, target_modules=["a", "b", "c"], rank_pattern={"b": 3}, alpha_pattern={"^c": 8, "b": 6}
    )
    peft.get_peft_model(model, adapter)
    assert [weights(model, p, "lora_A").shape[1] for p in "abc"] == [2, 3, 2]
    scales = [bank.adapters["default"].scaling for bank in state(model).hosts.values()]
    assert scales == [2, 2, 4]


@pytest.mark.parametrize("method", [peft.LoRA, peft.DoRA], ids=["lora", "dora"])
def test_dropout_only_while_training(method):
    model, x = dense(count=1)
    peft.get_peft_model(model, method(lora_dropout=0.5, target_modules=["a"]))
    scramble(model)
    calm = outputs(model, x)
    np.testing.assert_array_equal(outputs(model, x), calm)
    wild = np.asarray(model(x, training=True))
    assert np.abs(wild - calm).max() > 1e-3
    means = np.mean([np.asarray(model(x, training=True)) for _ in range(60)], axis=0)
    assert np.abs(means - calm).mean() < 0.5 * np.abs(wild - calm).mean()


@pytest.mark.parametrize(("bias", "expected"), [("none", 0), ("lora_only", 6), ("all", 12)])
def test_bias(bias, expected):
    model, _ = dense()
    peft.get_peft_model(model, peft.LoRA(r=1, target_modules=["a"], bias=bias))
    assert peft.get_nb_trainable_parameters(model)[0] == 5 + 6 + expected


def test_lora_plus_learns_b_faster():
    moved, x = [], zoo.floats(8, 5)
    for rules in ((), peft.lora_plus(16)):
        keras.utils.set_random_seed(0)
        model, _ = dense(count=1)
        peft.get_peft_model(model, peft.LoRA(target_modules=["a"]))
        model.compile(kopt.SGD(1e-3, multipliers=rules), "mse")
        model.train_on_batch(x, np.ones((8, 6), "float32"))
        moved.append(np.abs(weights(model, "a", "lora_B")).max())
    assert moved[1] == pytest.approx(16 * moved[0], rel=1e-4)
    with pytest.raises(ValueError, match="at least 1"):
        peft.lora_plus(0.5)


# ---------------------------------------------------------------------------------------------------- others


def test_ia3_scales_inputs_of_feedforward_modules():
    model, x = dense()
    peft.get_peft_model(model, peft.IA3(target_modules=["a", "b"], feedforward_modules=["b"]))
    assert weights(model, "a", "ia3_l").shape == (1, 6)
    assert weights(model, "b", "ia3_l").shape == (6, 1)
    scramble(model)
    a, b = model.get_layer("a"), model.get_layer("b")
    inner = (x @ a.kernel.numpy() + a.bias.numpy()) * weights(model, "a", "ia3_l")
    expected = (inner * weights(model, "b", "ia3_l")[:, 0]) @ b.kernel.numpy() + b.bias.numpy()
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"reduction_factor": 2}, 2 * 6 * 3 + 3 + 6),
        ({"reduction_factor": 100}, 2 * 6 + 1 + 6),
        ({"reduction_factor": 2, "parallel": True}, 5 * 3 + 3 * 6 + 3 + 6),
    ],
)
def test_bottleneck_sizes(options, expected):
    model, _ = dense(count=1)
    peft.get_peft_model(model, peft.Bottleneck(target_modules=["a"], **options))
    assert peft.get_nb_trainable_parameters(model)[0] == expected


def test_bottleneck_options_change_the_result():
    found, x = [], zoo.floats(8, 6)
    for options in ({}, {"non_linearity": "tanh"}, {"scaling": 2.0}, {"parallel": True}, {"reduction_factor": 2}):
        keras.utils.set_random_seed(0)
        model, _ = dense(6, 6, 1)
        peft.get_peft_model(model, peft.Bottleneck(target_modules=["a"], **({"reduction_factor": 3} | options)))
        scramble(model, 0.5)
        found.append(outputs(model, x))
    assert all(np.abs(found[0] - other).max() > 1e-4 for other in found[1:])


def test_layer_norm_tuning_takes_normalizations_alone():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(4)(layers.LayerNormalization()(layers.Dense(4)(inputs))))
    peft.get_peft_model(model, peft.LayerNormTuning())
    assert peft.get_nb_trainable_parameters(model)[0] == 8


def test_bitfit_takes_all_shifts():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(3, use_bias=False)(layers.LayerNormalization()(layers.Dense(4)(inputs))))
    peft.get_peft_model(model, peft.BitFit())
    assert peft.get_nb_trainable_parameters(model)[0] == 8


class Texts(layers.Layer):
    """Mean of embedded tokens over a mask."""

    def call(self, embedded, mask):
        mask = keras.ops.cast(mask, "float32")[..., None]
        return keras.ops.sum(embedded * mask, 1) / keras.ops.sum(mask, 1)


def text_model():
    """Returns a model of token ids and a mask, and an input."""
    inputs = {key: keras.Input((None,), dtype="int32", name=key) for key in ("padding_mask", "token_ids")}
    embedded = layers.Embedding(9, 4, name="token_embedding")(inputs["token_ids"])
    y = layers.Dense(2, name="head")(Texts()(embedded, inputs["padding_mask"]))
    x = {"token_ids": zoo.integers(9, 8, 5), "padding_mask": np.ones((8, 5), "int32")}
    return keras.Model(inputs, y), x


def test_prompts_stand_in_front(tmp_path):
    model, x = text_model()
    plain = outputs(model, x)
    table = model.get_layer("token_embedding").embeddings.numpy()
    peft.get_peft_model(model, peft.PromptTuning(num_virtual_tokens=3))
    prompt = weights(model, "token_embedding", "prompt_embeddings")
    assert prompt.shape == (3, 4)
    assert peft.get_nb_trainable_parameters(model)[0] == 12
    means = (table[x["token_ids"]].sum(1) + prompt.sum(0)) / 8
    head = model.get_layer("head")
    np.testing.assert_allclose(outputs(model, x), means @ head.kernel.numpy() + head.bias.numpy(), atol=1e-5)

    model.compile("sgd", "mse", jit_compile=True)
    np.testing.assert_allclose(model.predict(x, verbose=0), outputs(model, x), atol=1e-5)
    model.fit(x, plain + 1, verbose=0)
    assert not np.array_equal(weights(model, "token_embedding", "prompt_embeddings"), prompt)
    live = outputs(model, x)
    with peft.disable_adapter(model):
        np.testing.assert_allclose(model.predict(x, verbose=0), plain, atol=1e-6)
    np.testing.assert_allclose(model.predict(x, verbose=0), live, atol=1e-5)
    peft.get_peft_model(model, peft.PromptTuning(num_virtual_tokens=2), "second")
    with pytest.raises(ValueError, match="Only one prompt"):
        peft.set_adapter(model, ["default", "second"])
    peft.set_adapter(model, "default")
    np.testing.assert_allclose(outputs(model, x), live, atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects={"Texts": Texts})
    np.testing.assert_allclose(outputs(loaded, x), live, atol=1e-6)
    with pytest.raises(ValueError, match="cannot be merged"):
        peft.merge_and_unload(model)
    peft.unload(model)
    np.testing.assert_array_equal(outputs(model, x), plain)


def test_a_prompt_needs_token_ids():
    inputs = keras.Input((5,), dtype="int32")
    model = keras.Model(inputs, layers.Embedding(9, 4, name="token_embedding")(inputs))
    peft.get_peft_model(model, peft.PromptTuning())
    with pytest.raises(ValueError, match="'token_ids'"):
        model(zoo.integers(9, 2, 5))


# ---------------------------------------------------------------------------------------- names and errors


def test_names():
    model, _, _ = zoo.attention()
    peft.get_peft_model(model, peft.LoRA())  # query and value by default
    assert list(state(model).hosts) == ["mha.query", "mha.value", "gqa.query", "gqa.value"]
    peft.unload(model)
    for options, expected in (
        ({"target_modules": "all-linear"}, 9),
        ({"target_modules": ["mha"]}, 4),  # all inside
        ({"target_modules": r"mha\.(key|query)"}, 2),
        ({"target_modules": ["query", "dense"], "exclude_modules": ["gqa"]}, 2),
        ({"target_modules": "all-linear", "modules_to_save": ["dense"]}, 9),
    ):
        peft.get_peft_model(model, peft.LoRA(**options))
        assert len(state(model).hosts) == expected, options
        peft.unload(model)


def test_layers_to_transform():
    inputs = keras.Input((4,))
    x = inputs
    for i in range(3):
        x = layers.Dense(4, name=f"block_{i}")(x)
    model = keras.Model(inputs, layers.Dense(4, name="other_1")(x))
    for options, expected in (
        ({"layers_to_transform": 1}, ["block_1", "other_1"]),
        ({"layers_to_transform": [0, 2]}, ["block_0", "block_2"]),
        ({"layers_to_transform": [1], "layers_pattern": ["block"]}, ["block_1"]),
    ):
        peft.get_peft_model(model, peft.LoRA(target_modules=r".*", **options))
        assert list(state(model).hosts) == expected
        peft.unload(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["aa"]}, r"matches no layer.*Nearest: a"),
        ({"target_modules": "nothing"}, "matches no layer"),
        ({"target_modules": "("}, "regular expression"),
        ({"target_modules": 3}, "target_modules must be"),
        ({"target_modules": ["a"], "modules_to_save": ["hed"]}, "no layer with weights is called 'hed'"),
        ({"r": 0}, "r must be"),
        ({"r": 2.5}, "r must be"),
        ({"lora_alpha": -1}, "lora_alpha must be"),
        ({"lora_dropout": 1.0}, "lora_dropout must be"),
        ({"bias": "some"}, "bias must be one of"),
        ({"init_lora_weights": "kaiming"}, "init_lora_weights must be"),
        ({"rank_pattern": {"a": -2}}, "rank_pattern must be"),
        ({"lora_alfa": 8}, "Did you mean 'lora_alpha'"),
        ({"target_modules": ["a"], "r": 3, "init_lora_weights": "orthogonal"}, "even r"),
        ({"target_modules": ["a"], "r": 7, "init_lora_weights": "pissa"}, "singular values"),
        ({"target_modules": ["n"]}, "cannot go to n"),
    ],
)
def test_errors_leave_the_model_alone(options, message):
    inputs = keras.Input((5,))
    model = keras.Model(
        inputs, layers.Dense(6, name="b")(layers.LayerNormalization(name="n")(layers.Dense(6, name="a")(inputs)))
    )
    classes = [type(layer) for layer in model._flatten_layers()]
    with pytest.raises(ValueError, match=message):
        peft.get_peft_model(model, peft.LoRA(**options))
    assert [type(layer) for layer in model._flatten_layers()] == classes
    assert len(model.trainable_variables) == len(model.weights) == 6


def test_a_failed_second_adapter_leaves_nothing():
    model, _ = dense()
    peft.get_peft_model(model, peft.LoRA(target_modules=["a"]))
    before = [v.path for v in model.weights]
    with pytest.raises(ValueError, match="singular values"):
        peft.get_peft_model(
            model, peft.LoRA(r=7, target_modules=["a", "b"], bias="all", init_lora_weights="pissa"), "second"
        )
    assert [v.path for v in model.weights] == before
    assert peft.get_model_status(model).available_adapters == ["default"]


def test_a_merged_model_is_not_saved_with_its_adapters(tmp_path):
    model, x = dense()
    peft.get_peft_model(model, peft.LoRA(target_modules=["a"]))
    scramble(model)
    live = outputs(model, x)
    peft.merge_adapter(model)
    for save in (lambda: model.save(tmp_path / "m.keras"), lambda: model.save_weights(tmp_path / "m.weights.h5")):
        with pytest.raises(ValueError, match="adapters are merged"):
            save()
    assert not (tmp_path / "m.keras").exists()
    peft.unmerge_adapter(model)
    model.save(tmp_path / "m.keras")
    np.testing.assert_allclose(outputs(keras.models.load_model(tmp_path / "m.keras"), x), live, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method")  # Keras, of its own InputLayer
def test_more_errors():
    model, _ = dense()
    for function in (peft.unload, peft.merge_adapter, peft.get_model_status):
        with pytest.raises(ValueError, match="has no adapters"):
            function(model)
    with pytest.raises(ValueError, match="Expected an adapter"):
        peft.get_peft_model(model, {"r": 8})
    with pytest.raises(ValueError, match="is not built"):
        peft.get_peft_model(keras.Sequential([layers.Dense(2)]), peft.LoRA())
    peft.get_peft_model(model, peft.LoRA(target_modules=["a"]))
    with pytest.raises(ValueError, match="already"):
        peft.get_peft_model(model, peft.LoRA(target_modules=["a"]))
    with pytest.raises(ValueError, match="letters, digits"):
        peft.get_peft_model(model, peft.LoRA(target_modules=["a"]), "a.b")
    with pytest.raises(ValueError, match="Did you mean 'default'"):
        peft.set_adapter(model, "defualt")
    with pytest.raises(ValueError, match=r"^a has adapters.*cannot be quantized"):
        model.quantize("int8")
    peft.merge_adapter(model)
    with pytest.raises(ValueError, match="merged already"):
        peft.merge_adapter(model)
    with pytest.raises(ValueError, match="is merged"):
        peft.delete_adapter(model, "default")


@pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method")
def test_quantized_models_are_refused():
    model, _ = dense(count=1)
    model.quantize("int8")
    with pytest.raises(ValueError, match="quantized"):
        peft.get_peft_model(model, peft.LoRA(target_modules=["a"]))


# --------------------------------------------------------------------------------------------- in a program


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
    assert state(clone) is None
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
        return live, off

    for one, two in zip(run(contextlib.nullcontext), run(two_devices.scope), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_names_of_hugging_face():
    assert type(peft.LoraConfig(r=4, use_dora=True)) is peft.DoRA
    assert type(peft.LoraConfig(r=4)) is peft.LoRA
    assert peft.IA3Config is peft.IA3
    assert peft.PromptTuningConfig is peft.PromptTuning
    assert peft.LNTuningConfig is peft.LayerNormTuning


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

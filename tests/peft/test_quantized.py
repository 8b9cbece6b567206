"""Adapters over kernels in a few bits a weight, and models in such kernels: formats of Keras, and NF4."""

import keras
import numpy as np
import pytest
import zoo
from keras import layers
from probes import outputs, same, scramble, values
from small_adapters import fitting

from kopt import peft
from kopt.peft.layers import quantized_kernel
from kopt.peft.model import adapters_of

MODES = ("int8", "int4", "nf4")
METHODS = {name: cls for name, cls in peft.adapters().items() if cls.__module__.startswith("kopt.")}
HOSTS = {
    "dense": lambda: (layers.Dense(6, "gelu", name="host"), zoo.floats(4, 3, 8)),
    "query": lambda: (
        layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de", name="host"),
        zoo.floats(4, 3, 8),
    ),
    "attention-output": lambda: (
        layers.EinsumDense("abde,dec->abc", (None, 6), "gelu", bias_axes="c", name="host"),
        zoo.floats(4, 3, 2, 8),
    ),
    "embedding": lambda: (layers.Embedding(9, 8, name="host"), zoo.integers(9, 4, 3)),
}


def build(kind, mode=None, head=False):
    """Returns a model around one host, perhaps with a head, and inputs."""
    keras.utils.set_random_seed(3)
    layer, x = HOSTS[kind]()
    inputs = keras.Input(x.shape[1:], dtype=str(x.dtype))
    y = layer(inputs)
    if head:
        y = layers.Dense(2, name="head")(layers.Flatten()(layers.Reshape((3, 6))(y)))
    model = keras.Model(inputs, y)
    if mode is not None:
        peft.quantize(model, mode, target_modules=["host"])
    return model, x


def near(x, y, bound=1e-5):
    np.testing.assert_allclose(x, y, atol=bound * max(1.0, np.abs(y).max()), rtol=0)


def small(cls):
    """Returns a method for the host, of a rank that fits it."""
    return cls(target_modules=["host"], **fitting(cls))


def some(usual):
    """Gives a test the methods on all hosts in all formats; those that are not usual in the slow tier."""
    cases = [(cls, kind, mode) for cls in METHODS.values() for kind in HOSTS for mode in MODES]
    return pytest.mark.parametrize(
        ("cls", "kind", "mode"),
        [
            pytest.param(
                *case,
                id="-".join((case[0].__name__.lower(), *case[1:])),
                marks=[] if (case[0].__name__, *case[1:]) in usual else pytest.mark.slow,
            )
            for case in cases
        ],
    )


def one_mode(usual):
    """Gives a test all formats, all but the usual one in the slow tier."""
    return pytest.mark.parametrize(
        "mode", [m if m == usual else pytest.param(m, marks=pytest.mark.slow) for m in MODES]
    )


@some({("LoRA", "dense", "int8"), ("DoRA", "query", "int4"), ("LoRA", "embedding", "int4")})
def test_life_over_a_quantized_kernel(cls, kind, mode):
    if not small(cls).gated:
        pytest.skip("changes the inputs of text models")
    model, x = build(kind, mode)
    host, plain, before = model.get_layer("host"), outputs(model, x), values(model.weights)
    try:
        peft.get_peft_model(model, small(cls))
    except ValueError as error:
        assert "cannot go to host" in str(error) or "finds nothing to train" in str(error)
        return
    if not adapters_of(model).hosts["host"].weights_of["default"]:
        return  # copies of biases only
    near(outputs(model, x), plain, 1e-6)
    assert len(model.non_trainable_variables) >= len(before) - 1
    scramble(model, 0.3)
    live = outputs(model, x)
    assert np.abs(live - plain).max() > 1e-3
    with peft.disable_adapter(model):
        near(outputs(model, x), plain, 1e-6)
    if not cls.mergeable:
        return
    base = keras.ops.convert_to_numpy(quantized_kernel(host).value)
    peft.merge_adapter(model)  # rounded to the format
    merged, bits = outputs(model, x), quantized_kernel(host).bits()
    peft.unmerge_adapter(model)
    near(outputs(model, x), live, 1e-6)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(quantized_kernel(host).value), base)

    peft.dequantize(model)
    assert host.quantization_mode is None
    exact = outputs(model, x)
    near(exact, live, {"int8": 0.03, "int4": 1e-5, "nf4": 1e-5}[mode])  # int8 rounds inputs, too
    peft.merge_and_unload(model)
    near(outputs(model, x), exact)
    assert [v.trainable for v in model.weights] == [True] * len(model.weights)
    whole = host.get_weights()[-1] if kind != "embedding" else host.get_weights()[0]
    peft.quantize(model, mode, target_modules=["host"])
    assert all(np.array_equal(value, bits[attr]) for attr, value in quantized_kernel(host).bits().items()), whole.shape
    near(outputs(model, x), merged)


@pytest.mark.parametrize("kind", HOSTS)
@pytest.mark.parametrize("block_size", [pytest.param(-1, marks=pytest.mark.slow), 4])
def test_int4_reads_as_what_keras_computes_with(kind, block_size):
    model, x = build(kind)
    host = model.get_layer("host")
    host.quantize("int4", config=keras.quantizers.Int4QuantizationConfig(block_size=block_size))
    rounded = outputs(model, x)
    kernel = quantized_kernel(host)
    bits = kernel.bits()
    kernel.assign(keras.ops.convert_to_numpy(kernel.value))
    assert outputs(model, x).shape == rounded.shape
    kernel.restore(bits)
    peft.dequantize(model)
    near(outputs(model, x), rounded)


@one_mode("nf4")
def test_files(mode, tmp_path):
    float_model, x = build("query", head=True)
    model, _ = build("query", mode, head=True)
    near(model.get_layer("head").get_weights()[0], float_model.get_layer("head").get_weights()[0])
    adapter = peft.LoRA(r=2, target_modules=["host"], modules_to_save=["head"])
    peft.get_peft_model(model, adapter)
    scramble(model, 0.3)
    live = outputs(model, x)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.get_layer("host").quantization_mode == mode
    near(outputs(loaded, x), live, 1e-6)
    with peft.disable_adapter(loaded), peft.disable_adapter(model):
        near(outputs(loaded, x), outputs(model, x), 1e-6)

    peft.save_pretrained(model, tmp_path / "adapter")
    again, _ = build("query", mode, head=True)
    peft.load_adapter(again, tmp_path / "adapter")
    near(outputs(again, x), live, 1e-6)
    peft.load_adapter(float_model, tmp_path / "adapter")  # over the kernel before it was rounded
    assert 1e-6 < np.abs(outputs(float_model, x) - live).max() < 0.2 * np.abs(live).max()
    other, _ = build("query", head=True)
    other.get_layer("host").set_weights([w[::-1] for w in other.get_layer("host").get_weights()])
    with pytest.raises(ValueError, match="trained on another base"):
        peft.load_adapter(other, tmp_path / "adapter")


@one_mode("int8")
def test_adapters_learn_and_nothing_else(mode):
    model, x = build("dense", mode, head=True)
    counted = peft.get_nb_trainable_parameters(build("dense", head=True)[0])[1]
    assert peft.get_nb_trainable_parameters(model)[1] == counted  # not those of scales
    peft.get_peft_model(model, peft.LoRA(r=2, target_modules=["host"]))
    learning, everything = peft.get_nb_trainable_parameters(model)
    assert (learning, everything) == (2 * (8 + 6), counted + learning)
    assert all(v.dtype == "float32" for v in model.trainable_variables)
    before = values(model.non_trainable_variables)
    model.compile(keras.optimizers.Adam(0.05), "mse")
    history = model.fit(x, zoo.floats(4, 2), epochs=20, verbose=0).history["loss"]
    assert history[-1] < 0.8 * history[0]
    assert same(values(model.non_trainable_variables), before)


@pytest.mark.parametrize("mode", MODES)
def test_dropout_is_in_the_type_that_the_layer_computes_in(mode):
    model, x = build("dense", mode)
    peft.get_peft_model(model, peft.LoRA(r=2, lora_dropout=0.5, target_modules=["host"]))
    scramble(model)
    assert not np.allclose(model(x, training=True), outputs(model, x))


def test_what_is_refused():
    model, _ = build("dense", head=True)
    with pytest.raises(ValueError, match=r"target_modules: 'hst' matches no layer.*host"):
        peft.quantize(model, "int8", target_modules=["hst"])
    with pytest.raises(ValueError, match="leaves no layer"):
        peft.quantize(model, "int8", exclude_modules=["host", "head"])
    with pytest.raises(ValueError, match="mode must be"):
        peft.quantize(model, "int5")
    with pytest.raises(ValueError, match="has no layers in int8, int4"):
        peft.dequantize(model)
    peft.quantize(model, "int8")
    with pytest.raises(ValueError, match="quantized already"):
        peft.quantize(model, "int4")
    with pytest.raises(ValueError, match=r"head is quantized \(int8\), so that it cannot be trained whole"):
        peft.get_peft_model(model, peft.LoRA(target_modules=["host"], modules_to_save=["head"]))
    peft.get_peft_model(model, peft.LoRA(target_modules=["host"]))
    with pytest.raises(ValueError, match="has adapters"):
        peft.quantize(model, "int8")
    floating, _ = build("dense", head=True)
    floating.get_layer("host").quantize("float8")
    with pytest.raises(ValueError, match=r"host is quantized \(float8\), and adapters read"):
        peft.get_peft_model(floating, peft.LoRA(target_modules=["host"]))
    convolution = keras.Sequential([keras.Input((4, 4, 2)), layers.Conv2D(2, 3, name="c")])
    with pytest.raises(ValueError, match="Keras cannot quantize c"):
        peft.quantize(convolution, "int8", target_modules=["c"])


def test_nothing_is_changed_where_one_layer_is_refused():
    model, _ = build("dense", head=True)
    host, head = model.get_layer("host"), model.get_layer("head")
    with pytest.raises(ValueError, match=r"exclude_modules: '.*hed' matches no layer.* head"):
        peft.quantize(model, "int8", exclude_modules=".*hed")
    head.dtype_policy = "mixed_float16"
    with pytest.raises(ValueError, match="head computes in float16, for which Keras has no int8"):
        peft.quantize(model, "int8")
    head.kernel.assign(np.full(head.kernel.shape, np.nan))
    with pytest.raises(ValueError, match="head has NaN or infinite weights"):
        peft.quantize(model, "nf4")
    assert host.quantization_mode is None


@pytest.mark.parametrize(
    ("mode", "make"),
    [
        ("nf4", lambda: layers.SimpleRNN(5, use_bias=False, name="host")),  # whose two kernels have one shape
        pytest.param("nf4", lambda: layers.Dense(5, name="host"), marks=pytest.mark.slow),
        pytest.param("int4", lambda: layers.Dense(5, name="host"), marks=pytest.mark.slow),
    ],
    ids=["nf4-rnn", "nf4-dense", "int4-dense"],
)
def test_weights_have_their_order_again(mode, make, tmp_path):
    keras.utils.set_random_seed(0)
    model, x = keras.Sequential([keras.Input((3, 5)), make()]), zoo.floats(2, 3, 5)
    order = [v.path for v in model.weights]
    peft.quantize(model, mode, ["host"])
    peft.dequantize(model)
    assert [v.path for v in model.weights] == order
    model.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(outputs(keras.models.load_model(tmp_path / "m.keras"), x), outputs(model, x))


@pytest.mark.parametrize(
    ("mode", "config"),
    [
        ("int8", None),
        pytest.param("int4", keras.quantizers.Int4QuantizationConfig(block_size=-1), marks=pytest.mark.slow),
        ("int4", keras.quantizers.Int4QuantizationConfig(block_size=4)),
        pytest.param("nf4", None, marks=pytest.mark.slow),
    ],
    ids=["int8", "int4", "int4-blocks", "nf4"],
)
def test_an_embedding_with_an_output_matrix_of_its_own(mode, config):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,), dtype="int32")
    table = layers.ReversibleEmbedding(9, 5, tie_weights=False, name="table")
    model = keras.Model(inputs, table(layers.Dense(5)(table(inputs)), reverse=True))
    x, plain = zoo.integers(9, 3, 4), outputs(model, zoo.integers(9, 3, 4))
    if mode == "nf4":
        peft.quantize(model, mode, ["table"])
    else:
        table.quantize(mode, config=config)
    rounded = outputs(model, x)
    near(rounded, plain, 0.3)
    peft.get_peft_model(model, peft.LoRA(r=2, target_modules=["table"]))
    near(outputs(model, x), rounded, 1e-6)
    scramble(model, 0.3)
    live = outputs(model, x)
    peft.dequantize(model)
    near(outputs(model, x), live, 0.03 if mode == "int8" else 1e-5)  # int8 rounds inputs, too
    peft.unload(model)
    near(outputs(model, x), rounded, 0.03)
    assert [tuple(v.shape) for v in table.weights] == [(9, 5), (5, 9)]


@pytest.mark.slow
def test_a_model_that_was_compiled_learns_after_each_change():
    model, x = build("dense", head=True)
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    for change in (lambda m: m, lambda m: peft.quantize(m, "nf4", ["host"]), peft.dequantize):
        losses = change(model).fit(x, zoo.floats(4, 2), epochs=4, verbose=0).history["loss"]
        assert losses[-1] < losses[0]
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-3)


def test_keras_does_not_quantize_half_of_a_model_with_adapters():
    model, x = build("dense", head=True)
    peft.get_peft_model(model, peft.LoRA(r=2, target_modules=["head"]))
    before = outputs(model, x)
    with pytest.raises(ValueError, match="The model has adapters, so it cannot be quantized as a whole"):
        model.quantize("int8")
    with pytest.raises(ValueError, match="head has adapters, so it cannot be quantized"):
        model.get_layer("head").quantize("int8")
    np.testing.assert_array_equal(outputs(model, x), before)
    peft.unload(model)
    peft.quantize(model, "nf4", ["head"])
    with pytest.raises(ValueError, match="The model has kernels in nf4"):
        model.quantize("int8")
    assert model.get_layer("host").quantization_mode is None


def test_a_policy_that_has_lost_its_name_as_savers_of_kerashub_leave_it():
    model, x = build("dense", "int8")
    host = model.get_layer("host")
    keras.dtype_policies.DTypePolicyMap(policy_map={host.path: host.dtype_policy}).get_config()
    assert host.dtype_policy.name is None
    rounded = outputs(model, x)
    peft.dequantize(model)
    assert host.dtype_policy.name == "float32"
    near(outputs(model, x), rounded, 0.03)

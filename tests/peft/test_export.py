"""Models with adapters in the formats of Keras' `export`, beside what the model gives."""

import warnings

import keras
import numpy as np
import pytest
import zoo
from probes import outputs, scramble
from small_adapters import fitting

from kopt import peft

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="files of TensorFlow"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # of the converters
]
FORMATS = {"tf_saved_model": "", "litert": ".tflite", "onnx": ".onnx"}


def small(base):
    """Returns a model with adapters over a base, and inputs."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((6, 16))
    x = keras.layers.MultiHeadAttention(2, 8, name="attention")(x, x)
    x = keras.layers.Dense(32, "relu", name="hidden")(x)
    model = keras.Model(inputs, keras.layers.Dense(4, name="head")(keras.layers.GlobalAveragePooling1D()(x)))
    if base is not None:
        peft.quantize(model, base, exclude_modules=["head"])
    peft.get_peft_model(model, peft.LoRA(r=4, target_modules="all-linear", exclude_modules=["head"]))
    scramble(model, 0.3)
    return model, zoo.floats(3, 6, 16)


def read(path, form, x):
    """Returns what an exported model gives."""
    import tensorflow as tf

    if form == "tf_saved_model":
        served = tf.saved_model.load(path)
        return np.asarray(served.serve(x))
    if form == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(path)
        return session.run(None, {session.get_inputs()[0].name: x})[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = tf.lite.Interpreter(path)
    place = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(place, x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(place, x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("base", [None, "nf4"])
def test_exported_models_give_the_same(base, form, tmp_path):
    if form == "onnx":
        pytest.importorskip("tf2onnx")
    model, x = small(base)
    live = outputs(model, x)
    with peft.disable_adapter(model):
        assert np.abs(outputs(model, x) - live).max() > 0.01
    path = f"{tmp_path}/live{FORMATS[form]}"
    model.export(path, format=form, verbose=False)
    np.testing.assert_allclose(read(path, form, x), live, atol=1e-5)
    peft.merge_and_unload(model)
    merged = outputs(model, x)
    path = f"{tmp_path}/merged{FORMATS[form]}"
    model.export(path, format=form, verbose=False)
    np.testing.assert_allclose(read(path, form, x), merged, atol=1e-5)


ELSEWHERE = {"layernormtuning", "trainabletokens", "prefixtuning", "prompttuning", "ptuning"}
"""Methods that a dense layer cannot host."""
METHODS = {name: cls for name, cls in peft.adapters().items() if cls.__module__.startswith("kopt.")}


@pytest.mark.parametrize("name", sorted(METHODS.keys() - ELSEWHERE))
def test_every_method_in_litert(name, tmp_path):
    cls = METHODS[name]
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(32, "relu", name="hidden"), keras.layers.Dense(4, name="head")]
    model = keras.Sequential([keras.Input((16,)), *layers])
    peft.get_peft_model(model, cls(target_modules=["hidden", "head"], **fitting(cls)))
    scramble(model, 0.2)
    x = zoo.floats(3, 16)
    expected = outputs(model, x)
    model.export(f"{tmp_path}/live.tflite", format="litert", verbose=False)
    found = read(f"{tmp_path}/live.tflite", "litert", x)
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, np.abs(expected).max()))


def test_rows_with_adapters_of_their_own_are_served(tmp_path):
    import tensorflow as tf

    model, x = small(None)
    names = ["default", "__base__", "default"]
    mixed = peft.MixedBatch(model)
    expected = mixed.predict_rows(x, names)
    mixed.export(tmp_path / "mixed", format="tf_saved_model", verbose=False)
    served = tf.saved_model.load(tmp_path / "mixed")
    found = served.serve({"inputs": x, "shares": np.array([[1], [0], [1]], "float32")})
    np.testing.assert_allclose(found, expected, atol=1e-5)

"""Adapter files that do not fit: a clear error, and the model stays as it was."""

import json

import keras
import numpy as np
import pytest
from files import CONFIG, IMAGES, METHODS, WEIGHTS, image_model, rewrite
from probes import outputs
from safetensors.numpy import load_file, save_file

from kopt import peft
from kopt.peft.model import adapters_of


def refuse(folder, match, model=None):
    """Loading raises an error that says so, and the model stays as it was."""
    model = image_model() if model is None else model
    cls, classes = type(model), [type(layer) for layer in model.layers]
    trainable = [v.trainable for v in model.variables]
    with pytest.raises(ValueError, match=match):
        peft.load_adapter(model, folder)
    assert adapters_of(model) is None and type(model) is cls and [type(layer) for layer in model.layers] == classes
    assert [v.trainable for v in model.variables] == trainable


KEY = "base_model.model.query.lora_A.weight"


def test_missing_files(saved, tmp_path):
    refuse(tmp_path / "nowhere", f"no {CONFIG}")
    (saved / WEIGHTS).unlink()
    refuse(saved, f"no {WEIGHTS}")


def test_broken_json(saved):
    (saved / CONFIG).write_text('{"peft_type": ')
    refuse(saved, "is no JSON")
    (saved / CONFIG).write_text("[]")
    refuse(saved, "no peft_type")


@pytest.mark.parametrize("length", [0, 5, 60, 400, -3])
def test_cut_off_tensors(saved, length):
    data = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(data[:length])
    refuse(saved, "no complete safetensors")


def test_a_header_that_is_none(saved):
    data = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(data[:8] + b"x" * (len(data) - 8))
    refuse(saved, "no complete safetensors")


def test_integers_are_no_weights(saved):
    rewrite(saved, lambda t: t.update({KEY: t[KEY].astype("int32")}))
    refuse(saved, "has the type I32")


def test_unsupported_methods_and_options(saved):
    rewrite(saved, peft_type="BOFT")
    refuse(saved, "peft_type 'BOFT' is not supported. Supported: ADALORA, BITFIT, ")
    rewrite(saved, peft_type="LORA", use_qalora=True, layer_replication=[[0, 1]])
    refuse(saved, r"layer_replication=\[\[0, 1\]\], use_qalora=True")
    rewrite(saved, use_qalora=False, layer_replication=None, init_lora_weights="loftq")
    refuse(saved, "loftq.*changes the base")
    rewrite(saved, init_lora_weights="pissa_niter_4")
    refuse(saved, "pissa_niter_4.*random start is not in the file")
    rewrite(saved, init_lora_weights=True, r=-1)
    refuse(saved, r"LoRA: r must be")


def test_unknown_modules(saved):
    rewrite(saved, lambda t: t.update({KEY.replace("query", "kquery"): t.pop(KEY)}))
    refuse(saved, r"1 tensor.*kquery\.lora_A.* Closest names: query")


def test_missing_tensors(saved):
    rewrite(saved, lambda t: t.pop(KEY))
    refuse(saved, r"1 missing tensor\(s\): query\.lora_A\.weight")


def test_unexpected_tensors(saved):
    rewrite(saved, lambda t: t.update({"base_model.model.head.bias": np.zeros(3, "float32")}))
    refuse(saved, r"1 unexpected tensor\(s\): base_model\.model\.head\.bias")
    rewrite(saved, lambda t: t.update({"base_model.model.query.lora_magnitude_vector": np.zeros(6, "float32")}))
    refuse(saved, r"2 unexpected tensor\(s\)")


def test_the_same_tensor_twice(saved):
    rewrite(saved, lambda t: t.update({KEY.replace("model.query", "model.net.query"): t[KEY]}))
    refuse(saved, "are the same tensor of the model")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(saved, value):
    rewrite(saved, lambda t: t[KEY].__setitem__((0, 0), value))
    refuse(saved, f"{KEY} has NaN or infinite values")


def test_wrong_shapes(saved):
    rewrite(saved, lambda t: t.update({KEY: np.zeros((2, 5), "float32")}))
    refuse(saved, rf"{KEY} has shape \(2, 5\), but query takes \(2, 4\)")
    rewrite(saved, lambda t: t.update({KEY: np.zeros((2, 4), "float32")}), r=3)
    refuse(saved, r"has shape .*, but .* takes \(3, ")


def test_wrong_shapes_of_copies(tmp_path):
    model = peft.get_peft_model(image_model(), METHODS["modules_to_save"]())
    peft.save_pretrained(model, tmp_path)
    key = "base_model.model.head.weight"
    rewrite(tmp_path, lambda t: t.update({key: t[key].T.copy()}))
    refuse(tmp_path, r"has shape \(80, 3\), but head takes \(3, 80\)")


def test_another_base(saved):
    other = image_model()
    other.get_layer("query")._kernel.assign(other.get_layer("query")._kernel.numpy() * 1.05)
    refuse(saved, r"trained on another base: weights differ in query\.weight", other)


def test_the_same_base_in_less_precision(saved):
    model = image_model()
    for variable in model.variables:
        variable.assign(keras.ops.cast(keras.ops.cast(variable.value, "bfloat16"), "float32"))
    peft.load_adapter(model, saved)


def test_a_file_without_a_fingerprint(saved):
    save_file(load_file(saved / WEIGHTS), saved / WEIGHTS, {"format": "pt"})
    peft.load_adapter(image_model(), saved)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_other_precisions(saved, adapted, kind):
    import ml_dtypes

    dtype = ml_dtypes.bfloat16 if kind == "bfloat16" else kind
    tensors = {k: v.astype(dtype) for k, v in load_file(saved / WEIGHTS).items()}
    header, data, start = {}, b"", 0
    for key, value in tensors.items():
        name = {"float16": "F16", "bfloat16": "BF16", "float64": "F64"}[kind]
        header[key] = {"dtype": name, "shape": value.shape, "data_offsets": [start, start + value.nbytes]}
        data, start = data + value.tobytes(), start + value.nbytes
    text = json.dumps(header).encode()
    (saved / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data)
    model = peft.load_adapter(image_model(), saved)
    for name, value in adapters_of(model).hosts["query"].weights_of["default"].items():
        original = adapters_of(adapted).hosts["query"].weights_of["default"][name].numpy()
        np.testing.assert_array_equal(value.numpy(), original.astype(dtype).astype("float32"))


def test_a_name_that_is_taken(adapted, saved):
    before = outputs(adapted, IMAGES)
    rewrite(saved, lora_alpha=3.0)
    with pytest.raises(ValueError, match=r"has an adapter 'default' already.*lora_alpha=.*delete_adapter"):
        peft.load_adapter(adapted, saved)
    np.testing.assert_array_equal(outputs(adapted, IMAGES), before)


@pytest.mark.parametrize("name", ["", 3, None, "a.b", "a" * 101, ["a"]])
def test_names_that_are_none(saved, name):
    with pytest.raises(ValueError, match=r"up to 100 letters, digits, _ and - only\. Received: "):
        peft.load_adapter(image_model(), saved, name)
    with pytest.raises(ValueError, match="up to 100 letters"):
        peft.get_peft_model(image_model(), peft.LoRA(r=1, target_modules=["query"]), name)


# ------------------------------------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    "call",
    [
        lambda m, d: peft.load_adapter(d, m),
        lambda m, d: peft.save_pretrained(d, m),
        lambda m, d: peft.set_adapter("default", m),
        lambda m, d: peft.merge_and_unload(None),
        lambda m, d: peft.summary(3),
        lambda m, d: peft.layer_status("model"),
        lambda m, d: peft.print_trainable_parameters(peft.LoRA()),
        lambda m, d: peft.get_adapter_state(keras.layers.Dense(2)),
    ],
)
def test_what_is_no_model(adapted, tmp_path, call):
    with pytest.raises(ValueError, match=r"Expected a Keras model as the first argument. Received: "):
        call(adapted, str(tmp_path))


def test_names_of_adapters_as_peft_takes_them(adapted, tmp_path):
    plain = image_model()
    for names in (None, 3, {"default": 1}):
        with pytest.raises(ValueError, match=r"the name of an adapter or a list of names. Received"):
            peft.set_adapter(adapted, names)
    with pytest.raises(ValueError, match=r"No adapter \['default'\]\. Did you mean 'default'"):
        peft.save_pretrained(adapted, tmp_path / "a", ["default"])
    expected = outputs(adapted, IMAGES)
    peft.merge_adapter(adapted, "default")
    assert peft.get_model_status(adapted).merged_adapters == ["default"]
    np.testing.assert_allclose(outputs(peft.merge_and_unload(adapted, "default"), IMAGES), expected, atol=1e-5)
    assert np.abs(expected - outputs(plain, IMAGES)).max() > 1e-2


def test_arguments_of_another_type(adapted, tmp_path):
    for scale in (1e7, -1e300, float("nan"), "1"):
        with pytest.raises(ValueError, match=r"scale must be a finite number from"):
            peft.set_scale(adapted, "default", scale)
    with pytest.raises(ValueError, match=r"task_type must be a text.*Received: task_type=5"):
        peft.save_pretrained(adapted, tmp_path / "a", task_type=5)
    with pytest.raises(ValueError, match=r"LoraConfig: task_type must be of the type str. Received: task_type=5"):
        peft.LoraConfig(task_type=5)
    with pytest.raises(ValueError, match=r"use_dora must be True or False"):
        peft.LoraConfig(use_dora="yes")
    assert not (tmp_path / "a").exists()


def test_a_name_on_the_hub_is_not_downloaded():
    with pytest.raises(ValueError, match=r"Nothing is downloaded: huggingface_hub\.snapshot_download\('user/lora'\)"):
        peft.load_adapter(image_model(), "user/lora")

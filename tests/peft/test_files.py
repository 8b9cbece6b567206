"""Adapter files: they hold everything, in peft's form, and a file that does not fit leaves the model as it was."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from conftest import outputs, same, scramble
from safetensors.numpy import load_file, save_file

from kopt import peft
from kopt.peft._state import state
from kopt.peft.exchange._tensors import read_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


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
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
    return model


def text_model():
    tokens = keras.Input((7,), dtype="int32", name="token_ids")
    x = keras.layers.Embedding(20, 6, name="token_embedding")(tokens)
    x = keras.layers.Dense(8, name="dense")(x)
    model = keras.Model({"token_ids": tokens}, x)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
    return model


IMAGES = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype("float32")
TEXT = {"token_ids": np.arange(14, dtype="int32").reshape(2, 7)}
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


@pytest.fixture
def adapted():
    model = peft.get_peft_model(image_model(), METHODS["lora"]())
    scramble(model)
    return model


@pytest.fixture
def saved(adapted, tmp_path):
    peft.save_pretrained(adapted, tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("method", METHODS)
def test_round_trip(method, tmp_path):
    model = peft.get_peft_model(image_model(), METHODS[method]())
    scramble(model)
    expected = outputs(model, IMAGES)
    peft.save_pretrained(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, WEIGHTS]

    again = image_model()
    plain = outputs(again, IMAGES)
    assert peft.load_adapter(again, tmp_path, "second") is again
    np.testing.assert_allclose(outputs(again, IMAGES), expected, atol=1e-5)
    assert np.abs(expected - plain).max() > 1e-2
    assert type(state(again).adapters["second"]) is type(METHODS[method]())
    with peft.disable_adapter(again):
        np.testing.assert_array_equal(outputs(again, IMAGES), plain)
    if method != "pissa":  # its file holds a plain LoRA of twice the rank
        assert peft.get_nb_trainable_parameters(again) == peft.get_nb_trainable_parameters(model)
        peft.save_pretrained(again, tmp_path / "twice", "second")
        assert (tmp_path / "twice" / CONFIG).read_bytes() == (tmp_path / CONFIG).read_bytes()
        first, second = (load_file(folder / WEIGHTS) for folder in (tmp_path, tmp_path / "twice"))
        assert list(first) == list(second)
        assert same(list(first.values()), list(second.values()))


@pytest.mark.parametrize(
    "method",
    [
        lambda: peft.LoRA(r=2, target_modules=["token_embedding", "dense"]),
        lambda: peft.DoRA(r=2, target_modules=["token_embedding"]),
        lambda: peft.PromptTuning(num_virtual_tokens=3),
    ],
    ids=["lora", "dora", "prompt"],
)
def test_round_trip_of_embeddings(method, tmp_path):
    model = peft.get_peft_model(text_model(), method())
    scramble(model)
    peft.save_pretrained(model, tmp_path)
    again = peft.load_adapter(text_model(), tmp_path)
    np.testing.assert_allclose(outputs(again, TEXT), outputs(model, TEXT), atol=1e-6)


def test_tensors_are_laid_out_as_in_torch(adapted, saved):
    tensors = load_file(saved / WEIGHTS)
    bank = state(adapted).hosts["query"].weights_of["default"]
    start = "base_model.model"
    assert {key: value.shape for key, value in tensors.items()} == {
        f"{start}.conv.lora_A.weight": (2, 3, 3, 3),
        f"{start}.conv.lora_B.weight": (4, 2, 1, 1),
        f"{start}.query.lora_A.weight": (2, 4),
        f"{start}.query.lora_B.weight": (6, 2),
        f"{start}.feedforward_output_dense.lora_A.weight": (2, 6),
        f"{start}.feedforward_output_dense.lora_B.weight": (5, 2),
    }
    np.testing.assert_array_equal(tensors[f"{start}.query.lora_A.weight"], bank["lora_A"].numpy().T)
    # The change of a convolution, as torch would merge it.
    a, b = tensors[f"{start}.conv.lora_A.weight"], tensors[f"{start}.conv.lora_B.weight"]
    change = np.einsum("or,rihw->oihw", b[:, :, 0, 0], a) * 8 / 2
    before = np.array(state(adapted).hosts["conv"].owned["_kernel"])
    peft.merge_adapter(adapted)
    after = np.array(state(adapted).hosts["conv"].owned["_kernel"])
    np.testing.assert_allclose((after - before).transpose(3, 2, 0, 1), change, atol=1e-5)


def test_what_is_merged_is_saved_as_what_it_was(adapted, saved, tmp_path):
    peft.merge_adapter(adapted)
    peft.save_pretrained(adapted, tmp_path / "merged")
    assert (tmp_path / "merged" / CONFIG).read_bytes() == (saved / CONFIG).read_bytes()
    first, second = (load_file(folder / WEIGHTS) for folder in (saved, tmp_path / "merged"))
    assert list(first) == list(second) and same(list(first.values()), list(second.values()))
    peft.unmerge_adapter(adapted)
    peft.load_adapter(adapted, tmp_path / "merged", "again")


def test_several_adapters_have_files_of_their_own(adapted, tmp_path):
    first = outputs(adapted, IMAGES)
    peft.get_peft_model(adapted, METHODS["ia3"](), "second")
    scramble(adapted)
    second = outputs(adapted, IMAGES)
    peft.save_pretrained(adapted, tmp_path, "second")
    model = peft.load_adapter(image_model(), tmp_path)
    np.testing.assert_allclose(outputs(model, IMAGES), second, atol=1e-5)
    peft.load_adapter(adapted, tmp_path, "third")
    assert peft.get_model_status(adapted).active_adapters == ["third"]
    np.testing.assert_allclose(outputs(adapted, IMAGES), second, atol=1e-5)
    assert np.abs(first - second).max() > 1e-3


def test_unknown_entries_survive(adapted, saved, tmp_path):
    extra = {"revision": "abc", "auto_mapping": {"base_model_class": "Net"}, "base_model_name_or_path": "someone/net"}
    config = json.loads((saved / CONFIG).read_text())
    (saved / CONFIG).write_text(json.dumps(config | extra | {"future": [1, 2]}))
    model = peft.load_adapter(image_model(), saved)
    peft.save_pretrained(model, tmp_path / "again")
    again = json.loads((tmp_path / "again" / CONFIG).read_text())
    assert again == config | extra | {"future": [1, 2]}


def test_the_configuration_is_the_one_of_peft(adapted, saved):
    config = json.loads((saved / CONFIG).read_text())
    assert config["peft_type"] == "LORA"
    assert config["inference_mode"] is True
    assert config["use_dora"] is False
    assert config["r"] == 2 and config["lora_alpha"] == 8
    assert config["target_modules"] == ["conv", "feedforward_output_dense", "query"]
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert read_tensors(saved / WEIGHTS)[1]["format"] == "pt"


def test_modules_by_name(tmp_path):
    model = peft.get_peft_model(image_model(), METHODS["modules_to_save"]())
    scramble(model)
    peft.save_pretrained(model, tmp_path, modules={"head": "classifier"})
    assert json.loads((tmp_path / CONFIG).read_text())["modules_to_save"] == ["conv", "norm", "classifier"]
    assert load_file(tmp_path / WEIGHTS)["base_model.model.classifier.weight"].shape == (3, 80)
    again = peft.load_adapter(image_model(), tmp_path, modules={"head": "classifier"})
    np.testing.assert_allclose(outputs(again, IMAGES), outputs(model, IMAGES), atol=1e-6)
    with pytest.raises(ValueError, match=r"base_model\.model\.classifier.*modules="):
        peft.load_adapter(image_model(), tmp_path)


# ------------------------------------------------------------------------------------------- what does not fit


def rewrite(folder, change=None, **fields):
    """Changes an adapter's tensors by a function and entries of its configuration."""
    _, metadata = read_tensors(folder / WEIGHTS)
    tensors = load_file(folder / WEIGHTS)
    if change is not None:
        change(tensors)
        save_file(tensors, folder / WEIGHTS, metadata)
    config = json.loads((folder / CONFIG).read_text()) | fields
    (folder / CONFIG).write_text(json.dumps(config))


def refuse(folder, match, model=None):
    """Loading raises an error that says so, and the model stays as it was."""
    model = image_model() if model is None else model
    cls, classes = type(model), [type(layer) for layer in model.layers]
    trainable = [v.trainable for v in model.variables]
    with pytest.raises(ValueError, match=match):
        peft.load_adapter(model, folder)
    assert state(model) is None and type(model) is cls and [type(layer) for layer in model.layers] == classes
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
    rewrite(saved, peft_type="LOHA")
    refuse(saved, "peft_type 'LOHA' is not supported. Supported: BITFIT, ")
    rewrite(saved, peft_type="LORA", lora_bias=True, layer_replication=[[0, 1]])
    refuse(saved, r"layer_replication=\[\[0, 1\]\], lora_bias=True")
    rewrite(saved, lora_bias=False, layer_replication=None, init_lora_weights="loftq")
    refuse(saved, "loftq.*changes the base")
    rewrite(saved, init_lora_weights=True, r=-1)
    refuse(saved, r"LoRA: r must be")


def test_unknown_modules(saved):
    rewrite(saved, lambda t: t.update({KEY.replace("query", "kquery"): t.pop(KEY)}))
    refuse(saved, r"1 tensor.*kquery\.lora_A.* Near: query")


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
    for name, value in state(model).hosts["query"].weights_of["default"].items():
        original = state(adapted).hosts["query"].weights_of["default"][name].numpy()
        np.testing.assert_array_equal(value.numpy(), original.astype(dtype).astype("float32"))


def test_a_name_that_is_taken(adapted, saved):
    before = outputs(adapted, IMAGES)
    with pytest.raises(ValueError, match="has an adapter 'default' already"):
        peft.load_adapter(adapted, saved)
    np.testing.assert_array_equal(outputs(adapted, IMAGES), before)


# ------------------------------------------------------------------------------------------------------ saving


def test_nothing_to_save(tmp_path):
    with pytest.raises(ValueError, match="has no adapters"):
        peft.save_pretrained(image_model(), tmp_path / "a")
    with pytest.raises(ValueError, match="No adapter 'other'"):
        peft.save_pretrained(peft.get_peft_model(image_model(), METHODS["lora"]()), tmp_path / "a", "other")
    assert not (tmp_path / "a").exists()


def test_broken_weights_are_not_saved(adapted, tmp_path):
    state(adapted).hosts["query"].weights_of["default"]["lora_B"].assign(np.full((2, 6), np.nan))
    with pytest.raises(ValueError, match=r"query\.lora_B\.weight has NaN"):
        peft.save_pretrained(adapted, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_nothing_is_written_half(adapted, saved, monkeypatch):
    before = {name: (saved / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    scramble(adapted)
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        peft.save_pretrained(adapted, saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_imports_are_few():
    heavy = ("torch", "peft", "transformers", "keras_hub", "safetensors")
    program = f"import sys, kopt.peft; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------ models of KerasHub


@pytest.fixture
def bert():
    hub = pytest.importorskip("keras_hub")

    def make():
        model = hub.models.BertBackbone(50, 2, 2, 16, 32, max_sequence_length=20, dropout=0.0)
        rng = np.random.default_rng(0)
        model.set_weights([rng.normal(0, 0.3, w.shape) for w in model.get_weights()])
        return model

    return make


@pytest.fixture
def gpt2():
    hub = pytest.importorskip("keras_hub")

    def make():
        model = hub.models.GPT2Backbone(50, 2, 2, 16, 64, max_sequence_length=20, dropout=0.0)
        rng = np.random.default_rng(0)
        model.set_weights([rng.normal(0, 0.3, w.shape) for w in model.get_weights()])
        return model

    return make


TOKENS = {
    "token_ids": np.arange(12, dtype="int32").reshape(2, 6),
    "padding_mask": np.ones((2, 6), "int32"),
}
BERT_TOKENS = TOKENS | {"segment_ids": np.zeros((2, 6), "int32")}
LAYER = "base_model.model.encoder.layer.0"


def test_keys_of_lora(bert, tmp_path):
    model = peft.get_peft_model(bert(), peft.DoRA(r=2, target_modules=["query", "token_embedding"], bias="all"))
    peft.save_pretrained(model, tmp_path)
    shapes = {k: v.shape for k, v in load_file(tmp_path / WEIGHTS).items() if ".layer.1." not in k}
    assert shapes == {
        "base_model.model.embeddings.word_embeddings.lora_embedding_A": (2, 50),
        "base_model.model.embeddings.word_embeddings.lora_embedding_B": (16, 2),
        "base_model.model.embeddings.word_embeddings.lora_magnitude_vector": (16,),
        "base_model.model.embeddings.LayerNorm.bias": (16,),
        f"{LAYER}.attention.self.query.lora_A.weight": (2, 16),
        f"{LAYER}.attention.self.query.lora_B.weight": (16, 2),
        f"{LAYER}.attention.self.query.lora_magnitude_vector": (16,),
        f"{LAYER}.attention.self.query.base_layer.bias": (16,),
        f"{LAYER}.attention.self.key.bias": (16,),
        f"{LAYER}.attention.self.value.bias": (16,),
        f"{LAYER}.attention.output.dense.bias": (16,),
        f"{LAYER}.attention.output.LayerNorm.bias": (16,),
        f"{LAYER}.intermediate.dense.bias": (32,),
        f"{LAYER}.output.dense.bias": (16,),
        f"{LAYER}.output.LayerNorm.bias": (16,),
        "base_model.model.pooler.dense.bias": (16,),
    }
    assert json.loads((tmp_path / CONFIG).read_text())["target_modules"] == ["word_embeddings", "query"]


def test_keys_of_other_methods(bert, tmp_path):
    peft.save_pretrained(peft.get_peft_model(bert(), peft.IA3()), tmp_path / "ia3")
    shapes = {k: v.shape for k, v in load_file(tmp_path / "ia3" / WEIGHTS).items() if ".layer.0." in k}
    assert shapes == {
        f"{LAYER}.attention.self.key.ia3_l": (16, 1),
        f"{LAYER}.attention.self.value.ia3_l": (16, 1),
        f"{LAYER}.output.dense.ia3_l": (1, 32),
    }
    config = json.loads((tmp_path / "ia3" / CONFIG).read_text())
    assert config["feedforward_modules"] == ["0.output.dense", "1.output.dense"]
    assert set(config["feedforward_modules"]) < set(config["target_modules"])
    peft.save_pretrained(peft.get_peft_model(bert(), peft.LayerNormTuning()), tmp_path / "ln")
    keys = set(load_file(tmp_path / "ln" / WEIGHTS))
    assert f"{LAYER}.attention.output.LayerNorm.ln_tuning_layers.weight" in keys and len(keys) == 10
    assert json.loads((tmp_path / "ln" / CONFIG).read_text())["target_modules"] == ["LayerNorm"]
    peft.save_pretrained(peft.get_peft_model(bert(), peft.PromptTuning(num_virtual_tokens=3)), tmp_path / "prompt")
    assert {k: v.shape for k, v in load_file(tmp_path / "prompt" / WEIGHTS).items()} == {"prompt_embeddings": (3, 16)}
    config = json.loads((tmp_path / "prompt" / CONFIG).read_text())
    assert config["token_dim"] == 16 and config["task_type"] == "FEATURE_EXTRACTION"
    assert "target_modules" not in config


def test_a_head_brings_the_prefix(bert, tmp_path):
    backbone = bert()
    head = keras.layers.Dense(2, name="logits")
    model = keras.Model(backbone.input, head(backbone(backbone.input)["pooled_output"]))
    peft.get_peft_model(model, peft.LoRA(r=2, modules_to_save=["logits"]))
    scramble(model)
    peft.save_pretrained(model, tmp_path, modules={"logits": "classifier"})
    keys = {k.split(".encoder")[0] for k in load_file(tmp_path / WEIGHTS)}
    assert keys == {"base_model.model.bert", "base_model.model.classifier.weight", "base_model.model.classifier.bias"}
    # A backbone of its own takes the same adapter without the head.
    with pytest.raises(ValueError, match=r"base_model\.model\.classifier"):
        peft.load_adapter(bert(), tmp_path)


def test_a_task_without_a_head_is_refused(bert, tmp_path):
    model = peft.get_peft_model(bert(), peft.LoRA(r=2))
    with pytest.raises(ValueError, match=r"task_type='SEQ_CLS' peft expects a head"):
        peft.save_pretrained(model, tmp_path, task_type="SEQ_CLS")
    model = peft.get_peft_model(bert(), peft.PromptTuning(modules_to_save=["pooled_dense"]))
    peft.save_pretrained(model, tmp_path / "a")
    assert not (tmp_path / CONFIG).exists()


def test_a_base_without_the_tensor_is_refused(bert, tmp_path):
    model = peft.get_peft_model(bert(), peft.LoRA(r=2))
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file(
        {"encoder.layer.0.attention.self.query.weight": np.zeros((16, 16), "float32")}, folder / "model.safetensors"
    )
    with pytest.raises(ValueError, match=r"has no tensor encoder\.layer\.0\.attention\.self\.value\.weight"):
        peft.save_pretrained(model, tmp_path / "a", base_model=folder)
    assert not (tmp_path / "a").exists()


def test_the_embedding_that_peft_writes_beside_its_adapter(bert, tmp_path):
    model = peft.get_peft_model(bert(), peft.LoRA(r=2, target_modules=["token_embedding"]))
    scramble(model)
    peft.save_pretrained(model, tmp_path)
    key = "base_model.model.embeddings.word_embeddings.base_layer.weight"
    own = np.array(state(model).hosts["token_embedding"].owned["_embeddings"])
    rewrite(tmp_path, lambda t: t.update({key: own}))
    again = peft.load_adapter(bert(), tmp_path)
    np.testing.assert_allclose(outputs(again, BERT_TOKENS), outputs(model, BERT_TOKENS), atol=1e-5)
    rewrite(tmp_path, lambda t: t.update({key: np.concatenate([own, own[:2]])}))
    with pytest.raises(ValueError, match=r"shape \(52, 16\).*\(50, 16\).*perhaps with more tokens"):
        peft.load_adapter(bert(), tmp_path)


@pytest.mark.parametrize("targets", [["query", "key", "value"], ["query", "value"]], ids=["whole", "part"])
@pytest.mark.parametrize("method", [peft.LoRA, peft.DoRA])
@pytest.mark.parametrize("same", [True, False])
def test_fused_modules_are_exact(gpt2, tmp_path, targets, method, same):
    model = peft.get_peft_model(gpt2(), method(r=2, target_modules=targets, alpha_pattern={"query": 5}))
    scramble(model)
    if same:
        for path, bank in state(model).hosts.items():
            a = state(model).hosts[path.rpartition(".")[0] + ".query"].weights_of["default"]["lora_A"]
            bank.weights_of["default"]["lora_A"].assign(a.numpy())
    peft.save_pretrained(model, tmp_path)
    config, tensors = json.loads((tmp_path / CONFIG).read_text()), load_file(tmp_path / WEIGHTS)
    assert config["fan_in_fan_out"] and config["target_modules"] == ["c_attn"]
    assert config["r"] == (2 if same else 2 * len(targets))
    assert tensors["base_model.model.h.0.attn.c_attn.lora_B.weight"].shape == (48, config["r"])
    again = peft.load_adapter(gpt2(), tmp_path)
    np.testing.assert_allclose(outputs(again, TOKENS), outputs(model, TOKENS), atol=1e-5)


def test_fused_modules_that_peft_cannot_have(gpt2, tmp_path):
    model = peft.get_peft_model(
        gpt2(), peft.IA3(target_modules=["query", "key", "value"], feedforward_modules=["query", "key", "value"])
    )
    peft.save_pretrained(model, tmp_path / "a")
    scramble(model)
    with pytest.raises(ValueError, match=r"ia3_l differs between Keras layers that are one module"):
        peft.save_pretrained(model, tmp_path / "b")
    model = peft.get_peft_model(gpt2(), peft.IA3(target_modules=["query"], feedforward_modules=["query"]))
    with pytest.raises(ValueError, match="not all of them are adapted"):
        peft.save_pretrained(model, tmp_path / "c")


def test_a_part_of_a_fused_bias(gpt2, tmp_path):
    model = peft.get_peft_model(gpt2(), peft.LoRA(r=2, target_modules=["query"], bias="lora_only"))
    scramble(model)
    peft.save_pretrained(model, tmp_path)
    bias = load_file(tmp_path / WEIGHTS)["base_model.model.h.0.attn.c_attn.base_layer.bias"]
    layer = state(model).hosts["transformer_layer_0.self_attention.query"]
    np.testing.assert_array_equal(bias[:16], layer.copies["default"]["bias"].numpy().ravel())
    key = gpt2().get_layer("transformer_layer_0")._self_attention_layer.key_dense.bias
    np.testing.assert_array_equal(bias[16:32], key.numpy().ravel())
    again = peft.load_adapter(gpt2(), tmp_path)
    np.testing.assert_allclose(outputs(again, TOKENS), outputs(model, TOKENS), atol=1e-5)


def test_an_embedding_that_is_the_output_matrix_too(tmp_path):
    hub = pytest.importorskip("keras_hub")

    def make():
        backbone = hub.models.Llama3Backbone(20, 1, 2, 8, 12, 2, tie_word_embeddings=True)
        model = hub.models.Llama3CausalLM(backbone)
        rng = np.random.default_rng(0)
        model.set_weights([rng.normal(0, 0.3, w.shape) for w in model.get_weights()])
        return model

    model = peft.get_peft_model(make(), peft.LoRA(r=2, target_modules=["token_embedding"]))
    scramble(model)
    peft.save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["task_type"] == "CAUSAL_LM"
    tensors = load_file(tmp_path / WEIGHTS)
    start = "base_model.model"
    assert {key: value.shape for key, value in tensors.items()} == {
        f"{start}.lm_head.lora_A.weight": (2, 8),
        f"{start}.lm_head.lora_B.weight": (20, 2),
        f"{start}.model.embed_tokens.lora_embedding_A": (2, 20),
        f"{start}.model.embed_tokens.lora_embedding_B": (8, 2),
    }
    assert json.loads((tmp_path / CONFIG).read_text())["ensure_weight_tying"] is True
    again = peft.load_adapter(make(), tmp_path)
    np.testing.assert_allclose(outputs(again, TOKENS), outputs(model, TOKENS), atol=1e-6)

    rewrite(tmp_path, lambda t: t.update({f"{start}.lm_head.lora_B.weight": np.ones((20, 2), "float32")}))
    with pytest.raises(ValueError, match=r"lm_head\.lora_B\.weight is not lora_embedding_A turned round"):
        peft.load_adapter(make(), tmp_path)
    rewrite(tmp_path, lambda t: [t.pop(key) for key in list(t) if "lm_head" in key], ensure_weight_tying=False)
    with pytest.raises(ValueError, match="but not the output matrix, which is the same weight"):
        peft.load_adapter(make(), tmp_path)
    for method in (peft.DoRA(r=2, target_modules=["token_embedding"]), peft.IA3(target_modules=["token_embedding"])):
        other = peft.get_peft_model(make(), method)
        with pytest.raises(ValueError, match="token_embedding is the output matrix too"):
            peft.save_pretrained(other, tmp_path / "other")

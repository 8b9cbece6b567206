"""LoRA with `trainable_token_indices`: some rows of an embedding are trained beside the factors of other layers."""

import json
import pickle

import keras
import numpy as np
import pytest
from files import CONFIG, WEIGHTS, filled, rewrite
from probes import outputs, same, scramble, values, weights
from safetensors.numpy import load_file

from kopt import peft
from kopt.peft.model import adapters_of

X = {"token_ids": np.arange(14, dtype="int32").reshape(2, 7)}
KEY = "base_model.model.{}.token_adapter.trainable_tokens_delta"


def text_model():
    tokens = keras.Input((7,), dtype="int32", name="token_ids")
    x = keras.layers.Embedding(20, 6, name="token_embedding")(tokens)
    x = x + keras.layers.Embedding(20, 6, name="other")(tokens)
    x = keras.layers.Dense(8, activation="tanh", name="query")(x)
    return filled(keras.Model({"token_ids": tokens}, keras.layers.Dense(3, name="head")(x)), 0.5)


def lora(method=peft.LoRA, **options):
    return method(**{"r": 2, "target_modules": ["query"], "trainable_token_indices": [3, 1]} | options)


METHODS = {
    "lora": lora,
    "dora": lambda: lora(peft.DoRA),
    "lora_fa": lambda: lora(peft.LoRAFA),
    "named": lambda: lora(trainable_token_indices={"other": [2], "token_embedding": [5, 0, 19]}),
    "patterns": lambda: lora(target_modules=["query", "head"], rank_pattern={"head": 3}, alpha_pattern={"query": 2.0}),
    "head": lambda: lora(bias="all", modules_to_save=["head"]),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("method", METHODS)
def test_it_starts_as_the_base_and_can_be_merged_saved_and_removed(method, tmp_path):
    model = text_model()
    plain, before = outputs(model, X), values(model.weights)
    peft.get_peft_model(model, METHODS[method]())
    np.testing.assert_allclose(outputs(model, X), plain, atol=1e-6)
    scramble(model)
    live = outputs(model, X)
    assert np.abs(live - plain).max() > 0.01
    with peft.disable_adapter(model):
        np.testing.assert_allclose(outputs(model, X), plain, atol=1e-6)
    peft.merge_adapter(model)
    np.testing.assert_allclose(outputs(model, X), live, atol=1e-5)
    peft.unmerge_adapter(model)
    np.testing.assert_array_equal(outputs(pickle.loads(pickle.dumps(model)), X), live)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(outputs(keras.saving.load_model(tmp_path / "model.keras"), X), live)

    peft.save_pretrained(model, tmp_path)
    again = peft.load_adapter(text_model(), tmp_path, "second")
    np.testing.assert_allclose(outputs(again, X), live, atol=1e-6)
    if method != "lora_fa":  # which is read as the LoRA that its file is
        assert peft.get_nb_trainable_parameters(again) == peft.get_nb_trainable_parameters(model)
        peft.load_adapter(model, tmp_path)  # into the place of the first
    peft.save_pretrained(again, tmp_path / "twice", "second")
    first, second = (json.loads((folder / CONFIG).read_text()) for folder in (tmp_path, tmp_path / "twice"))
    assert first == second
    peft.unload(model)
    assert same(values(model.weights), before)


def test_only_the_rows_and_the_factors_are_trained():
    model = peft.get_peft_model(text_model(), lora())
    assert sorted(tuple(v.shape) for v in model.trainable_variables) == [(2, 6), (2, 8), (6, 2)]
    model.compile(keras.optimizers.SGD(0.5), "mse")
    model.train_on_batch(X, np.ones((2, 7, 3), "float32"))
    table = model.get_layer("token_embedding").embeddings.numpy()
    moved = np.abs(weights(model, "token_embedding", "trainable_tokens_delta") - table[[3, 1]]).max(axis=1)
    assert (moved > 1e-4).all()


def test_names_and_numbers_in_files_are_those_of_peft(tmp_path):
    model = peft.get_peft_model(text_model(), METHODS["named"]())
    scramble(model)
    peft.save_pretrained(model, tmp_path)
    tensors, config = load_file(tmp_path / WEIGHTS), json.loads((tmp_path / CONFIG).read_text())
    assert config["trainable_token_indices"] == {"other": [2], "token_embedding": [5, 0, 19]}
    assert config["target_modules"] == ["query"] and not config["rank_pattern"]
    assert {key: value.shape for key, value in tensors.items() if "token" in key} == {
        KEY.format("other"): (1, 6),
        KEY.format("token_embedding"): (3, 6),
    }
    own = weights(model, "token_embedding", "trainable_tokens_delta")
    np.testing.assert_array_equal(tensors[KEY.format("token_embedding")], own)

    rewrite(tmp_path, trainable_token_indices={"other": [2], "token_embedding": [5, 0]})
    with pytest.raises(ValueError, match=r"trainable_tokens_delta has shape \(3, 6\), but token_embedding takes"):
        peft.load_adapter(text_model(), tmp_path)
    rewrite(tmp_path, trainable_token_indices={"other": [2]})
    with pytest.raises(ValueError, match="whose numbers the file does not say: its trainable_token_indices names 'ot"):
        peft.load_adapter(text_model(), tmp_path)
    rewrite(tmp_path, lambda t: t.pop(KEY.format("other")), trainable_token_indices={"token_embedding": [5, 0, 30]})
    with pytest.raises(ValueError, match="go up to 30, but the embedding has 20 rows"):
        peft.load_adapter(text_model(), tmp_path)
    rewrite(tmp_path, trainable_token_indices=[5, 0, 19])  # of the embedding that the file has rows of
    again = peft.load_adapter(text_model(), tmp_path)
    np.testing.assert_array_equal(weights(again, "token_embedding", "trainable_tokens_delta"), own)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["query", "other"], "trainable_token_indices": {"other": [1]}}, "must leave it out. Name"),
        ({"target_modules": ".*", "trainable_token_indices": {"other": [1]}}, "other has trainable_token_indices"),
        ({"modules_to_save": ["token_embedding"]}, "token_embedding has trainable_token_indices, so that"),
        ({"target_parameters": ["token_embedding.embeddings"]}, "token_embedding has trainable_token_indices"),
        ({"trainable_token_indices": {"oter": [1]}}, "'oter' matches no embedding. .* Closest layer names: other"),
        ({"trainable_token_indices": {"query": [1]}}, "'query' matches no embedding"),
        ({"trainable_token_indices": [20]}, "go up to 20, but the embedding has 20 rows"),
        ({"rank_pattern": {"token_embedding": 3}}, "rank_pattern: 'token_embedding' matches no layer of the targets"),
    ],
    ids=lambda value: value[:12] if isinstance(value, str) else "-".join(value),
)
def test_what_cannot_be_is_said(options, message):
    model = text_model()
    with pytest.raises(ValueError, match=message):
        peft.get_peft_model(model, lora(**options))
    assert adapters_of(model) is None


@pytest.mark.parametrize(
    "value",
    [[-1], [1, 1], ["a"], [True], [1.5], {"other": [-1]}, {"other": None}, {"other": "12"}, {3: [1]}, "other"],
    ids=str,
)
def test_indices_are_checked(value):
    with pytest.raises(ValueError, match="trainable_token_indices"):
        peft.LoRA(trainable_token_indices=value)


def test_an_embedding_may_be_left_out_of_the_targets():
    adapter = lora(target_modules=".*", exclude_modules=["other"], trainable_token_indices={"other": [1]})
    model = peft.get_peft_model(text_model(), adapter)
    assert list(adapters_of(model).hosts["other"].weights_of["default"]) == ["trainable_tokens_delta"]
    assert list(adapters_of(model).hosts["token_embedding"].weights_of["default"]) == ["lora_A", "lora_B"]


def test_algebra_takes_the_changes_and_refuses_the_factors():
    model = peft.get_peft_model(text_model(), lora(), "one")
    peft.get_peft_model(model, lora(trainable_token_indices=None), "two")
    scramble(model)
    with pytest.raises(ValueError, match="adds the factors of plain LoRA; take 'svd'"):
        peft.add_weighted_adapter(model, ["one", "two"], [1.0, 1.0], "sum", "cat")
    peft.set_adapter(model, ["one", "two"])
    both = outputs(model, X)
    peft.add_weighted_adapter(model, ["one", "two"], [1.0, 1.0], "sum", "svd", svd_rank=4)
    np.testing.assert_allclose(outputs(model, X), both, atol=1e-4)
    peft.set_adapter(model, "one")
    one = outputs(model, X)
    shares = peft.convert_to_lora(model, "one", "converted", rank=2)
    assert set(shares) == {"query", "token_embedding"} and min(shares.values()) > 0.999
    np.testing.assert_allclose(outputs(model, X), one, atol=1e-4)
    mixed = peft.MixedBatch(model).predict_rows(X, ["one", "__base__"])
    np.testing.assert_allclose(mixed[0], one[0], atol=1e-5)
    np.testing.assert_allclose(mixed[1], outputs(text_model(), X)[1], atol=1e-5)


@pytest.mark.parametrize("start", ["eva", "loftq"])
def test_a_start_from_data_leaves_the_rows_alone(start):
    model = text_model()
    table = model.get_layer("token_embedding").embeddings.numpy()
    batches = None if start == "loftq" else [X]
    peft.initialize(model, lora(init_lora_weights=start), batches)
    np.testing.assert_array_equal(weights(model, "token_embedding", "trainable_tokens_delta"), table[[3, 1]])
    assert np.abs(weights(model, "query", "lora_A")).max() > 0


def test_a_quantized_embedding_keeps_its_rows_and_trains_some():
    model = text_model()
    peft.quantize(model, "int8", target_modules=["token_embedding"])
    plain = outputs(model, X)
    peft.get_peft_model(model, lora())
    np.testing.assert_allclose(outputs(model, X), plain, atol=1e-6)
    scramble(model)
    changed = np.abs(outputs(model, X) - plain).max(axis=-1)[0]
    assert changed[1] > 0.01


def test_rows_of_a_table_that_is_the_output_matrix_too():
    inputs = keras.Input((4,), dtype="int32")
    table = keras.layers.ReversibleEmbedding(9, 5, name="table")
    y = keras.layers.Dense(5, name="query")(table(inputs))
    model = filled(keras.Model(inputs, table(y, reverse=True)), 0.5)
    x = np.array([[0, 2, 4, 6]], "int32")
    plain = outputs(model, x)
    peft.get_peft_model(model, lora(trainable_token_indices={"table": [3]}))
    rows = adapters_of(model).hosts["table"].weights_of["default"]["trainable_tokens_delta"]
    rows.assign(rows.numpy() + 1)
    changed = np.abs(outputs(model, x) - plain).max(axis=(0, 1))
    assert changed[3] > 0.1 and np.delete(changed, 3).max() == 0


def test_numbers_of_numpy_are_numbers():
    assert peft.TrainableTokens(token_indices=np.array([3, 1])).token_indices == [3, 1]
    assert peft.LoRA(trainable_token_indices={"name": np.int64(3)}).trainable_token_indices == {"name": [3]}
    assert peft.LoRA(layers_to_transform=np.arange(2)).layers_to_transform == [0, 1]

"""What the flags of the text recipe do, and the models that it takes."""

import json
from pathlib import Path

import keras_hub
import numpy as np
import pytest
from text_data import HEAD, LAYERS, PROJECTION, TRAINED, VOCABULARY, WIDTH, command, sentences, write_csv

from kopt import peft
from kopt.peft.model import adapters_of
from recipes.readers import docstrings
from recipes.run.errors import UsageError
from recipes.text_classification import language_model, methods, recipe


@pytest.fixture
def adapted(made):
    """Builds a model with an adapter; returns the adapter and how many parameters learn beside the head."""
    pretrained = language_model.find_model(str(made / "bert"))
    backbone = language_model.load_backbone(pretrained, 32)

    def build(pooling="mean", **flags):
        model = language_model.build(backbone, 2, 0.2, pooling)
        methods.add_adapter(model, methods.AdapterFlags(**flags), 0.2, pretrained)
        learning = methods.count_parameters(model)[0] - HEAD
        adapter = adapters_of(model).adapters["default"]
        peft.unload(model)
        return adapter, learning

    return build


def test_sizes(adapted):
    adapter, learning = adapted(rank=2, alpha=3.0)
    assert (adapter.r, adapter.lora_alpha, adapter.lora_dropout) == (2, 3, 0.2)
    assert learning == TRAINED["lora"] // 8
    assert adapted(method="dora", rank=5)[0].lora_alpha == 10
    for width in (1, 3, 7, 16):
        assert adapted(method="adapter", rank=width)[1] == LAYERS * (2 * WIDTH * width + width + WIDTH)
    assert adapted(method="prompt", rank=4)[1] == 4 * WIDTH


def test_dropout_within_the_model(made):
    pretrained = language_model.find_model(str(made / "bert"))
    ids = np.full((2, 5), 7, np.int32)
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids), "segment_ids": np.zeros_like(ids)}
    for rate in (None, 0.0):
        model = language_model.build(language_model.load_backbone(pretrained, 32, rate), 2, 0.0)
        first, second = (np.asarray(model(inputs, training=True)) for _ in range(2))
        assert np.array_equal(first, second) == (rate == 0)
    backbone = language_model.backbone_of(model)
    with pytest.raises(UsageError, match="--backbone-dropout: bert has no dropout"):
        language_model.set_dropout(backbone, 0.1, "bert")


@pytest.mark.slow
def test_targets(adapted):
    assert adapted(target=("key",))[1] == PROJECTION
    assert adapted(target=("key", "query", "value"))[1] == PROJECTION * 3
    assert adapted(target=(r".*transformer_layer_0\..*query",))[1] == PROJECTION // LAYERS
    assert adapted(method="bitfit", target=("query",))[1] == LAYERS * WIDTH
    assert adapted(method="ia3", target=("query",))[1] == LAYERS * WIDTH


def test_all_linear_is_the_default_and_leaves_out_what_the_logits_do_not_depend_on(adapted):
    adapter, learning = adapted()
    assert (adapter.r, adapter.lora_alpha) == (16, 32) and learning == TRAINED["lora"]
    assert adapted(target=("all-linear",))[1] == TRAINED["lora"]
    assert adapted("pooler", target=("all-linear",))[1] == TRAINED["lora"] + 16 * 2 * WIDTH


def test_rates_of_head_and_b(made):
    flags = methods.AdapterFlags(head_learning_rate=1e-2, lora_plus_ratio=16)
    optim = recipe.OptimizerFlags("sgd", learning_rate=1e-3)
    assert methods.multipliers(flags, optim) == [("(^|/)classifier/", 10), ("lora_B$", 16)]
    backbone = language_model.load_backbone(language_model.find_model(str(made / "bert")), 32)
    model = language_model.build(backbone, 2, 0.1)
    methods.add_adapter(model, flags, 0.1, language_model.find_model(str(made / "bert")))
    optimizer = recipe.make_optimizer(optim, 1, methods.multipliers(flags, optim))
    optimizer.build(model.trainable_variables)
    of = {p.variable.path: p.multiplier for p in optimizer.setup.parameters}
    assert {of[path] for path in of if "classifier" in path} == {10}
    assert {of[path] for path in of if path.endswith("lora_B")} == {16}
    assert {of[path] for path in of if path.endswith("lora_A")} == {1}


def test_rates_of_other_optimizers():
    flags = methods.AdapterFlags(method="full")
    rates = [
        methods.learning_rate(flags, recipe.OptimizerFlags(name, learning_rate=rate))
        for name, rate in (("AdamW", None), ("adabound", None), ("sgd", 0.3))
    ]
    assert rates == [2e-4, pytest.approx(1e-3), 0.3]


def test_the_head_has_a_rate_of_its_own_with_adamw_alone():
    flags = methods.AdapterFlags()
    head = [("(^|/)classifier/", pytest.approx(5))]
    assert methods.multipliers(flags, recipe.OptimizerFlags("AdamW")) == head
    assert methods.multipliers(flags, recipe.OptimizerFlags("adamw", learning_rate=1e-2)) == [(head[0][0], 1)]
    assert methods.multipliers(flags, recipe.OptimizerFlags("adabound")) == []


@pytest.mark.slow
def test_validation_beside_a_test(train, made, quick):
    flags = ["--early-stopping", "1", "--progress", "none"]
    metrics, folder = train(*flags, "--max-train-examples", "16")
    assert metrics["best_epoch"] == 1 and metrics["train_examples"] == 16
    header = (folder / "history.csv").read_text().splitlines()[0]
    assert "val_loss" in header and "test" not in header


@pytest.mark.slow
def test_class_weights_change_the_result(train, quick):
    rows = [*sentences(30, 3), *[row for row in sentences(60, 4) if row[1] == "good"]]
    flags = ["--train-file", str(write_csv(Path("uneven.csv"), rows)), "--max-steps", "2"]
    assert train(*flags, "--class-weights")[0]["test_loss"] != train(*flags)[0]["test_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "mixed_bfloat16", "mixed_float16"])
def test_precision(precision, train):
    assert np.isfinite(train("--precision", precision, "--max-steps", "2")[0]["test_loss"])


@pytest.mark.slow
def test_pairs(made, quick, capsys):
    texts = [text for text, _ in sentences(40, 7)]
    rows = [
        (a, (b, a)[i % 2], ("other", "same")[i % 2]) for i, (a, b) in enumerate(zip(texts, texts[::-1], strict=True))
    ]
    write_csv(Path("pairs.csv"), rows, names=("text", "second", "label"))
    flags = (
        f"--train-file pairs.csv --text-pair-column second --model {made}/bert --max-length 40 --max-steps 1".split()
    )
    assert recipe.main([*flags, "--output-dir", "run"]) == 0
    out = command(capsys, "predict", "--model", "run", "--text", "a", "--text-pair", "good film")
    assert out.split("\t")[:2] == ["a", "good film"]


@pytest.fixture
def preset(made):
    """A KerasHub preset of a small BERT, with a tokenizer."""
    tokenizer = keras_hub.models.BertTokenizer(vocabulary=list(VOCABULARY), lowercase=True)
    backbone = keras_hub.models.BertBackbone(len(VOCABULARY), 1, 2, 16, 32, max_sequence_length=40)
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(tokenizer, sequence_length=40)
    backbone.save_to_preset("preset")
    preprocessor.save_to_preset("preset")
    return "preset"


@pytest.mark.slow
def test_a_preset_of_keras_hub(preset, train, quick, capsys):
    encode = language_model.Tokenizer(language_model.find_model(preset))
    found = encode(["good film", "bad " * 30], None, 8)
    assert [VOCABULARY[i] for i in found.ids[0]] == ["[CLS]", "good", "film", "[SEP]"]
    assert found.lengths.tolist() == [4, 8]
    assert encode(["good"], ["bad"], 8).segments[0].tolist() == [0, 0, 0, 1, 1]
    metrics, folder = train("--model", preset, "--max-steps", "2")
    assert "transformers" not in metrics["versions"] and metrics["base"] is None
    printed = json.loads(command(capsys, "evaluate", "--model", folder))
    assert printed["test_loss"] == pytest.approx(metrics["test_loss"], rel=1e-5)


def test_default_learning_data(monkeypatch, made, capsys, quick):
    texts, labels = zip(*sentences(60, 0), strict=True)
    monkeypatch.setattr(docstrings, "read_docstrings", lambda per_package: (list(texts), list(labels)))
    argv = ["--data", "docstrings", "--model", made / "bert", "--max-length", "32", "--max-steps", "1"]
    out = command(capsys, *argv, "--output-dir", "run")
    lines = out.splitlines()
    assert lines[0] == "data: no --train-file; docstrings of bad, good, which are the labels."
    assert lines[1] == "data: no test set; 6 texts are held out of the training set for it."

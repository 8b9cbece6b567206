"""A trained classifier adapted to other digits: what is frozen, what is trained, and what is saved."""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from digit_data import fails

from kopt import peft
from recipes import mnist
from recipes.fine_tuning import adaptation
from recipes.readers import digits
from recipes.run.flags import RunFlags

HEAD = 256 * 10 + 10


def evaluate(capsys, *argv):
    capsys.readouterr()
    assert mnist.main(["evaluate", *map(str, argv)]) == 0
    return json.loads(capsys.readouterr().out)


def test_views(npz, arrays):
    upright, inverted, rotated = (digits.load(str(npz), view) for view in ("upright", "inverted", "rotated"))
    np.testing.assert_array_equal(inverted.x_train, 255 - upright.x_train)
    np.testing.assert_array_equal(rotated.x_test[0], np.rot90(upright.x_test[0]))
    np.testing.assert_array_equal(rotated.y_train, arrays[1])
    assert inverted.source == "blobs.npz, inverted" and upright.source == "blobs.npz"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "head", "full"])
def test_every_method_trains_what_it_should(method, baseline, train, undrawn):
    metrics, folder = train("--adapt", str(baseline), "--view", "rotated", "--method", method, "--optimizer", "adamw")
    low = 16 * (784 + 256)
    trained = {"lora": low + HEAD, "dora": low + 256 + HEAD, "head": HEAD, "full": 203_530}
    assert metrics["trained_parameters"] == trained.get(method, metrics["trained_parameters"])
    assert metrics["learning_rate"] == adaptation.METHODS[method].learning_rate
    assert metrics["adapted_from"] == str(baseline) and metrics["method"] == method
    before = keras.models.load_model(baseline / "model.keras", compile=False)
    after = keras.models.load_model(folder / "model.keras", compile=False)
    adapts = adaptation.METHODS[method].make is not None
    assert bool(peft.layer_status(after)) == (folder / "adapter").exists() == adapts
    if adapts:
        peft.unload(after)
    first = [np.array_equal(a, b) for a, b in zip(before.get_weights()[:2], after.get_weights()[:2], strict=True)]
    assert all(first) == (method != "full")


@pytest.mark.slow
def test_adapters_are_exchanged_on_one_base(baseline, train, undrawn, npz, capsys):
    found = {}
    for view in ("rotated", "inverted"):
        found[view] = train("--adapt", str(baseline), "--view", view, "--epochs", "4", "--optimizer", "adamw")
    data = ["--data", npz, "--view"]
    for view, (metrics, folder) in found.items():
        alone = evaluate(capsys, "--model", folder, *data, view)
        beside = evaluate(capsys, "--model", baseline, *data, view, "--adapter", folder)
        without = evaluate(capsys, "--model", baseline, *data, view)
        assert alone["test_loss"] == pytest.approx(metrics["test_loss"], rel=1e-4)
        assert beside["test_loss"] == pytest.approx(metrics["test_loss"], rel=1e-4)
        assert metrics["test_loss"] < without["test_loss"] and metrics["data"] == f"blobs.npz, {view}"
        card = (folder / "README.md").read_text()
        assert f"| Adapted from | {baseline} |" in card and "kopt.peft.load_adapter" in card
    capsys.readouterr()
    np.save("one.npy", np.zeros((28, 28), np.uint8))
    assert mnist.main(["predict", "--model", str(baseline), "--adapter", str(folder), "one.npy"]) == 0


@pytest.mark.slow
def test_an_adapted_run_goes_on(baseline, npz, undrawn):
    flags = f"--data {npz} --adapt {baseline} --view rotated --batch-size 50 --lr-schedule constant".split()
    assert mnist.main([*flags, "--epochs", "2", "--output-dir", "whole"]) == 0
    assert mnist.main([*flags, "--epochs", "1", "--output-dir", "parts"]) == 0
    assert mnist.main(["--resume", "parts", "--epochs", "2"]) == 0
    whole, parts = (keras.models.load_model(f"{name}/model.keras", compile=False) for name in ("whole", "parts"))
    for a, b in zip(whole.get_weights(), parts.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "flags, code, says",
    [
        ("--method head", 2, "--method has no effect without --adapt"),
        ("--rank 4", 2, "--rank has no effect without --adapt"),
        ("--adapt BASE --method head --rank 4", 2, "--rank has no effect with --method head"),
        ("--adapt BASE --output-dir BASE --overwrite", 2, "is the run that --overwrite would replace"),
        ("--adapt BASE --precision mixed_bfloat16", 2, "has float32. Leave it out"),
        ("--adapt BASE --dropout 0.5", 2, "has 0.25. Leave it out"),
        ("--adapt nowhere", 3, "no complete run"),
    ],
)
def test_errors(flags, code, says, baseline, npz, capsys):
    argv = ["--data", npz, *flags.replace("BASE", str(baseline)).split()]
    assert says in fails(capsys, code, *argv)
    assert not Path("saved_models").exists()


def test_the_precision_is_that_of_the_run(baseline, tmp_path):
    shutil.copytree(baseline, tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("precision: float32", "precision: mixed_bfloat16"))
    taken = adaptation.of_model(mnist.Train(), tmp_path / "run", ("model",))
    assert taken["run"].precision == "mixed_bfloat16" and taken["model"] == "mlp"
    assert "run" not in adaptation.of_model(mnist.Train(run=RunFlags(precision="tf32")), baseline, ("model",))


def test_other_classes_are_named(arrays, capsys):
    x, y, x_test, y_test = arrays
    np.savez("letters.npz", x_train=x, y_train=y + 3, x_test=x_test, y_test=y_test)
    says = fails(capsys, 3, "--data", "letters.npz")
    assert "labels go from 3 to 12, expected 0 to 9. Pictures of other classes are for the recipe images." in says

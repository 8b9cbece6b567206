"""What a run leaves behind, and what is read from it again."""

import json
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml
from digit_data import LINE, fails, read_rows
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

import kopt
from recipes import mnist
from recipes.readers.arrays import read_image
from recipes.run.batches import hold_out
from recipes.run.command_line import parse
from recipes.run.folder import FILES

# ------------------------------------------------------------------------------------------------- what a run leaves


def test_lines_and_folder(train, capsys):
    metrics, folder = train("--epochs", "3")
    out = capsys.readouterr().out
    assert "━" not in out  # no bar but on a terminal
    lines = [line for line in out.splitlines() if line.startswith("Epoch")]
    assert len(lines) == 3 and all(LINE.fullmatch(line) for line in lines)
    assert lines[0].startswith("Epoch: 001 | ")
    assert {path.name for path in folder.iterdir()} == {*FILES, "logs", "checkpoints"}
    rows = read_rows(folder)
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert metrics["validation_loss"] == pytest.approx(rows[-1]["val_loss"], rel=1e-4)
    loss, accuracy = metrics["validation_loss"], metrics["validation_accuracy"]
    assert f"validation loss: {loss:.4f} | validation accuracy: {accuracy:.4f}" in lines[-1]
    assert not any("test" in name for name in rows[0])  # the test set is looked at once, at the end
    assert (metrics["train_examples"], metrics["validation_examples"], metrics["test_examples"]) == (180, 20, 60)
    assert metrics["parameters"] == 203_530 and metrics["optimizer"] == "adabound" and metrics["epochs"] == 3
    assert metrics["data"] == "blobs.npz" and metrics["seed"] == 42 and metrics["train_seconds"] > 0
    assert set(metrics["test_recall"]) == set("0123456789") and set(metrics["versions"]) >= {"kopt", "keras"}
    card = (folder / "README.md").read_text()
    assert "python -m recipes.mnist" in card and "keras 3" in card
    assert f"Accuracy on the test set | {metrics['test_accuracy']:.4f}" in card
    assert f"Accuracy on the validation set | {accuracy:.4f}" in card
    assert "| Learning rate | 0.001 |" in card and f"| Git revision | {metrics['revision'] or 'unknown'}" in card
    assert metrics["command"] in card and "--epochs 3" in metrics["command"] and metrics["batch_size"] == 50
    for name in ("confusion.png", "errors.png", "curves.png"):
        assert np.asarray(Image.open(folder / name).convert("L")).std() > 10


def test_saved_model_loads_with_its_optimizer(train, undrawn):
    folder = train()[1]
    model = keras.models.load_model(folder / "model.keras")
    assert isinstance(model.optimizer, kopt.AdaBound)
    assert int(model.optimizer.iterations) == 4


def test_tensorboard(baseline):
    assert len([*(baseline / "logs").iterdir()]) == 1  # one run, one file
    events = EventAccumulator(str(baseline / "logs")).Reload()

    def values(tag):
        return {event.step: event.value for event in events.Scalars(tag)}

    groups = [tag.split("/")[0] for tag in sorted(events.Tags()["scalars"])]
    assert list(dict.fromkeys(groups))[:2] == ["Loss", "Metrics"]  # TensorBoard sorts like this
    rows, metrics = read_rows(baseline), json.loads((baseline / "metrics.json").read_text())
    assert list(values("Loss/train")) == [*range(1, 9)]
    assert np.mean([*values("Loss/train").values()][:4]) == pytest.approx(rows[0]["train_loss"], rel=1e-4)
    assert values("Loss/validation") == pytest.approx({4: rows[0]["val_loss"], 8: rows[1]["val_loss"]}, rel=1e-4)
    measured = {4 * row["epoch"]: row["val_accuracy"] for row in rows}
    assert values("Metrics/validation_accuracy") == pytest.approx(measured, rel=1e-4)
    assert values("test/accuracy") == pytest.approx({8: metrics["test_accuracy"]})
    assert set(events.Tags()["images"]) == {"confusion", "errors", "curves"}
    assert {"settings/text_summary", "settings"} & set(events.Tags()["tensors"])
    start = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    chosen = plugin_data_pb2.HParamsPluginData.FromString(start).session_start_info
    assert chosen.group_name.endswith("baseline")
    assert set(chosen.hparams) == {"optimizer", "learning_rate", "model", "seed", "batch_size"}
    assert chosen.hparams["learning_rate"].number_value == 0.001 and chosen.hparams["model"].string_value == "mlp"


def test_schedule_reaches_fit(baseline):
    events = EventAccumulator(str(baseline / "logs")).Reload()
    rates = {event.step: event.value for event in events.Scalars("optimizer/learning_rate")}
    assert [rates[4], rates[8]] == pytest.approx([5e-4, 0], abs=1e-9)  # half a cosine over two epochs


@pytest.mark.slow
def test_config_round_trip(baseline, train):
    config = yaml.safe_load((baseline / "config.yaml").read_text())
    assert config["optimizer"] == "adam" and "output_dir" not in config and "config" not in config
    again = Path("again")
    assert mnist.main(["--config", str(baseline / "config.yaml"), "--output-dir", str(again)]) == 0
    assert yaml.safe_load((again / "config.yaml").read_text()) == config
    first, second = (json.loads((f / "metrics.json").read_text()) for f in (baseline, again))
    assert first["test_loss"] == second["test_loss"]  # the seed settles the result


def test_flags_win_over_config():
    Path("c.yaml").write_text("epochs: 7\nlearning-rate: 1e-3\naugment: true\nopt: {final_lr: 0.5}\nseed: null\n")
    flags = parse(["--epochs=3", "--config", "c.yaml", "--opt", "gamma=0.1"], {"train": mnist.Train}, "x")
    assert flags.epochs == 3 and flags.augment and flags.run.seed == 42
    assert flags.optim.learning_rate == 0.001 and flags.optim.opt == ("final_lr=0.5", "gamma=0.1")
    assert not parse(["--config=c.yaml", "--no-augment"], {"train": mnist.Train}, "x").augment


def test_help_needs_no_keras():
    code = (
        "import sys; from recipes import mnist\n"
        "try: mnist.main(['predict', '--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert not {'keras', 'tensorflow', 'matplotlib', 'sklearn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(mnist.__file__).parents[1], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"--invert" in done.stdout


# ------------------------------------------------------------------------------------------------ evaluate and predict


def test_evaluate(baseline, npz, capsys):
    for model in (baseline, baseline / "model.keras"):
        assert mnist.main(["evaluate", "--model", str(model), "--data", str(npz)]) == 0
        printed = json.loads(capsys.readouterr().out)
        trained = json.loads((baseline / "metrics.json").read_text())
        assert printed["test_loss"] == pytest.approx(trained["test_loss"], rel=1e-5)
        assert printed["test_accuracy"] == trained["test_accuracy"]
        assert printed["examples_learnt_from"] == (0 if model == baseline else None)


@pytest.mark.slow
def test_images_on_both_sides_are_counted_and_left_out(arrays, train, capsys, undrawn):
    x, y, x_test, y_test = arrays
    for name, images in (("twice", [x_test[:4], x_test[:4], x_test]), ("once", [x_test])):
        more = np.concatenate([x, *images[:-1]]), np.concatenate([y, *[y_test[:4]] * (len(images) - 1)])
        np.savez(f"{name}.npz", x_train=more[0], y_train=more[1], x_test=x_test, y_test=y_test)
    twice = ["--data", "twice.npz", "--validation-split", "0.2"]
    metrics, folder = train(*twice, "--seed", "1")
    err = capsys.readouterr().err
    shared = [
        int(n) for n in re.findall(r"data: (\d+) images of the (?:training|validation) set are also in the test", err)
    ]
    assert sum(shared) == 8 and "leave them out with --deduplicate" in err
    assert mnist.main(["evaluate", "--model", str(folder), "--data", "twice.npz"]) == 0
    assert json.loads(capsys.readouterr().out)["examples_learnt_from"] == 4
    fewer, folder = train(*twice, "--seed", "1", "--deduplicate")
    assert "they are left out there" in capsys.readouterr().err
    examples = [m["train_examples"] + m["validation_examples"] for m in (metrics, fewer)]
    assert examples == [208, 200] and fewer["test_examples"] == 60
    assert mnist.main(["evaluate", "--model", str(folder), "--data", "twice.npz"]) == 0
    assert json.loads(capsys.readouterr().out)["examples_learnt_from"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["lbfgs", "bgd"])
def test_the_history_ends_with_what_is_saved(train, npz, optimizer, undrawn):
    # The last point that these optimizers try is rarely the one that they keep.
    rate = ["--learning-rate", "4"] if optimizer == "bgd" else []
    flags = ["--optimizer", optimizer, "--lr-schedule", "constant", "--dropout", "0", "--batch-size", "60"]
    metrics, folder = train(*flags, "--epochs", "3", *rate)
    model = keras.models.load_model(folder / "model.keras")
    assert model.optimizer.examples == 180 and model.optimizer.steps_per_update == 3
    x, y = held_out(npz)
    kept = model.evaluate(x, np.eye(10)[y], verbose=0, return_dict=True)["loss"]
    assert read_rows(folder)[-1]["val_loss"] == pytest.approx(kept, rel=1e-4)
    assert metrics["validation_loss"] == pytest.approx(kept, rel=1e-4)


def held_out(npz):
    with np.load(npz) as arrays:
        return hold_out(arrays["x_train"], arrays["y_train"], 0.1, 42)[2:]


def test_evaluate_errors(baseline, npz, tmp_path, capsys):
    assert "no such file" in fails(capsys, 3, "evaluate", "--model", "nowhere", "--data", npz)
    Path("cut.keras").write_bytes((baseline / "model.keras").read_bytes()[:5000])
    assert "cut.keras" in fails(capsys, 3, "evaluate", "--model", "cut.keras", "--data", npz)
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save("other.keras")
    assert "28x28" in fails(capsys, 3, "evaluate", "--model", "other.keras", "--data", npz)


def test_predict(baseline, arrays, capsys):
    x = arrays[2][3]
    Image.fromarray(x).save("gray.png")
    Image.fromarray(255 - x).save("dark.png")
    np.save("one.npy", x)
    np.save("many.npy", np.stack([x, x]) / 255)

    def predict(*files):
        assert mnist.main(["predict", "--model", str(baseline), *files]) == 0
        return [line.split("\t") for line in capsys.readouterr().out.splitlines()]

    rows = predict("gray.png", "one.npy", "many.npy")
    assert [row[0] for row in rows] == ["gray.png", "one.npy", "many.npy[0]", "many.npy[1]"]
    assert len({tuple(row[1:]) for row in rows}) == 1
    assert rows[0][1] in "0123456789" and 0.1 <= float(rows[0][2]) <= 1
    assert predict("--invert", "dark.png")[0][1:] == rows[0][1:]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_images_of_every_mode(mode):
    drawn = np.zeros((60, 40), np.uint8)
    drawn[20:40, 10:30] = 255
    image = Image.fromarray(drawn)
    if mode == "I;16":
        image = Image.fromarray(drawn.astype(np.uint16) * 257)
    elif mode in ("LA", "RGBA"):  # white strokes on nothing
        image = Image.merge(mode, [Image.new("L", image.size, 255)] * (len(mode) - 1) + [image])
    else:
        image = image.convert(mode)
    image.save("a.png")
    read = read_image(Path("a.png"), 28, 28)
    assert read.shape == (28, 28) and read.dtype == np.uint8
    assert read[14, 14] == 255 and read[2, 14] == 0 and read[14, 1] == 0


def test_predict_errors(baseline, capsys):
    Path("text.png").write_text("no")
    np.save("small.npy", np.zeros((8, 8), np.uint8))
    np.save("wide.npy", np.zeros((28, 28), np.int64))
    Path("cut.npy").write_bytes(Path("wide.npy").read_bytes()[:500])
    for file in ("text.png", "missing.png", "missing.npy", "small.npy", "wide.npy", "cut.npy"):
        assert file in fails(capsys, 3, "predict", "--model", baseline, file)
    fails(capsys, 2, "predict", "--model", baseline)

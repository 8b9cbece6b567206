"""Wrong input ends in one line and an exit code."""

import gzip
import signal
import struct
from pathlib import Path

import keras
import numpy as np
import pytest
from digit_data import fails

from recipes import mnist
from recipes.run.progress import Report

# -------------------------------------------------------------------------------------------------------- exit codes

BEFORE = signal.getsignal(signal.SIGINT)  # a job in the background ignores it


@pytest.mark.parametrize(
    "flags, says",
    [
        ("--optimizer adamm", "adam"),
        ("--opt bta_1=1", "beta_1"),
        ("--optimizer keras.adafactor --opt foo=1", "takes"),
        ("--opt beta_1=3", "beta_1"),
        ("--opt beta_1", "NAME=VALUE"),
        ("--grad-accum 0", "at least 1"),
        ("--ema 2", "ema_momentum"),
        ("--clip-norm=-1", "clipnorm"),
        ("--warmup many", "percentage"),
        ("--warmup 200%", "updates"),
        ("--epochs 0", "at least 1"),
        ("--batch-size 0", "at least 1"),
        ("--max-steps 0", "at least 1"),
        ("--early-stopping 0", "at least 1"),
        ("--seed=-1", "at least 0"),
        ("--dropout 1", "less than 1"),
        ("--validation-split 0.001", "validation-split"),
        ("--config missing.yaml", "missing.yaml"),
    ],
)
def test_usage_errors(flags, says, npz, capsys):
    assert says in fails(capsys, 2, "--data", npz, "--model", "mlp", *flags.split())
    assert not Path("saved_models").exists()


@pytest.mark.parametrize("content, says", [("epoch: 3", "epochs"), ("[1]", "list"), ("a: [", "YAML"), ("", "NoneType")])
def test_bad_config(content, says, capsys):
    Path("c.yaml").write_text(content)
    assert says in fails(capsys, 2, "--config", "c.yaml")


@pytest.mark.parametrize("flags", ["--model vgg", "--epochs x", "--nonsense 1"])
def test_malformed_flags(flags, capsys):
    with pytest.raises(SystemExit) as exit_:
        mnist.main(flags.split())
    assert exit_.value.code == 2


@pytest.mark.slow
def test_full_folder_is_refused(train, npz, capsys, undrawn):
    folder = train()[1]
    argv = ["--data", npz, "--model", "mlp", "--max-steps", "1", "--epochs", "1", "--output-dir", folder]
    assert "--overwrite" in fails(capsys, 2, *argv)
    before = (folder / "metrics.json").read_text()
    assert mnist.main([*map(str, argv), "--overwrite"]) == 0
    assert (folder / "metrics.json").read_text() != before
    assert len(list((folder / "logs").iterdir())) == 1  # the old events are gone
    Path("precious").mkdir()
    Path("precious/file").touch()
    assert "not a run" in fails(capsys, 2, *argv[:-1], "precious", "--overwrite")
    assert Path("precious/file").exists()


def damage(arrays, **changes):
    Path("bad.npz").unlink(missing_ok=True)
    parts = dict(zip(("x_train", "y_train", "x_test", "y_test"), arrays, strict=True)) | changes
    np.savez("bad.npz", **{key: value for key, value in parts.items() if value is not None})
    return "bad.npz"


def test_data_errors(arrays, npz, capsys):
    x, y = arrays[:2]

    def says(data):
        return fails(capsys, 3, "--data", data)

    assert "no such file" in says("nowhere").lower()
    assert "no such file" in says("nowhere.npz").lower()
    assert "y_test" in says(damage(arrays, y_test=None))
    assert "(n, 28, 28)" in says(damage(arrays, x_train=x[:, :27]))
    assert "uint8" in says(damage(arrays, x_train=x / 255))
    assert "float64" in says(damage(arrays, y_train=y / 1.0))
    assert "199 labels" in says(damage(arrays, y_train=y[1:]))
    assert "0 to 10" in says(damage(arrays, y_train=y % 10 + (y == 9)))
    assert "-1" in says(damage(arrays, y_test=arrays[3] - 1))
    whole = npz.read_bytes()
    Path("cut.npz").write_bytes(whole[: len(whole) // 2])
    assert "cut short" in says("cut.npz")
    middle = bytearray(whole)
    middle[len(whole) // 2] ^= 255
    Path("flipped.npz").write_bytes(middle)
    assert "flipped.npz" in says("flipped.npz")
    Path("text.npz").write_text("x,y")
    assert "text.npz" in says("text.npz")
    np.save("array.npy", x)
    assert "array.npy" in says("array.npy")


def idx(array, zipped):
    head = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = head + array.astype(np.uint8).tobytes()
    return gzip.compress(content) if zipped else content


@pytest.mark.parametrize("zipped", [False, True])
def test_idx(arrays, zipped, capsys):
    folder = Path("idx")
    folder.mkdir()
    names = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte"]
    files = [folder / (name + ".gz" * zipped) for name in names]
    for file, array in zip(files, arrays, strict=True):
        file.write_bytes(idx(array, zipped))
    for read, array in zip(mnist.load("idx"), arrays, strict=False):
        np.testing.assert_array_equal(read, array)
    good = files[0].read_bytes()
    for bad in (good[:-5], good[: len(good) // 2], good[:2], b"", b"PNG!" + good):
        files[0].write_bytes(bad)
        fails(capsys, 3, "--data", "idx")
    files[0].unlink()
    assert "train-images-idx3-ubyte" in fails(capsys, 3, "--data", "idx")


def test_divergence(npz, capsys):
    argv = ["--data", npz, "--model", "mlp", "--optimizer", "sgd", "--learning-rate", "1e30", "--output-dir", "out"]
    assert "at step" in fails(capsys, 4, *argv)
    assert not Path("out/model.keras").exists()
    assert signal.getsignal(signal.SIGINT) is BEFORE


def test_interrupt(train, undrawn, monkeypatch):
    end = Report.on_train_batch_end

    def interrupted(self, batch, logs=None):
        if self.steps_done == 5:
            signal.raise_signal(signal.SIGINT)
        end(self, batch, logs)

    monkeypatch.setattr(Report, "on_train_batch_end", interrupted)
    metrics, folder = train("--epochs", "9", "--ema", "0.5", code=130)
    assert metrics["interrupted"] and metrics["epochs"] == 2
    assert "interrupted" in (folder / "README.md").read_text()
    assert keras.models.load_model(folder / "model.keras").optimizer.iterations == 6
    assert signal.getsignal(signal.SIGINT) is BEFORE


def test_second_interrupt_quits(npz, monkeypatch, capsys):
    def twice(self, batch, logs=None):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Report, "on_train_batch_end", twice)
    assert mnist.main(["--data", str(npz), "--model", "mlp", "--output-dir", "out"]) == 130
    assert not Path("out/model.keras").exists()

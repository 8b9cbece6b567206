"""`kopt recommend`: the page, JSON, and the exit codes."""

import json

import keras
import pytest
from keras import layers

from kopt.__main__ import main

RUN = ["--batch-size", "8", "--dataset-size", "80"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(1)])
    model.compile("sgd", "mse")
    path = tmp_path_factory.mktemp("models") / "model.keras"
    model.save(path)
    return str(path)


def test_a_page(file, capsys):
    assert main(["recommend", "--model", file, *RUN]) == 0
    page = capsys.readouterr().out
    assert "Muon" in page and "Why:" in page and "model.fit(x, y, batch_size=8, epochs=10)" in page


def test_json_has_what_the_flags_say(file, capsys):
    more = ["--budget", "3", "--goal", "memory", "--memory-limit", "1e6", "--pretrained", "--workers", "2", "--json"]
    assert main(["recommend", "--model", file, *RUN, *more]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["updates"] == 30 and "0.001" in found["code"] and found["facts"]["workers"] == 2
    assert found["facts"]["goal"] == "memory" and found["facts"]["squares"] and found["reasons"][0]["source"]


def test_a_model_with_classes_of_its_own(tmp_path, capsys):
    class Own(layers.Layer):
        def call(self, x):
            return x

    path = tmp_path / "own.keras"
    keras.Sequential([keras.Input((2,)), Own(), layers.Dense(1)]).save(path)
    assert main(["recommend", "--model", str(path), *RUN]) == 3
    assert "classes of your own? Call kopt.recommend(model)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--batch-size", "100"], 2, "a batch of 100 needs as many examples"),
        (["--memory-limit", "1"], 2, "memory_limit=1"),
        (["--budget", "0"], 2, "budget must be"),
        (["--model", "nowhere.keras"], 3, "--model nowhere.keras: no such file"),
    ],
)
def test_errors(file, more, code, message, capsys):
    assert main(["recommend", "--model", file, *RUN, *more]) == code
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and message in err


def test_a_file_that_is_no_model(tmp_path, capsys):
    path = tmp_path / "text.keras"
    path.write_text("no model")
    assert main(["recommend", "--model", str(path), *RUN]) == 3
    assert "text.keras" in capsys.readouterr().err


def test_usage(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["recommend", "--model", "x.keras", *RUN, "--goal", "best"])
    assert ended.value.code == 2 and "no-tuning" in capsys.readouterr().err

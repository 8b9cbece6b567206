"""What SECURITY.md promises about files that nobody of kopt wrote; adapters have tests/peft/test_strangers.py."""

import os
import pickle
import re

import keras
import numpy as np
import pytest
from sources import ROOT

import kopt
from recipes.run.command_line import parse
from recipes.run.errors import RecipeError
from recipes.run.folder import load_model

PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_yaml_runs_nothing(tmp_path):
    from recipes.mnist import Train

    for text in (f"data: !!python/object/apply:os.mkdir ['{tmp_path}/executed']", "[" * 10_000, "- a", "epochs: [1, 2"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(RecipeError, match=r"config\.yaml: (not valid YAML|expected)"):
            parse(["--config", str(tmp_path / "config.yaml")], {"train": Train}, "x")
    assert not (tmp_path / "executed").exists()


def test_models_with_functions_are_refused(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1)])
    model.save(tmp_path / "model.keras")
    with pytest.raises(RecipeError, match=r"model\.keras: not a model that Keras can load"):
        load_model(tmp_path)


def test_arrays_are_not_unpickled(tmp_path):
    from recipes.readers.arrays import read_npz

    array = np.array([Evil(tmp_path / "executed")], dtype=object)
    np.savez(tmp_path / "a.npz", x_train=array, y_train=array)
    with pytest.raises(RecipeError):
        read_npz(tmp_path / "a.npz", ("x_train", "y_train"))
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(array))  # it would have
    assert (tmp_path / "executed").exists()


def test_patterns_of_saved_optimizers_cannot_hang(tmp_path):
    layer = keras.layers.Dense(2, name="a" * 60)
    model = keras.Sequential([keras.Input((2,)), layer])
    optimizer = kopt.AdamW.from_config(kopt.AdamW(multipliers=[("/(a|aa)+$", 0.5)]).get_config())
    with pytest.raises(ValueError, match="takes too long to match"):
        optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match="takes too long to match"):
        kopt.Route([("/(a|aa)+$", "sgd"), ("", "adam")]).build(model.trainable_variables)


def test_every_reader_is_on_the_page():
    for words in (
        "adapter_config.json adapter_model.safetensors adapter_model.bin .keras .weights.h5 tf.train.Checkpoint",
        "config.json model.safetensors.index.json yaml.safe_load config.yaml CSV TSV JSON Parquet .npz .npy IDX Pillow",
        "TensorBoard GGUF SHA-256",
    ):
        assert [word for word in words.split() if word not in PAGE] == []
    assert "](SECURITY.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert not re.search(r"https?://|@\w+\.\w", PAGE)  # the project has no address to name

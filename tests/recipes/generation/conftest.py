"""A small language model of bytes, texts for it, and runs."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from recipes.generation import main
from recipes.run import plots
from recipes.run.tracking import Tracking

ANIMALS = {"cat": "meow", "dog": "woof", "cow": "moo", "owl": "hoo", "pig": "oink", "bee": "buzz"}


def write_rows(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a model with random weights."""
    import keras
    import keras_hub

    from recipes.generation import byte_model

    folder = tmp_path_factory.mktemp("tiny")
    byte_model.write_tokenizer(folder)
    keras.utils.set_random_seed(0)
    sizes = {"num_layers": 2, "num_query_heads": 4, "num_key_value_heads": 2, "hidden_dim": 32, "intermediate_dim": 64}
    backbone = keras_hub.models.Llama3Backbone(257, tie_word_embeddings=True, **sizes)
    rng = np.random.default_rng(0)
    backbone.set_weights([w + rng.normal(0, 0.1, w.shape) for w in backbone.get_weights()])
    backbone.export_to_transformers(str(folder))
    return folder


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Questions with answers, and the same with wrong ones beside."""
    folder, rng, names = tmp_path_factory.mktemp("files"), np.random.default_rng(0), list(ANIMALS)
    rows = [str(name) for name in rng.choice(names, 96)]
    asked = [{"prompt": f"What says the {name}?", "response": ANIMALS[name]} for name in rows]
    write_rows(folder / "answers.jsonl", asked)
    pairs = [
        {"prompt": row["prompt"], "chosen": row["response"], "rejected": ANIMALS[names[(names.index(name) + 1) % 6]]}
        for row, name in zip(asked, rows, strict=True)
    ]
    write_rows(folder / "pairs.jsonl", pairs)
    return folder


@pytest.fixture
def run(tiny, files, tmp_path, monkeypatch):
    """Trains on the answers unless told otherwise; returns metrics and folder."""
    monkeypatch.setattr(plots, "plot_curves", lambda *args, **kwargs: None)
    monkeypatch.setattr(Tracking, "images", lambda self, pictures: None)

    def train(*flags, code=0):
        folder = tmp_path / str(time.monotonic_ns())
        argv = ["--model", str(tiny), "--data", str(files / "answers.jsonl"), "--max-length", "64"]
        argv += ["--learning-rate", "1e-2", "--progress", "none", "--output-dir", str(folder)]
        assert main([*argv, *map(str, flags)]) == code
        return json.loads((folder / "metrics.json").read_text()), Path(folder)

    return train

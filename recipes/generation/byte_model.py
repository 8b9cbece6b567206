"""A small language model of bytes, trained from nothing on the docstrings of Python, for machines without another."""

import json
import sys
from pathlib import Path

import numpy as np

from ..run.batches import Array
from ..run.folder import atomic_folder
from . import python_texts
from .cache import cached

END = "<|endoftext|>"
WIDTH, LAYERS, HEADS = 128, 3, 4
STEPS, BATCH, LENGTH, RATE = 400, 16, 128, 4e-3
SEED = 0


def as_folder() -> Path:
    """Returns the model as a folder of Hugging Face; trained once for each Python, and kept in the cache."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = cached(f"bytes-{WIDTH}x{LAYERS}-{STEPS}-python{version}")
    if not folder.is_dir():
        print(f"model: trains a small model of bytes on Python's docstrings, once, for {STEPS} steps.", flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as part:
            write_tokenizer(part)
            _train(part)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Writes a tokenizer whose tokens are the 256 bytes, and one for the end of a text."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([tokenizers.AddedToken(END, special=True, normalized=False)])
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _train(folder: Path) -> None:
    """Trains the model on docstrings and writes it to a folder that has its tokenizer."""
    import keras
    import keras_hub
    from tokenizers import Tokenizer

    import kopt

    from . import objectives

    keras.utils.set_random_seed(SEED)
    backbone = keras_hub.models.Llama3Backbone(
        vocabulary_size=257,
        num_layers=LAYERS,
        num_query_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        hidden_dim=WIDTH,
        intermediate_dim=3 * WIDTH,
        tie_word_embeddings=True,
        dtype="float32",
    )
    text = f"{END}".join(python_texts.read_docstrings())
    tokens = np.array(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids, np.int32)
    model = objectives.build(keras_hub.models.Llama3CausalLM(backbone, preprocessor=None))
    rate = kopt.schedules.WarmupCosine(RATE, steps=STEPS, warmup=STEPS // 20)
    model.compile(kopt.AdamW(rate, weight_decay=0.1), objectives.token_mean)
    rng = np.random.default_rng(SEED)
    for _ in range(STEPS):
        model.train_on_batch(*_windows(tokens, rng))
    backbone.export_to_transformers(str(folder))


def _windows(tokens: Array, rng: np.random.Generator) -> tuple[dict[str, Array], Array]:
    rows = rng.integers(len(tokens) - LENGTH - 1, size=(BATCH, 1)) + np.arange(LENGTH + 1)
    found = tokens[rows]
    ones = np.ones((BATCH, LENGTH), np.int32)
    inputs = {"token_ids": found[:, :-1], "targets": found[:, 1:], "documents": ones}
    return inputs, ones.astype(np.float32)

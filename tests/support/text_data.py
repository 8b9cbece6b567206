"""Data and models made for the tests of the text recipe."""

import csv
import json

import numpy as np
import recipe_commands
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from recipes.text_classification import main

GOOD, BAD = ("good", "fine", "lovely", "great"), ("bad", "awful", "dull", "poor")
FILL = ("the", "a", "film", "book", "was", "is", "very", "and", "quite", "it", "##s", "story", "actor", "caf", "##e")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = (*SPECIAL, *GOOD, *BAD, *FILL)
WIDTH, LAYERS = 16, 2
HEAD = 2 * WIDTH + 2
PROJECTION = LAYERS * 16 * 2 * WIDTH
"""Parameters of a LoRA of rank 16 on one projection of each layer."""
LINEAR = 4 * PROJECTION + LAYERS * 16 * 2 * (WIDTH + 32)
TRAINED = {
    "lora": LINEAR,
    "dora": LINEAR + LAYERS * (4 * WIDTH + 32 + WIDTH),
    "adapter": LAYERS * (2 * WIDTH + 1 + WIDTH),
    "ia3": LAYERS * (2 * WIDTH + 32),
    "bitfit": WIDTH + LAYERS * (4 * WIDTH + WIDTH + 32 + WIDTH + WIDTH),
    "prompt": 20 * WIDTH,
    "head": 0,
    "full": len(VOCABULARY) * WIDTH + 42 * WIDTH + 2 * WIDTH + LAYERS * (4 * 272 + 2 * WIDTH + 544 + 528 + 2 * WIDTH),
}


def sentences(n, seed):
    """Texts of 3 to 20 words and labels that one of the words gives away."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        words = [str(w) for w in rng.choice([w for w in FILL if not w.startswith("#")], rng.integers(2, 20))]
        words.insert(int(rng.integers(len(words))), str(rng.choice((BAD, GOOD)[i % 2])))
        rows.append((" ".join(words), ("bad", "good")[i % 2]))
    return rows


def write_csv(path, rows, names=("text", "label"), **options):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, **options).writerows([names, *rows])
    return path


def write_bert(folder, act="gelu", pooler=True, seed=0):
    """A BERT with random weights as a Hugging Face folder, made without torch."""
    rng = np.random.default_rng(seed)
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": len(VOCABULARY),
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        "type_vocab_size": 2,
        "hidden_act": act,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }

    def dense(out, inner):
        return {"weight": rng.normal(0, 0.2, (out, inner)), "bias": rng.normal(0, 0.1, out)}

    def norm():
        return {"weight": np.ones(WIDTH), "bias": np.zeros(WIDTH)}

    modules = {
        "embeddings.word_embeddings": {"weight": rng.normal(0, 0.5, (len(VOCABULARY), WIDTH))},
        "embeddings.position_embeddings": {"weight": rng.normal(0, 0.1, (40, WIDTH))},
        "embeddings.token_type_embeddings": {"weight": rng.normal(0, 0.1, (2, WIDTH))},
        "embeddings.LayerNorm": norm(),
    }
    for i in range(LAYERS):
        block = f"encoder.layer.{i}"
        modules |= {f"{block}.attention.self.{name}": dense(WIDTH, WIDTH) for name in ("query", "key", "value")}
        modules |= {
            f"{block}.attention.output.dense": dense(WIDTH, WIDTH),
            f"{block}.attention.output.LayerNorm": norm(),
            f"{block}.intermediate.dense": dense(32, WIDTH),
            f"{block}.output.dense": dense(WIDTH, 32),
            f"{block}.output.LayerNorm": norm(),
        }
    if pooler:
        modules["pooler.dense"] = dense(WIDTH, WIDTH)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {f"{m}.{p}": np.float32(value) for m, parts in modules.items() for p, value in parts.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder):
    numbers = {word: i for i, word in enumerate(VOCABULARY)}
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", numbers["[SEP]"]), ("[CLS]", numbers["[CLS]"]))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 40}
    names = zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | dict(names)))


fails, command = recipe_commands.of(main)

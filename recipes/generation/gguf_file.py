"""GGUF files, as llama.cpp has them, as folders of Hugging Face: what KerasHub, transformers and peft read."""

import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..run.batches import Array
from ..run.errors import DataError
from ..run.folder import atomic_folder
from .cache import cached

SPECIAL = (3, 4)
"""Types of tokens that stand for themselves: control, and of the user."""
NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
DIGITS_APART = {"smollm": True, "gpt-2": False}
"""Whether each digit is a word of its own, by what llama.cpp calls the way of cutting texts into words."""

Field = Callable[..., Any]


def as_folder(file: Path) -> Path:
    """Returns the folder of Hugging Face with what a GGUF file holds, in float32; made once, and kept in the cache.

    Raises:
        DataError: the file cannot be read, or is of an architecture other than Llama.
    """
    try:
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}.") from error
    folder = cached(f"{file.stem}-{digest[:16]}")
    if not folder.is_dir():
        if importlib.util.find_spec("gguf") is None:
            raise DataError(f"{file}: to read it takes a package: pip install gguf.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as part:
            _convert(file, part)
    return folder


def _convert(file: Path, folder: Path) -> None:
    import gguf
    from safetensors.numpy import save_file

    try:
        reader = gguf.GGUFReader(file)
    except Exception as error:  # what NumPy and struct raise at damaged files
        raise DataError(f"{file}: not a GGUF file that can be read ({' '.join(str(error).split())[:200]}).") from error

    def field(name: str, *default: Any) -> Any:
        found = reader.get_field(name)
        if found is None and not default:
            raise DataError(f"{file}: has no {name}.")
        return default[0] if found is None else found.contents()

    kind = field("general.architecture")
    if kind != "llama":
        raise DataError(f"{file}: of the architecture {kind}; only llama can be read from GGUF. Take a folder instead.")
    heads, shared = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    tensors: dict[str, Array] = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("float32")
        name = tensor.name.removesuffix(".weight")
        if name.startswith("blk."):
            _, number, part = name.split(".", 2)
            if part not in NAMES:
                raise DataError(f"{file}: has a tensor {tensor.name}, which Llama has not.")
            if part in ("attn_q", "attn_k"):
                values = _unpaired(values, heads if part == "attn_q" else shared)
            tensors[f"model.layers.{number}.{NAMES[part]}.weight"] = values
        elif name in OUTER:
            tensors[f"{OUTER[name]}.weight"] = values
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tied = "lm_head.weight" not in tensors
    _write(folder / "config.json", _config(field, tensors["model.embed_tokens.weight"].shape[0], tied))
    _write_tokenizer(file, folder, field)


def _unpaired(matrix: Array, heads: int) -> Array:
    """Returns the rows of a head in Hugging Face's order: llama.cpp puts those that turn together side by side."""
    half = matrix.shape[0] // heads // 2
    return matrix.reshape(heads, half, 2, -1).swapaxes(1, 2).reshape(matrix.shape)


def _config(field: Field, vocabulary: int, tied: bool) -> dict[str, Any]:
    heads, width = field("llama.attention.head_count"), field("llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "head_dim": width // heads,
        "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": round(float(field("llama.attention.layer_norm_rms_epsilon")), 12),
        "rope_theta": float(field("llama.rope.freq_base", 10000.0)),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": field("tokenizer.ggml.bos_token_id", None),
        "eos_token_id": field("tokenizer.ggml.eos_token_id", None),
        "torch_dtype": "float32",
    }


def _write_tokenizer(file: Path, folder: Path, field: Field) -> None:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    words = field("tokenizer.ggml.pre", "gpt-2")
    if field("tokenizer.ggml.model") != "gpt2" or words not in DIGITS_APART:
        raise DataError(f"{file}: its tokenizer ({words}) is none of {', '.join(DIGITS_APART)}. Take a folder instead.")
    tokens, kinds = list(field("tokenizer.ggml.tokens")), list(field("tokenizer.ggml.token_type"))
    pairs = [tuple(merge.split(" ", 1)) for merge in field("tokenizer.ggml.merges")]
    made = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, pairs))
    digits = [pre_tokenizers.Digits(individual_digits=True)] if DIGITS_APART[words] else []
    made.pre_tokenizer = pre_tokenizers.Sequence([*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind in SPECIAL]
    made.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in special])
    made.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for role, short in {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}.items():
        number = field(f"tokenizer.ggml.{role}_token_id", None)
        if number is not None:
            config[f"{short}_token"] = tokens[number]
    template = field("tokenizer.chat_template", None)
    _write(folder / "tokenizer_config.json", config | ({} if template is None else {"chat_template": template}))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

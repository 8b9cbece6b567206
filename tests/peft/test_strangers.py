"""Files of strangers: each fault is a ValueError that names the file, nothing is run, nothing hangs."""

import json
import os
import pickle
import sys
import time
import zipfile

import keras
import numpy as np
import pytest
from files import CONFIG, IMAGES, WEIGHTS, image_model, rewrite
from flipped_bits import KINDS, flip
from probes import outputs
from safetensors.numpy import load_file, save_file

from kopt import peft
from kopt.declare.patterns import is_found, matches_whole
from kopt.peft.exchange.strict_json import parse_json

PICKLED = "adapter_model.bin"


def refuse(folder, match, **options):
    """Loading raises an error that says so."""
    with pytest.raises(ValueError, match=match):
        peft.load_adapter(image_model(), folder, **options)


# ------------------------------------------------------------------------------------------------- hashes


@pytest.mark.few(1)
@pytest.mark.parametrize("name", list(KINDS))
def test_a_flipped_bit_is_noticed(name):
    outcomes, silent, _, _ = flip(name, 10)
    assert sum(outcomes.values()) == 10 and not silent


def test_changed_tensors(saved):
    data = bytearray((saved / WEIGHTS).read_bytes())
    data[-2] ^= 1
    (saved / WEIGHTS).write_bytes(data)
    refuse(saved, f"{WEIGHTS} is damaged or was changed.*SHA-256.*verify=False")
    peft.load_adapter(image_model(), saved, verify=False)


def test_a_configuration_that_was_edited(saved):
    config = json.loads((saved / CONFIG).read_text())
    (saved / CONFIG).write_text(json.dumps(config | {"lora_alpha": 9}))
    refuse(saved, f"{CONFIG} is not as it was saved.*changed by hand.*verify=False")
    model = peft.load_adapter(image_model(), saved, verify=False)
    (saved / CONFIG).write_text(json.dumps(dict(reversed(config.items()))))  # order and spaces are nothing
    again = peft.load_adapter(image_model(), saved)
    assert np.abs(outputs(model, IMAGES) - outputs(again, IMAGES)).max() > 1e-3


def test_files_of_peft_have_no_hash(saved, adapted):
    save_file(load_file(saved / WEIGHTS), saved / WEIGHTS, {"format": "pt"})
    rewrite(saved, revision="main")
    loaded = peft.load_adapter(image_model(), saved)
    np.testing.assert_allclose(outputs(loaded, IMAGES), outputs(adapted, IMAGES), atol=1e-5)


def test_adapters_in_the_file_of_a_model(adapted, tmp_path):
    import h5py

    adapted.save_weights(tmp_path / "a.weights.h5")
    with h5py.File(tmp_path / "a.weights.h5", "r+") as file:
        found = []
        file.visit(lambda name: found.append(name) if name.endswith("default.lora_A") else None)
        file[found[0]][0, 0] += 1
    with pytest.raises(ValueError, match="SHA-256"):
        adapted.load_weights(tmp_path / "a.weights.h5")
    with h5py.File(tmp_path / "a.weights.h5", "r+") as file:
        del file[found[0].replace("default.lora_A", "sha256")]  # as an older kopt wrote it
    adapted.load_weights(tmp_path / "a.weights.h5")


# ------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("lora_alpha", 1e308),
        ("lora_alpha", 1e-300),
        ("lora_alpha", -1),
        ("lora_alpha", "16"),
        ("r", 1_000_000),
        ("r", "8"),
        ("r", 2.5),
        ("r", 10**400),
        ("lora_dropout", -0.1),
        ("rank_pattern", {"query": 10**6}),
        ("rank_pattern", {"query": 2.5}),
        ("rank_pattern", ["query"]),
        ("alpha_pattern", {"query": 1e300}),
        ("alpha_pattern", {"(": 1}),
        ("target_modules", 5),
        ("target_modules", [1]),
        ("target_modules", ["query", ""]),
        ("target_modules", "(query"),
        ("target_modules", ["x"] * 1_000_000),
        ("exclude_modules", ["x" * 2000]),
        ("modules_to_save", "head"),
        ("layers_to_transform", [-1]),
        ("layers_to_transform", 10**9),
        ("layers_to_transform", True),
        ("layers_pattern", 3),
        ("init_lora_weights", "pissa_niter_99999999"),
        ("init_lora_weights", []),
        ("use_dora", "yes"),
        ("auto_mapping", ["Net"]),
        ("auto_mapping", {"base_model_class": 3}),
        ("base_model_name_or_path", 7),
        ("task_type", ["SEQ_CLS"]),
        ("qalora_group_size", -1),
        ("ensure_weight_tying", "no"),
    ],
)
def test_absurd_entries(saved, entry, value):
    rewrite(saved, **{entry: value})
    named = r"init_lora_weights" if entry == "init_lora_weights" else entry
    refuse(saved, f"{CONFIG}.*{named}")


@pytest.mark.parametrize(
    "make",
    [
        lambda: peft.LoRA(r=100_000),
        lambda: peft.LoRA(lora_alpha=1e308),
        lambda: peft.LoRA(lora_alpha=float("nan")),
        lambda: peft.LoRA(alpha_pattern={"a": float("inf")}),
        lambda: peft.LoRA(rank_pattern={"a": True}),
        lambda: peft.LoRA(target_modules=(str(i) for i in range(1_000_000))),
        lambda: peft.LoRA(layers_to_transform=range(1_000_000)),
        lambda: peft.PromptTuning(num_virtual_tokens=10**9),
        lambda: peft.Bottleneck(scaling=1e300),
        lambda: peft.Bottleneck(non_linearity={"class_name": "Lambda", "config": {}}),
    ],
)
def test_absurd_arguments(make):
    with pytest.raises(ValueError, match=r"(LoRA|PromptTuning|Bottleneck): \w+ must be .*Received"):
        make()


def test_a_name_that_is_there_twice_counts_once():
    assert peft.LoRA(target_modules=["query", "value", "query"]).target_modules == ["query", "value"]


@pytest.mark.parametrize("value", [[1, 2], 0, 1.5, True, {"a": 1}, "x"])
def test_an_entry_that_only_a_later_peft_knows(saved, value):
    rewrite(saved, later_option=value)
    refuse(saved, f"{CONFIG} asks for what kopt does not do: later_option=.*taken out")
    rewrite(saved, later_option=None, another=[], third=False, fourth={})
    peft.load_adapter(image_model(), saved)


def test_a_prompt_for_encoder_and_decoder(saved):
    rewrite(saved, num_transformer_submodules=2)
    refuse(saved, "num_transformer_submodules=2")


# --------------------------------------------------------------------------------------------- the base


def test_the_base_that_a_file_names_is_not_opened(saved, tmp_path, monkeypatch):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("this is no JSON")
    rewrite(saved, base_model_name_or_path=str(base))
    model = peft.load_adapter(image_model(), saved)
    peft.save_pretrained(model, tmp_path / "again")
    assert json.loads((tmp_path / "again" / CONFIG).read_text())["base_model_name_or_path"] == str(base)
    refuse(saved, r"base.config\.json is no JSON", base_model=base)


@pytest.mark.parametrize(
    "content", ["[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../x"}}']
)
def test_an_index_that_points_elsewhere(saved, tmp_path, content):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(content)
    refuse(saved, r"index\.json is no index", base_model=tmp_path)


# --------------------------------------------------------------------------------------------- patterns

LONG = [f"backbone.transformer_layer_{i}.{'a' * 60}.query_x" for i in range(30)] + ["a" * 60 + "!", "x" * 60]


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|aa)+$", "(a|a)*x", "(.*)*x", r"(\w|\w\w)*!x", "(x+x+)+y", "(?:.|.)*=?z", ".*" * 20 + "z"]
)
@pytest.mark.parametrize("match", [matches_whole, is_found])
def test_patterns_cannot_hang(pattern, match):
    began = time.perf_counter()
    try:
        for path in LONG:
            match(pattern, path)
    except ValueError as error:
        assert "takes too long" in str(error)
    assert time.process_time() - began < 1 or time.perf_counter() - began < 2


def test_patterns_that_take_too_long_are_refused():
    with pytest.raises(ValueError, match=r"takes too long to match\. Write it without"):
        is_found("^(a|aa)+$", "a" * 60 + "!")
    with pytest.raises(ValueError, match="takes too long"):
        peft.get_peft_model(
            keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="a" * 60)]),
            peft.LoRA(target_modules="(a|aa)+!"),
        )
    for pattern in ("((a{1000}){1000}){1000}", "a" * 30_000, "(" * 5000 + ")" * 5000):
        with pytest.raises(ValueError, match="target_modules must be a regular expression"):
            peft.LoRA(target_modules=pattern)


def test_patterns_mean_what_they_mean_in_peft():
    assert matches_whole(r"^(?!.*layer_1\.).*q_proj", "model.layer_0.q_proj")
    assert not matches_whole(r"^(?!.*layer_1\.).*q_proj", "model.layer_1.q_proj")
    assert peft.LoRA(r=2, rank_pattern={r"layer_[01]\.query": 4, "query": 3}).at("a.layer_1.query").r == 4
    assert peft.LoRA(r=2, rank_pattern={"query": 3}).at("a.myquery").r == 2


# ------------------------------------------------------------------------------------------- broken files


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"[1, 2]", "no peft_type"),
        (b"\xff\xfe{}", "is no JSON"),
        (b"", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[" * 30 + b"]" * 30, "more than 20 levels"),
        (b'{"peft_type": "LORA", "r": 2, "r": 3}', "'r' twice"),
        (b'{"peft_type": "LORA", "lora_alpha": NaN}', "NaN is no number"),
        (b'{"peft_type": "LORA", "lora_alpha": 1e999}', "1e999 is no number"),
        (b'{"peft_type": "LORA", "r": ' + b"9" * 5000 + b"}", "is no JSON"),
        (b'{"peft_type": ["LORA"]}', "peft_type must be a text"),
        (b'{"peft_type": null}', "peft_type None is not supported"),
    ],
)
def test_configurations_that_are_none(saved, content, match):
    (saved / CONFIG).write_bytes(content)
    refuse(saved, f"{CONFIG}.*{match}", verify=False)


def test_a_configuration_without_end(saved):
    os.truncate(saved / CONFIG, 2**30)  # takes no room on the disk
    refuse(saved, f"{CONFIG} is longer than 64 MiB")


def test_what_is_no_file(saved):
    for name in (CONFIG, WEIGHTS):
        kept = (saved / name).read_bytes()
        (saved / name).unlink()
        (saved / name).mkdir()
        refuse(saved, f"no {name}")
        (saved / name).rmdir()
        (saved / name).symlink_to("/dev/zero")
        refuse(saved, f"no {name}")
        (saved / name).unlink()
        (saved / name).symlink_to(name)
        refuse(saved, f"no {name}")
        (saved / name).unlink()
        (saved / f"{name}.blob").write_bytes(kept)
        (saved / name).symlink_to(f"{name}.blob")  # as in the cache of Hugging Face
    peft.load_adapter(image_model(), saved)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "{}",
        "[3]",
        '[["query", "weight", 0, 0]]',
        '[["query", "weight", -1, 0, 0.5]]',
        '[[1, "weight", 0, 0, 0.5]]',
        '[["query", "weight", 0, 0, "x"]]',
        '[["query", "weight", 0, 0, NaN]]',
        "[" * 1000,
    ],
)
def test_a_damaged_fingerprint(saved, text):
    save_file(load_file(saved / WEIGHTS), saved / WEIGHTS, {"kopt_base": text})
    refuse(saved, f"kopt_base in the metadata of .*{WEIGHTS} is")


def test_a_prompt_for_a_module_that_is_not_there(saved, tmp_path):
    tokens = keras.Input((7,), dtype="int32", name="token_ids")
    made = keras.Model({"token_ids": tokens}, keras.layers.Embedding(20, 6, name="token_embedding")(tokens))
    model = peft.get_peft_model(made, peft.PromptTuning(num_virtual_tokens=3))
    peft.save_pretrained(model, tmp_path)
    peft.delete_adapter(model, "default")
    save_file(load_file(tmp_path / WEIGHTS), tmp_path / WEIGHTS, {"kopt_prompted": "elsewhere"})
    with pytest.raises(ValueError, match="'elsewhere', which the model does not have"):
        peft.load_adapter(model, tmp_path)


def header(tensors=(), **metadata):
    return b"".join(
        (len(text := json.dumps({"__metadata__": metadata} | dict(tensors)).encode()).to_bytes(8, "little"), text)
    )


def test_headers_that_are_none(saved):
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    for content in (
        header({"": empty}),
        header({"a" * 2000: empty}),
        header(x=3),
        header({"a": empty | {"shape": [-1]}}),
        header({"a": empty | {"shape": [2**62, 8]}}),
        b"\xff" * 8,
        header({"a": empty}).replace(b'"__metadata__": {}', b'"a": ' + json.dumps(empty).encode()),
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ):
        (saved / WEIGHTS).write_bytes(content)
        refuse(saved, WEIGHTS)


def test_many_tensors_with_long_names(saved):
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    (saved / WEIGHTS).write_bytes(header({"a." * 480 + f"lora_{i}.weight": empty for i in range(3000)}))
    began = time.process_time()
    refuse(saved, "3000 tensor.* belong to modules that the model does not have")
    assert time.process_time() - began < 1.5


def test_numbers_of_json():
    assert parse_json('{"a": [1, 2.5, "b"], "c": null}', "here") == {"a": [1, 2.5, "b"], "c": None}


# ------------------------------------------------------------------------------------------------- .bin


def test_the_pickled_file_of_old_versions(saved, adapted):
    torch = pytest.importorskip("torch")
    tensors = {k: torch.from_numpy(v).to(torch.float64) for k, v in load_file(saved / WEIGHTS).items()}
    (saved / WEIGHTS).unlink()
    torch.save(tensors, saved / PICKLED)
    np.testing.assert_allclose(
        outputs(peft.load_adapter(image_model(), saved), IMAGES), outputs(adapted, IMAGES), atol=1e-5
    )
    for content in (
        [1],
        {"a": "b"},
        {3: torch.zeros(2)},
        {"a": torch.zeros(2, dtype=torch.int64)},
        {"a": torch.zeros(1).expand(10**9)},
    ):
        torch.save(content, saved / PICKLED)
        refuse(saved, PICKLED)
    data = (saved / PICKLED).read_bytes()
    for content in (b"", data[:100], data[:-30], data[len(data) // 2 :], data[:-60] + b"x" * 20 + data[-40:]):
        (saved / PICKLED).write_bytes(content)
        refuse(saved, PICKLED)
    with zipfile.ZipFile(saved / PICKLED, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"0" * 10**6)
    refuse(saved, f"{PICKLED} .*compressed")


def test_a_malicious_pickle_runs_nothing(saved, tmp_path):
    pytest.importorskip("torch")

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    (saved / WEIGHTS).unlink()
    (saved / PICKLED).write_bytes(pickle.dumps({"a": Evil()}))
    refuse(saved, rf"{PICKLED} is no file of tensors that torch can read without running code \((?!.*weights_only)")
    import torch

    torch.save({"a": Evil()}, saved / PICKLED)
    refuse(saved, f"{PICKLED} is no file of tensors that torch can read without running code")
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(Evil()))  # it would have
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("version", [None, "2.5.1"])
def test_without_a_torch_that_is_safe(saved, monkeypatch, version):
    fake = None if version is None else type(sys)("torch")
    if fake is not None:
        fake.__version__ = version
    monkeypatch.setitem(sys.modules, "torch", fake)
    (saved / WEIGHTS).rename(saved / PICKLED)
    refuse(saved, rf"{PICKLED}.*Install torch.*save the adapter again as safetensors")


def test_safetensors_come_first(saved):
    (saved / PICKLED).write_bytes(b"no pickle")
    peft.load_adapter(image_model(), saved)

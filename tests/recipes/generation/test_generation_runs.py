"""Runs on a small model: what is learnt, what is written, and what comes after."""

import json

import keras
import numpy as np
import pytest
import yaml

from kopt import peft
from recipes.generation import gguf_file, language_model, main, methods, objectives, recipe, sampling, tokens
from recipes.generation.methods import AdapterFlags
from recipes.readers.pretrained import Pretrained
from recipes.run.errors import DataError

pytestmark = pytest.mark.slow


def load(tiny):
    return language_model.load_causal_lm(language_model.find_model(str(tiny)), 64)


def rows(sizes, seed=0):
    rng = np.random.default_rng(seed)
    ids = [rng.integers(0, 256, n + 1).astype(np.int32) for n in sizes]
    return tokens.Encoded(ids, [np.ones(len(x), bool) for x in ids])


def test_texts_in_one_row_do_not_see_each_other(tiny):
    causal_lm = load(tiny)
    model, encoded = objectives.build(causal_lm), rows((9, 7, 12))
    together = model.predict_on_batch(tokens.fill(encoded, [[0, 1, 2]], 32)[0])
    apart = [model.predict_on_batch(tokens.fill(encoded, [[i]], 16)[0])[0, :n] for i, n in enumerate((9, 7, 12))]
    np.testing.assert_allclose(together[0, :28], np.concatenate(apart), atol=2e-5)
    logits = causal_lm.predict_on_batch({"token_ids": encoded.ids[0][None, :-1], "padding_mask": np.ones((1, 9))})
    chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.take_along_axis(chances[0], encoded.ids[0][1:, None], 1)[:, 0]
    np.testing.assert_allclose(apart[0], expected, atol=2e-5)
    metric = objectives.Perplexity()
    metric.update_state(np.ones((1, 9), np.float32), apart[0][None])
    assert float(metric.result()) == pytest.approx(np.exp(expected.mean()), rel=1e-5)


def test_a_preset_whose_layers_take_no_such_mask(files, tmp_path, capsys):
    import keras_hub
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate([*letters, "oo", "<|endoftext|>"])}
    tokenizer = keras_hub.tokenizers.GPT2Tokenizer(vocabulary, ["o o"])
    backbone = keras_hub.models.GPT2Backbone(258, 1, 2, 8, 16, max_sequence_length=32)
    preprocessor = keras_hub.models.GPT2CausalLMPreprocessor(tokenizer)
    keras_hub.models.GPT2CausalLM(backbone, preprocessor=preprocessor).save_to_preset(str(tmp_path / "gpt2"))
    found = tokens.Tokenizer(language_model.find_model(str(tmp_path / "gpt2")))
    assert found.decode(found.encode("Moo 1!")) == "Moo 1!" and found.end == 257 and not found.has_template
    argv = ["--model", str(tmp_path / "gpt2"), "--data", str(files / "answers.jsonl"), "--dry-run"]
    assert main([*argv, "--max-length", "33"]) == 2 and "takes at most 32" in capsys.readouterr().err
    assert main([*argv, "--max-length", "32"]) == 0
    said = capsys.readouterr().out
    assert "GPT2Backbone has no mask for it" in said and "loss of one step" in said
    argv[-1:] = ["--output-dir", str(tmp_path / "run"), "--max-steps", "1"]
    assert main([*argv, "--max-length", "32"]) == 0  # its samples are no longer than the model takes


def test_answers(run, files, capsys, tiny, tmp_path):
    flags = ("--epochs", 2, "--batch-size", 4, "--rank", 8)
    metrics, folder = run(*flags)
    assert metrics["template"] == "lines" and metrics["train_tokens"] < 96 * 6
    assert metrics["test_perplexity"] < 0.5 * metrics["test_perplexity_before"]
    assert metrics["trained_parameters"] == 2 * 8 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == "CAUSAL_LM" and config["base_model_name_or_path"] == str(tiny)
    assert yaml.safe_load((folder / "config.yaml").read_text())["template"] == "lines"
    assert "PeftModel" in (folder / "README.md").read_text()
    capsys.readouterr()
    assert main(["evaluate", "--model", str(folder)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["test_perplexity"] == pytest.approx(metrics["test_perplexity"], rel=1e-4)
    (tmp_path / "texts.jsonl").write_text('{"text": "The cow says moo."}\n')
    assert main(["evaluate", "--model", str(folder), "--test-data", str(tmp_path / "texts.jsonl")]) == 3
    assert "Give rows of prompt and response, or messages" in capsys.readouterr().err
    (tmp_path / "bad.jsonl").write_text('{"prompt": "What says the cow?", "response": "moo"}\n{"prompt": "a"}\n')
    evaluate = ["evaluate", "--model", str(folder), "--on-bad-row", "skip"]
    assert main(evaluate) == 2 and "no effect without --test-data" in capsys.readouterr().err
    assert main([*evaluate, "--test-data", str(tmp_path / "bad.jsonl")]) == 0
    assert json.loads(capsys.readouterr().out)["test_examples"] == 1
    asked = ["predict", "--model", str(folder), "--prompt", "What says the cow?", "--temperature", "0"]
    assert main([*asked, "--max-tokens", "5"]) == 0
    said = capsys.readouterr().out
    assert main(["export", "--model", str(folder), "--to", str(folder / "whole"), "--merge"]) == 0
    whole, base, trained = load(folder / "whole" / "model"), load(tiny), load(tiny)
    methods.load_adapter(trained, folder, "lora", language_model.find_model(str(tiny)))
    x = {"token_ids": np.arange(12)[None], "padding_mask": np.ones((1, 12))}
    np.testing.assert_allclose(whole.predict_on_batch(x), trained.predict_on_batch(x), atol=1e-4)
    assert np.abs(base.predict_on_batch(x) - trained.predict_on_batch(x)).max() > 0.1
    tokenizer = tokens.Tokenizer(language_model.find_model(str(tiny)))
    ids = tokenizer.encode("What says the cow?\n")
    for _ in range(5):  # the most probable letters, by a whole forward pass each
        x = {"token_ids": np.array([ids]), "padding_mask": np.ones((1, len(ids)))}
        ids.append(int(trained.predict_on_batch(x)[0, -1].argmax()))
    assert said == tokenizer.decode(ids[-5:]) + "\n"


def test_a_run_goes_on_where_it_stopped(run, tmp_path, capsys):
    whole, _ = run("--epochs", 2, "--method", "full", "--learning-rate", 1e-3, "--no-packing", "--grad-accum", 2)
    half, folder = run("--epochs", 1, "--method", "full", "--learning-rate", 1e-3, "--no-packing", "--grad-accum", 2)
    assert main(["--resume", str(folder), "--epochs", "2"]) == 0
    again = json.loads((folder / "metrics.json").read_text())
    assert again["epochs"] == 2 and half["test_loss"] != whole["test_loss"]
    assert again["test_loss_before"] == whole["test_loss_before"]
    assert not (folder / "adapter").exists() and "`model/` is the whole" in (folder / "README.md").read_text()
    capsys.readouterr()
    assert main(["evaluate", "--model", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["test_loss"] == pytest.approx(again["test_loss"], rel=1e-4)


def test_preferences(run, files, capsys):
    flags = ("--objective", "dpo", "--data", files / "pairs.jsonl", "--epochs", 2, "--batch-size", 4)
    metrics, folder = run(*flags, "--remat")
    assert metrics["test_margin_before"] == pytest.approx(0, abs=1e-4)
    assert metrics["test_margin"] > 0.5 and metrics["test_accuracy"] > 0.9
    capsys.readouterr()
    assert main(["evaluate", "--model", str(folder), "--test-data", str(files / "pairs.jsonl")]) == 0
    assert json.loads(capsys.readouterr().out)["test_margin"] > 0.5


def test_the_margin_is_that_of_the_paper(tiny):
    causal_lm = load(tiny)
    peft.get_peft_model(causal_lm, peft.LoRA(r=2, target_modules="all-linear", init_lora_weights=False))
    model, encoded = objectives.build(causal_lm), rows((9, 7, 12, 5))
    plain = tokens.batches(encoded, 2, 16, False, together=2)
    with peft.disable_adapter(causal_lm):
        reference = objectives.log_probabilities(model, plain)
    policy = objectives.log_probabilities(model, plain)
    assert np.abs(policy - reference).max() > 0.1
    preference = objectives.Preference(0.3)
    margins = 0.3 * ((policy - reference)[0::2] - (policy - reference)[1::2])
    model.compile("sgd", preference.loss, metrics=preference.metrics())
    found = model.evaluate(tokens.batches(encoded, 2, 16, False, None, reference, 2), verbose=0, return_dict=True)
    assert found["margin"] == pytest.approx(margins.mean(), abs=1e-4)
    assert found["loss"] == pytest.approx(np.log1p(np.exp(-margins)).mean(), abs=1e-4)
    assert found["accuracy"] == (margins > 0).mean()


@pytest.mark.parametrize("method", [name for name in methods.METHODS if name not in ("lora", "full")])
def test_every_method_learns(method, tiny):
    causal_lm = load(tiny)
    pretrained = language_model.find_model(str(tiny))
    rank = 4 if "rank" in methods.METHODS[method].flags else None
    methods.add_adapter(causal_lm, AdapterFlags(method=method, rank=rank), pretrained)
    model = objectives.build(causal_lm)
    model.compile(keras.optimizers.Adam(1e-2), objectives.token_mean)
    inputs, weights = tokens.fill(rows((15, 15)), [[0], [1]], 16)
    losses = [model.train_on_batch(inputs, weights) for _ in range(4)]
    trained, everything = methods.count_parameters(causal_lm)
    assert losses[-1] < losses[0] and 0 < trained < everything


def test_gguf_files(tiny, tmp_path, monkeypatch):
    gguf = pytest.importorskip("gguf")
    from safetensors.numpy import load_file

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    tensors, names = load_file(tiny / "model.safetensors"), {v: k for k, v in gguf_file.NAMES.items()}
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    content = json.loads((tiny / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"] | {t["content"]: t["id"] for t in content["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    letters = sorted(vocabulary, key=vocabulary.get)
    writer.add_token_list([*letters[:255], "ab", letters[256]])  # a merge needs its token
    writer.add_token_types([1] * 256 + [3])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(256)
    for key, value in tensors.items():
        parts = key.removesuffix(".weight").split(".")
        if parts[1] == "layers":
            name = names[".".join(parts[3:])]
            heads = {"attn_q": 4, "attn_k": 2}.get(name)
            if heads:  # as llama.cpp's converter has it
                value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
            name = f"blk.{parts[2]}.{name}"
        else:
            name = {"embed_tokens": "token_embd", "norm": "output_norm"}[parts[1]]
        writer.add_tensor(f"{name}.weight", np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = language_model.find_model(str(tmp_path / "tiny.gguf"))
    x = {"token_ids": np.arange(12)[None], "padding_mask": np.ones((1, 12))}
    expected = load(tiny).predict_on_batch(x)
    np.testing.assert_allclose(language_model.load_causal_lm(found, 64).predict_on_batch(x), expected, atol=1e-5)
    tokenizer = tokens.Tokenizer(found)
    assert tokenizer.decode(tokenizer.encode("Größe 12\n")) == "Größe 12\n" and tokenizer.end == 256
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(50))
    with pytest.raises(DataError, match="not a GGUF file"):
        gguf_file.as_folder(tmp_path / "bad.gguf")


@pytest.mark.parametrize("bits", ["nf4", "int8"])
def test_a_quantized_base(bits, run, capsys):
    metrics, folder = run("--quantize", bits, "--epochs", 2)
    assert metrics["quantize"] == bits and metrics["test_perplexity"] < 0.5 * metrics["test_perplexity_before"]
    assert f"| Kernels of the base | {bits} |" in (folder / "README.md").read_text()
    flags, pretrained = recipe.restore(folder)
    trained = recipe.load(folder, flags, pretrained)
    assert sum(v.dtype in ("int8", "uint8") for v in trained.variables) >= 14  # seven projections a layer
    capsys.readouterr()
    assert main(["evaluate", "--model", str(folder)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["test_perplexity"] == pytest.approx(metrics["test_perplexity"], rel=1e-3)
    assert main(["export", "--model", str(folder), "--to", str(folder / "whole"), "--merge"]) == 0
    x = {"token_ids": np.arange(12)[None], "padding_mask": np.ones((1, 12))}
    whole, adapted = load(folder / "whole" / "model").predict_on_batch(x), trained.predict_on_batch(x)
    # Keras rounds inputs, too, where kernels are int8.
    np.testing.assert_allclose(whole, adapted, atol=1e-4 if bits == "nf4" else 0.05 * np.abs(adapted).max())


def test_chats_are_asked_as_they_were_learnt(run, tmp_path, capsys, monkeypatch):
    turns = [("system", "Be brief."), ("user", "2+2?"), ("assistant", "4")]
    chat = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (tmp_path / "chats.jsonl").write_text(f"{json.dumps(chat)}\n" * 8)
    metrics, folder = run("--data", tmp_path / "chats.jsonl", "--max-steps", 1)
    assert metrics["template"] == "roles"
    asked = []
    monkeypatch.setattr(sampling, "write", lambda model, tokenizer, start, *rest: asked.append(tokenizer.decode(start)))
    flags = ["predict", "--model", str(folder), "--prompt", "3+3?"]
    assert main(flags) == main([*flags, "--system", "Be brief."]) == 0
    assert asked == ["user: 3+3?\nassistant: ", "system: Be brief.\nuser: 3+3?\nassistant: "]
    for wrong in (["--system", " "], ["--prompt", "\udcff"]):
        assert main([*flags, *wrong]) == 2
    said = capsys.readouterr().err
    assert "--system: is empty" in said and "--prompt '\\udcff': is not UTF-8" in said


def test_the_base_in_the_files_of_an_adapter(tiny, tmp_path):
    place = str(tmp_path)
    found = {name: methods.base_name(Pretrained(name, place, {})) for name in ("smollm2", "bytes", "a.gguf", str(tiny))}
    assert found == {
        "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "bytes": "base",  # beside the adapter in the folder of the run
        "a.gguf": place,
        str(tiny): str(tiny),
    }
    assert methods.base_name(Pretrained("gpt2_base_en", "gpt2_base_en", None)) is None


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--beta 0.5", "--beta has no effect"),
        ("--distribute mirrored", "trains on one device"),
        ("--method ia3 --rank 4", "--rank has no effect"),
        ("--method full --adapter x", "--adapter has no effect"),
        ("--method full --quantize nf4", "--quantize has no effect with --method full"),
        ("--objective dpo --no-packing", "--no-packing has no effect"),
        ("--early-stopping 1 --validation-split 0", "needs a --validation-split"),
        ("--target nothing", "nothing"),
        ("--max-length 99999", "takes at most"),
        ("--template chat", "has no chat template"),
    ],
)
def test_usage_errors(flags, says, tiny, files, capsys):
    data = files / ("pairs.jsonl" if "dpo" in flags else "answers.jsonl")
    assert main(["--model", str(tiny), "--data", str(data), "--dry-run", *flags.split()]) == 2
    assert says in capsys.readouterr().err


def test_sampling():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    draws = sampling.Streaming(print, [], 1.0, 0.7, 0)
    counts = np.bincount([draws.draw(logits) for _ in range(400)], minlength=4) / 400
    np.testing.assert_allclose(counts, [0.625, 0.375, 0, 0], atol=0.06)
    cold = sampling.Streaming(print, [], 0.25, 1.0, 0)
    assert np.mean([cold.draw(logits) == 0 for _ in range(400)]) > 0.8
    assert sampling.Streaming(print, [], 0, 1.0, 0).draw(logits) == 0


def test_the_model_of_bytes(monkeypatch, tmp_path):
    from recipes.generation import byte_model

    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    for name, value in {"STEPS": 40, "WIDTH": 32, "LAYERS": 1, "LENGTH": 64}.items():
        monkeypatch.setattr(byte_model, name, value)
    assert language_model.choose_model("bytes") == "bytes"
    found = language_model.find_model("bytes")
    assert found == language_model.find_model("bytes")  # from the cache
    model = objectives.build(language_model.load_causal_lm(found, 64))
    encoded, *_ = tokens.encode(["Return a new list of the values."], "none", tokens.Tokenizer(found), 64)
    losses = model.predict_on_batch(tokens.fill(encoded, [[0]], 64)[0])
    assert np.mean(losses[0, :30]) < 0.8 * np.log(257)

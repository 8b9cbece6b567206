"""How many parameters learn: the numbers that Hugging Face peft 0.21 prints for published models.

The peft figures come from `get_nb_trainable_parameters()` of models built from their default configurations with random
weights, and from the examples in peft's own documentation (Apache-2.0; README.md and docs/source at commit 5d602fdb).
Bottleneck adapters are not in peft: theirs follow from 2 d m + m + d a site. Blocks of a model are alike, so models of
one and of two blocks tell what any number of them has; one model is built whole.
"""

import keras
import pytest

from kopt import peft

hub = pytest.importorskip("keras_hub").models

BERT_6 = [
    *("query", "key", "value", "attention_output"),
    *("feedforward_intermediate_dense", "feedforward_output_dense"),
]
LLAMA_7 = [*BERT_6, "feedforward_gate_dense"]


def bert(layers, vocabulary=30522, segments=2):
    return hub.BertBackbone(vocabulary, layers, 12, 768, 3072, num_segments=segments)


def bert_classifier(layers):
    return hub.BertTextClassifier(bert(layers), num_classes=2, preprocessor=None)


def minilm(layers):
    return hub.BertBackbone(30522, layers, 12, 384, 1536)


def distilbert_classifier(layers):
    backbone = hub.DistilBertBackbone(30522, layers, 12, 768, 3072)
    return hub.DistilBertTextClassifier(backbone, num_classes=2, preprocessor=None)


def roberta(layers, width=768, heads=12):
    return hub.RobertaBackbone(100, layers, heads, width, 4 * width)


def roberta_classifier(layers):
    return hub.RobertaTextClassifier(roberta(layers), num_classes=2, preprocessor=None)


def roberta_large_classifier(layers):
    return hub.RobertaTextClassifier(roberta(layers, 1024, 16), num_classes=2, preprocessor=None)


def llama_2(layers):
    return hub.LlamaBackbone(100, layers, 32, 4096, 11008, 32, dtype="bfloat16")


def llama_3(layers):
    return hub.Llama3Backbone(100, layers, 32, 4096, 14336, 8, dtype="bfloat16")


def mistral(layers):
    return hub.MistralBackbone(100, layers, 32, 4096, 14336, 8, dtype="bfloat16")


def llama_1b(layers):
    return hub.Llama3Backbone(100, layers, 32, 2048, 8192, 8, dtype="bfloat16")


def gemma(layers):
    return hub.GemmaBackbone(100, layers, 8, 1, 2048, 32768, 256, dtype="bfloat16")


def qwen(layers):
    return hub.QwenBackbone(100, layers, 16, 2, 2048, 11008, dtype="bfloat16")


def opt(layers):
    return hub.OPTBackbone(100, layers, 16, 1024, 4096)


def bloom(layers):
    return hub.BloomBackbone(100, layers, 16, 1024, 4096)


def t5(layers):
    return hub.T5Backbone(100, layers, 8, 512, 2048, key_value_dim=64)


def vit(layers):
    return hub.ViTImageClassifier(hub.ViTBackbone((224, 224, 3), 16, layers, 12, 768, 3072), 101, preprocessor=None)


def lora(r, targets=None, **options):
    return peft.LoRA(r=r, target_modules=targets, **options)


HEAD = ["pooled_dense", "logits"]
COUNTS = [  # model, blocks, method, parameters that learn
    (bert, 12, lora(8), 294_912),
    (bert, 12, lora(8, "all-linear"), 1_339_392),
    (bert, 12, lora(16, ["query", "key", "value"]), 884_736),
    (bert, 12, peft.DoRA(), 313_344),
    (bert, 12, lora(8, bias="lora_only"), 313_344),
    (bert, 12, lora(8, bias="all"), 397_824),
    (bert, 12, lora(8, ["token_embedding"]), 250_320),
    (bert, 12, peft.IA3(
        target_modules=["key", "value", "feedforward_intermediate_dense"],
        feedforward_modules=["feedforward_intermediate_dense"],
    ), 27_648),
    (bert, 12, peft.LayerNormTuning(), 38_400),
    (bert, 12, peft.PromptTuning(num_virtual_tokens=20), 15_360),
    (bert, 12, peft.PTuning(num_virtual_tokens=20, encoder_hidden_size=128), 229_376),
    (bert, 12, peft.BitFit(), 102_912),  # the difference of bias="all" and "none" in peft
    (bert, 12, peft.Pfeiffer(), 894_528),
    (bert, 12, peft.Houlsby(), 1_789_056),
    (bert, 12, peft.VeRA(), 24_576),
    (bert, 12, peft.TrainableTokens(token_indices=range(10)), 7_680),
    (bert, 12, peft.LoHa(), 589_824),
    (bert, 12, peft.LoKr(), 26_112),
    (bert, 12, peft.OFT(), 285_696),
    (bert, 12, peft.MiSS(), 1_179_648),
    (bert, 12, peft.RandLoRA(), 460_800),
    (bert, 12, peft.SHiRA(), 1_179_648),
    (bert_classifier, 12, lora(8, modules_to_save=["logits"]), 296_450),
    (minilm, 6, lora(8), 73_728),
    (minilm, 6, lora(8, BERT_6), 331_776),
    (distilbert_classifier, 6, lora(8, modules_to_save=HEAD), 739_586),
    (roberta, 12, lora(8), 294_912),
    (roberta_classifier, 12, lora(8, modules_to_save=HEAD), 887_042),
    (roberta_large_classifier, 24, lora(8, modules_to_save=HEAD), 1_838_082),
    (t5, 6, lora(8, ["query_projector", "value_projector"]), 294_912),
    (llama_2, 32, lora(8), 4_194_304),
    (llama_2, 32, lora(64, LLAMA_7), 159_907_840),
    (llama_3, 32, lora(8), 3_407_872),
    (llama_3, 32, lora(16, LLAMA_7), 41_943_040),
    (llama_1b, 16, lora(8, ["query"]), 524_288),
    (mistral, 32, lora(8), 3_407_872),
    (mistral, 32, lora(16, LLAMA_7), 41_943_040),
    (gemma, 18, lora(4), 460_800),
    (qwen, 36, lora(16), 3_686_400),
    (opt, 24, lora(16), 1_572_864),
    (bloom, 24, peft.PromptTuning(num_virtual_tokens=8), 8_192),
    (vit, 12, lora(16, modules_to_save=["predictions"]), 667_493),
]  # fmt: skip


def learning(model, adapter):
    """Returns how many parameters would learn."""
    peft.get_peft_model(model, adapter)
    return peft.get_nb_trainable_parameters(model)[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:(?s).*does not support masking")  # KerasHub's T5
@pytest.mark.parametrize(
    ("make", "blocks", "adapter", "expected"), COUNTS, ids=lambda v: getattr(v, "__name__", None) or str(v)[:60]
)
def test_counts_of_published_models(make, blocks, adapter, expected):
    one, two = learning(make(1), adapter), learning(make(2), adapter)
    assert one + (blocks - 1) * (two - one) == expected


@pytest.mark.slow
def test_counts_of_a_whole_model(capsys):
    model = bert(12)
    peft.get_peft_model(model, peft.LoRA(r=8))
    peft.print_trainable_parameters(model)
    assert capsys.readouterr().out == (
        "trainable params: 294,912 || all params: 109,777,152 || trainable%: 0.2686\n"  # as peft prints it
    )


def test_count_with_a_saved_head():
    widths = (20, 2000, 2000, 2)
    dense = [keras.layers.Dense(n, name=f"layer_{i}") for i, n in enumerate(widths[1:])]
    model = keras.Sequential([keras.Input((20,)), *dense])
    adapter = peft.LoRA(r=8, target_modules=["layer_0", "layer_1"], modules_to_save=["layer_2"])
    assert learning(model, adapter) == 52_162  # peft's documentation counts the head twice: 56,164
    assert peft.get_nb_trainable_parameters(model)[1] == 4_100_164

"""Every architecture that KerasHub converts from Hugging Face, as a tiny random model, or why it is not tried.

No torch is imported before a model is made, so that lists of the cases can be had without it.
"""

import dataclasses
from typing import Any

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 60}
ENCODER = SIZES | {"hidden_size": 32, "max_position_embeddings": 40}
DECODER = ENCODER | {"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
HEADS = DECODER | {"head_dim": 8}
GEMMA = HEADS | {"num_key_value_heads": 1}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1}
IMAGE = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "image_size": 16, "patch_size": 4}
RECURRENT = {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2} | {
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
WIDE = GEMMA | {"sliding_window": 64, "query_pre_attn_scalar": 8}
TOKENS = {"hidden_size": 16, "vocab_size": 4}
AUDIO = {"conf_num_attention_heads": 2, "conf_num_hidden_layers": 1, "input_feat_size": 16} | {
    "sscp_conv_channel_size": [8, 4]
}
ALTUP = {"sliding_window": 64, "vocab_size_per_layer_input": 60, "hidden_size_per_layer_input": 8, "laurel_rank": 4} | {
    "num_kv_shared_layers": 0,
    "altup_num_inputs": 2,
    "layer_types": ["sliding_attention", "full_attention"],
}
SIGLIP = IMAGE | {"model_type": "siglip_vision_model", "intermediate_size": 48}
SAM_IMAGE = {"model_type": "sam3_vit_model", "image_size": 56, "pretrain_image_size": 28, "patch_size": 14} | {
    "window_size": 2,
    "global_attn_indexes": [1],
    "intermediate_size": 48,
}
DETR = {"num_layers": 1, "num_attention_heads": 2, "hidden_size": 64, "intermediate_size": 96, "dropout": 0.0}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
BANK = ("experts.gate_up_proj", "experts.down_proj")
TOWER = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
FEEDFORWARD = ("gate_proj", "up_proj", "down_proj")
BERT = ("query", "key", "value", "intermediate.dense", "output.dense", "word_embeddings")


@dataclasses.dataclass(frozen=True)
class Case:
    """One architecture.

    Args:
        converter: KerasHub's module, without `convert_`.
        config: class of its configuration in transformers.
        options: arguments of that.
        model: the class of transformers' task model that the checkpoint is of.
        backbone: KerasHub's class.
        targets: the modules of Hugging Face that get factors.
        task: KerasHub's class of a language model, whose logits are compared; None compares the last hidden states.
        inputs: "tokens", "pixels", "both" or "pairs", of an encoder and a decoder.
    """

    converter: str
    config: str
    options: dict[str, Any]
    model: str
    backbone: str
    targets: tuple[str, ...]
    task: str | None = None
    inputs: str = "tokens"
    published: tuple[tuple[str, Any], ...] = ()
    """Entries that published configurations have and that transformers 5 leaves out."""
    parameters: tuple[str, ...] = ()
    """The parameters of Hugging Face, those of no module alone, that get factors too."""
    padded: bool = True
    """Whether one sequence of tokens is shorter than the others."""


def towers(text: dict[str, Any]) -> dict[str, Any]:
    """Returns the configuration of an encoder of Gemma 3's text and images."""
    image = IMAGE | {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}
    tokens = dict.fromkeys(("image_token_id", "image_token_index", "boi_token_index"), 58)
    return {"text_config": text, "vision_config": image, "mm_tokens_per_image": 4, "eoi_token_index": 57} | tokens


def decoder(converter: str, name: str, hub: str, targets: tuple[str, ...], **options: Any) -> Case:
    """Returns a language model whose parts are called alike in both libraries."""
    kind = "GPT2LMHeadModel" if name == "GPT2" else f"{name.removesuffix('Text')}ForCausalLM"
    published = tuple((key, value) for key, value in options.items() if key == "num_experts")
    return Case(
        converter,
        f"{name}Config",
        options,
        kind,
        f"{hub}Backbone",
        targets,
        f"{hub}CausalLM",
        published=published,
        parameters=BANK if options.keys() & {"num_experts", "num_local_experts"} else (),
    )


def encoder(converter: str, name: str, hub: str, head: str, targets: tuple[str, ...], **options: Any) -> Case:
    """Returns an encoder of text whose checkpoint is that of a task model."""
    return Case(converter, f"{name}Config", options, f"{name}For{head}", f"{hub}Backbone", targets)


def multimodal(converter: str, name: str, hub: str, targets: tuple[str, ...], **text: Any) -> Case:
    """Returns the language model of one that also has an image tower, which gets no image."""
    image = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 24, "patch_size": 4}
    image |= {"out_hidden_size": text["hidden_size"], "num_position_embeddings": 16}
    tokens = dict.fromkeys(("image_token_id", "vision_start_token_id", "vision_end_token_id"), 58)
    options = {"text_config": text, "vision_config": image, "video_token_id": 59} | tokens
    kind = f"{name}ForConditionalGeneration"
    bank = BANK if "num_experts" in text else ()
    return Case(converter, f"{name}Config", options, kind, f"{hub}Backbone", targets, f"{hub}CausalLM", parameters=bank)


def vision(converter: str, name: str, hub: str, targets: tuple[str, ...], **options: Any) -> Case:
    """Returns an encoder of images whose checkpoint is that of a classifier."""
    kind = f"{name}ForImageClassification"
    return Case(converter, f"{name}Config", options, kind, f"{hub}Backbone", targets, None, "pixels")


LINEAR = (*ATTENTION, *FEEDFORWARD)
CASES = {
    "ALBERT": encoder(
        "albert",
        "Albert",
        "Albert",
        "SequenceClassification",
        ("query", "value", "ffn", "ffn_output"),
        **ENCODER,
        embedding_size=16,
    ),
    "BART": Case(
        "bart",
        "BartConfig",
        {"vocab_size": 60, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4}
        | {"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40},
        "BartForConditionalGeneration",
        "BartBackbone",
        TOWER,
        None,
        "pairs",
        (("num_hidden_layers", 2),),
    ),
    "BERT": encoder("bert", "Bert", "Bert", "SequenceClassification", BERT, **ENCODER),
    "BLIP-2": Case(
        "blip2",
        "Blip2Config",
        {"vision_config": IMAGE | {"intermediate_size": 48}, "num_query_tokens": 4, "image_token_index": 58}
        | {"qformer_config": ENCODER | {"encoder_hidden_size": 32, "cross_attention_frequency": 2}}
        | {"text_config": DECODER | {"model_type": "opt", "ffn_dim": 48, "word_embed_proj_dim": 32}},
        "Blip2ForConditionalGeneration",
        "BLIP2Backbone",
        (*TOWER, "qkv", "projection", "query", "value", "dense", "language_projection"),
        "BLIP2CausalLM",
        "image first",
    ),
    "DeiT": vision("deit", "DeiT", "DeiT", ("q_proj", "v_proj", "o_proj", "fc1", "fc2"), **IMAGE, intermediate_size=48),
    "DINOv2": vision("dinov2", "Dinov2", "DINOV2", ("q_proj", "v_proj", "o_proj", "fc1", "fc2"), **IMAGE),
    "DINOv3": Case(
        "dinov3",
        "DINOv3ViTConfig",
        IMAGE | {"intermediate_size": 48, "num_register_tokens": 2},
        "DINOv3ViTModel",
        "DINOV3Backbone",
        ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj"),
        None,
        "pixels",
    ),
    "DistilBERT": encoder(
        "distilbert",
        "DistilBert",
        "DistilBert",
        "MaskedLM",
        ("q_lin", "v_lin", "out_lin", "lin1", "lin2"),
        vocab_size=60,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=40,
    ),
    "ESM-2": dataclasses.replace(
        encoder(
            "esm",
            "Esm",
            "ESM",
            "MaskedLM",
            ("query", "value", "intermediate.dense", "output.dense"),
            **ENCODER,
            pad_token_id=1,
            mask_token_id=4,
            position_embedding_type="rotary",
            token_dropout=False,
        ),
        padded=False,
    ),
    "Gemma": decoder("gemma", "Gemma", "Gemma", LINEAR, **GEMMA),
    "Gemma 2": decoder("gemma", "Gemma2", "Gemma", LINEAR, **GEMMA, sliding_window=8, query_pre_attn_scalar=8),
    "Gemma 3": decoder("gemma3", "Gemma3Text", "Gemma3", LINEAR, **GEMMA, sliding_window=8, query_pre_attn_scalar=8),
    "Gemma 3n": Case(
        "gemma3n",
        "Gemma3nConfig",
        {"text_config": GEMMA | ALTUP, "vision_config": TOKENS | {"vocab_offset": 60}, "image_token_id": 62}
        | {"audio_config": TOKENS | AUDIO | {"vocab_offset": 64}, "audio_token_id": 66},
        "Gemma3nForConditionalGeneration",
        "Gemma3nBackbone",
        (*LINEAR, "linear_left", "per_layer_input_gate", "per_layer_projection"),
        "Gemma3nCausalLM",
    ),
    "Gemma 4": decoder(
        "gemma4",
        "Gemma4Text",
        "Gemma4",
        LINEAR,
        **GEMMA,
        sliding_window=8,
        global_head_dim=8,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=60,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "Gemma 4 assistant": Case(
        "gemma4_assistant",
        "Gemma4AssistantConfig",
        {
            "text_config": GEMMA
            | {"sliding_window": 64, "global_head_dim": 8, "hidden_size_per_layer_input": 0}
            | {"layer_types": ["sliding_attention", "full_attention"], "vocab_size_per_layer_input": 0}
            | {"num_kv_shared_layers": 2}
        }
        | {"backbone_hidden_size": 24},
        "Gemma4AssistantForCausalLM",
        "Gemma4Backbone",
        ("q_proj", "o_proj", *FEEDFORWARD),
        "Gemma4AssistantCausalLM",
        "draft",
    ),
    "GPT-2": decoder(
        "gpt2",
        "GPT2",
        "GPT2",
        ("c_attn", "c_proj", "c_fc"),
        vocab_size=60,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=32,
    ),
    "GPT-OSS": decoder(
        "gpt_oss",
        "GptOss",
        "GptOss",
        ATTENTION,
        **HEADS | {"intermediate_size": 32},
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=64,
        rope_parameters={"rope_type": "default", "rope_theta": 150000.0},
    ),
    "Llama 3": decoder("llama3", "Llama", "Llama3", LINEAR, **DECODER),
    "MetaCLIP 2": Case(
        "metaclip_2",
        "MetaClip2Config",
        {"text_config": ENCODER | {"max_position_embeddings": 12, "projection_dim": 16, "eos_token_id": 2}}
        | {"vision_config": IMAGE | {"intermediate_size": 48, "projection_dim": 16}, "projection_dim": 16},
        "MetaClip2Model",
        "MetaCLIP2Backbone",
        TOWER,
        None,
        "both",
    ),
    "Mistral": decoder("mistral", "Mistral", "Mistral", LINEAR, **DECODER),
    "Mixtral": decoder("mixtral", "Mixtral", "Mixtral", ATTENTION, **DECODER, num_local_experts=4),
    "PaliGemma": Case(
        "pali_gemma",
        "PaliGemmaConfig",
        {"text_config": GEMMA | {"head_dim": 16, "model_type": "gemma", "tie_word_embeddings": True}}
        | {
            "vision_config": IMAGE
            | {"model_type": "siglip_vision_model", "intermediate_size": 48, "vision_use_head": False}
        }
        | {"image_token_index": 60, "projection_dim": 32, "hidden_size": 32, "vocab_size": 60},
        "PaliGemmaForConditionalGeneration",
        "PaliGemmaBackbone",
        (*LINEAR, *TOWER, "linear"),
        "PaliGemmaCausalLM",
        "image first",
    ),
    "Qwen 2": decoder("qwen", "Qwen2", "Qwen", LINEAR, **DECODER),
    "Qwen 2 MoE": decoder(
        "qwen_moe", "Qwen2Moe", "QwenMoe", ATTENTION, **DECODER, **EXPERTS, shared_expert_intermediate_size=24
    ),
    "Qwen 3": decoder("qwen3", "Qwen3", "Qwen3", LINEAR, **HEADS),
    "Qwen 3 MoE": decoder("qwen3_moe", "Qwen3Moe", "Qwen3Moe", ATTENTION, **HEADS, **EXPERTS),
    "Qwen 3.5": multimodal("qwen3_5", "Qwen3_5", "Qwen3_5", (*LINEAR, "in_proj_qkv", "out_proj"), **HEADS, **RECURRENT),
    "Qwen 3.5 MoE": multimodal(
        "qwen3_5_moe",
        "Qwen3_5Moe",
        "Qwen3_5Moe",
        (*ATTENTION, "in_proj_qkv", "out_proj"),
        **HEADS,
        **RECURRENT,
        **EXPERTS,
        shared_expert_intermediate_size=24,
    ),
    "RoBERTa": encoder("roberta", "Roberta", "Roberta", "MaskedLM", BERT, **ENCODER, pad_token_id=1),
    "SAM 3": Case(
        "sam3",
        "Sam3Config",
        {"vision_config": {"backbone_config": IMAGE | SAM_IMAGE, "fpn_hidden_size": 64}}
        | {"text_config": ENCODER | {"projection_dim": 32, "model_type": "clip_text_model", "hidden_act": "gelu"}}
        | {f"detr_{part}_config": DETR | {"num_queries": 5} for part in ("encoder", "decoder")}
        | {"geometry_encoder_config": DETR | {"roi_size": 2}, "mask_decoder_config": DETR},
        "Sam3Model",
        "SAM3PromptableConceptBackbone",
        (*TOWER, "o_proj", "layer1", "layer2", "text_proj", "query_proj"),
        None,
        "boxes",
    ),
    "SmolLM3": decoder("smollm3", "SmolLM3", "SmolLM3", LINEAR, **DECODER),
    "Swin": vision(
        "swin_transformer",
        "Swin",
        "SwinTransformer",
        ("o_proj", "fc1", "fc2"),
        image_size=32,
        patch_size=2,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=4,
    ),
    "T5Gemma": Case(
        "t5gemma",
        "T5GemmaConfig",
        {"encoder": WIDE, "decoder": WIDE | {"cross_attention_hidden_size": 32}, "vocab_size": 60},
        "T5GemmaForConditionalGeneration",
        "T5GemmaBackbone",
        LINEAR,
        None,
        "pairs",
    ),
    "T5Gemma 2": Case(
        "t5gemma2",
        "T5Gemma2Config",
        {"encoder": towers(WIDE), "decoder": WIDE, "image_token_index": 58, "eoi_token_index": 57},
        "T5Gemma2ForConditionalGeneration",
        "T5Gemma2Backbone",
        LINEAR,
        None,
        "pairs",
    ),
    "ViT": vision("vit", "ViT", "ViT", ("q_proj", "v_proj", "o_proj", "fc1", "fc2"), **IMAGE, intermediate_size=48),
    "XLM-RoBERTa": encoder("xlm_roberta", "XLMRoberta", "XLMRoberta", "MaskedLM", BERT, **ENCODER, pad_token_id=1),
}

WITHOUT_CONVERTER = ("BLOOM", "DeBERTa", "ELECTRA", "Falcon", "OPT", "Phi-3", "SigLIP", "T5")
"""Architectures of KerasHub whose Hugging Face checkpoints it does not convert."""
REMARKS = {
    "BLIP-2": "an image before the text, both towers; with OPT",
    "DINOv3": "transformers has no head for it",
    "ESM-2": "without padding: KerasHub masks the queries of padding instead of the keys",
    "Gemma 3n": "text only, beside a small image tower",
    "Gemma 4": "text only",
    "Gemma 4 assistant": "beside random keys and values of a Gemma 4",
    "GPT-OSS": "attention and experts, within the sliding window, which KerasHub has in other layers",
    "MetaCLIP 2": "both towers; logits of pairs",
    "Mistral": "KerasHub rounds the weights to float16",
    "Mixtral": "attention and experts; gate and up are one tensor in transformers: twice the rank in files of kopt",
    "PaliGemma": "an image before the text, both towers; one head as wide as an image has tokens, as KerasHub asks for",
    "Qwen 2 MoE": "attention and experts",
    "Qwen 3 MoE": "attention and experts",
    "Qwen 3.5": "text only",
    "Qwen 3.5 MoE": "text only, attention and experts",
    "SAM 3": "an image, a box and a text of one token: KerasHub lets a token see those after it, and takes a box with "
    "one image only",
    "Swin": "without query, key and value, which are one layer in KerasHub and three in transformers",
    "T5Gemma": "sequences within the sliding window, which KerasHub's encoder leaves out",
    "T5Gemma 2": "text only, sequences within the sliding window",
}
"""What to know of a case."""

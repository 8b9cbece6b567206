"""The name map to Hugging Face: recorded from KerasHub's converters, and plain for what Hugging Face does not know."""

import json
import types

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

import kopt.peft
from kopt.peft.exchange.kerashub_converter import Record, derive_config, find_backbones, record
from kopt.peft.exchange.name_map import Checkpoint, Names, read_checkpoint, shortest_suffixes
from kopt.peft.exchange.placement import Port, find_placements
from kopt.peft.layers import find_site

keras_hub = pytest.importorskip("keras_hub")


def bert(**options):
    return keras_hub.models.BertBackbone(
        **{"vocabulary_size": 50, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 32}
        | {"max_sequence_length": 20}
        | options
    )


def gpt2():
    return keras_hub.models.GPT2Backbone(50, 2, 2, 16, 64, max_sequence_length=20)


BACKBONES = {
    "bert": bert,
    "roberta": lambda: keras_hub.models.RobertaBackbone(50, 2, 2, 16, 32, max_sequence_length=20),
    "distilbert": lambda: keras_hub.models.DistilBertBackbone(50, 2, 2, 16, 32, max_sequence_length=20),
    "gpt2": gpt2,
    "llama": lambda: keras_hub.models.Llama3Backbone(50, 2, 4, 32, 48, 2),
    "mistral": lambda: keras_hub.models.MistralBackbone(50, 2, 4, 32, 48, 2),
    "qwen3": lambda: keras_hub.models.Qwen3Backbone(50, 2, 4, 2, 8, 32, 48, tie_word_embeddings=True),
    "albert": lambda: keras_hub.models.AlbertBackbone(50, 1, 2, 8, 16, 32, max_sequence_length=20),
    "vit": lambda: keras_hub.models.ViTBackbone((16, 16, 3), (4, 4), 2, 4, 24, 48),
}
EXPECTED = {  # a Keras path, its module in the checkpoint, and what transformers calls it below a head
    "bert": [
        ("transformer_layer_1.self_attention_layer.query", "encoder.layer.1.attention.self.query", "bert."),
        ("transformer_layer_0.feedforward_output_dense", "encoder.layer.0.output.dense", "bert."),
        ("embeddings_layer_norm", "embeddings.LayerNorm", "bert."),
        ("token_embedding", "embeddings.word_embeddings", "bert."),
        ("pooled_dense", "pooler.dense", "bert."),
    ],
    "roberta": [("transformer_layer_0.self_attention_layer.key", "encoder.layer.0.attention.self.key", "roberta.")],
    "distilbert": [
        ("transformer_layer_0.self_attention_layer.value", "transformer.layer.0.attention.v_lin", "distilbert."),
    ],
    "gpt2": [
        ("transformer_layer_0.self_attention.query", "h.0.attn.c_attn", "transformer."),
        ("transformer_layer_0.self_attention.value", "h.0.attn.c_attn", "transformer."),
        ("token_embedding", "wte", "transformer."),
    ],
    "llama": [("transformer_layer_1.self_attention.query", "layers.1.self_attn.q_proj", "model.")],
    "mistral": [("transformer_layer_1.self_attention.query", "layers.1.self_attn.q_proj", "model.")],
    "qwen3": [("transformer_layer_1.self_attention.query", "layers.1.self_attn.q_proj", "model.")],
    "albert": [("token_embedding", "embeddings.word_embeddings", "albert.")],
    "vit": [],
}


@pytest.fixture(scope="module", params=BACKBONES)
def named(request):
    model = BACKBONES[request.param]()
    return request.param, model, Names(model)


def test_every_weight_of_a_backbone_has_a_name(named):
    _, model, names = named
    assert names.known
    assert all(port.record is not None for port in names.ports.values())
    assert len(names.ports) == len(model.trainable_variables)


def test_names_are_those_of_transformers(named):
    name, _, names = named
    for path, module, prefix in EXPECTED[name]:
        ports = [port for (p, _), port in names.ports.items() if p == path]
        assert {port.module for port in ports} == {module}
        assert names.written(module, task=False) == module
        assert names.written(module, task=True) == prefix + module
        for written in (module, prefix + module, f"0.auto_model.{module}"):
            assert names.find(written) == module


def test_the_converter_gets_what_it_reads_of_a_configuration():
    ((backbone, converter),) = find_backbones(gpt2())
    config = derive_config(converter, backbone)
    assert (config["n_embd"], config["n_layer"], config["n_head"], config["n_positions"]) == (16, 2, 2, 20)


def test_a_list_in_a_configuration_is_given_back_whole():
    """A converter that makes a list of an entry, as those of Swin and SmolLM3, once never came to an end."""

    class Converter:
        backbone_cls = None

        @staticmethod
        def convert_backbone_config(config):
            return {"depths": list(config["depths"]), "size": (config["height"], config["width"])}

    backbone = types.SimpleNamespace(depths=[2, 6, 2], size=(3, 4))
    assert derive_config(Converter, backbone) == {"depths": [2, 6, 2], "height": 3, "width": 4}


def test_places_are_where_the_converter_reads(named):
    """The hook of every weight, applied to random tensors, gives what the places say."""
    _, _, names = named
    rng = np.random.default_rng(0)
    for port in names.ports.values():
        place = names.placement(port)
        tensor = rng.normal(size=place.shape).astype("float32")
        hook = port.record.hook
        read = tensor if hook is None else hook(tensor, list(port.variable.shape))
        taken = place.take(tensor)
        assert taken.shape == tuple(port.variable.shape)
        np.testing.assert_allclose(taken, np.reshape(read, taken.shape), rtol=1e-3)  # some hooks round to float16
        back = np.full(place.shape, np.nan, "float32")
        place.put(taken, back)
        there = ~np.isnan(back)
        assert there.sum() == taken.size
        assert (back[there] == tensor[there]).all()


def test_names_stay_when_adapters_come():
    model = bert()
    before = {key: port.module for key, port in Names(model).ports.items()}
    kopt.peft.get_peft_model(model, kopt.peft.LoRA(target_modules="all-linear"))
    after = Names(model)
    assert {key: port.module for key, port in after.ports.items()} == before
    assert all(port.record is not None for port in after.ports.values())


def test_recording_changes_no_weight():
    model = keras_hub.models.XLMRobertaBackbone(50, 1, 2, 16, 32, max_sequence_length=20)
    before = [np.array(v) for v in model.variables]
    ((backbone, converter),) = find_backbones(model)
    with pytest.raises(ValueError, match=r"base_model=DIRECTORY"):  # it reads a tensor by itself
        record(backbone, converter, None, {})
    shapes = {"roberta.embeddings.token_type_embeddings.weight": (1, 16)}
    assert len(record(backbone, converter, None, shapes)) >= len(model.trainable_variables)
    assert all((a == np.array(b)).all() for a, b in zip(before, model.variables, strict=True))
    assert all("assign" not in vars(v) for v in model.variables)


def test_a_direct_assignment_is_recorded_if_it_only_moves_elements():
    layer = keras.layers.Dense(3)
    layer.build((None, 4))

    class Converter:
        @staticmethod
        def convert_weights(backbone, loader, config):
            backbone.kernel.assign(np.transpose(loader.get_tensor("a.weight")))
            backbone.bias.assign(loader.get_tensor("a.bias") * 0.5)

    (only,) = record(layer, Converter, {}, {"x.a.weight": (3, 4), "x.a.bias": (3,)})
    assert only.variable is layer._kernel and only.key == "a.weight"
    np.testing.assert_array_equal(only.positions, np.arange(12).reshape(3, 4).T)
    port = Port("dense", "_kernel", layer, layer._kernel, "a", "weight", only)
    (place,) = find_placements([port], (3, 4))
    assert place.axes[0][2, 1] == 1 and place.axes[1][2, 1] == 2


def test_a_converter_may_ask_what_is_left_over_and_print_it(capsys):
    layer = keras.layers.Dense(3)
    layer.build((None, 4))

    class Converter:
        @staticmethod
        def convert_weights(backbone, loader, config):
            loader.port_weight(backbone.kernel, "a.weight")
            if loader.safetensor_config is None and not loader.prefix:
                print("nothing is left over")

    (only,) = record(layer, Converter, {}, {})
    assert only.key == "a.weight" and capsys.readouterr().out == ""


# -------------------------------------------------------------------------------------------------- placements


def test_gpt2_has_query_key_and_value_in_one_module():
    names = Names(gpt2())
    ports = [p for p in names.by_module["h.0.attn.c_attn"] if p.parameter == "weight"]
    assert [p.path.rpartition(".")[2] for p in ports] == ["query", "key", "value"]
    found = [names.factors(p, p.site) for p in ports]
    assert all(f.transposed and f.shape == (16, 48) for f in found)
    assert [f.outputs.tolist() for f in found] == [list(range(i * 16, i * 16 + 16)) for i in range(3)]
    (dense,) = [p for p in names.by_module["h.1.mlp.c_fc"] if p.parameter == "weight"]
    assert names.factors(dense, dense.site).transposed
    (embedding,) = names.by_module["wte"]
    assert not names.factors(embedding, embedding.site).transposed


def test_convolutions_are_turned():
    names = Names(BACKBONES["vit"]())
    (port,) = [p for p in names.by_module["embeddings.patch_embeddings.projection"] if p.parameter == "weight"]
    found = names.factors(port, port.site)
    assert found.shape == (24, 3, 4, 4) and found.input_shape == (3, 4, 4)


def test_transformers_5_names_of_vit():
    names = Names(BACKBONES["vit"]())
    old, new = "encoder.layer.1.attention.attention.query", "layers.1.attention.q_proj"
    assert names.written(old, task=False) == new
    assert names.written(old, task=True) == f"vit.{new}"
    assert names.find(f"vit.{new}") == names.find(f"vit.{old}") == old
    assert names.written("encoder.layer.0.output.dense", task=False) == "layers.0.mlp.fc2"
    assert names.written("encoder.layer.0.attention.output.dense", task=False) == "layers.0.attention.o_proj"


def test_an_output_matrix_of_its_own_stays_beside_the_base():
    names = Names(BACKBONES["llama"]())
    assert names.written("lm_head", task=True) == "lm_head"
    assert names.written("embed_tokens", task=True) == "model.embed_tokens"


def test_mixed_inputs_and_outputs_are_refused():
    layer = keras.layers.Dense(6)
    layer.build((None, 4))
    mixed = Record(layer._kernel, "a.weight", lambda x, shape: np.reshape(x, shape), None)
    port = Port("dense", "_kernel", layer, layer._kernel, "a", "weight", mixed)
    names = Names(keras.Sequential([layer]), Checkpoint(shapes={"a.weight": (6, 4)}))
    names.by_module["a"] = [port]
    with pytest.raises(ValueError, match="mixes inputs and outputs"):
        names.factors(port, find_site(layer))


# ------------------------------------------------------------------------------------------- around the backbone


def test_a_backbone_inside_a_model_and_its_head():
    backbone = bert()
    head = keras.layers.Dense(3, name="logits")
    model = keras.Model(backbone.input, head(backbone(backbone.input)["pooled_output"]))
    names = Names(model, modules={"logits": "classifier"})
    assert names.ports["bert_backbone.pooled_dense", "_kernel"].module == "pooler.dense"
    assert names.find("classifier") == "classifier"
    assert names.written("classifier", task=True) == "classifier"
    with pytest.raises(ValueError, match=r"no layer 'logit'\. Closest layer names: logits"):
        Names(model, modules={"logit": "classifier"})


def test_a_model_made_from_the_tensors_of_a_backbone_needs_the_configuration(tmp_path):
    backbone = bert()
    model = keras.Model(backbone.input, keras.layers.Dense(3, name="logits")(backbone.output["pooled_output"]))
    config = {
        "model_type": "bert",
        "vocab_size": 50,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "max_position_embeddings": 20,
    }
    names = Names(model, Checkpoint(config))
    path = "transformer_layer_0.self_attention_layer.query"
    assert names.ports[path, "_kernel"].module == "encoder.layer.0.attention.self.query"
    assert not Names(model).known
    kopt.peft.get_peft_model(model, kopt.peft.LoRA(r=2))
    with pytest.warns(UserWarning, match="pass base_model, or call the backbone"):
        kopt.peft.save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == ["query", "value"]
    again = Names(model, Checkpoint(config))
    assert again.ports[path, "_kernel"].module == "encoder.layer.0.attention.self.query"
    with pytest.raises(ValueError, match="another architecture"):
        Names(model, Checkpoint(config | {"intermediate_size": 64}))


def test_two_backbones_have_plain_names():
    a, b = bert(name="a"), bert(name="b")
    inputs = a.input
    model = keras.Model(inputs, [a(inputs)["pooled_output"], b(inputs)["pooled_output"]])
    with pytest.warns(UserWarning, match="several backbones"):
        names = Names(model)
    assert names.ports["a.pooled_dense", "_kernel"].module == "a.pooled_dense"


def test_plain_names_have_the_order_of_torch():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(5, (2, 3), name="conv"),
            keras.layers.Reshape((-1, 5)),
            keras.layers.EinsumDense("abc,cde->abde", (None, 2, 4), bias_axes="de", name="einsum"),
            keras.layers.Reshape((-1, 8)),
            keras.layers.LayerNormalization(name="norm"),
            keras.layers.Dense(7, name="dense"),
        ]
    )
    names = Names(model)
    shapes = {f"{p.module}.{p.parameter}": names.placement(p).shape for p in names.ports.values()}
    assert shapes == {
        "conv.weight": (5, 3, 2, 3),
        "conv.bias": (5,),
        "einsum.weight": (8, 5),
        "einsum.bias": (8,),
        "norm.weight": (8,),
        "norm.bias": (8,),
        "dense.weight": (7, 8),
        "dense.bias": (7,),
    }
    kernel = np.array(names.ports["einsum", "_kernel"].variable)
    there = np.zeros((8, 5), "float32")
    names.placement(names.ports["einsum", "_kernel"]).put(kernel, there)
    np.testing.assert_array_equal(there, kernel.reshape(5, 8).T)
    kernel = np.array(names.ports["conv", "_kernel"].variable)
    there = np.zeros((5, 3, 2, 3), "float32")
    names.placement(names.ports["conv", "_kernel"]).put(kernel, there)
    np.testing.assert_array_equal(there, kernel.transpose(3, 2, 0, 1))


# ----------------------------------------------------------------------------------------------- the checkpoint


def write_checkpoint(folder, tensors, config, parts=1):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    keys = sorted(tensors)
    if parts == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    files = {key: f"model-{i % parts}.safetensors" for i, key in enumerate(keys)}
    for name in set(files.values()):
        save_file({k: tensors[k] for k in keys if files[k] == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    return folder


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_names_are_looked_up_in_the_checkpoint(tmp_path, prefix, parts):
    model = bert()
    names = Names(model)
    tensors = {
        f"{prefix}{p.module}.{p.parameter}": np.zeros(names.placement(p).shape, "float32") for p in names.ports.values()
    }
    gone = f"{prefix}pooler.dense.weight"
    tensors = {k.replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in tensors.items() if k != gone}
    folder = write_checkpoint(tmp_path / "base", tensors, {"hidden_size": 16}, parts)
    names = Names(model, read_checkpoint(folder))
    names.check("encoder.layer.0.attention.self.query", "weight")
    names.check("embeddings.LayerNorm", "weight")
    with pytest.raises(ValueError, match=r"has no tensor pooler\.dense\.weight"):
        names.check("pooler.dense", "weight")
    assert "encoder.layer.0.output.dense" in names.universe()


def test_a_part_of_the_configuration_can_be_enough():
    model = keras_hub.models.GemmaBackbone(50, 1, 4, 1, 32, 48, 8)
    with pytest.raises(ValueError, match=r"KeyError: 'model_type'\. Pass base_model"):
        Names(model)
    names = Names(model, Checkpoint({"model_type": "gemma"}))
    assert names.find("model.layers.0.self_attn.q_proj") == "layers.0.self_attn.q_proj"


def test_a_base_of_another_size_is_refused():
    with pytest.raises(ValueError, match="its hidden_size is 24, the model's 16"):
        Names(bert(), Checkpoint({"hidden_size": 24}))


def test_a_base_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"folder with its config\.json"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no JSON"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"12")
    with pytest.raises(ValueError, match="no complete safetensors file"):
        read_checkpoint(tmp_path)


def test_shortest_suffixes():
    universe = [f"layer.{i}.{name}" for i in range(2) for name in ("query", "value", "a.dense", "b.a.dense")]
    assert shortest_suffixes([m for m in universe if m.endswith("query")], universe) == ["query"]
    assert shortest_suffixes(universe[:1], universe) == ["0.query"]
    assert shortest_suffixes([m for m in universe if m.endswith("b.a.dense")], universe) == ["b.a.dense"]
    only = ["layer.0.a.dense", "layer.1.a.dense"]
    assert shortest_suffixes(only, universe) == ["0.a.dense", "1.a.dense"]
    assert shortest_suffixes(["x.dense"], ["x.dense"]) == ["x.dense"]
    assert shortest_suffixes(["dense"], ["dense", "other"]) == ["dense"]

"""What Keras does not document is read in the files named for it, and is there in the Keras that is installed."""

import ast
import importlib
import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from sources import SOURCES, imports, tree

from kopt.peft.layers.keras_internals import in_forward_pass

NAMED_FOR_IT = (
    "kopt.peft.layers.keras_internals",
    "kopt.training.keras_internals",
    "kopt.distribution.keras_internals",
)
CONVERTER = "kopt.peft.exchange.kerashub_converter"
ROOMS = [name for name in SOURCES if re.match(r"kopt\.(checkpoint|distribution|peft|tensorboard|training)\b", name)]
PRIVATE = r"_[a-z](\w*[a-z])?"


def defined(module):
    """Returns the private names that classes and functions of a module define."""
    for node in ast.walk(module):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.AnnAssign):
            yield ast.unparse(node.target)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def privates(module):
    """Returns (object, attribute) for each private attribute that a module reads or writes."""
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and re.fullmatch(PRIVATE, node.attr):
            yield ast.unparse(node.value), node.attr


def foreign(module, own):
    """Returns the private attributes of others that a module reads, among them those that a class inherits."""
    for owner, attribute in privates(module):
        mine = owner in ("self", "cls", "super()") and attribute in own
        if not mine and owner not in ("sys", "os"):  # Python documents sys._getframe and os._exit
            yield f"{owner}.{attribute}"


def named():
    """Returns (module, private name) for all that the files named for it read, by attribute or as text."""
    for name in NAMED_FOR_IT:
        texts = {n.value for n in ast.walk(tree(name)) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        found = {attribute for _, attribute in privates(tree(name))}
        for attribute in sorted(found | {text for text in texts if re.fullmatch(PRIVATE, text)}):
            yield name, attribute


@pytest.mark.parametrize("name", [name for name in ROOMS if name not in NAMED_FOR_IT])
def test_privates_of_others_are_read_in_the_files_named_for_it(name):
    room = [n for n in ROOMS if n.split(".")[:2] == name.split(".")[:2]]
    own = {private for n in room for private in defined(tree(n))}
    assert not own & {attribute for _, attribute in named()}, "an attribute of kopt has the name of one of Keras"
    assert not list(foreign(tree(name), own)), f"{name}: move it to {NAMED_FOR_IT}"
    assert not any(i.startswith(("keras.src", "keras_hub", "tensorflow.python")) for i in imports(name)), name
    assert name == CONVERTER or "keras_hub.src" not in SOURCES[name].read_text(encoding="utf-8")


def test_a_private_of_others_is_noticed():
    source = (
        "class A(keras.Model):\n def f(self, x):\n  return x._layers, self._path, self._mine, x._mine, sys._getframe()"
    )
    assert list(foreign(ast.parse(source), {"_mine"})) == ["x._layers", "self._path", "x._mine"]


@pytest.fixture(scope="module")
def objects(two_devices):
    """Objects of Keras by kind, each as it is when kopt reads it."""
    inputs = keras.Input((4,))
    model = keras.Sequential([inputs, keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(use_ema=True), "mse")
    model.fit(np.ones((2, 4)), np.ones((2, 2)), verbose=0)
    convolution, embedding = keras.layers.Conv1D(2, 3, padding="causal"), keras.layers.Embedding(3, 2)
    convolution.build((None, 5, 2))
    embedding.build()
    quantized = keras.layers.EinsumDense("ab,bc->ac", (4,))
    quantized.build((None, 4))
    quantized.quantize("int4")
    return {
        "model": model,
        "functional": keras.Model(inputs, model.layers[0](inputs)),
        "layer": model.layers[0],
        "convolution": convolution,
        "embedding": embedding,
        "quantized": quantized,
        "attention": keras.layers.MultiHeadAttention(2, 3),
        "optimizer": model.optimizer,
        "tracker": model.layers[0]._tracker,
        "distributed": two_devices.distribute_datasets_from_function(lambda _: tf.data.Dataset.range(1)),
        "trainer": keras.src.backend.tensorflow.trainer,
    }


OWNERS = {  # where kopt looks for a private name
    "_adjust_scale_for_dequant": ["quantized"],
    "_call_has_training_arg": ["model"],
    "_compile_config": ["model"],
    "_compile_loss": ["model"],
    "_compile_metrics": ["model"],
    "_cardinality": ["distributed"],
    "_collective_all_reduce_multi_worker": ["trainer"],
    "_compute_attention": ["attention"],
    "_compute_causal_mask": ["attention"],
    "_compute_causal_padding": ["convolution"],
    "_distribute_strategy": ["model"],
    "_embeddings": ["embedding"],
    "_flatten_layers": ["model", "layer"],
    "_functional": ["model"],
    "_inbound_nodes": ["layer"],
    "_int4_block_size": ["quantized"],
    "_is_quantized": ["quantized"],
    "_iterations": ["optimizer"],
    "_kernel": ["layer", "convolution"],
    "_layers": ["model", "functional", "layer"],
    "_loss_tracker": ["model"],
    "_modules": [],  # of torch
    "_make_function": ["model"],
    "_maybe_symbolic_build": ["model"],
    "_model_variables_moving_average": ["optimizer"],
    "_non_trainable_variables": ["layer"],
    "_operations": ["functional"],
    "_operations_by_depth": ["functional"],
    "_outbound_nodes": ["layer"],
    "_parent_path": ["layer"],
    "_path": ["layer"],
    "_symbolic_build": ["model"],
    "_track_variable": ["layer"],
    "_track_variables": [],  # on torch
    "_tracker": ["layer"],
    "_trainable": ["model", "layer"],
    "_trainable_variables": ["layer", "optimizer"],
    "_unpickle_model": ["model", "layer"],
    "_untrack_variable": ["layer"],
}
UNDOCUMENTED = [  # without an underscore
    *((NAMED_FOR_IT[0], name, "tracker") for name in ("lock", "unlock", "untrack")),
    *((NAMED_FOR_IT[0], name, "model") for name in ("train_function", "test_function", "predict_function")),
]


@pytest.mark.parametrize(
    ("module", "name", "owner"),
    [*((m, name, owner) for m, name in named() for owner in OWNERS.get(name, ["?"])), *UNDOCUMENTED],
)
def test_keras_has(module, name, owner, objects):
    assert owner != "?", f"{module} reads {name}: say in OWNERS of which object"
    found = objects[owner]
    assert hasattr(found, name), f"Keras {keras.__version__}: {type(found).__name__} has lost {name!r}, see {module}"


def test_keras_has_on_torch():
    layer = (Path(keras.__file__).parent / "src" / "backend" / "torch" / "layer.py").read_text(encoding="utf-8")
    assert "class TorchLayer(torch.nn.Module)" in layer, "where layers that are attributes stand in `_modules`"
    assert "def _track_variables(self)" in layer, f"Keras {keras.__version__} has lost it, see {NAMED_FOR_IT[0]}"


def test_nothing_is_looked_for_that_nothing_reads():
    assert set(OWNERS) == {name for _, name in named()}


def test_keras_says_whether_a_layer_is_called():
    said = []

    class Asks(keras.layers.Layer):
        def call(self, x):
            said.append(in_forward_pass())
            return x

    layer = Asks()
    layer(np.ones(2))
    assert said == [True], f"Keras {keras.__version__} has lost 'current_call_ctx', see {NAMED_FOR_IT[0]}"
    assert not in_forward_pass()
    layer.stateless_call([], [], np.ones(2))  # as JAX trains and predicts
    assert said == [True, True]


def test_kerashub_has():
    pytest.importorskip("keras_hub")
    package = "keras_hub.src.utils.transformers"
    loader = importlib.import_module(f"{package}.preset_loader").TransformersPresetLoader
    checkpoint = importlib.import_module(f"{package}.safetensor_utils").SafetensorLoader
    converter = loader("", {"model_type": "bert"}).converter
    assert converter is importlib.import_module(f"{package}.convert_bert")
    for owner, names in (
        (converter, ("backbone_cls", "convert_backbone_config", "convert_weights")),
        (checkpoint, ("port_weight", "get_prefixed_key", "get_tensor")),
    ):
        for name in names:
            assert hasattr(owner, name), f"KerasHub has lost {owner.__name__}.{name}, see {CONVERTER}"

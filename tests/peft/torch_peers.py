"""Models in Keras and in torch with the same weights, and the check that adapters go both ways."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import kopt.peft
from kopt.peft.layers import named_layers
from kopt.peft.model import adapters_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
keras_hub = pytest.importorskip("keras_hub")
LIMIT = 1e-4
MARKS = [
    pytest.mark.slow,
    pytest.mark.usefixtures("quiet"),
    pytest.mark.filterwarnings("ignore"),  # of torch, transformers and peft; kopt's own are errors in the other tests
]


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
    for layer in adapters_of(model).hosts.values():
        for variable in [*layer.weights_of["default"].values(), *layer.copies["default"].values()]:
            if variable.trainable:
                variable.assign(variable.numpy() + rng.normal(size=variable.shape) * 0.03)


def check_both_ways(base, config, tmp_path, least_effect=0.01, **options):
    """An adapter of peft loads into Keras, changes there, goes back, and gives the same outputs each time."""
    x, prompt = base.inputs, getattr(config, "num_virtual_tokens", None) or 0
    if config.peft_type == "PREFIX_TUNING":  # which changes no shape
        prompt = 0
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

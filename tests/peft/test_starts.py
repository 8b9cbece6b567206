"""Starts of LoRA from data: by hand, beside torch's peft, and what is refused."""

import dataclasses
import importlib.util
import json
import sys
import types

import keras
import numpy as np
import pytest
from method_peers import build
from probes import outputs, same, scramble, values, weights
from zoo import dense, floats

from kopt import peft
from kopt.peft.model import adapters_of

STARTS = ("eva", "corda", "lora_ga")
TWO = ["host", "second"]


def lora(start, **options):
    return peft.LoRA(**{"r": 2, "target_modules": ["a", "b"], "init_lora_weights": start} | options)


def compiled(count=2):
    """Returns a stack of Dense layers with a loss, and two batches of it."""
    model, _ = dense(count=count)
    model.compile("sgd", "mse")
    return model, [(floats(16, 5), floats(16, 6)) for _ in range(2)]


@pytest.mark.parametrize("start", [s if s == "corda" else pytest.param(s, marks=pytest.mark.slow) for s in STARTS])
def test_a_start_changes_nothing_and_can_be_saved(start, tmp_path):
    model, batches = compiled()
    x, before = batches[0][0], values(model.weights)
    plain = outputs(model, x)
    peft.initialize(model, lora(start), batches, "new")
    assert peft.get_model_status(model).active_adapters == ["new"]
    np.testing.assert_allclose(outputs(model, x), plain, atol=1e-6)
    assert np.abs(weights(model, "a", "lora_A", "new")).max() > 0.1
    model.fit(*batches[0], verbose=0)
    scramble(model, 0.3)
    live = outputs(model, x)
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(outputs(keras.models.load_model(tmp_path / "model.keras"), x), live, atol=1e-6)
    peft.save_pretrained(model, tmp_path / "adapter", "new")
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["init_lora_weights"] is True
    peft.merge_and_unload(model)
    np.testing.assert_allclose(outputs(model, x), live, atol=1e-5)
    model.set_weights(before)
    peft.load_adapter(model, tmp_path / "adapter")
    np.testing.assert_allclose(outputs(model, x), live, atol=1e-5)
    peft.unload(model)
    assert same(values(model.weights), before)


def test_eva_takes_the_directions_in_which_inputs_vary():
    model, batches = compiled()
    for batch in batches:
        batch[0][:, :] = batch[0] * [1, 5, 1, 9, 1] + 3.0  # the mean does not count
    peft.initialize(model, lora("eva", use_rslora=True, lora_alpha=4), batches, rho=1)
    found = weights(model, "a", "lora_A").T
    x = np.concatenate([x for x, _ in batches])
    _, s, v = np.linalg.svd(x - x.mean(axis=0))
    np.testing.assert_allclose(np.abs(found), np.abs(v[:2]), atol=1e-4)
    assert (found[np.arange(2), np.abs(found).argmax(axis=1)] > 0).all()
    assert not weights(model, "a", "lora_B").any()
    peft.unload(model)
    peft.initialize(model, lora("eva", use_rslora=True, lora_alpha=4), batches, rho=1, whiten=True)
    np.testing.assert_allclose(weights(model, "a", "lora_A").T, found / np.sqrt(s[:2, None]), rtol=1e-4)


def test_eva_gives_ranks_to_layers_that_need_them():
    model, batches = compiled(count=3)
    model.get_layer("b").set_weights([np.outer(np.ones(6), np.ones(6)), np.zeros(6)])  # its outputs vary in one way
    peft.initialize(model, lora("eva", target_modules=["a", "b", "c"], lora_alpha=6.0), batches)
    ranks = {path: layer.adapters["default"].r for path, layer in adapters_of(model).hosts.items()}
    assert sum(ranks.values()) == 6 and ranks["c"] == 1 and 1 <= ranks["a"] <= 4
    assert {layer.adapters["default"].scaling for layer in adapters_of(model).hosts.values()} == {3.0}


def test_positions_that_are_padded_are_not_looked_at():
    inputs = {
        "x": keras.Input((3, 4), name="x"),
        "padding_mask": keras.Input((3,), dtype="bool", name="padding_mask"),
    }
    y = keras.layers.Dense(5, name="a")(inputs["x"])
    x, mask = floats(8, 3, 4), np.ones((8, 3), bool)
    mask[:, 2] = False
    found = []
    for scale in (1.0, 50.0):
        model = keras.Model(inputs, y * keras.ops.cast(inputs["padding_mask"], "float32")[..., None])
        changed = np.concatenate([x[:, :2], scale * x[:, 2:]], axis=1)
        peft.initialize(model, lora("eva", target_modules=["a"]), [{"x": changed, "padding_mask": mask}])
        found.append(weights(model, "a", "lora_A"))
        peft.unload(model)
    np.testing.assert_array_equal(*found)


def test_lora_ga_takes_the_singular_vectors_of_the_gradient():
    model, batches = compiled(count=1)
    layer = model.get_layer("a")
    layer.trainable = False  # the gradient is that of the kernel all the same
    optimizer = model.optimizer
    peft.initialize(model, lora("lora_ga", target_modules=["a"]), batches, gamma=4.0)
    kernel, bias = layer.kernel.numpy(), layer.bias.numpy()
    gradient = np.mean([2 * x.T @ (x @ kernel + bias - y) / y.size for x, y in batches], axis=0)
    u, _, v = np.linalg.svd(gradient)
    scale = 6**0.25 / 2
    np.testing.assert_allclose(np.abs(weights(model, "a", "lora_A")), scale * np.abs(u[:, :2]), atol=1e-3)
    np.testing.assert_allclose(np.abs(weights(model, "a", "lora_B")), scale * np.abs(v[2:4]), atol=1e-3)
    assert type(model.optimizer) is type(optimizer)
    peft.unload(model)
    assert not layer.trainable and model.optimizer.learning_rate == optimizer.learning_rate


@pytest.mark.slow
def test_other_adapters_stay_as_they_are():
    model, batches = compiled()
    x, y = batches[0]
    peft.get_peft_model(model, peft.LoRA(r=1, target_modules=["a"]), "first")
    scramble(model, 0.5)
    model.fit(x, y, verbose=0)
    optimizer, live = model.optimizer, outputs(model, x)
    peft.merge_adapter(model)
    for start in STARTS:
        peft.initialize(model, lora(start), batches, start)
        assert list(adapters_of(model).adapters) == ["first", *STARTS[: STARTS.index(start) + 1]]
        peft.set_adapter(model, "first")
        np.testing.assert_allclose(outputs(model, x), live, atol=1e-6)
        assert model.optimizer is optimizer


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, b: peft.get_peft_model(m, lora("eva")), "starts from data: call kopt.peft.initialize"),
        (lambda m, b: peft.initialize(m, lora(True), b), "takes a LoRA with init_lora_weights of 'eva'"),
        (lambda m, b: peft.initialize(m, lora("eva"), b[0]), r"a list or data set of batches.*tuple"),
        (lambda m, b: peft.initialize(m, lora("eva"), []), "batches has no batch"),
        (lambda m, b: peft.initialize(m, lora("eva"), [b[0][0][:2]]), "vary in fewer than"),
        (lambda m, b: peft.initialize(m, lora("eva"), b, rho=0.5), "rho must be"),
        (lambda m, b: peft.initialize(m, lora("corda", r=6), b), "takes 6 singular vectors.*a, which has 5"),
        (lambda m, b: peft.initialize(m, lora("lora_ga", r=3), b), "takes 6 singular vectors"),
        (lambda m, b: peft.initialize(m, lora("corda"), b, corda_method="best"), "corda_method"),
        (lambda m, b: peft.initialize(m, lora("loftq"), b), "leave out batches"),
        (lambda m, b: peft.initialize(m, lora("eva")), "a list or data set of batches"),
        (lambda m, b: peft.LoRA(init_lora_weights="svd"), "'pissa_niter_N', 'olora', 'eva'"),
        (lambda m, b: peft.initialize(m, lora("eva"), [b[0][0] * np.nan]), "inputs of a have NaN"),
        (lambda m, b: peft.initialize(m, lora("eva"), [b[0][0][:0]]), "No batch reaches a, b"),
        (lambda m, b: peft.initialize(m, lora("corda"), [b[0][0] * 0]), "inputs of a are 0"),
        (lambda m, b: peft.initialize(m, lora("lora_ga"), [(b[0][0] * np.nan, b[0][1])]), "loss at a has NaN"),
    ],
)
def test_what_is_refused(call, message):
    model, batches = compiled()
    before = values(model.weights)
    with pytest.raises(ValueError, match=message):
        call(model, batches)
    assert adapters_of(model) is None and same(values(model.weights), before)
    assert not any("kopt" in type(layer).__dict__ for layer in model._flatten_layers())


def test_options_of_another_start():
    model, batches = compiled()
    with pytest.raises(TypeError, match="'eva' has no option 'gamma', but rho, whiten"):
        peft.initialize(model, lora("eva"), batches, gamma=4.0)


@pytest.mark.parametrize(
    ("options", "name", "message"),
    [({}, "a b", "name of an adapter"), ({"trainable_token_indices": [9]}, "new", "go up to 9.* 8 rows")],
)
def test_nothing_is_quantized_for_an_adapter_that_is_refused(options, name, message):
    stack = [keras.layers.Embedding(8, 6, name="token_embedding"), keras.layers.Dense(8, name="a")]
    model = keras.Sequential([keras.Input((3,), dtype="int32"), *stack])
    before = values(model.weights)
    with pytest.raises(ValueError, match=message):
        peft.initialize(model, lora("loftq", target_modules=["a"], **options), adapter_name=name)
    assert adapters_of(model) is None and same(values(model.weights), before)
    assert model.get_layer("a").quantization_mode is None


class Unused(keras.Model):
    """A model with a layer that its call leaves out."""

    def __init__(self):
        super().__init__()
        self.a, self.b = keras.layers.Dense(6), keras.layers.Dense(6)
        self.b.build((None, 5))

    def call(self, x):
        return self.a(x)


def test_a_layer_that_no_batch_reaches():
    model = Unused()
    plain = outputs(model, floats(16, 5))
    for start in ("eva", "corda"):
        with pytest.raises(ValueError, match=r"No batch reaches b: .* exclude_modules"):
            peft.initialize(model, lora(start), [floats(16, 5)])
    assert plain.shape == (16, 6) and adapters_of(model) is None


def test_the_look_at_gradients_trains_nothing():
    x = inputs = keras.Input((5,))
    for layer in (keras.layers.Dense(6, name="a"), keras.layers.BatchNormalization(), keras.layers.Dense(6, name="b")):
        x = layer(x)
    model = keras.Model(inputs, x)
    peft.get_peft_model(model, peft.LoRA(r=1, target_modules=["a"]), "first")
    for layer in model.layers[2:]:
        layer.trainable = True  # a user may thaw what is beside the hosts
    model.compile("sgd", "mse")
    before, trained = values(model.weights), [v.path for v in model.trainable_variables]
    peft.initialize(
        model, lora("lora_ga", target_modules=["a"]), [(floats(16, 5), floats(16, 6)) for _ in range(2)], "new"
    )
    peft.set_adapter(model, "first")
    peft.delete_adapter(model, "new")
    assert same(values(model.weights), before) and [v.path for v in model.trainable_variables] == trained


def test_layers_that_a_start_does_not_take():
    model, x = build("Conv2D")
    for start in ("eva", "corda"):
        with pytest.raises(ValueError, match=r"Leave out host \(Conv2D\)"):
            peft.initialize(model, lora(start, target_modules=["host"]), [x])
    with pytest.raises(ValueError, match=r"call model.compile"):
        peft.initialize(model, lora("lora_ga", target_modules=["host"]), [x])
    model.compile("sgd", "mse")
    plain = outputs(model, x)
    peft.initialize(model, lora("lora_ga", target_modules=["host"]), [(x, plain + 1)])
    np.testing.assert_allclose(outputs(model, x), plain, atol=1e-5)


def test_loftq_holds_what_rounding_takes(tmp_path):
    far = []
    for iterations in (0, 1, 5):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(24, name="a")])
        x = np.random.default_rng(0).normal(size=(64, 32)).astype("float32")
        plain, kernel = outputs(model, x), model.get_layer("a").kernel.numpy()
        if iterations:
            adapter = lora("loftq", target_modules=["a"], r=4, lora_alpha=12.0)
            peft.initialize(model, adapter, mode="int4", iterations=iterations)
        else:
            peft.quantize(model, "int4")
        far.append(np.abs(outputs(model, x) - plain).mean())
        if iterations == 1:
            change = 3.0 * weights(model, "a", "lora_A") @ weights(model, "a", "lora_B")
            with peft.disable_adapter(model):
                rounded = outputs(model, np.eye(32, dtype="float32"))
            u, s, v = np.linalg.svd(kernel - rounded)
            np.testing.assert_allclose(change, u[:, :4] * s[:4] @ v[:4], atol=1e-5)
            peft.save_pretrained(model, tmp_path)
            live = outputs(model, x)
            peft.unload(model)
            np.testing.assert_allclose(outputs(peft.load_adapter(model, tmp_path), x), live, atol=1e-6)
    assert far[2] < far[1] < 0.8 * far[0]


# ------------------------------------------------------------------------------------------------ beside peft


def peers(start, narrow=False, **options):
    """Returns torch, a model on both sides, the configuration and inputs that vary in few ways."""
    theirs, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    from torch_twin import Twin

    model, x = build("Dense")
    if narrow:  # what the second layer takes depends on one number
        first, *rest = model.get_weights()
        model.set_weights([first * (np.arange(6) == 0)[:, None], *rest])
    x = x * np.array([9, 5, 3, 0.3, 0.2, 0.1], "float32")
    config = theirs.LoraConfig(r=2, lora_alpha=3, target_modules=TWO, init_lora_weights=start, **options)
    return torch, model, Twin("Dense", model.get_weights()).eval(), config, x


def ours(model, name):
    return weights(model, name, "lora_A"), weights(model, name, "lora_B")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rho", [1.0, 1.5])
@pytest.mark.parametrize("whiten", [False, True])
def test_eva_as_in_peft(rho, whiten):
    theirs = pytest.importorskip("peft")
    options = {"eva_config": theirs.EvaConfig(rho=rho, whiten=whiten, tau=0.9999999)}
    torch, model, twin, config, x = peers("eva", narrow=rho > 1, **options)
    wrapped = theirs.get_peft_model(twin, config)
    theirs.initialize_lora_eva_weights(
        wrapped,
        [torch.tensor(x)],
        forward_fn=lambda model, batch: model(batch),
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,
        show_progress_bar=False,
    )
    peft.initialize(model, lora("eva", target_modules=TWO, lora_alpha=3), [x], rho=rho, whiten=whiten)
    ranks = []
    for name in TWO:
        layer = getattr(wrapped.base_model.model, name)
        expected = layer.lora_A["default"].weight.detach().numpy()
        expected = expected * (2**0.25 if whiten else 1)  # it went round twice, and counts what it sees twice
        np.testing.assert_allclose(weights(model, name, "lora_A").T, expected, atol=1e-4)
        assert adapters_of(model).hosts[name].adapters["default"].scaling == layer.scaling["default"]
        ranks.append(len(expected))
    assert ranks == ([2, 2] if rho == 1 else [3, 1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["ipm", "kpm"])
def test_corda_as_in_peft(method, monkeypatch):
    theirs = pytest.importorskip("peft")
    if importlib.util.find_spec("attr") is None:  # all that peft takes of it
        monkeypatch.setitem(sys.modules, "attr", types.SimpleNamespace(dataclass=dataclasses.dataclass))
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    torch, model, twin, config, x = peers("corda", corda_config=CordaConfig(corda_method=method))
    preprocess_corda(twin, config, run_model=lambda: [twin(torch.tensor(row[None])) for row in x])
    wrapped = theirs.get_peft_model(twin, config)
    adapter = lora("corda", target_modules=TWO, lora_alpha=3)
    peft.initialize(model, adapter, [row[None] for row in x], corda_method=method)
    for name in TWO:
        layer, (a, b) = getattr(wrapped.base_model.model, name), ours(model, name)
        found = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        expected_a, expected_b = (tensor.detach().numpy().T for tensor in found)
        np.testing.assert_allclose(a @ b, expected_a @ expected_b, atol=1e-4)
        np.testing.assert_allclose(np.abs(a), np.abs(expected_a), atol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lora_ga_along_that_of_peft():
    theirs = pytest.importorskip("peft")
    from peft.tuners.lora.config import LoraGAConfig
    from peft.tuners.lora.loraga import preprocess_loraga

    torch, model, twin, config, x = peers("lora_ga", lora_ga_config=LoraGAConfig())
    y = floats(*outputs(model, x).shape)

    def step():
        torch.nn.functional.mse_loss(twin(torch.tensor(x)), torch.tensor(y)).backward()

    preprocess_loraga(twin, config, step)
    wrapped = theirs.get_peft_model(twin, config)
    model.compile("sgd", "mse")
    peft.initialize(model, lora("lora_ga", target_modules=TWO, lora_alpha=3), [(x, y)])
    for name in TWO:
        layer, (a, b) = getattr(wrapped.base_model.model, name), ours(model, name)
        found = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        expected_a, expected_b = (tensor.detach().numpy() for tensor in found)  # B there times singular values
        scale = b.shape[1] ** 0.25 / 4
        np.testing.assert_allclose(np.abs(a.T), scale * np.abs(expected_a), atol=1e-3)
        expected_b /= np.linalg.norm(expected_b, axis=0)
        np.testing.assert_allclose(np.abs(b.T), scale * np.abs(expected_b), atol=1e-3)

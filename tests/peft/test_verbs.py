"""Verbs in any order: what holds after each of them is said in `kopt/peft/model/adapters.py`."""

import copy
import pickle
import subprocess
import sys

import adapter_sequences
import keras
import numpy as np
import pytest
import zoo
from probes import outputs, same, scramble, values
from zoo import dense

import kopt
from kopt import peft
from kopt.peft.model import adapters_of


@pytest.mark.parametrize("seed", range(3))
def test_random_verbs(seed, tmp_path):
    adapter_sequences.play(seed, tmp_path)


ONES, TWOS = adapter_sequences.VERBS, adapter_sequences.VERBS[5:] + adapter_sequences.VERBS[:5]


@pytest.mark.parametrize(("one", "two"), [*zip(ONES, TWOS, strict=True)][::4])
def test_pairs_of_verbs(one, two, tmp_path):
    adapter_sequences.play(1, tmp_path, [one, two])


@pytest.mark.slow
def test_all_pairs_of_verbs(tmp_path):
    for seed, pair in enumerate([one, two] for one in ONES for two in ONES):
        adapter_sequences.play(seed, tmp_path, pair)


def two_adapters():
    """Returns a model with LoRAs "p" and "q" at its layer "a", "p" active, inputs and targets."""
    model, x = dense()
    for name in ("p", "q"):
        peft.get_peft_model(model, peft.LoRA(r=2, target_modules=["a"]), name)
        scramble(model)
    peft.set_adapter(model, "p")
    return model, x, np.ones((8, 6), "float32")


def test_disabled_is_the_base_also_while_merged():
    model, x = dense()
    base = outputs(model, x)
    peft.get_peft_model(model, peft.LoRA(target_modules=["a"], init_lora_weights=False))
    peft.merge_adapter(model)
    merged = outputs(model, x)
    with peft.disable_adapter(model):
        with pytest.raises(KeyError), peft.disable_adapter(model):
            raise KeyError
        np.testing.assert_array_equal(outputs(model, x), base)
        with pytest.raises(ValueError, match="Merge them outside of the block"):
            peft.merge_and_unload(model)
    np.testing.assert_array_equal(outputs(model, x), merged)


def test_only_the_order_of_adding_counts():
    model, x = dense()
    peft.get_peft_model(model, peft.IA3(target_modules=["a"], feedforward_modules=[]), "factors")
    peft.get_peft_model(model, peft.LoRA(target_modules=["a"]), "sum")
    scramble(model)
    peft.set_adapter(model, ["sum", "factors"])
    scramble(model, 0.5)
    live = outputs(model, x)
    with pytest.raises(ValueError, match="change the order of the active adapters: factors, sum"):
        peft.merge_adapter(model, ["sum"])
    peft.merge_adapter(model, ["factors"])
    np.testing.assert_allclose(outputs(model, x), live, atol=1e-5)
    peft.merge_adapter(model, ["sum"])
    np.testing.assert_allclose(outputs(model, x), live, atol=1e-5)
    peft.set_adapter(model, "sum")
    assert peft.get_model_status(model).merged_adapters == ["sum"]


def test_weight_decay_moves_no_adapter_that_is_off():
    model, x, y = two_adapters()
    model.compile(kopt.AdamW(1e-2, weight_decay=0.5), "mse")
    model.fit(x, y, verbose=0)
    before = values(model.weights)
    with peft.disable_adapter(model), pytest.raises(ValueError, match="disabled, so they cannot be trained"):
        model.fit(x, y, verbose=0)
    peft.merge_adapter(model)
    with pytest.raises(ValueError, match="p are merged, so they cannot be trained"):
        model.train_on_batch(x, y)
    peft.unmerge_adapter(model)
    assert same(values(model.weights), before)


def test_without_its_last_adapter_a_model_is_plain(tmp_path):
    model, x, y = two_adapters()
    peft.get_peft_model(model, peft.LoRA(target_modules=["b"]), "r")
    peft.delete_adapter(model, "r")
    assert list(adapters_of(model).hosts) == ["a"]
    assert type(model.get_layer("b")) is keras.layers.Dense and not model.get_layer("b").trainable_variables
    peft.delete_adapter(model, "p")
    peft.delete_adapter(model, "q")
    fresh, _ = dense()
    assert [type(layer) for layer in model._flatten_layers()] == [type(layer) for layer in fresh._flatten_layers()]
    assert [v.trainable for v in model.weights] == [v.trainable for v in fresh.weights]
    model.compile("sgd", "mse")
    model.fit(x, y, verbose=0)
    model.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(outputs(keras.models.load_model(tmp_path / "m.keras"), x), outputs(model, x))


@pytest.mark.parametrize("make", [zoo.nested, zoo.attention, zoo.shared, zoo.subclassed])
def test_thawing_thaws_adapters_alone(make):
    model, _, _ = make()
    peft.get_peft_model(model, peft.LoRA(target_modules=r".*(dense|query).*|blocks.*"))
    flags = [(v.path, v.trainable) for v in model.variables]
    frozen = [layer for layer in model._flatten_layers() if not layer.trainable]
    for layer in [layer for layer in model._flatten_layers() if layer.trainable]:
        layer.trainable = False
        layer.trainable = True
        assert [(v.path, v.trainable) for v in model.variables] == flags, layer
        assert not any(layer.trainable for layer in frozen)


def test_a_plain_layer_is_thawed_by_name():
    model, _, _ = two_adapters()
    model.get_layer("b").trainable = True
    peft.set_adapter(model, "q")
    peft.get_peft_model(model, peft.LoRA(target_modules=["a"]), "r")
    assert len(model.get_layer("b").trainable_variables) == 2
    model.trainable = False
    assert not model.trainable_variables


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "make",
    [zoo.sequential, zoo.nested, *(pytest.param(m, marks=pytest.mark.slow) for m in (zoo.subclassed, zoo.attention))],
)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_copies_have_all_adapters(make, copied):
    model, x, y = make()
    for name in ("p", "q"):
        peft.get_peft_model(model, peft.LoRA(r=2, target_modules=r".*"), name)
        scramble(model)
    model.compile(kopt.Adam(1e-2), "mse", run_eagerly=True)
    model.train_on_batch(x, y)
    peft.set_adapter(model, "p")
    peft.set_scale(model, "q", 0.5)
    model.train_on_batch(x, y)
    twin = copied(model)
    assert int(twin.optimizer.iterations) == 1
    for names in ("p", ["p", "q"]):
        for each in (model, twin):
            peft.set_adapter(each, names)
        np.testing.assert_array_equal(outputs(twin, x), outputs(model, x))
    assert len(twin.trainable_variables) == len(model.trainable_variables)


def test_copies_of_one_host():
    model, x, _ = two_adapters()
    host = model.get_layer("a")
    for twin in (copy.deepcopy(host), pickle.loads(pickle.dumps(host))):
        np.testing.assert_array_equal(twin(x), host(x))
        assert len(twin.trainable_variables) == 2
    nested, _, _ = zoo.nested()
    peft.get_peft_model(nested, peft.LoRA(target_modules=r".*"))
    with pytest.raises(ValueError, match="inner contains layers with adapters"):
        copy.deepcopy(nested.get_layer("inner"))


def counting(model):
    """Lets a model count how often its call is traced."""
    traces, call = [], model.get_layer("b").call
    model.get_layer("b").call = lambda *args, **kwargs: (traces.append(1), call(*args, **kwargs))[1]
    return traces


def test_hot_swap(tmp_path):
    model, x, y = two_adapters()
    peft.save_pretrained(model, tmp_path, "p")
    saved = outputs(model, x)
    traces = counting(model)
    model.compile(kopt.Adam(1e-2), "mse")
    model.fit(x, y, verbose=0)
    model.predict(x, verbose=0)
    count = len(traces)
    assert np.abs(outputs(model, x) - saved).max() > 1e-4
    count = len(traces)
    peft.load_adapter(model, tmp_path, "p")
    assert int(model.optimizer.iterations) == 0
    assert not any(np.any(v.numpy()) for v in model.optimizer.variables if v.path.endswith(("_m", "_v")))
    np.testing.assert_allclose(model.predict(x, verbose=0), saved, atol=1e-6)
    model.fit(x, y, verbose=0)
    assert len(traces) == count
    peft.get_peft_model(model, peft.LoRA(r=3, target_modules=["a"]), "wide")
    with pytest.raises(ValueError, match=r"r=3 and 2 at a.*delete_adapter\(model, 'wide'\)"):
        peft.load_adapter(model, tmp_path, "wide")


def test_an_adapter_that_is_only_used(tmp_path):
    model, x, y = two_adapters()
    peft.save_pretrained(model, tmp_path / "p", "p")
    peft.load_adapter(model, tmp_path / "p", "fixed", is_trainable=False)
    model.save(tmp_path / "m.keras")
    for each in (model, pickle.loads(pickle.dumps(model)), keras.models.load_model(tmp_path / "m.keras")):
        assert not each.trainable_variables
        peft.set_adapter(each, ["q", "fixed"])
        assert {v.name for v in each.trainable_variables} == {"q_lora_A", "q_lora_B"}
        before = peft.get_adapter_state(each, "fixed")
        each.compile(kopt.AdamW(1e-2, weight_decay=0.5), "mse", run_eagerly=True)
        each.train_on_batch(x, y)
        assert same([*before.values()], [*peft.get_adapter_state(each, "fixed").values()])


RATES = {
    "kopt": lambda: kopt.Adam(keras.optimizers.schedules.ExponentialDecay(1e-2, 1, 0.9)),
    "keras": lambda: keras.optimizers.Adam(1e-2),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(1e-2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["kopt", *(pytest.param(x, marks=pytest.mark.slow) for x in ("keras", "scaled"))])
def test_steps_on_another_adapter_leave_moments(optimizer):
    model, x, y = two_adapters()
    model.compile(RATES[optimizer](), "mse")
    model.fit(x, y, verbose=0)
    kept, state = model.optimizer, values(model.optimizer.variables)
    peft.set_adapter(model, "q")
    model.evaluate(x, y, verbose=0)
    reduce = keras.callbacks.LearningRateScheduler(lambda epoch: 1e-4)
    model.fit(x, y, epochs=3, verbose=0, callbacks=[reduce] if optimizer == "keras" else [])
    assert int(model.optimizer.iterations) == 3
    peft.set_adapter(model, "p")
    assert model.optimizer is kept
    assert same(values(kept.variables), state)
    model.fit(x, y, verbose=0)
    assert int(model.optimizer.iterations) == 2
    model.compile(RATES[optimizer](), "mse")
    peft.set_adapter(model, "q")
    model.fit(x, y, verbose=0)
    assert int(model.optimizer.iterations) == 1


def test_state_of_an_adapter():
    model, x, _ = two_adapters()
    peft.get_peft_model(model, peft.LoRA(r=2, target_modules=["a"], modules_to_save=["b"]), "r")
    state = peft.get_adapter_state(model, "r")
    assert sorted(state) == ["a.lora_A", "a.lora_B", "b.bias", "b.kernel"]
    before = outputs(model, x)
    scramble(model)
    other = outputs(model, x)
    for key, value, match in (
        ("a.lora_A", np.zeros((3, 3)), "has the shape"),
        ("b.bias", np.full(6, np.nan), "NaN"),
        ("a.lora_C", np.zeros(2), "no weight 'a.lora_C'.*lora_A"),
    ):
        with pytest.raises(ValueError, match=match):
            peft.set_adapter_state(model, "r", state | {key: value})
    with pytest.raises(ValueError, match=r"lacks 3 weight"):
        peft.set_adapter_state(model, "r", {"a.lora_A": state["a.lora_A"]})
    np.testing.assert_array_equal(outputs(model, x), other)
    peft.merge_adapter(model)
    peft.set_adapter_state(model, "r", state)
    np.testing.assert_allclose(outputs(model, x), before, atol=1e-5)


METHODS = [peft.LoRA, peft.DoRA, peft.IA3, peft.BitFit, peft.Bottleneck]


@pytest.mark.parametrize("method", METHODS)
def test_scales(method, tmp_path):
    model, x = dense(count=1)
    base = outputs(model, x)
    peft.get_peft_model(model, method(target_modules=["a"]))
    scramble(model, 0.5)
    whole = outputs(model, x)
    peft.set_scale(model, "default", 0.0)
    np.testing.assert_array_equal(outputs(model, x), base)
    peft.set_scale(model, "default", 0.5)
    half = outputs(model, x)
    if method is not peft.DoRA:
        np.testing.assert_allclose(half, (base + whole) / 2, atol=1e-5)
    model.save(tmp_path / "m.keras")
    np.testing.assert_allclose(outputs(keras.models.load_model(tmp_path / "m.keras"), x), half, atol=1e-6)
    if method.mergeable:
        peft.merge_adapter(model)
        np.testing.assert_allclose(outputs(model, x), half, atol=1e-5)
    peft.set_scale(model, "default", 1)
    np.testing.assert_allclose(outputs(model, x), whole, atol=1e-5)
    with pytest.raises(ValueError, match="finite number"):
        peft.set_scale(model, "default", float("nan"))


def test_a_file_without_kopt_names_it(tmp_path):
    import json
    import zipfile

    model, _, _ = two_adapters()
    model.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as file:
        config = json.loads(file.read("config.json"))
    config["registered_name"] = "nobody>PeftModel"  # as where `import kopt` has registered nothing
    with pytest.raises(TypeError, match=r"Could not locate class.*kopt\.peft.*import kopt before this file is loaded"):
        keras.saving.deserialize_keras_object(config)


def test_weights_of_other_adapters_are_named(tmp_path):
    model, _, _ = two_adapters()
    model.save_weights(tmp_path / "m.weights.h5")
    other, _ = dense()
    peft.get_peft_model(other, peft.LoRA(target_modules=["a"]), "s")
    with pytest.raises(ValueError, match=r"a: the file has no weights for s\.lora_A, s\.lora_B, but for p\.lora_A"):
        other.load_weights(tmp_path / "m.weights.h5")


def test_merging_some_and_unloading():
    model, x, _ = two_adapters()
    peft.set_adapter(model, ["p", "q"])
    both = outputs(model, x)
    peft.set_adapter(model, "p")
    with pytest.raises(ValueError, match="No adapter 'x'"):
        peft.merge_and_unload(model, ["x"])
    peft.merge_and_unload(model, ["q", "p"])
    np.testing.assert_allclose(outputs(model, x), both, atol=1e-5)


def test_a_model_around_models_with_adapters_takes_none():
    inner, _, _ = two_adapters()
    inputs = keras.Input((5,))
    outer = keras.Model(inputs, keras.layers.Dense(2)(inner(inputs)))
    with pytest.raises(ValueError, match="adapters of another model"):
        peft.get_peft_model(outer, peft.LoRA(target_modules="all-linear"))


MEMORY = """
import resource, keras, numpy as np, kopt
from kopt import peft
x = i = keras.Input((2048,))
for n in range(24): x = keras.layers.Dense(2048, name=f"d{n}", use_bias=False)(x)
m = keras.Model(i, x); peft.get_peft_model(m, peft.LoRA(target_modules="all-linear", init_lora_weights=False))
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak(); peft.merge_and_unload(m); print(before, peak())
"""


@pytest.mark.slow
def test_merging_for_good_takes_no_memory():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split()[-2:])
    assert after - before < 150  # MB; the kernels have 403

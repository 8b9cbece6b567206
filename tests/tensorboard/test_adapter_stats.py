"""The values that `AdapterStats` writes, read back from its event file."""

import keras
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import kopt
from kopt import peft
from kopt.tensorboard import AdapterStats

X = np.random.default_rng(0).normal(size=(24, 6)).astype("float32")
Y = X[:, :1] * 2 - 1


def adapted(adapter, optimizer=None):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, name="one"), keras.layers.Dense(1, name="two")])
    peft.get_peft_model(model, adapter)
    model.compile(optimizer or kopt.SGD(0.1), "mse")
    return model


def fit(model, stats, **options):
    options = {"epochs": 1, "verbose": 0, "shuffle": False, "batch_size": 4} | options
    model.fit(X, Y, callbacks=[stats], **options)


def read(log_dir):
    events = EventAccumulator(str(log_dir), size_guidance={"scalars": 0}).Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def norm(*arrays):
    return np.sqrt(sum(np.sum(np.square(a, dtype=float)) for a in arrays))


def weights(model, *names):
    return [next(v.numpy() for v in model.trainable_variables if v.path.endswith(name)) for name in names]


def test_lora_and_a_head(tmp_path):
    model = adapted(peft.LoRA(r=2, lora_alpha=6, target_modules=["one"], modules_to_save=["two"]))
    base = [v.numpy() for v in (model.get_layer("one")._kernel, *model.get_layer("two").weights[:2])]
    fit(model, AdapterStats(tmp_path, 100))
    scalars = read(tmp_path)
    a, b, kernel, bias = weights(model, "lora_A", "lora_B", "default_kernel", "default_bias")
    delta, change = 3 * a @ b, (kernel - base[1], bias - base[2])
    expected = {
        "layer/one/default_norm": norm(a, b),
        "layer/one/default_delta_to_base": norm(delta) / norm(base[0]),
        "layer/two/default_norm": norm(kernel, bias),
        "layer/two/default_delta_to_base": norm(*change) / norm(*base[1:]),
        "adapter/default/norm": norm(a, b, kernel, bias),
        "adapter/default/delta_to_base": norm(delta, *change) / norm(*base),
    }
    paths = {tag.replace("sequential/", ""): values for tag, values in scalars.items()}
    assert set(paths) == set(expected)
    for tag, value in expected.items():
        assert list(paths[tag]) == [0, 6]
        assert paths[tag][6] == pytest.approx(value, rel=1e-5), tag
    assert paths["adapter/default/delta_to_base"][0] == 0


def test_methods_without_an_effective_weight_have_norms_alone(tmp_path):
    fit(adapted(peft.Bottleneck(reduction_factor=2, target_modules=["one"])), AdapterStats(tmp_path))
    assert {tag.rsplit("/", 1)[1] for tag in read(tmp_path)} == {"norm", "default_norm"}


def test_points(tmp_path):
    fit(adapted(peft.BitFit()), AdapterStats(tmp_path / "a", 4), epochs=2)
    assert list(read(tmp_path / "a")["adapter/default/norm"]) == [0, 4, 6, 8, 12]
    model = adapted(peft.LoRA(r=1, target_modules=["one"]), kopt.SGD(0.1, gradient_accumulation_steps=2))
    fit(model, AdapterStats(tmp_path / "b", 2))
    assert list(read(tmp_path / "b")["adapter/default/norm"]) == [0, 2, 3]


def test_several_adapters(tmp_path):
    model = adapted(peft.LoRA(r=1, target_modules=["one"]))
    peft.get_peft_model(model, peft.IA3(target_modules=["two"], feedforward_modules=["two"]), "scale")
    peft.set_adapter(model, ["default", "scale"])
    model.compile(kopt.SGD(0.01), "mse")
    fit(model, AdapterStats(tmp_path))
    assert {"adapter/default/norm", "adapter/scale/delta_to_base"} <= set(read(tmp_path))


def test_models_without_adapters_are_refused(tmp_path):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="a model with an active adapter"):
        fit(model, AdapterStats(tmp_path))
    stats = AdapterStats(tmp_path)
    model = adapted(peft.BitFit())
    model.optimizer = None
    stats.set_model(model)
    with pytest.raises(ValueError, match="compiled with an optimizer"):
        stats.on_train_begin()
    with pytest.raises(ValueError, match=r"AdapterStats: every must be an integer"):
        AdapterStats(tmp_path, 0)

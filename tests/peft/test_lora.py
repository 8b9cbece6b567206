"""LoRA, DoRA and LoRA+: how they start, what their options do."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import zoo
from probes import outputs, same, scramble, values, weights
from zoo import dense

import kopt
from kopt import peft
from kopt.peft.layers.site import thin_products
from kopt.peft.model import adapters_of


@pytest.mark.parametrize("kind", [True, "gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora"])
def test_starts_as_the_identity(kind):
    model, x = dense()
    plain, before = outputs(model, x), values(model.weights)
    peft.get_peft_model(model, peft.LoRA(r=4, target_modules=["a", "b"], init_lora_weights=kind))
    np.testing.assert_allclose(outputs(model, x), plain, atol=1e-6)
    assert np.abs(weights(model, "a", "lora_A")).max() > 0
    scramble(model)
    live = outputs(model, x)
    peft.merge_adapter(model)
    np.testing.assert_allclose(outputs(model, x), live, atol=1e-5)
    peft.unload(model)
    assert same(values(model.weights), before)


def test_no_initialization_is_not_the_identity():
    model, x = dense()
    plain = outputs(model, x)
    peft.get_peft_model(model, peft.LoRA(target_modules=["a"], init_lora_weights=False))
    assert np.abs(outputs(model, x) - plain).max() > 1e-3


def test_the_default_start_is_that_of_torch():
    model, _ = dense(64, 64)
    peft.get_peft_model(model, peft.LoRA(r=16, target_modules=["a"]))
    a = weights(model, "a", "lora_A")
    assert np.abs(a).max() <= 1 / 8  # uniform in ±1/√in
    assert abs(a.std() - 1 / 8 / np.sqrt(3)) < 0.005
    peft.get_peft_model(model, peft.LoRA(r=16, target_modules=["a"], init_lora_weights="gaussian"), "g")
    assert abs(weights(model, "a", "lora_A", "g").std() - 1 / 16) < 0.005


def test_pissa_takes_the_largest_singular_values():
    model, _ = dense(6, 6, 1)
    w = model.get_layer("a").kernel.numpy()
    peft.get_peft_model(model, peft.LoRA(r=2, lora_alpha=4, target_modules=["a"], init_lora_weights="pissa"))
    u, s, v = np.linalg.svd(w)
    product = 2 * weights(model, "a", "lora_A") @ weights(model, "a", "lora_B")
    np.testing.assert_allclose(product, (u[:, :2] * s[:2]) @ v[:2], atol=1e-5)


def test_iterations_of_pissa_come_closer_to_the_largest_singular_values():
    left = {}
    for iterations in (0, 1, 30):
        keras.utils.set_random_seed(0)
        model, _ = dense(16, 16, 1)
        w = model.get_layer("a").kernel.numpy()
        kind = f"pissa_niter_{iterations}"
        peft.get_peft_model(model, peft.LoRA(r=3, lora_alpha=3, target_modules=["a"], init_lora_weights=kind))
        left[iterations] = np.linalg.norm(w - weights(model, "a", "lora_A") @ weights(model, "a", "lora_B"))
    least = np.linalg.norm(np.linalg.svd(w)[1][3:])
    assert left[0] > left[1] > left[30] * 1.001
    assert left[30] < least * 1.001


def test_seed_repeats_the_start():
    starts = []
    for _ in range(2):
        keras.utils.set_random_seed(7)
        model, _ = dense()
        peft.get_peft_model(model, peft.LoRA(target_modules=["a"]))
        starts.append(weights(model, "a", "lora_A"))
    np.testing.assert_array_equal(*starts)


@pytest.mark.parametrize(("rs", "scale"), [(False, 4.0), (True, 8.0)])
def test_scaling(rs, scale):
    model, x = dense(count=1)
    plain = outputs(model, x)
    peft.get_peft_model(model, peft.LoRA(r=4, lora_alpha=16, use_rslora=rs, target_modules=["a"]))
    scramble(model)
    change = scale * x @ weights(model, "a", "lora_A") @ weights(model, "a", "lora_B")
    np.testing.assert_allclose(outputs(model, x) - plain, change, atol=1e-5)


def test_patterns_set_rank_and_alpha():
    model, _ = dense(count=3)
    adapter = peft.LoRA(
        r=2, lora_alpha=4, target_modules=["a", "b", "c"], rank_pattern={"b": 3}, alpha_pattern={"^c": 8, "b": 6}
    )
    peft.get_peft_model(model, adapter)
    assert [weights(model, p, "lora_A").shape[1] for p in "abc"] == [2, 3, 2]
    scales = [layer.adapters["default"].scaling for layer in adapters_of(model).hosts.values()]
    assert scales == [2, 2, 4]


@pytest.mark.parametrize("method", [peft.LoRA, peft.DoRA], ids=["lora", "dora"])
def test_dropout_only_while_training(method):
    model, x = dense(count=1)
    peft.get_peft_model(model, method(lora_dropout=0.5, target_modules=["a"]))
    scramble(model)
    calm = outputs(model, x)
    np.testing.assert_array_equal(outputs(model, x), calm)
    wild = np.asarray(model(x, training=True))
    assert np.abs(wild - calm).max() > 1e-3
    means = np.mean([np.asarray(model(x, training=True)) for _ in range(60)], axis=0)
    assert np.abs(means - calm).mean() < 0.5 * np.abs(wild - calm).mean()


@pytest.mark.parametrize(("bias", "expected"), [("none", 0), ("lora_only", 6), ("all", 12)])
def test_bias(bias, expected):
    model, _ = dense()
    peft.get_peft_model(model, peft.LoRA(r=1, target_modules=["a"], bias=bias))
    assert peft.get_nb_trainable_parameters(model)[0] == 5 + 6 + expected


def test_lora_plus_learns_b_faster():
    moved, x = [], zoo.floats(8, 5)
    for rules in ((), peft.lora_plus(16)):
        keras.utils.set_random_seed(0)
        model, _ = dense(count=1)
        peft.get_peft_model(model, peft.LoRA(target_modules=["a"]))
        model.compile(kopt.SGD(1e-3, multipliers=rules), "mse")
        model.train_on_batch(x, np.ones((8, 6), "float32"))
        moved.append(np.abs(weights(model, "a", "lora_B")).max())
    assert moved[1] == pytest.approx(16 * moved[0], rel=1e-4)
    with pytest.raises(ValueError, match="ratio must be a finite number in"):
        peft.lora_plus(0.5)


@pytest.mark.parametrize("jit", [False, True])
def test_the_gradient_that_is_written_is_the_one_of_the_products(jit):
    rng = np.random.default_rng(0)
    x, a, b = (tf.constant(rng.normal(size=shape), "float32") for shape in ((9, 6), (6, 2), (2, 5)))
    scale = tf.constant(0.7)

    def gradients(product):
        @tf.function(jit_compile=jit)
        def run():
            with tf.GradientTape() as tape:
                tape.watch((x, a, b))
                loss = tf.reduce_sum(tf.sin(product(x, a, b, scale)))
            return tape.gradient(loss, (x, a, b))

        return run()

    plain = gradients(lambda x, a, b, s: s * (x @ a) @ b)
    for ours, theirs in zip(gradients(thin_products), plain, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)

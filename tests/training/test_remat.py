"""`kopt.remat`: the same training, with less kept."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import flat, network, regression

import kopt
from kopt import peft

slow = pytest.mark.slow
WAYS = [
    (False, {"run_eagerly": True}),
    pytest.param(False, {"jit_compile": False}, marks=slow),
    pytest.param(True, {"jit_compile": True}, marks=slow),
]


CALLS = []


@keras.saving.register_keras_serializable("tests")
class Block(keras.layers.Layer):
    """Two layers with dropout and statistics between them, and a mask that it hands on."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.inner = keras.layers.Dense(6, "tanh")
        self.drop = keras.layers.Dropout(0.5, seed=3)
        self.norm = keras.layers.BatchNormalization()

    def build(self, shape):
        self.inner.build(shape)
        self.norm.build(shape)

    def call(self, x):
        CALLS.append(x)
        return x + self.drop(self.norm(self.inner(x)))


def blocks(embedded=False):
    """Returns a model of two blocks."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((6,), dtype="int32" if embedded else "float32")
    x = keras.layers.Embedding(9, 6, mask_zero=True)(x) if embedded else x
    for _ in range(2):
        x = Block()(x)
    x = keras.layers.GlobalAveragePooling1D()(x) if embedded else x
    return keras.Model(inputs, keras.layers.Dense(1)(x))


def trained(model, embedded=False, optimizer=None, **how):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 9, (16, 6)) if embedded else rng.normal(size=(16, 6))
    model.compile(optimizer or kopt.SGD(0.05), "mse", **how)
    model.fit(x, np.sin(x[:, :1]), batch_size=8, shuffle=False, epochs=2, verbose=0)
    return flat(model)


@pytest.mark.parametrize(("embedded", "how"), WAYS, ids=str)
def test_weights_statistics_and_dropout_are_the_same(embedded, how):
    plain, again = blocks(embedded=embedded), blocks(embedded=embedded)
    kopt.remat(again)
    np.testing.assert_allclose(trained(again, embedded, **how), trained(plain, embedded, **how), rtol=1e-5, atol=1e-6)


def test_each_block_is_computed_twice_and_undo_ends_it():
    model = blocks()
    undo = kopt.remat(model)
    x, counts = tf.ones((2, 6)), []
    for _ in range(2):
        CALLS.clear()
        with tf.GradientTape() as tape:
            y = model(x, training=True)
        tape.gradient(y, model.trainable_variables)
        counts.append(len(CALLS))
        undo()
    assert counts == [4, 2]


@slow
def test_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    plain, again = blocks(), blocks()
    kopt.remat(again)
    np.testing.assert_allclose(trained(again, run_eagerly=True), trained(plain, run_eagerly=True), atol=1e-2)


@slow
@pytest.mark.parametrize("first", [True, False])
def test_adapters_before_and_after(first):
    done = []
    for again in (False, True):
        model = network(kopt.Adam(0.01), run_eagerly=True)
        steps = [lambda m: peft.get_peft_model(m, peft.LoRA(r=2, target_modules=".*")), kopt.remat]
        for step in steps if first else reversed(steps):
            if again or step is not kopt.remat:
                step(model)
        model.compile(kopt.Adam(0.01), "mse", run_eagerly=True)
        model.fit(regression(), shuffle=False, verbose=0)
        done.append(flat(model))
    np.testing.assert_allclose(done[1], done[0], rtol=1e-5, atol=1e-7)


@slow
@pytest.mark.parametrize("around", [kopt.SAM.of, kopt.Curvature.of])
def test_with_other_train_steps(around):
    optimizer = kopt.AdaHessian if around == kopt.Curvature.of else kopt.Adam
    plain, again = blocks(), blocks()
    kopt.remat(again)
    a, b = (trained(around(model), optimizer=optimizer(0.01), jit_compile=False) for model in (plain, again))
    np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


def test_files_are_those_of_the_plain_model(tmp_path):
    model = blocks()
    before = model.get_config()
    kopt.remat(model)
    assert model.get_config() == before
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert not any("call" in vars(layer) for layer in loaded.layers)
    np.testing.assert_array_equal(flat(loaded), flat(model))


def test_which_layers_are_chosen():
    def chosen(model, *given):
        kopt.remat(model, *given)
        return [layer.name for layer in model._flatten_layers() if "call" in vars(layer)]

    assert [name.startswith("block") for name in chosen(blocks(embedded=True))] == [True, True]
    plain = [keras.Input((3,), dtype="int32"), keras.layers.Embedding(4, 2), keras.layers.Dense(2, name="a")]
    assert chosen(keras.Sequential([*plain, keras.layers.ReLU()])) == ["a"]
    assert len(chosen(network(kopt.SGD()), [r"dense\w*$"])) == len(chosen(network(kopt.SGD()))) == 2
    with pytest.raises(ValueError, match="no layer of 'net' is found by"):
        kopt.remat(network(kopt.SGD()), ["nothing"])
    with pytest.raises(ValueError, match="has no layers with weights"):
        kopt.remat(keras.Sequential([keras.Input((3,)), keras.layers.ReLU()]))


def test_losses_of_a_call_are_refused():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activity_regularizer="l2")])
    kopt.remat(model)  # Keras adds this loss outside of the call: right
    assert float(model(tf.ones((1, 3)), training=True)[0, 0]) is not None and len(model.losses) == 1

    class Adding(keras.layers.Dense):
        def call(self, x):
            self.add_loss(tf.reduce_sum(x))
            return super().call(x)

    model = keras.Sequential([keras.Input((3,)), Adding(2)])
    kopt.remat(model)
    with pytest.raises(ValueError, match="adds losses in its call"):
        model(tf.ones((1, 3)))

"""Curvature: the estimates against known Hessians, training in every way, and what is refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import flat, network, regression

import kopt
from kopt.training.sampled_labels import sampled_loss

slow = pytest.mark.slow
SCALES = np.array([1.0, 2.0, 3.0, 4.0, 5.0])


def linear(optimizer, loss="mse", outputs=1, activation=None, probes=1, **compile_options):
    """Returns a model y = f(x w), of which the Hessian is known."""
    keras.utils.set_random_seed(3)
    dense = keras.layers.Dense(outputs, activation, use_bias=False)
    model = kopt.Curvature.of(keras.Sequential([keras.Input((5,)), dense]), probes=probes)
    model.compile(optimizer, loss, **compile_options)
    return model


def diagonal(model):
    """Returns the curvature that a rule with β₂ = 0 remembers."""
    name = "v" if isinstance(model.optimizer, kopt.AdaHessian) else "h"
    found = model.optimizer.setup.parameters[0].slots[name]["value"].numpy()
    return np.sqrt(found) if name == "v" else found


@pytest.mark.parametrize("how", [{"run_eagerly": True}, pytest.param({"jit_compile": True}, marks=slow)], ids=str)
@pytest.mark.parametrize("cls", [kopt.SophiaH, kopt.AdaHessian])
def test_the_estimate_is_exact_where_the_hessian_is_diagonal(cls, how):
    model = linear(cls(learning_rate=0.01, beta_2=0.0, every=1), **how)
    x = np.diag(SCALES).astype("float32")
    model.fit(x, np.ones((5, 1)), batch_size=5, epochs=2, verbose=0)  # Hessian 2/5 xᵀ x
    np.testing.assert_allclose(diagonal(model)[:, 0], 2 / 5 * SCALES**2, rtol=1e-5)


def test_more_probes_come_nearer_to_a_hessian_that_is_not():
    x = np.random.default_rng(0).normal(size=(32, 5)).astype("float32")
    true = 2 / 32 * (x**2).sum(axis=0)
    errors = []
    for probes in (1, 64):
        model = linear(kopt.SophiaH(beta_2=0.0), probes=probes, run_eagerly=True)
        model.fit(x, np.ones((32, 1)), batch_size=32, verbose=0)
        errors.append(np.abs(diagonal(model)[:, 0] - true).max() / true.max())
    assert errors[1] < min(0.2, errors[0] / 2)


LOSSES = {
    "mse": ("mse", 1, None),
    "bits": ("binary_crossentropy", 2, "sigmoid"),
    "logits of bits": (keras.losses.BinaryCrossentropy(from_logits=True), 2, None),
    "classes": ("sparse_categorical_crossentropy", 3, "softmax"),
    "logits of classes": (keras.losses.CategoricalCrossentropy(from_logits=True), 3, None),
}


@pytest.mark.parametrize("kind", [k if k in ("mse", "classes") else pytest.param(k, marks=slow) for k in LOSSES])
def test_labels_from_the_predictions_give_the_gauss_newton_matrix(kind):
    loss, outputs, activation = LOSSES[kind]
    draw, rng = sampled_loss(loss), np.random.default_rng(1)
    x, weight = rng.normal(size=(6, 5)), np.array([1.0, 2.0, 0.0, 1.0, 0.5, 1.5])
    w = tf.Variable(0.3 * rng.normal(size=(5, outputs)), dtype="float32")

    @tf.function(autograph=False)
    def estimate(update):
        with tf.GradientTape() as tape:
            y = keras.activations.get(activation)(tf.constant(x, "float32") @ w)
            drawn = draw(y, tf.constant(weight, "float32"), update)
        return drawn.count * tf.square(tape.gradient(drawn.value, w))

    found = np.mean([estimate(tf.constant(i)).numpy() for i in range(300)], axis=0)
    logits = x @ w.numpy()
    if kind == "mse":
        spread = np.full_like(logits, 2.0)  # the second derivative of each term
    elif "bits" in kind:
        spread = np.exp(-logits) / (1 + np.exp(-logits)) ** 2 / outputs
    else:
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        spread = p * (1 - p)
    expected = np.einsum("b,bi,bo->io", weight, x**2, spread) / len(x)
    np.testing.assert_allclose(found, expected, rtol=0.3)
    assert found.sum() == pytest.approx(expected.sum(), rel=0.1)


def test_padding_does_not_count():
    x = keras.Input((6,), dtype="int32")
    model = keras.Model(x, keras.layers.Dense(1)(keras.layers.Embedding(4, 3, mask_zero=True)(x)))
    with tf.GradientTape() as tape:
        drawn = sampled_loss("mse")(model(np.array([[1, 2, 3, 0, 0, 0]])), None, tf.constant(1))
    gradient = tf.convert_to_tensor(tape.gradient(drawn.value, model.trainable_variables[0]))
    assert not np.any(gradient[0]) and np.all(gradient[1:])


WAYS = [{"run_eagerly": True}, {"jit_compile": False}, {"jit_compile": True}]


@slow
@pytest.mark.parametrize("cls", [kopt.SophiaG, kopt.AdaHessian])
def test_every_way_to_run_agrees(cls):
    done = []
    for how in WAYS:
        model = network(cls(learning_rate=0.01, every=2), **how)
        losses = model.fit(regression(), shuffle=False, epochs=2, verbose=0).history["loss"]
        assert losses[-1] < losses[0]
        done.append(flat(model))
    np.testing.assert_allclose(done[1], done[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(done[2], done[0], rtol=1e-4, atol=1e-6)


@slow
def test_loss_statistics_and_dropout_are_those_of_a_plain_training():
    layers = keras.layers
    done = []
    for curved in (False, True):
        keras.utils.set_random_seed(0)
        net = [keras.Input((5,)), layers.Dense(4), layers.BatchNormalization(), layers.Dropout(0.5, seed=1)]
        model = keras.Sequential([*net, layers.Dense(1)])
        model = kopt.Curvature.of(model) if curved else model
        model.compile(kopt.SophiaH(0.0, every=2) if curved else kopt.SGD(0.0), "mse", metrics=["mae"])
        logs = model.fit(regression(), shuffle=False, verbose=0).history
        done.append([logs["loss"][0], logs["mae"][0], *flat(model)])
    np.testing.assert_allclose(done[1], done[0], rtol=1e-6)


@slow
def test_a_model_is_saved_and_goes_on(tmp_path):
    model = network(kopt.SophiaG(learning_rate=0.01, every=3))
    model.fit(regression(), shuffle=False, epochs=2, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for each in (model, loaded):
        each.fit(regression(), shuffle=False, verbose=0)
    np.testing.assert_array_equal(flat(model), flat(loaded))


@slow
def test_as_a_mixin_of_your_own_model():
    class Net(kopt.Curvature, keras.Model):
        probes = 3

    x = keras.Input((5,))
    net, other = Net(x, keras.layers.Dense(1, use_bias=False)(x)), linear(kopt.AdaHessian(), probes=3, run_eagerly=True)
    net.set_weights(other.get_weights())
    net.compile(kopt.AdaHessian(), "mse", run_eagerly=True)
    for model in (net, other):
        model.fit(regression(), shuffle=False, verbose=0)
    np.testing.assert_allclose(flat(net), flat(other), rtol=1e-6)


def test_an_estimate_that_is_not_finite_is_left_out():
    optimizer, weight = kopt.SophiaG(every=1), keras.Variable(np.ones(2), dtype="float32")
    optimizer.build([weight])
    for estimate in ([1.0, np.nan], [1.0, 1e30]):
        optimizer.observe(lambda c=estimate: [tf.constant(c)])
        optimizer.apply([tf.ones(2)], [weight])
        assert not np.any(optimizer.setup.parameters[0].slots["h"]["value"])
    optimizer.observe(lambda: [tf.ones(2)])
    np.testing.assert_allclose(optimizer.setup.parameters[0].slots["h"]["value"], 0.01, rtol=1e-6)


def test_before_the_first_finite_estimate_adahessian_stays_and_every_update_looks():
    optimizer, weight = kopt.AdaHessian(0.1, every=3), keras.Variable(np.ones(2), dtype="float32")
    optimizer.build([weight])
    calls = []
    for estimate in (np.inf, np.nan, 4.0, 9.0):
        optimizer.observe(lambda c=estimate: [calls.append(c) or tf.fill([2], tf.constant(c, "float32"))])
        optimizer.apply([tf.ones(2)], [weight])
        if len(calls) < 3:
            np.testing.assert_array_equal(weight, 1.0)
    assert len(calls) == 4  # updates 1, 2 and 3, for want of an estimate, and 4, one of every three
    # two estimates count, whatever came before: v / (1 - β₂ⁿ) = 4² with n = 1, and m / (1 - β₁ᵗ) = 1
    np.testing.assert_allclose(optimizer.setup.parameters[0].slots["v"]["value"], 0.999 * 0.016 + 0.081, rtol=1e-5)
    np.testing.assert_allclose(weight, 1 - 0.1 / 4 - 0.1 / np.sqrt(0.096984 / (1 - 0.999**2)), rtol=1e-3)


def test_only_every_kth_update_looks():
    calls, optimizer, weight = [], kopt.SophiaH(every=3), keras.Variable(np.ones(2))
    optimizer.build([weight])
    for i in range(7):
        optimizer.observe(lambda i=i: [calls.append(i) or tf.ones(2)])
        optimizer.apply([tf.ones(2)], [weight])
    assert calls == [0, 3, 6]


@pytest.mark.parametrize(
    ("optimizer", "loss", "error", "message"),
    [
        (kopt.Adam, "mse", TypeError, "Received: Adam$"),
        (kopt.SophiaG, "mae", ValueError, "Use SophiaH or AdaHessian"),
        (kopt.SophiaG, ["mse"], ValueError, "one output"),
        (kopt.SophiaG, keras.losses.MeanSquaredError("sum"), ValueError, "reduction='sum'"),
        (kopt.SophiaG, keras.losses.SparseCategoricalCrossentropy(ignore_class=0), ValueError, "ignore_class=0"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(optimizer, loss, error, message):
    with pytest.raises(error, match=message):
        linear(optimizer(), loss).fit(regression(), shuffle=False, verbose=0)


def test_a_plain_model_is_refused():
    model = linear(kopt.SophiaG()).model
    model.compile(kopt.SophiaG(), "mse")
    with pytest.raises(ValueError, match=r"kopt.Curvature.of\(model\)"):
        model.fit(regression(), shuffle=False, verbose=0)
    optimizer, weight = kopt.AdaHessian(), keras.Variable(np.ones(2))
    optimizer.build([weight])
    optimizer.observe(lambda: [tf.ones(2)])
    optimizer.apply([tf.ones(2)], [weight])
    with pytest.raises(ValueError, match=r"call AdaHessian\.observe before each apply"):
        optimizer.apply([tf.ones(2)], [weight])


def test_accumulation_other_rules_around_and_float16_are_refused():
    with pytest.raises(ValueError, match="it cannot accumulate"):
        kopt.SophiaG(gradient_accumulation_steps=2)
    with pytest.raises(ValueError, match="need the curvature"):
        kopt.Lookahead(kopt.SophiaG())
    keras.config.set_dtype_policy("mixed_float16")
    with pytest.raises(TypeError, match="use mixed_bfloat16"):
        linear(kopt.AdaHessian()).fit(regression(), shuffle=False, verbose=0)


@slow
def test_several_replicas_are_refused(two_devices):
    with two_devices.scope():
        model = linear(kopt.SophiaH())
    with pytest.raises(RuntimeError, match="several replicas"):
        model.fit(regression(), shuffle=False, verbose=0)

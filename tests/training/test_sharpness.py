"""SAM, ASAM and LookSAM: against NumPy, in every way to run, on every kind of model."""

import keras
import numpy as np
import pytest
from problems import flat, regression

import kopt

RATE = 0.1
WAYS = [{"run_eagerly": True}, {"jit_compile": False}, pytest.param({"jit_compile": True}, marks=pytest.mark.slow)]


def linear(cls, optimizer=None, **compile_options):
    """Returns a sharpness-aware model y = x w, whose gradients NumPy knows."""
    keras.utils.set_random_seed(3)
    plain = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1, use_bias=False)])
    model = cls.of(plain, **{"rho": 0.5} | ({"every": 3} if cls is kopt.LookSAM else {}))
    model.compile(optimizer or kopt.SGD(RATE), "mse", **compile_options)
    return model


def slope(w, x, y):
    return 2 * x.T.astype("float64") @ (x @ w - y) / len(x)


def sam(w, g, at):
    return at(w + 0.5 * g / np.linalg.norm(g))


def asam(w, g, at):
    size = np.abs(w) + 0.01
    return at(w + 0.5 * size**2 * g / np.linalg.norm(size * g))


def look():
    """Returns LookSAM of arXiv:2203.02714, Algorithm 1, with k = 3 and α = 0.7."""
    t, across = 0, None

    def gradient(w, g, at):
        nonlocal t, across
        t += 1
        if t % 3 != 1:
            return g + 0.7 * across * np.linalg.norm(g) / np.linalg.norm(across)
        sharp = sam(w, g, at)
        cosine = (sharp * g).sum() / np.linalg.norm(sharp) / np.linalg.norm(g)
        across = sharp - np.linalg.norm(sharp) * cosine * g / np.linalg.norm(g)
        return sharp

    return gradient


@pytest.mark.parametrize(("cls", "rule"), [(kopt.SAM, lambda: sam), (kopt.ASAM, lambda: asam), (kopt.LookSAM, look)])
@pytest.mark.parametrize("how", WAYS, ids=str)
def test_equals_numpy(cls, rule, how):
    model, rule = linear(cls, **how), rule()
    w = model.get_weights()[0].astype("float64")
    for x, y in regression().as_numpy_iterator():
        w = w - RATE * rule(w, slope(w, x, y), lambda v, x=x, y=y: slope(v, x, y))
    history = model.fit(regression(), shuffle=False, verbose=0)
    np.testing.assert_allclose(model.get_weights()[0], w, rtol=1e-5, atol=1e-7)
    assert np.isfinite(history.history["loss"][0])


def test_loss_and_metrics_are_those_of_the_weights_themselves():
    sharp, plain = linear(kopt.SAM, kopt.SGD(0.0)), linear(kopt.SAM, kopt.SGD(0.0))
    loss = sharp.fit(regression(), shuffle=False, verbose=0).history["loss"][0]
    assert loss == pytest.approx(plain.evaluate(regression(), verbose=0), rel=1e-6)


def test_statistics_of_batch_normalization_are_those_of_the_weights_themselves():
    keras.utils.set_random_seed(0)
    layers = [keras.Input((5,)), keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
    plain = keras.Sequential(layers)
    copy = keras.models.clone_model(plain)
    copy.set_weights(plain.get_weights())
    sharp = kopt.SAM.of(copy, rho=2.0)
    for model in (plain, sharp):
        model.compile(kopt.SGD(0.0), "mse")
        model.fit(regression(), shuffle=False, verbose=0)
    np.testing.assert_allclose(flat(sharp), flat(plain), rtol=1e-6)


def test_both_gradients_see_the_same_random_numbers():
    seen = []

    @keras.saving.register_keras_serializable("tests")
    class Recorded(keras.layers.Dropout):
        def call(self, x, training=False):
            y = super().call(x, training=training)
            seen.append(np.asarray(y) != 0)
            return y

    model = kopt.SAM.of(keras.Sequential([keras.Input((50,)), Recorded(0.5, seed=1), keras.layers.Dense(1)]))
    model.compile("sgd", "mse", run_eagerly=True)
    seen.clear()
    model.fit(np.ones((2, 50)), np.ones((2, 1)), epochs=2, verbose=0)
    first, second, third, fourth = seen[-4:]
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(third, fourth)
    assert (first != third).any()


def test_as_a_mixin_of_your_own_model():
    class Net(kopt.SAM, keras.Model):
        rho = 0.5

    keras.utils.set_random_seed(3)
    inputs = keras.Input((5,))
    net = Net(inputs, keras.layers.Dense(1, use_bias=False)(inputs))
    other = linear(kopt.SAM)
    net.set_weights(other.get_weights())
    net.compile(kopt.SGD(RATE), "mse")
    for model in (net, other):
        model.fit(regression(), shuffle=False, verbose=0)
    np.testing.assert_allclose(flat(net), flat(other), rtol=1e-6)
    Net.rho = -1.0
    net.compile("sgd", "mse")
    with pytest.raises(ValueError, match="rho must be"):
        net.fit(regression(), shuffle=False, verbose=0)


@pytest.mark.few(1)
@pytest.mark.parametrize("cls", [kopt.SAM, kopt.ASAM, kopt.LookSAM])
def test_a_model_is_saved_with_its_options_and_goes_on(cls, tmp_path):
    model = linear(cls, kopt.Adam(0.01))
    model.fit(regression(), shuffle=False, epochs=3, verbose=0)  # 12 steps: LookSAM is at the start of a round
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert type(loaded) is type(model)
    assert [getattr(loaded, k) for k in cls.fields] == [getattr(model, k) for k in cls.fields]
    for each in (model, loaded):
        each.fit(regression(), shuffle=False, verbose=0)
    np.testing.assert_array_equal(flat(model), flat(loaded))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    model = linear(kopt.SAM, kopt.Adam(0.05))
    losses = model.fit(regression(), shuffle=False, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_two_replicas(two_devices):
    with two_devices.scope():
        model = linear(kopt.SAM)
    losses = model.fit(regression(), shuffle=False, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for cls in (kopt.SAM, kopt.ASAM):
        one = linear(cls)
        with two_devices.scope():
            two = linear(cls)
        one.whole_batch = two.whole_batch = True
        for model in (one, two):
            model.fit(regression(), shuffle=False, epochs=3, verbose=0)
        np.testing.assert_allclose(flat(two), flat(one), rtol=0, atol=1e-6)
    with two_devices.scope():
        model = linear(kopt.LookSAM)
    with pytest.raises(RuntimeError, match="several replicas"):
        model.fit(regression(), shuffle=False, verbose=0)


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (kopt.SAM, {"rho": 0}, "rho must be"),
        (kopt.ASAM, {"eta": -1}, "eta must be"),
        (kopt.LookSAM, {"every": 1.5}, "every must be"),
        (kopt.SAM, {"every": 2}, "It takes rho"),
    ],
    ids=str,
)
def test_bad_options_are_refused(cls, options, message):
    with pytest.raises(ValueError, match=message):
        cls.of(keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)]), **options)


def test_the_training_part_alone_is_refused():
    with pytest.raises(TypeError, match=r"write LookSAM.of\(model\)"):
        kopt.LookSAM(linear(kopt.SAM))


def test_embeddings_and_a_multi_input_model():
    a, b = keras.Input((3,), dtype="int32"), keras.Input((2,))
    x = keras.layers.Concatenate()([keras.layers.Flatten()(keras.layers.Embedding(7, 2)(a)), b])
    model = kopt.ASAM.of(keras.Model([a, b], keras.layers.Dense(1)(x)))
    model.compile(kopt.Adam(0.05), "mse", metrics=["mae"])
    rng = np.random.default_rng(0)
    data = [rng.integers(0, 7, (32, 3)), rng.normal(size=(32, 2))]
    logs = model.fit(data, rng.normal(size=(32, 1)), epochs=10, verbose=0).history
    assert logs["loss"][-1] < logs["loss"][0] and set(logs) == {"loss", "mae"}

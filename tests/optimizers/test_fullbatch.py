"""Rules for the whole of the data: exact full-batch gradients in `fit`, line searches, and `kopt.minimize`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import flat, network, regression, variables
from references.fullbatch import lbfgs as lbfgs_reference

import kopt
from kopt.optimizers.engine.backends.backend import backend

pytestmark = pytest.mark.filterwarnings("ignore:.*compares whole losses")  # test_habits.py looks for it

LINE_SEARCHES = ("strong_wolfe", "armijo", "fixed")


def examples(count=100, seed=3):
    """Returns inputs and targets for `network`."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 5)).astype("float32")
    return x, np.tanh(x @ rng.normal(size=(5, 1))).astype("float32")


def rosenbrock(x):
    return tf.reduce_sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def quadratic(x):
    return tf.reduce_sum(tf.constant(np.logspace(0, 6, 10), x.dtype) * x * x) / 2


def logistic(v):
    """The l2-regularised logistic regression of scikit-learn's digits."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    logits = tf.constant(x / 16, v.dtype) @ tf.reshape(v[:640], (64, 10)) + v[640:]
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)) + 5e-4 * tf.reduce_sum(
        v[:640] ** 2
    )


PROBLEMS = {
    "Rosenbrock, 2": (rosenbrock, np.array([-1.2, 1.0])),
    "Rosenbrock, 100": (rosenbrock, np.tile([-1.2, 1.0], 50)),
    "quadratic, condition 1e6": (quadratic, np.ones(10)),
    "logistic regression, 650": (logistic, np.zeros(650)),
}


def scipys(function, x, dtype):
    """Returns the largest element of the gradient at each evaluation of SciPy's L-BFGS-B with its own tolerances."""
    from scipy.optimize import minimize

    norms = []

    @tf.function(autograph=False)
    def differentiate(v):
        with tf.GradientTape() as tape:
            tape.watch(v)
            value = function(v)
        return value, tape.gradient(value, v)

    def evaluate(v):
        value, g = differentiate(tf.constant(v, dtype))
        norms.append(float(tf.reduce_max(tf.abs(g))))
        return float(value), g.numpy().astype("float64")

    minimize(evaluate, x, jac=True, method="L-BFGS-B", options={"maxcor": 10, "maxiter": 5000, "maxfun": 5000})
    return norms


# ------------------------------------------------------------------------------------------------- L-BFGS


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_lbfgs_needs_at_most_half_as_many_evaluations_again_as_scipy(name, dtype):
    function, start = PROBLEMS[name]
    norms = scipys(function, start, dtype)
    budget = int(1.5 * (norms.index(min(norms)) + 1))
    (v,) = variables([start], dtype)
    result = kopt.minimize(lambda: function(v.value), variables=[v], tolerance=min(norms), max_evaluations=budget)
    print(f"{name}, {dtype}: |g| {min(norms):.1e}, SciPy {norms.index(min(norms)) + 1}, kopt {result.evaluations}")
    assert result.converged, result


@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.1, "history": 3},
        *(pytest.param(o, marks=pytest.mark.slow) for o in ({}, {"pairs": "damped"}, {"line_search": "armijo"})),
    ],
    ids=str,
)
def test_lbfgs_equals_the_two_loop_recursion(options):
    start = np.tile([-1.2, 1.0], 3)
    optimizer = kopt.LBFGS(**options)
    config = {k: getattr(optimizer, k) for k in ("history", "pairs", "line_search")} | {"learning_rate": 1.0}
    step = lbfgs_reference([start], **config, weight_decay=optimizer.weight_decay or 0.0, unit=2.0**-52)
    (v,), expected = variables([start], "float64"), start
    optimizer.build([v])
    differentiate = backend.differentiated(lambda: rosenbrock(v.value), [v], [], True)
    tf.config.run_functions_eagerly(True)
    try:
        for _ in range(25):
            value, gradients = differentiate()
            optimizer.scale_loss(value)
            optimizer.apply(gradients)
            x = tf.constant(expected)
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = rosenbrock(x)
            (expected,) = step([tape.gradient(value, x).numpy()], float(value))
            np.testing.assert_allclose(v.numpy(), expected, rtol=1e-7)
    finally:
        tf.config.run_functions_eagerly(False)
    assert np.abs(v.numpy() - start).max() > 0.1


@pytest.mark.slow
def test_lbfgs_takes_several_weights_as_one():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(9, 9))
    matrix = matrix @ matrix.T + np.eye(9)
    starts = rng.normal(size=(2, 3)), rng.normal(size=3)
    whole = variables([np.concatenate([a.ravel() for a in starts])], "float64")
    parts = variables(starts, "float64")

    def value(ws):
        x = tf.concat([tf.reshape(w.value, (-1,)) for w in ws], 0)
        return tf.reduce_sum(x * tf.linalg.matvec(tf.constant(matrix), x)) / 2 + tf.reduce_sum(tf.cosh(x))

    results = [kopt.minimize(lambda ws=ws: value(ws), variables=ws, tolerance=1e-9) for ws in (whole, parts)]
    assert results[0].converged
    assert results[0].evaluations == results[1].evaluations
    np.testing.assert_allclose(np.concatenate([w.numpy().ravel() for w in parts]), whole[0].numpy(), atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, pytest.param({"jit_compile": True}, marks=pytest.mark.slow)], ids=str)
def test_fit_ends_at_the_last_accepted_point(how):
    x, y = examples()
    model = network(kopt.LBFGS(), **how)
    losses = model.fit(x, y, batch_size=len(x), epochs=30, verbose=0).history["loss"]
    end = model.evaluate(x, y, batch_size=len(x), verbose=0)
    assert end <= min(losses) * (1 + 1e-4)
    assert end < losses[0] / 20
    again = model.fit(x, y, batch_size=len(x), epochs=10, verbose=0).history["loss"]
    assert again[0] == pytest.approx(end, rel=1e-5)
    assert min(again) < end


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{}, {"pairs": "damped"}, {"pairs": "cautious"}, {"line_search": "fixed", "pairs": "cautious"}], ids=str
)
def test_lbfgs_does_not_diverge_on_mini_batches(options):
    x, y = examples(256)
    model = network(kopt.LBFGS(**options))
    losses = model.fit(x, y, batch_size=32, epochs=15, verbose=0).history["loss"]
    assert np.nanmax(losses) < 2 * losses[0]  # a trial may overflow
    assert model.evaluate(x, y, verbose=0) < losses[0] / (100 if "line_search" in options else 2)


def test_an_overflow_shortens_the_step():
    (v,) = variables([np.array([3.0])])
    result = kopt.minimize(lambda: tf.reduce_sum(tf.exp(v.value**2)), variables=[v], optimizer=kopt.LBFGS(1000.0))
    assert result.converged


# ------------------------------------------------------------------------------------------------- the gradient of all


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["bgd", "lbfgs"])
def test_accumulated_batches_equal_one(rule):
    x, y = examples(100)
    options = {"learning_rate": 0.1} if rule == "bgd" else {}
    one = network(kopt.get(rule, **options))
    one.fit(x, y, batch_size=100, epochs=6, shuffle=False, verbose=0)
    many = network(kopt.get(rule, examples=100, batch_size=32, **options))
    many.fit(x, y, batch_size=32, epochs=6, shuffle=False, verbose=0)
    assert many.optimizer.steps_per_update == 4
    np.testing.assert_allclose(flat(many), flat(one), atol=1e-5 if rule == "lbfgs" else 1e-6)


def test_every_step_of_bgd_equals_its_gradient():
    x, y = examples(70)
    model = network(kopt.BGD(0.05, step="fixed", examples=70, batch_size=32))
    before = flat(model)
    loss, weights = lambda: tf.reduce_mean((model(x) - y) ** 2), model.trainable_weights
    differentiate = backend.differentiated(loss, weights, [], False)
    gradient = np.concatenate([g.numpy().ravel() for g in differentiate()[1]])
    model.fit(x, y, batch_size=32, epochs=1, verbose=0)
    np.testing.assert_allclose(flat(model), before - 0.05 * gradient, atol=1e-7)


@pytest.mark.parametrize("step", ["armijo", "barzilai_borwein"])
def test_bgd_finds_its_step(step):
    rng = np.random.default_rng(1)
    (v,) = variables([rng.normal(size=20)], "float64")
    h = tf.constant(np.linspace(1, 50, 20))
    result = kopt.minimize(
        lambda: tf.reduce_sum(h * v.value**2) / 2, variables=[v], optimizer=kopt.BGD(10.0, step=step), tolerance=1e-6
    )
    assert result.converged, result


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": 10}, "belong together"),
        ({"batch_size": 10}, "belong together"),
        ({"examples": 10, "batch_size": 4, "steps_per_update": 2}, "differ"),
        ({"steps_per_update": 2, "gradient_accumulation_steps": 3}, "differ"),
        ({"steps_per_update": 0}, "steps_per_update"),
    ],
    ids=str,
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        kopt.BGD(**options)


def test_the_loss_must_be_shown():
    optimizer = kopt.LBFGS()
    with pytest.raises(ValueError, match="scale_loss"):
        optimizer.apply([tf.ones(2)], variables([np.ones(2)]))
    keras.config.set_dtype_policy("mixed_float16")
    with pytest.raises(ValueError, match=r"kopt\.LossScaleOptimizer"):
        network(kopt.LBFGS()).fit(regression(), shuffle=False, verbose=0)


@pytest.mark.slow
def test_the_loss_of_two_replicas_is_that_of_one(two_devices):
    one = network(kopt.LBFGS())
    one.fit(regression(), shuffle=False, epochs=3, verbose=0)
    with two_devices.scope():
        two = network(kopt.LBFGS())
    two.fit(regression(), shuffle=False, epochs=3, verbose=0)
    np.testing.assert_allclose(flat(two), flat(one), atol=1e-5)


# ------------------------------------------------------------------------------------------------- minimize


@pytest.mark.few(1)
@pytest.mark.parametrize("compiled", [True, False])
def test_minimize_a_model(compiled):
    x, y = examples()
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1, kernel_regularizer="l2")])
    model.compile("sgd", "mse")
    result = kopt.minimize(model, x, y, tolerance=1e-4, compiled=compiled)
    assert result.converged
    assert result.gradient_norm <= 1e-4
    assert result.loss == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-5)
    kernel = model.layers[0].kernel.numpy()
    residual = x @ kernel + model.layers[0].bias.numpy() - y
    np.testing.assert_allclose(2 * x.T @ residual / len(x) + 0.02 * kernel, 0, atol=2e-4)


def test_minimize_in_batches_with_a_given_loss_and_any_optimizer():
    x, y = examples()
    results = []
    for batch_size in (None, 32):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)])
        results.append(
            kopt.minimize(model, x, y, loss="mse", optimizer=kopt.Adam(0.05), max_evaluations=20, batch_size=batch_size)
        )
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-4)
    assert results[0].evaluations == 20
    assert not results[0].converged
    assert "20 evaluations" in results[0].reason


def test_minimize_says_that_it_cannot_go_on():
    (v,) = variables([np.array([3.0, 7.0])])
    result = kopt.minimize(lambda: tf.reduce_sum((v.value**2 - 2) ** 2), variables=[v], tolerance=0.0)
    assert not result.converged
    assert "precision" in result.reason
    np.testing.assert_allclose(v.numpy(), 2**0.5, rtol=1e-6)


def test_minimize_refuses_what_it_cannot_use():
    (v,) = variables([np.ones(2)])
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)])
    x, y = examples(4)
    square = lambda: tf.reduce_sum(v.value**2)  # noqa: E731
    used = kopt.LBFGS()
    used.scale_loss(tf.constant(1.0)), used.apply([tf.ones(2)], [v])
    for error, message, call in [
        (TypeError, "kopt optimizer", lambda: kopt.minimize(square, variables=[v], optimizer=keras.optimizers.SGD())),
        (TypeError, "model or a function", lambda: kopt.minimize(3.0, variables=[v])),
        (ValueError, "no step yet", lambda: kopt.minimize(square, variables=[v], optimizer=used)),
        (ValueError, "variables", lambda: kopt.minimize(square)),
        (ValueError, "belong to a model", lambda: kopt.minimize(square, x, variables=[v])),
        (ValueError, "scalar", lambda: kopt.minimize(lambda: v.value**2, variables=[v])),
        (ValueError, "does not depend", lambda: kopt.minimize(lambda: tf.constant(1.0), variables=[v])),
        (ValueError, "tolerance", lambda: kopt.minimize(square, variables=[v], tolerance=-1)),
        (ValueError, "max_evaluations", lambda: kopt.minimize(square, variables=[v], max_evaluations=0)),
        (ValueError, "not compiled", lambda: kopt.minimize(model, x, y)),
        (ValueError, "needs data", lambda: kopt.minimize(model)),
        (ValueError, "same number", lambda: kopt.minimize(model, x, y[:2], loss="mse")),
        (ValueError, "trainable", lambda: kopt.minimize(model, x, y, loss="mse", variables=[v])),
    ]:
        with pytest.raises(error, match=message):
            call()

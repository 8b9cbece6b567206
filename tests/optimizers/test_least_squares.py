"""`kopt.LevenbergMarquardt`: regressions with certified results, models, products, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import kopt
from benchmarks.least_squares import MODELS, Problem, digits, fitted
from kopt.optimizers.full_batch.bidiagonal import bidiagonal

# Statistical Reference Datasets of NIST, public domain, https://www.itl.nist.gov/div898/strd/nls/nls_main.shtml;
# benchmarks/least_squares.py fits all 27.
MISRA_X = [77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760.0]
MISRA_Y = [10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78]
MGH10_X = np.arange(50.0, 126.0, 5.0)
MGH10_Y = [34780, 28610, 23650, 19630, 16370, 13720, 11540, 9744, 8261, 7030, 6005, 5147, 4427, 3820, 3307, 2872]
BOXBOD = [1.0, 2.0, 3.0, 5.0, 7.0, 10.0], [109.0, 149.0, 149.0, 191.0, 213.0, 224.0]
PROBLEMS = {
    "Misra1a, far": ("Misra1a", [500, 1e-4], [2.3894212918e02, 5.5015643181e-04], MISRA_X, MISRA_Y),
    "Misra1a, near": ("Misra1a", [250, 5e-4], [2.3894212918e02, 5.5015643181e-04], MISRA_X, MISRA_Y),
    "MGH10, near": ("MGH10", [0.02, 4000, 250], [5.6096364710e-03, 6.1813463463e03, 3.4522363462e02], MGH10_X, MGH10_Y),
    "BoxBOD, near": ("BoxBOD", [100, 0.75], [2.1380940889e02, 5.4723748542e-01], *BOXBOD),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_certified_parameters(name):
    model, start, certified, x, y = PROBLEMS[name]
    problem = Problem(MODELS[model], (), np.array(certified), np.array(x, "float64"), np.array(y, "float64"))
    b, result = fitted(problem, np.array(start, "float64"))
    assert digits(b, problem.certified) > 7
    assert result.reason == "no step decreases the loss at this precision"


def network(dtype="float64", units=6):
    keras.utils.set_random_seed(2)
    layers = [keras.layers.Dense(units, "tanh", dtype=dtype), keras.layers.Dense(1, dtype=dtype)]
    return keras.Sequential([keras.Input((2,), dtype=dtype), *layers])


def data(count=40):
    x = np.random.default_rng(0).uniform(-1, 1, (count, 2))
    return x, np.sin(3 * x[:, :1]) * x[:, 1:]


@pytest.mark.slow
def test_a_network_is_fitted_to_the_last_digit():
    x, teacher = data()[0], network(units=2)
    y = teacher(x).numpy()
    losses = []
    for optimizer in (kopt.LevenbergMarquardt(), kopt.LBFGS()):
        student = network(units=2)
        student.set_weights([w + 0.1 * np.cos(np.arange(w.size)).reshape(w.shape) for w in teacher.get_weights()])
        student.compile(loss="mse")
        result = kopt.minimize(student, x, y, optimizer=optimizer, tolerance=0.0, max_evaluations=20)
        there = np.mean((student(x).numpy() - y) ** 2)
        np.testing.assert_allclose(result.loss, there, rtol=1e-4, atol=1e-30)  # that of L-BFGS is float32
        losses.append(result.loss)
    assert losses[0] < 1e-24
    assert losses[1] > 1e-10


@pytest.mark.parametrize("compiled", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_batches_weights_and_repeated_rows_agree(compiled):
    x, y = data(12)
    chosen = {"loss": "mse", "optimizer": kopt.LevenbergMarquardt(products=3), "tolerance": 0.0, "max_evaluations": 4}
    counts = np.array([1, 2, 3] * 4)
    ways = [
        {"x": np.repeat(x, counts, 0), "y": np.repeat(y, counts, 0)},
        {"x": np.repeat(x, counts, 0), "y": np.repeat(y, counts), "batch_size": 7},
        {"x": x, "y": y, "sample_weight": counts / 2},
        {"x": x, "y": y, "sample_weight": counts / 2, "batch_size": 5},
    ]
    losses = []
    for way in ways:
        model = network()
        result = kopt.minimize(model, **way, **chosen, compiled=compiled)
        losses.append(result.loss)
        assert result.evaluations == 4
    np.testing.assert_allclose(losses, losses[0], rtol=1e-8)


def test_the_loss_never_rises_and_the_weights_are_those_of_the_result():
    model, (x, y) = network("float32"), data()
    losses = [
        kopt.minimize(model, x, y, loss="mse", optimizer=kopt.LevenbergMarquardt(), max_evaluations=4).loss
        for _ in range(4)
    ]
    assert losses == sorted(losses, reverse=True)
    np.testing.assert_allclose(np.mean((model.predict(x, verbose=0) - y) ** 2), losses[-1], rtol=1e-5)


def test_a_few_products_suffice_where_few_directions_matter():
    rng = np.random.default_rng(1)
    a = rng.normal(size=(30, 3)) @ rng.normal(size=(3, 20))
    target = ops.convert_to_tensor(a @ rng.normal(size=20) + 0.01)
    w, tall = keras.Variable(np.zeros(20), dtype="float64"), ops.convert_to_tensor(a)
    chosen = kopt.LevenbergMarquardt(products=3)
    result = kopt.minimize(lambda: ops.matmul(tall, w.value) - target, variables=[w], optimizer=chosen, tolerance=1e-8)
    best = np.asarray(target) - a @ np.linalg.pinv(a) @ np.asarray(target)
    assert result.converged
    np.testing.assert_allclose(result.loss, best @ best, rtol=1e-9)


def test_bidiagonalization_is_the_matrix():
    rng = np.random.default_rng(3)
    a, r = rng.normal(size=(9, 5)) * 10.0 ** np.arange(5), rng.normal(size=9)
    space = bidiagonal(lambda v: a @ v, lambda u: a.T @ u, r, 50)
    np.testing.assert_allclose(space.rows @ space.rows.T, np.eye(5), atol=1e-14)
    np.testing.assert_allclose(space.column_norms(), np.linalg.norm(a, axis=0), rtol=1e-9)
    np.testing.assert_allclose(np.linalg.svd(space.small)[1], np.linalg.svd(a)[1], rtol=1e-9)


def test_what_it_cannot_fit_is_an_error():
    v, w = keras.Variable(np.ones(3)), keras.Variable(np.ones(2))
    model, (x, y) = network("float32"), data()
    two = keras.Model(model.inputs, [model.outputs[0], model.outputs[0]])
    penalized = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_regularizer="l2")])
    chosen = kopt.LevenbergMarquardt()
    for error, message, call in [
        (ValueError, "minimizes squares", lambda: kopt.minimize(model, x, y, loss="mae", optimizer=chosen)),
        (ValueError, "not compiled", lambda: kopt.minimize(model, x, y, optimizer=chosen)),
        (ValueError, "2 outputs", lambda: kopt.minimize(two, x, y, loss="mse", optimizer=chosen)),
        (ValueError, "1 losses", lambda: kopt.minimize(penalized, x, y, loss="mse", optimizer=chosen)),
        (ValueError, "does not depend", lambda: kopt.minimize(lambda: v.value, variables=[v, w], optimizer=chosen)),
        (ValueError, "radius", lambda: kopt.LevenbergMarquardt(radius=0.0)),
        (ValueError, "products", lambda: kopt.LevenbergMarquardt(products=0)),
    ]:
        with pytest.raises(error, match=message):
            call()
    bad = kopt.minimize(lambda: tf.math.log(-v.value), variables=[v], optimizer=chosen)
    assert bad.reason == "loss or gradient are not finite at the start"
    assert repr(chosen) == "LevenbergMarquardt(radius=100.0, products=50)"


@pytest.mark.slow
def test_in_fit_it_converges_where_adam_does_not(tmp_path):
    x, teacher = data()[0].astype("float32"), network("float32", units=2)
    y, losses = teacher(x).numpy(), {}
    for name, optimizer, epochs in (("LM", kopt.LevenbergMarquardt(), 12), ("Adam", kopt.Adam(0.01), 300)):
        student = network("float32", units=2)
        student.set_weights([w + 0.1 * np.cos(np.arange(w.size)).reshape(w.shape) for w in teacher.get_weights()])
        student.compile(optimizer, "mse")
        losses[name] = student.fit(x, y, batch_size=40, epochs=epochs, verbose=0).history["loss"]
        if name == "LM":
            student.save(tmp_path / "m.keras")
            state = [v.numpy() for v in optimizer.variables]
    assert losses["LM"][-1] < 1e-8 < losses["Adam"][-1]
    assert all(b <= a * (1 + 1e-4) + 1e-12 for a, b in zip(losses["LM"], losses["LM"][1:], strict=False))
    loaded = keras.saving.load_model(tmp_path / "m.keras").optimizer
    assert (int(loaded.iterations), loaded.products) == (12, 50)
    for a, b in zip(loaded.variables, state, strict=True):
        np.testing.assert_array_equal(a, b)


def test_in_fit_it_makes_the_steps_of_minimize():
    (x, y), weight = data(), np.linspace(0.5, 1.5, 40)
    one, other = network(), network()
    chosen = kopt.LevenbergMarquardt(products=8, radius=0.01)
    one.compile(kopt.LevenbergMarquardt(products=8, radius=0.01), "mse", run_eagerly=True)
    one.fit(x, y, sample_weight=weight, batch_size=40, shuffle=False, epochs=2, verbose=0)
    options = {"loss": "mse", "sample_weight": weight, "tolerance": 0.0}
    kopt.minimize(other, x, y, optimizer=chosen, max_evaluations=3, **options)  # two steps, none refused
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def test_what_it_cannot_fit_in_fit_is_an_error():
    x, y = data()

    def fit(loss="mse", batch_size=40, **how):
        model = network("float32")
        model.compile(kopt.LevenbergMarquardt(), loss, **how)
        model.fit(x, y, batch_size=batch_size, verbose=0)

    for error, message, options in [
        (ValueError, "minimizes squares", {"loss": "mae", "run_eagerly": True}),
        (ValueError, r"batch_size=len\(x\)", {"batch_size": 20}),
        (ValueError, "jit_compile=False", {"jit_compile": True}),
    ]:
        with pytest.raises(error, match=message):
            fit(**options)
    with pytest.raises(RuntimeError, match=r"or in kopt\.minimize"):
        kopt.LevenbergMarquardt().apply([tf.ones(2)], [keras.Variable(np.ones(2))])


@pytest.mark.slow
def test_a_network_solves_a_differential_equation():
    """u' = u (1 - u), u(0) = ½, of which the solution is 1/(1 + e⁻ᵗ): the residuals at 20 points are fitted to zero."""
    t = tf.constant(np.linspace(0, 3, 20)[:, None])
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(8, "tanh", dtype="float64"), keras.layers.Dense(1, dtype="float64")]
    model = keras.Sequential([keras.Input((1,), dtype="float64"), *layers])

    def residuals():
        with tf.GradientTape() as tape:
            tape.watch(t)
            u = 0.5 + t * model(t)
        return tape.gradient(u, t) - u * (1 - u)

    chosen = kopt.LevenbergMarquardt(radius=0.1)
    result = kopt.minimize(residuals, variables=model.trainable_variables, optimizer=chosen, max_evaluations=100)
    assert result.loss < 1e-9
    found = 0.5 + t.numpy() * model(t).numpy()
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-t.numpy())), atol=1e-5)

"""L-BFGS-B: minima within bounds, in as many evaluations as SciPy's."""

import keras
import numpy as np
import pytest
from keras import ops
from problems import network, regression

import kopt
from benchmarks import bounded
from kopt.optimizers.full_batch.bounded_steps import Box, Curvature, cauchy_point, lowest_point

# Evaluations of SciPy 1.17's L-BFGS-B, and the least value: `python -m benchmarks.bounded`.
KNOWN = {
    "HS1, Rosenbrock": (47, 0.0),
    "HS2, Rosenbrock": (16, 4.9412293),
    "HS3": (4, 0.0),
    "HS4": (2, 8 / 3),
    "HS5": (8, -(np.sqrt(3) / 2 + np.pi / 3)),
    "HS38, Colville": (33, 0.0),
    "HS45": (10, 1.0),
    "HS110": (7, -45.77846971),
    "Beale, x ≤ 2": (10, 0.52334484),
    "extended Rosenbrock, 25": (31, 0.0),
    "quadratic, 100": (49, -5942.7874),
    "non-negative squares, 50": (100, 0.28137312),
}
FEW = ("HS2, Rosenbrock", "HS45", "quadratic, 100")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in KNOWN])
def test_minima_are_found_in_as_many_evaluations_as_by_scipy(name):
    problem, (evaluations, least) = bounded.problems()[name], KNOWN[name]
    x, found = bounded.by_kopt(problem)
    assert found.converged, found.reason
    assert found.loss == pytest.approx(least, rel=1e-7, abs=1e-9)
    assert found.evaluations <= 1.2 * evaluations
    assert np.all(x >= problem.lower) and np.all(x <= problem.upper)
    assert found.gradient_norm <= bounded.TOLERANCE


def test_the_cauchy_point_is_the_first_minimum_of_the_bent_path():
    rng = np.random.default_rng(0)
    for _ in range(6):
        steps, size = rng.normal(size=(3, 6)), 6
        hessian = (lambda a: a @ a.T + np.eye(size))(rng.normal(size=(size, size)))
        b = Curvature.of(steps, steps @ hessian)
        box, x, g = Box(np.full(size, -0.5), np.full(size, 0.4)), rng.uniform(-0.5, 0.4, size), rng.normal(size=size)
        dense = b.theta * np.eye(size) - b.w @ b.m @ b.w.T
        np.testing.assert_allclose(dense @ steps[-1], steps[-1] @ hessian, rtol=1e-9)  # the secant equation

        def model(z, x=x, g=g, dense=dense):
            return g @ (z - x) + (z - x) @ dense @ (z - x) / 2

        path = np.array([model(box.nearest(x - t * g)) for t in np.linspace(0, 3, 3001)])
        first = next(i for i in range(len(path) - 1) if path[i + 1] > path[i]) if (np.diff(path) > 0).any() else -1
        point, c = cauchy_point(x, g, box, b)
        assert model(point) == pytest.approx(path[first], abs=1e-4)
        np.testing.assert_allclose(c, b.w.T @ (point - x), atol=1e-9)
        lowest = lowest_point(x, g, box, b)
        assert model(lowest) <= model(point) + 1e-12 or (lowest - x) @ g < 0
        np.testing.assert_array_equal(lowest, box.nearest(lowest))


def test_bounds_of_each_variable_and_those_that_are_none():
    a, b = keras.Variable(np.full((2, 2), 5.0), dtype="float32"), keras.Variable(3.0)
    target = np.array([[-2.0, 0.1], [0.2, 7.0]], "float32")
    optimizer = kopt.LBFGSB(lower=[np.array([[0, 0.3], [-1, 0]]), None], upper=[1.0, -1.0])
    found = kopt.minimize(
        lambda: ops.sum((a - target) ** 2) + (b + 0.5) ** 2, variables=[a, b], optimizer=optimizer, tolerance=1e-4
    )
    assert found.converged
    np.testing.assert_allclose(a.numpy(), [[0, 0.3], [0.2, 1]], atol=1e-5)
    assert b.numpy() == -1.0
    assert np.all(a.numpy().astype("float64") >= [[0, 0.3], [-1, 0]])  # 0.3 of float32 would be above, 0.1 below


def test_bounds_are_rounded_inwards():
    for value in (0.1, 0.3, 1 / 3):
        x = keras.Variable(0.0)
        kopt.minimize(lambda x=x: (x + 1) ** 2, variables=[x], optimizer=kopt.LBFGSB(lower=value))
        assert value <= float(x.numpy()) < value + 1e-7
        kopt.minimize(lambda x=x: (x - 1) ** 2, variables=[x], optimizer=kopt.LBFGSB(upper=value))
        assert value - 1e-7 < float(x.numpy()) <= value


def test_without_bounds_it_is_lbfgs():
    x = keras.Variable([-1.2, 1.0], dtype="float64")
    found = kopt.minimize(lambda: bounded._rosenbrock(x.value), variables=[x], optimizer=kopt.LBFGSB(), tolerance=1e-8)
    assert found.converged and found.evaluations < 60
    np.testing.assert_allclose(x.numpy(), 1.0, rtol=1e-7)


def test_weights_of_a_model_stay_positive():
    model, (x, y) = network("sgd"), next(iter(regression(64)))
    first = model.evaluate(x, y, verbose=0)
    found = kopt.minimize(model, x, y, optimizer=kopt.LBFGSB(lower=0.0), max_evaluations=60, batch_size=20)
    assert all((v.numpy() >= 0).all() for v in model.trainable_variables)
    assert any((v.numpy() == 0).any() for v in model.trainable_variables)
    assert found.loss < first
    assert model.evaluate(x, y, verbose=0) == pytest.approx(found.loss, rel=1e-4)


def test_what_ends_a_run_early():
    x = keras.Variable([-1.2, 1.0], dtype="float64")
    found = kopt.minimize(
        lambda: bounded._rosenbrock(x.value), variables=[x], optimizer=kopt.LBFGSB(lower=-2), max_evaluations=7
    )
    assert not found.converged and found.evaluations == 7 and "7 evaluations" in found.reason
    assert float(bounded._rosenbrock(x.numpy())) == pytest.approx(found.loss)  # at the best point, not at a trial
    x.assign([-1.2, 1.0])
    found = kopt.minimize(lambda: x[0] * np.nan, variables=[x], optimizer=kopt.LBFGSB())
    assert "not finite" in found.reason
    x.assign([2.0, 2.0])
    found = kopt.minimize(lambda: ops.sum(ops.log(x - 1)), variables=[x], optimizer=kopt.LBFGSB(upper=3.0))
    assert not found.converged and np.isfinite(found.loss)  # it falls without end


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lower": [0.0]}, "lower has 1 entries for 2 variables"),
        ({"upper": np.ones(2)}, "upper is one array for 2 variables"),
        ({"lower": [np.ones(3), None]}, r"lower must be a number, an array of shape \(2,\) or None"),
        ({"lower": "a"}, "lower must be a number"),
        ({"lower": np.nan}, "NaN"),
        ({"lower": 1.0, "upper": 0.0}, "above its upper"),
    ],
    ids=str,
)
def test_bad_bounds_are_refused(options, message):
    a, b = keras.Variable([1.0, 2.0]), keras.Variable(1.0)
    with pytest.raises(ValueError, match=message):
        kopt.minimize(lambda: ops.sum(a) + b, variables=[a, b], optimizer=kopt.LBFGSB(**options))


def test_it_says_how_it_was_made():
    assert repr(kopt.LBFGSB(lower=0.0)) == "LBFGSB(lower=0.0, upper=None, history=10)"
    with pytest.raises(ValueError, match="history"):
        kopt.LBFGSB(history=0)

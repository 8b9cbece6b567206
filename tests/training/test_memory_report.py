"""`kopt.memory_report`: what is counted, what is predicted, and that nothing is changed."""

import keras
import numpy as np
import pytest
from problems import flat, network

import kopt


@pytest.fixture(scope="module")
def wide():
    """A model of 34 MB, and its report."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((1024,)), keras.layers.Dense(4096), keras.layers.Dense(1024)])
    model.compile("sgd", "mse")
    x = np.ones((8, 1024), "float32")
    before = flat(model)
    return model, kopt.memory_report(model, kopt.Adam(), (x, x)), before


@pytest.mark.slow
def test_the_parts_are_those_of_the_model(wide):
    model, report, before = wide
    trained = 4 * model.count_params()
    assert trained <= report.weights <= trained + 100 and report.gradients == trained
    assert report.state == kopt.state_bytes(kopt.Adam(), model) == 2 * trained
    assert report.update == report.state  # so little is updated at once
    parts = (report.weights, report.gradients, report.state, report.update, report.activations)
    assert report.peak == sum(parts) == report.peaks["Adam"]
    assert 0 <= report.activations < 4e8
    np.testing.assert_array_equal(flat(model), before)
    assert type(model.optimizer) is keras.optimizers.SGD and model.train_function is None


@pytest.mark.slow
def test_rules_differ_by_their_state(wide):
    report = wide[1]
    assert {cls.__name__ for cls in kopt.registry().values() if cls.__module__.startswith("kopt.")} <= {*report.peaks}
    assert list(report.peaks.values()) == sorted(report.peaks.values())
    for name, share in (("SGD", 0), ("Lion", 1), ("AdEMAMix", 3)):
        assert report.peaks[name] - report.peaks["SGD"] == 2 * share * report.gradients
    small = report.peaks["Adafactor"] - report.peaks["SGD"]
    assert 3 < small / report.gradients < 3.02, "three arrays of what is moved together, and two vectors a kernel"


@pytest.mark.slow
def test_it_is_read_at_a_glance(wide):
    text = str(wide[1])
    assert text.startswith("A training step with Adam, in MB:\n  weights")
    assert f"{wide[1].peaks['Lion'] / 1e6:,.1f}" in text


@pytest.mark.slow
def test_a_training_goes_on_as_if_nobody_had_asked():
    x, y = np.ones((4, 5), "float32"), np.ones((4, 1), "float32")
    asked, other = network(kopt.Adam(0.1)), network(kopt.Adam(0.1))
    for model in (asked, other):
        model.train_on_batch(x, y)
    kopt.memory_report(asked, kopt.SGD(), (x, y))
    for model in (asked, other):
        model.train_on_batch(x, y)
    np.testing.assert_array_equal(flat(asked), flat(other))


def test_what_it_takes():
    model = network(kopt.SGD())
    with pytest.raises(ValueError, match="optimizer of kopt"):
        kopt.memory_report(model, keras.optimizers.Adam(), ())
    with pytest.raises(ValueError, match="built and compiled"):
        kopt.memory_report(keras.Sequential([keras.layers.Dense(2)]), kopt.Adam(), ())

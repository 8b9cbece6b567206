"""What users of Keras are used to do with an optimizer."""

import functools
import logging
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import descend, flat, network, regression, rules, variables
from registry import every_rule_in_turn

import kopt

CosineDecay = keras.optimizers.schedules.CosineDecay


def apply(optimizer, v, gradient, times=1):
    """Applies a gradient a few times and returns the weight."""
    for _ in range(times):
        optimizer.apply([tf.constant(gradient, "float32")], [v])
    return v.numpy()


# ------------------------------------------------------------------------------------------------- rates and decays


def test_a_schedule_takes_the_place_of_a_number():
    optimizer, (v,) = kopt.SGD(1.0), variables([np.zeros(2)])
    apply(optimizer, v, np.ones(2))
    optimizer.learning_rate = CosineDecay(0.5, 10)
    np.testing.assert_allclose(apply(optimizer, v, np.ones(2)), -1 - float(CosineDecay(0.5, 10)(1)), rtol=1e-6)
    assert "learning_rate" not in optimizer._held.variables(optimizer)
    restored = kopt.SGD.from_config(optimizer.get_config())
    assert restored.get_config()["learning_rate"]["class_name"] == "CosineDecay"


def test_a_model_trained_with_the_old_rate_says_so():
    model = network(kopt.Adam(0.1))
    model.fit(regression(), shuffle=False, verbose=0)
    with pytest.warns(UserWarning, match=r"Call model\.compile"):
        model.optimizer.learning_rate = CosineDecay(0.0, 10)
    model.compile(model.optimizer, "mse")
    before = flat(model)
    model.fit(regression(), shuffle=False, verbose=0)
    np.testing.assert_array_equal(flat(model), before)


@pytest.mark.parametrize("name", rules())
def test_no_decay_may_be_said_as_none(name):
    optimizer = kopt.get(name, weight_decay=None)
    assert optimizer.weight_decay is None


@pytest.mark.few(4)
@pytest.mark.parametrize("name", ["sgd", "adabound", "adaboundw", "lookahead", "route", "madgrad", "adan"])
@pytest.mark.parametrize("mode", ["eager", "xla", pytest.param("graph", marks=pytest.mark.slow)])
def test_decay_may_follow_a_schedule(name, mode):
    piecewise = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.5, 0.25])
    steps = []
    for decay in (piecewise, 0.5):
        optimizer, (v,) = kopt.get(name, weight_decay=decay, learning_rate=0.125), variables([np.full((2, 3), 2.0)])
        optimizer.build([v])

        step = functools.partial(optimizer.apply, [tf.ones((2, 3))], [v])
        run = step if mode == "eager" else tf.function(step, jit_compile=mode == "xla")
        path = []
        for _ in range(3):
            run()
            path.append(v.numpy())
        steps.append(path)
    follows, constant = steps
    np.testing.assert_allclose(follows[0], constant[0], rtol=1e-6)
    np.testing.assert_allclose(follows[1], constant[1], rtol=1e-6)  # Keras' boundary belongs to the piece before
    assert np.abs(follows[2] - constant[2]).max() > 1e-5


def test_a_decay_that_follows_a_schedule_is_saved(tmp_path):
    model = network(kopt.AdamW(0.1, weight_decay=CosineDecay(0.5, 8)))
    model.fit(regression(), shuffle=False, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for m in (model, loaded):
        m.fit(regression(), shuffle=False, verbose=0)
    np.testing.assert_array_equal(flat(model), flat(loaded))
    with pytest.raises(ValueError, match="weight_decay must be a number"):
        kopt.LBFGS(weight_decay=CosineDecay(0.5, 8))


@every_rule_in_turn
def test_a_rate_of_zero(name):
    (w,) = descend(kopt.get(name, learning_rate=0.0), [np.ones((2, 2))], [[np.ones((2, 2))]])
    assert np.isfinite(w).all()
    assert kopt.AdaBound(0.0).base_learning_rate == 1e-3


# ------------------------------------------------------------------------------------------------- gradients, models


def test_rows_may_be_given_as_tuples():
    (v,) = variables([np.zeros((4, 3))])
    kopt.SGD(1.0).apply([tf.IndexedSlices(tf.ones((2, 3)), (0, 2), (4, 3))], [v])
    np.testing.assert_array_equal(v.numpy()[:, 0], [-1, 0, -1, 0])


OTHERS = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("madgrad", "schedulefreeadamw", "lookahead", "mechanic")
]


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["adam", "ftrl", *OTHERS])
def test_a_model_without_an_input_is_built_by_fit(name):
    x, y = np.random.default_rng(0).normal(size=(32, 5)), np.ones((32, 1))
    weights = []
    for given in ([keras.Input((5,))], []):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([*given, keras.layers.Dense(3), keras.layers.Dense(1)])
        model.compile(kopt.get(name), "mse")
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
        weights.append(flat(model))
    np.testing.assert_allclose(*weights, rtol=1e-6)


def test_a_model_without_an_input_and_a_compiled_step():
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(kopt.Lookahead("sgd"), "mse", jit_compile=True)
    with pytest.raises(ValueError, match="Give the model an Input"):
        model.fit(np.ones((8, 2)), np.ones((8, 1)), verbose=0)


# ------------------------------------------------------------------------------------------------- warnings


@pytest.mark.few(1)
@pytest.mark.parametrize("optimizer", [kopt.LBFGS, kopt.BGD, lambda: kopt.BGD(step="fixed")])
def test_full_batch_rules_warn_of_mini_batches(optimizer):
    with pytest.warns(UserWarning, match="sees 1 of the 4 batches of an epoch"):
        network(optimizer()).fit(regression(), shuffle=False, verbose=0)


@pytest.mark.parametrize("rule", [kopt.BGD, pytest.param(kopt.LBFGS, marks=pytest.mark.slow)])
def test_steps_of_an_epoch_are_no_batches(rule):
    whole = regression().unbatch().batch(64).repeat()  # each of five steps sees all examples
    network(rule()).fit(whole, steps_per_epoch=5, shuffle=False, verbose=0)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: kopt.LBFGS(examples=64, batch_size=16),
        lambda: kopt.BGD(gradient_accumulation_steps=4),
        lambda: kopt.LBFGS(pairs="cautious", line_search="fixed"),
    ],
)
def test_no_warning_where_all_is_well(optimizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network(optimizer()).fit(regression(), shuffle=False, verbose=0)


@pytest.mark.slow
def test_many_optimizers_are_no_reason_for_a_warning(caplog):
    logger = tf.get_logger()
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(8):
                optimizer, (v,) = kopt.Adam(on_nonfinite="skip"), variables([np.ones(2)])
                apply(optimizer, v, np.ones(2), times=2)
                optimizer.statistics()
    finally:
        logger.removeHandler(caplog.handler)
    assert "retracing" not in caplog.text


# ------------------------------------------------------------------------------------------------- exclusion


def test_exclusion_means_these_variables():
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, use_bias=False, name="dense")], name="enc")
    top = keras.layers.Dense(3, use_bias=False, name="dense")
    model = keras.Sequential([keras.Input((3,)), inner, top])
    optimizer = kopt.AdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[top.kernel, keras.Variable(1.0)])  # the second is not trained
    before = [v.numpy() for v in model.trainable_variables]
    optimizer.apply([tf.zeros((3, 3))] * 2, model.trainable_variables)
    kept, moved = top.kernel.numpy(), inner.layers[0].kernel.numpy()
    np.testing.assert_array_equal(kept, before[1])
    np.testing.assert_allclose(moved, 0.95 * before[0], rtol=1e-6)
    assert optimizer.get_config()["undecayed"] == [[1, top.kernel.path]]
    optimizer.exclude_from_weight_decay(var_list=[top.kernel])  # once more is no change
    with pytest.raises(AttributeError, match="after build"):
        optimizer.exclude_from_weight_decay(var_list=[inner.layers[0].kernel])


def test_names_may_be_excluded_twice():
    optimizer = kopt.AdamW()
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(variables([np.ones(2), np.ones(2)]))
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    with pytest.raises(AttributeError, match="after build"):
        optimizer.exclude_from_weight_decay(var_names=["kernel"])


def test_layers_of_one_path_are_told_apart_or_refused():
    first, second = (keras.layers.Dense(2, use_bias=False, name="dense") for _ in range(2))
    first.build((None, 2)), second.build((None, 2))
    model = keras.Sequential([keras.Input((2,)), keras.Sequential([first]), keras.Sequential([second])])
    optimizer = kopt.AdamW()
    optimizer.build(model.trainable_variables)
    assert list(optimizer.statistics()) == ["dense/kernel", "dense/kernel #2"]
    with pytest.raises(ValueError, match="2 weights have the path 'dense/kernel'"):
        kopt.layerwise_decay(model, 0.5)

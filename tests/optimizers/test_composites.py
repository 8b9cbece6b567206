"""Route, Switch and layerwise decay: what the contract of all rules does not see."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import descend, flat, network, regression, variables, weights_and_gradients

import kopt


def test_each_weight_moves_by_its_own_route():
    weights, gradients = weights_and_gradients()
    route = kopt.Route([("kernel", kopt.Lion(0.03)), ("", kopt.NAG(0.01, weight_decay=0.1))])
    kernel, bias = descend(route, weights, gradients)
    alone = [
        descend(kopt.Lion(0.03), weights[:1], [g[:1] for g in gradients])[0],
        descend(kopt.NAG(0.01, weight_decay=0.1), weights[1:], [g[1:] for g in gradients])[0],
    ]
    np.testing.assert_array_equal(kernel, alone[0])
    np.testing.assert_array_equal(bias, alone[1])
    assert [list(p.slots) for p in route.setup.parameters] == [["m"], ["b"]]  # no slot that its rule does not use


def test_rules_that_learn_their_rate_do_so_within_their_route():
    weights, gradients = weights_and_gradients()
    both = descend(kopt.Route([("kernel", "prodigy"), ("", "dowg")]), weights, gradients)
    np.testing.assert_allclose(both[0], descend(kopt.Prodigy(), weights[:1], [g[:1] for g in gradients])[0], rtol=1e-6)
    np.testing.assert_allclose(both[1], descend(kopt.DoWG(), weights[1:], [g[1:] for g in gradients])[0], rtol=1e-6)


def test_routes_have_rates_and_schedules_of_their_own_times_that_of_route():
    weights, gradients = weights_and_gradients(6)
    falling = keras.optimizers.schedules.PolynomialDecay(0.5, 10, 0.0)
    route = kopt.Route([("kernel", kopt.SGD(falling)), ("", kopt.SGD(0.25))], learning_rate=0.5)
    kernel, bias = descend(route, weights, gradients, "float64")
    np.testing.assert_allclose(kernel, weights[0] - sum(0.25 * (1 - t / 10) * g for t, (g, _) in enumerate(gradients)))
    np.testing.assert_allclose(bias, weights[1] - sum(0.125 * g for _, g in gradients))


def test_clipping_sees_all_routes_together():
    weights = [np.zeros(4), np.zeros(9)]
    route = kopt.Route([("kernel", kopt.SGD(1.0)), ("", kopt.SGD(1.0))], global_clipnorm=1.0)
    moved = np.concatenate(descend(route, weights, [[np.full(4, 3.0), np.full(9, 3.0)]]))
    np.testing.assert_allclose(moved, -1 / np.sqrt(13), rtol=1e-6)


def test_sparse_rows_stay_lazy_within_a_route():
    table, other = variables([np.ones((5, 2)), np.ones(2)])
    route = kopt.Route([("kernel", kopt.Adam(0.1)), ("", kopt.LAMB(0.1))])
    rows = tf.IndexedSlices(tf.ones((2, 2)), tf.constant([1, 1]), tf.constant([5, 2]))
    route.apply([rows, tf.ones(2)], [table, other])
    np.testing.assert_allclose(table.numpy()[1], 0.9, rtol=1e-5)
    np.testing.assert_array_equal(np.delete(table.numpy(), 1, 0), 1.0)


def test_a_routed_model_is_saved_and_goes_on(tmp_path):
    data = regression()
    routes = [("kernel", kopt.AdamW(keras.optimizers.schedules.CosineDecay(0.01, 40))), ("", "dog")]
    straight = network(kopt.Route(routes))
    straight.fit(data, shuffle=False, epochs=5, verbose=0)
    straight.save(tmp_path / "m.keras")
    straight.fit(data, shuffle=False, epochs=5, verbose=0)
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    loaded.fit(data, shuffle=False, epochs=5, verbose=0)
    np.testing.assert_array_equal(flat(straight), flat(loaded))
    assert set(loaded.optimizer.statistics()) == {v.path for v in loaded.trainable_variables}


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ([], "at least one pair"),
        (["sgd"], "pairs"),
        ([("[", "sgd")], "pairs"),
        ([("", "sgdd")], "Did you mean"),
        ([("", "lbfgs")], "inside of another"),
        ([("", kopt.Adam(clipnorm=1.0))], "give clipnorm to Route itself"),
        ([("", "schedulefreesgd")], "trains one point"),
    ],
    ids=str,
)
def test_bad_routes_are_refused(routes, message):
    with pytest.raises(ValueError, match=message):
        kopt.Route(routes)


def test_a_weight_without_a_route_and_a_route_without_a_weight_are_errors():
    with pytest.raises(ValueError, match="no pattern is found in 1 weights: bias"):
        kopt.Route([("kernel", "sgd")]).build(variables([np.ones((2, 2)), np.ones(2)]))
    with pytest.raises(ValueError, match="found in none"):
        kopt.Route([("gamma", "sgd"), ("", "adam")]).build(variables([np.ones((2, 2)), np.ones(2)]))


def test_the_second_rule_of_a_switch_begins_anew():
    weights, gradients = weights_and_gradients(12)
    falling = keras.optimizers.schedules.PolynomialDecay(0.5, 20, 0.0)
    switch = kopt.Switch(kopt.Adam(0.01), second=kopt.NAG(falling), after=5)
    middle = descend(kopt.Adam(0.01), weights, gradients[:5])
    end = descend(kopt.NAG(falling), middle, gradients[5:])
    for got, expected in zip(descend(switch, weights, gradients), end, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_switch_between_rules_that_share_values():
    weights, gradients = weights_and_gradients(12)
    switch = kopt.Switch("dog", second=kopt.Prodigy(weight_decay=0.1), after=6)
    end = descend(kopt.Prodigy(weight_decay=0.1), descend(kopt.DoG(), weights, gradients[:6]), gradients[6:])
    for got, expected in zip(descend(switch, weights, gradients), end, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_switch_refuses_options_that_are_not_for_one_rule():
    with pytest.raises(ValueError, match="give use_ema to Switch itself"):
        kopt.Switch("adam", second=kopt.SGD(use_ema=True))


def test_layerwise_decay_falls_towards_the_input():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.Dense(4)])
    model = keras.Sequential([keras.Input((4,)), inner, keras.layers.Dropout(0.1), keras.layers.Dense(2)])
    pairs = kopt.layerwise_decay(model, 0.5)
    assert [factor for _, factor in pairs] == [1.0, 0.5, 0.25]
    model.compile(kopt.SGD(1.0, multipliers=pairs), "mse")
    model.optimizer.build(model.trainable_variables)
    assert [p.multiplier for p in model.optimizer.setup.parameters] == [0.25, 0.25, 0.5, 0.5, 1.0, 1.0]


def test_layerwise_decay_counts_a_shared_layer_once_and_leaves_frozen_ones_out():
    x = keras.Input((4,))
    shared, last = keras.layers.Dense(4), keras.layers.Dense(1)
    model = keras.Model(x, last(shared(shared(keras.layers.Dense(4, trainable=False)(x)))))
    assert [factor for _, factor in kopt.layerwise_decay(model, 0.1)] == [1.0, 0.1]
    with pytest.raises(ValueError, match=r"rate must be .* in \(0, 1\]"):
        kopt.layerwise_decay(model, 2.0)
    model.trainable = False
    with pytest.raises(ValueError, match="no trainable weights"):
        kopt.layerwise_decay(model, 0.5)


def test_a_model_with_layerwise_decay_is_saved(tmp_path):
    model = network(kopt.SGD())
    model.compile(kopt.AdamW(multipliers=kopt.layerwise_decay(model, 0.5)), "mse")
    model.fit(regression(), shuffle=False, verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for m in (model, loaded):
        m.fit(regression(), shuffle=False, verbose=0)
    np.testing.assert_array_equal(flat(model), flat(loaded))


@pytest.mark.parametrize(
    "make",
    [
        lambda: kopt.Lookahead(kopt.Cautious(kopt.SGD(0.1)), weight_decay=0.5),
        lambda: kopt.Route([("", kopt.Lookahead(kopt.Cautious(kopt.SGD(0.1, weight_decay=0.3))))], weight_decay=0.5),
        lambda: kopt.Switch(kopt.Lookahead(kopt.SGD(0.1)), second="adam", weight_decay=0.5),
        lambda: kopt.Lookahead(kopt.Switch(kopt.SGD(0.1, weight_decay=0.5), second="adam")),
        lambda: kopt.Lookahead(kopt.AdaBoundW(0.1, weight_decay=0.01), weight_decay=0.05),
    ],
    ids=["wrappers", "route", "switch", "around switch", "share of AdaBoundW"],
)
def test_decay_reaches_the_weights_through_all_that_is_around_a_rule(make):
    weights = [np.ones((3, 2)), np.ones(2)]
    for moved in descend(make(), weights, [[np.zeros_like(w) for w in weights]], "float64"):
        np.testing.assert_allclose(moved, 0.95, rtol=1e-7)


def test_what_is_around_a_rule_leaves_its_decay_alone():
    rule, zeros = kopt.SGD(0.1, weight_decay=0.5), [[np.zeros((2, 2))]]
    kopt.Lookahead(rule, weight_decay=0.0)
    kopt.Route([("", rule)], weight_decay=0.0)
    late = kopt.Lookahead(rule)
    late.weight_decay = 0.25
    assert rule.weight_decay == 0.5
    np.testing.assert_allclose(descend(kopt.Lookahead(rule), [np.ones((2, 2))], zeros, "float64")[0], 0.95, rtol=1e-7)
    np.testing.assert_allclose(descend(late, [np.ones((2, 2))], zeros, "float64")[0], 0.975, rtol=1e-7)


def test_decay_around_a_switch_is_refused_since_each_of_its_rules_has_its_own():
    with pytest.raises(ValueError, match="Give weight_decay to Switch itself"):
        descend(kopt.Lookahead(kopt.Switch("sgd"), weight_decay=0.5), [np.ones((2, 2))], [[np.ones((2, 2))]])


@pytest.mark.parametrize(
    "make",
    [
        lambda: kopt.APOLLO(kopt.AdamW(0.01), rank=2, every=2),
        pytest.param(lambda: kopt.GaLore(kopt.AdamW(0.01), rank=2, every=2), marks=pytest.mark.slow),
        lambda: kopt.GradientNoise("sgd", scale=1.0),
        pytest.param(lambda: kopt.SOAP(0.01, every=2), marks=pytest.mark.slow),
    ],
    ids=["APOLLO", "GaLore", "GradientNoise", "SOAP"],
)
def test_the_second_rule_counts_updates_of_its_own_wherever_it_looks(make):
    rng = np.random.default_rng(0)
    weights, gradients = [rng.normal(size=(6, 5))], [[rng.normal(size=(6, 5))] for _ in range(8)]
    switched = descend(kopt.Switch(kopt.SGD(0.0), second=make(), after=3), weights, gradients)
    np.testing.assert_array_equal(switched[0], descend(make(), weights, gradients[3:])[0])

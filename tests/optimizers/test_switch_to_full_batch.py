"""Adam first and L-BFGS to finish: mini-batches first, the whole set after."""

import keras
import numpy as np
import pytest
from problems import descend, flat, network, weights_and_gradients

import kopt

RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 5)).astype("float32")
Y = np.tanh(X @ RNG.normal(size=(5, 1))).astype("float32")


def trained(optimizer, epochs=30, **options):
    model = network(optimizer, **options)
    model.fit(X, Y, batch_size=20, epochs=epochs, shuffle=False, verbose=0)
    return model


def finish(model, epochs=40):
    model.fit(X, Y, batch_size=200, epochs=epochs, shuffle=False, verbose=0)
    return model.evaluate(X, Y, verbose=0)


@pytest.mark.slow
def test_it_ends_far_lower_than_adam_alone(tmp_path):
    model, adam = trained(kopt.Switch(kopt.Adam(0.01), second="lbfgs", after=300)), trained(kopt.Adam(0.01), epochs=70)
    model.fit(X, Y, batch_size=200, epochs=7, shuffle=False, verbose=0)
    model.save(tmp_path / "m.keras")  # in the middle of a search, perhaps
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    ends = [finish(model), finish(loaded)]
    assert ends[0] < adam.evaluate(X, Y, verbose=0) / 10
    np.testing.assert_array_equal(flat(model), flat(loaded))
    assert int(model.optimizer.iterations) == 347


@pytest.mark.slow
@pytest.mark.parametrize("rule", [kopt.LBFGS, kopt.BGD])
def test_the_second_rule_does_what_it_does_alone(rule):
    model = trained(kopt.Switch(kopt.Adam(0.01), second=rule(), after=20), epochs=2)
    alone = network(rule())
    alone.set_weights(model.get_weights())
    for m in (model, alone):
        m.fit(X, Y, batch_size=200, epochs=15, shuffle=False, verbose=0)  # ends with the last accepted point
    np.testing.assert_allclose(flat(model), flat(alone), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"jit_compile": True}, {"run_eagerly": True}], ids=str)
def test_it_does_so_in_every_way(how):
    expected = trained(kopt.Switch(kopt.Adam(0.01), second="lbfgs", after=20), epochs=2)
    model = trained(kopt.Switch(kopt.Adam(0.01), second="lbfgs", after=20), epochs=2, **how)
    for m in (expected, model):
        m.fit(X, Y, batch_size=200, epochs=6, shuffle=False, verbose=0)
    np.testing.assert_allclose(flat(model), flat(expected), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_mini_batches_for_a_line_search_are_told():
    model = trained(kopt.Switch("adam", second="lbfgs", after=20), epochs=2)
    with pytest.warns(UserWarning, match="LBFGS compares whole losses, but sees 1 of the 10 batches"):
        model.fit(X, Y, batch_size=20, verbose=0)
    kinds = kopt.LBFGS(pairs="cautious", line_search="fixed", learning_rate=0.1)  # they go on with mini-batches
    trained(kopt.Switch("adam", second=kinds, after=5), epochs=1)


@pytest.mark.slow
def test_accumulated_batches_are_a_whole_set():
    model = network(kopt.Switch("adam", second="lbfgs", after=5, gradient_accumulation_steps=10))
    model.fit(X, Y, batch_size=20, epochs=5, shuffle=False, verbose=0)
    whole = network(kopt.Switch("adam", second="lbfgs", after=5))
    whole.fit(X, Y, batch_size=200, epochs=5, shuffle=False, verbose=0)
    for m, size in ((model, 20), (whole, 200)):
        m.fit(X, Y, batch_size=size, epochs=8, shuffle=False, verbose=0)
    np.testing.assert_allclose(flat(model), flat(whole), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_what_a_rule_learns_begins_with_its_turn():
    """Sums over all weights are computed for the rule alone whose turn it is."""
    weights, gradients = weights_and_gradients(8)
    switch = kopt.Switch("prodigy", second="dog", after=4)
    end = descend(kopt.DoG(), descend(kopt.Prodigy(), weights, gradients[:4]), gradients[4:])
    for got, expected in zip(descend(switch, weights, gradients), end, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_minimize_stops_where_a_search_finds_nothing():
    x = keras.Variable([3.0, -2.0], dtype="float64")
    switch = kopt.Switch(kopt.Adam(0.1), second="lbfgs", after=10)
    found = kopt.minimize(lambda: keras.ops.sum((x - 1) ** 4), variables=[x], optimizer=switch, tolerance=1e-9)
    assert found.converged and found.evaluations < 100
    np.testing.assert_allclose(x.numpy(), 1.0, atol=1e-2)


@pytest.mark.parametrize("wrap", [kopt.Lookahead, kopt.Cautious, lambda x: kopt.Route([("", x)])])
def test_other_wrappers_still_refuse_the_loss(wrap):
    with pytest.raises(ValueError, match=r"those that need the loss .* can in Switch alone"):
        wrap(kopt.LBFGS())

"""GaLore and APOLLO: which kernels are projected, to what, and with what around."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import RATE, descend, network, regression, weights_and_gradients

import kopt

NAMES = ("GaLore", "APOLLO")
SHAPES = ((6, 4), (3,), (4, 9))


def made(name, optimizer="adamw", **options):
    return getattr(kopt, name)(optimizer, learning_rate=RATE, **{"rank": 2, "every": 3, **options})


def test_the_subspace_is_that_of_the_largest_singular_vectors():
    rng = np.random.default_rng(0)
    u, _, vt = np.linalg.svd(rng.normal(size=(40, 60)), full_matrices=False)
    gradient = (u * 0.8 ** np.arange(40)) @ vt
    for g, axis, expected in ((gradient, 0, u[:, :5]), (gradient.T, 1, u[:, :5])):
        kernel = keras.Variable(np.zeros(g.shape), name="kernel")
        optimizer = kopt.GaLore("sgd", learning_rate=1.0, rank=5, scale=1.0)
        optimizer.apply([tf.constant(g, "float32")], [kernel])
        basis = optimizer.setup.parameters[0].slots["P"]["value"].numpy()
        np.testing.assert_allclose(np.linalg.svd(basis.T @ expected)[1], 1, atol=2e-3)
        kept = expected @ (expected.T @ gradient)
        np.testing.assert_allclose(-kernel.numpy(), kept if axis == 0 else kept.T, atol=0.05)


def test_moments_turn_with_the_subspace():
    """The moments of gradients of one direction lie along it before and after P has changed its axes."""
    first, second = np.outer([1, 0, 0, 0], np.ones(6)), np.outer([0, 1, 0, 0], np.ones(6))
    kernel = keras.Variable(np.zeros((4, 6)), name="kernel")
    optimizer = kopt.GaLore(kopt.Momentum(momentum=0.9), learning_rate=1.0, rank=2, every=2, scale=1.0)
    for g in (3 * first + second, 3 * first, first + 3 * second, np.zeros((4, 6))):
        before = kernel.numpy()
        optimizer.apply([tf.constant(g, "float32")], [kernel])
    left = 0.9 * (0.9 * (0.9 * (3 * first + second) + 3 * first) + first + 3 * second)
    np.testing.assert_allclose(before - kernel.numpy(), left, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("state_dtype", ["float32", pytest.param("int8", marks=pytest.mark.slow)])
def test_graph_and_xla_and_saved_state_agree(name, state_dtype):
    weights, gradients = weights_and_gradients(8, SHAPES)
    calls = (None, lambda f: tf.function(f, jit_compile=True, autograph=False))
    eager, xla = (descend(made(name, state_dtype=state_dtype), weights, gradients, call=call) for call in calls)
    for a, b in zip(eager, xla, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 if state_dtype == "float32" else 0.05)
    saved, store = made(name, state_dtype=state_dtype), {}
    middle = descend(saved, weights, gradients[:5])
    saved.save_own_variables(store)
    restored = made(name, state_dtype=state_dtype)
    restored.load_own_variables(store)
    for a, b in zip(descend(restored, middle, gradients[5:]), eager, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_accumulated_halves_are_a_whole(name):
    weights, gradients = weights_and_gradients(6, SHAPES)
    halves = [[0.5 * h * g for g in gs] for gs in gradients for h in (1, 3)]
    whole = descend(made(name), weights, gradients)
    parts = descend(made(name, gradient_accumulation_steps=2), weights, halves)
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_what_is_projected():
    x = inputs = keras.Input((7,), dtype="int32")
    x = keras.layers.Embedding(20, 16, name="embedding")(x)
    x = keras.layers.MultiHeadAttention(2, 5, name="attention")(x, x)
    x = keras.layers.Dense(4, name="narrow")(x)
    model = keras.Model(inputs, keras.layers.Dense(30, name="head")(x))
    optimizer = kopt.GaLore(rank=4)
    optimizer.build(model.trainable_variables)
    found = {
        p.path: tuple(p.slots["m"]["value"].shape)
        for p in optimizer.setup.parameters
        if len(p.slots["P"]["value"].shape)
    }
    assert found == {
        "attention/query/kernel": (16, 4),
        "attention/key/kernel": (16, 4),
        "attention/value/kernel": (16, 4),
        "attention/attention_output/kernel": (4, 16),
    }
    rows = {p.path: p.lazy for p in optimizer.setup.parameters}
    assert rows["embedding/embeddings"] and not rows["attention/key/kernel"]


@pytest.mark.few(1)
@pytest.mark.parametrize("name", NAMES)
def test_stacked_kernels_are_projected_one_by_one(name):
    layer = keras.layers.EinsumDense("bei,eio->beo", (2, 5))
    layer.build((None, 2, 4))
    start, gradient = layer.kernel.numpy(), np.random.default_rng(1).normal(size=(2, 4, 5)).astype("float32")
    options = {"by": "channel"} if name == "APOLLO" else {}
    optimizer = made(name, **options)
    optimizer.build([layer.kernel])
    optimizer.apply([tf.constant(gradient)], [layer.kernel])
    for moved, w, g in zip(layer.kernel.numpy(), start, gradient, strict=True):
        alone = keras.Variable(w, name="kernel")
        made(name, **options).apply([tf.constant(g)], [alone])
        np.testing.assert_allclose(moved, alone.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "inner", [kopt.Muon, kopt.LAMB, kopt.RowwiseAdaGrad, kopt.Lookahead, kopt.MADGRAD, kopt.ADOPT, kopt.Prodigy]
)
def test_rules_that_need_the_whole_are_refused(inner):
    with pytest.raises(ValueError, match="each number for itself"):
        kopt.GaLore(inner())


@pytest.mark.slow
@pytest.mark.parametrize("inner", ["adamw", "lion", "momentum", "adagrad", "rmsprop", "nadam", "adabelief"])
@pytest.mark.parametrize("name", NAMES)
def test_it_learns_around_any_rule(name, inner, tmp_path):
    model = network(getattr(kopt, name)(inner, rank=1, every=5, learning_rate=0.01))
    losses = model.fit(regression(), shuffle=False, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for each in (model, loaded):
        each.fit(regression(), shuffle=False, epochs=2, verbose=0)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batches"), [("APOLLO", 1), *(pytest.param(x, 2, marks=pytest.mark.slow) for x in ("GaLore", "APOLLO"))]
)
def test_rows_of_embeddings_beside_large_kernels_are_those_of_the_optimizer_within(name, batches):
    rows = []
    for around in (getattr(kopt, name), lambda rule, **_: rule):
        keras.utils.set_random_seed(0)
        table = keras.layers.Embedding(9, 4)
        model = keras.Sequential([keras.Input((2,)), table, keras.layers.Dense(3), keras.layers.Dense(1)])
        model.compile(around(kopt.AdamW(0.1, gradient_accumulation_steps=batches), rank=2), "mse")
        before = table.embeddings.numpy()
        model.fit(np.array([[1, 4], [4, 7]]), np.ones((2, 2)), batch_size=2 // batches, shuffle=False, verbose=0)
        rows.append(table.embeddings.numpy())
    np.testing.assert_array_equal(*rows)
    assert np.flatnonzero(np.abs(rows[0] - before).max(1)).tolist() == [1, 4, 7]

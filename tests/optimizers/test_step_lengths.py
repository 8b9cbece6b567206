"""Hyperball, UpdateFloor, CautiousDecay and EMANesterov: what the contract of all rules does not see."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import descend, flat, regression, variables, weights_and_gradients

import kopt


def attentive(optimizer):
    """Returns a compiled model with an embedding, attention, a convolution, and a kernel that begins at zero."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    x = keras.Input((6,), dtype="int32")
    h = layers.Embedding(9, 8)(x)
    h = layers.MultiHeadAttention(2, 4)(h, h)
    h = layers.Flatten()(layers.Conv1D(4, 3)(h))
    model = keras.Model(x, layers.Dense(1)(layers.Dense(6, kernel_initializer="zeros")(h)))
    model.compile(optimizer, "mse", run_eagerly=True)
    return model


def lengths(model):
    """Returns the norms of the kernels by path."""
    return {v.path.partition("/")[2]: np.linalg.norm(v) for v in model.trainable_variables if v.name == "kernel"}


@pytest.mark.slow
def test_matrices_stay_on_their_spheres_and_the_others_do_not():
    rng = np.random.default_rng(0)
    model = attentive(kopt.Hyperball("adamw", learning_rate=0.05, state_dtype="int8"))
    before, values = lengths(model), model.get_weights()
    model.fit(rng.integers(0, 9, (32, 6)), rng.normal(size=(32, 1)), batch_size=8, epochs=2, verbose=0)
    told = model.optimizer.destinations(model)
    on_sphere = [v for v in model.trainable_variables if told[v.path].startswith("Hyperball")]
    assert [told[v.path] for v in on_sphere] == ["Hyperball on 8 × 8"] * 4 + [
        "Hyperball on 24 × 4",
        "Hyperball on 16 × 6",
    ]
    for v, old in zip(model.trainable_variables, values, strict=True):
        there, now = np.linalg.norm(old), np.linalg.norm(v)
        assert not np.array_equal(v, old)
        # the kernel that began at zero has no sphere, vectors and the last matrix are moved as ever
        assert (abs(now / max(there, 1e-30) - 1) < 1e-6) == (any(v is x for x in on_sphere) and there > 0)
    assert before.keys() == lengths(model).keys()


def test_each_step_is_an_angle_whatever_the_gradient_is():
    for size in (1e-6, 1.0, 1e4):
        (kernel,) = variables([np.eye(3, 4)])
        kopt.Hyperball("sgd", learning_rate=0.01).apply(
            [tf.constant(size * np.eye(3, 4)[:, ::-1], "float32")], [kernel]
        )
        cosine = np.sum(kernel.numpy() * np.eye(3, 4)) / 3
        np.testing.assert_allclose(np.arccos(cosine), 0.01, rtol=1e-2)


def test_a_gradient_of_zero_moves_nothing():
    (kernel,) = variables([np.ones((3, 4))])
    kopt.Hyperball("sgd").apply([tf.zeros((3, 4))], [kernel])
    np.testing.assert_allclose(kernel.numpy(), 1.0, rtol=1e-6)


@pytest.mark.slow
def test_experts_have_spheres_of_their_own():
    layer = keras.layers.EinsumDense("bei,eio->beo", output_shape=(3, 5))
    model = keras.Sequential([keras.Input((3, 4)), layer, keras.layers.Flatten(), keras.layers.Dense(1)])
    layer.kernel.assign(np.arange(1, 4)[:, None, None] * np.ones((3, 4, 5)))
    model.compile(kopt.Hyperball("momentum", learning_rate=0.1), "mse")
    rng = np.random.default_rng(0)
    model.fit(rng.normal(size=(16, 3, 4)), rng.normal(size=(16, 1)), epochs=2, verbose=0)
    norms = np.linalg.norm(layer.kernel.numpy().reshape(3, -1), axis=1)
    np.testing.assert_allclose(norms, np.sqrt(20) * np.arange(1, 4), rtol=1e-6)
    assert [tuple(p.slots["radius"]["value"].shape) for p in model.optimizer.setup.parameters] == [
        (3, 1, 1),
        (),  # a number that nobody reads, for the last matrix and for vectors
        (),
    ]


def test_the_choice_of_matrices_is_checked():
    weights = variables([np.ones((2, 3)), np.ones(3)])
    with pytest.raises(ValueError, match=r"Hyperball\.others"):
        kopt.Hyperball("sgd", others=["lm_head"]).build(weights)
    plain = kopt.UpdateFloor("sgd", others="kernel")
    plain.apply([tf.zeros((2, 3)), tf.zeros(3)], weights)
    np.testing.assert_array_equal(weights[0].numpy(), 1.0)


def test_a_floor_for_each_output_lengthens_only_short_ones():
    kernel = np.ones((4, 2))
    g = np.stack([np.full(4, 1e-3), np.full(4, 5.0)], axis=1)
    by_output, whole = (
        descend(kopt.UpdateFloor("sgd", learning_rate=1.0, floor=0.5, by=by), [kernel], [[g]])[0]
        for by in ("output", "matrix")
    )
    np.testing.assert_allclose(1 - by_output, [[0.5, 5.0]] * 4, rtol=1e-6)
    np.testing.assert_allclose(1 - whole, g, rtol=1e-3)  # the matrix as a whole moves enough


def test_changes_of_the_direction_and_of_the_decay_go_together():
    weights, gradients = weights_and_gradients(12)
    inner = kopt.CautiousDecay(kopt.Lion(0.1, weight_decay=0.3))
    done, plain = (descend(kopt.UpdateFloor(r, floor=3.0), weights, gradients) for r in (inner, kopt.Lion(0.1)))
    other = descend(
        kopt.CautiousDecay(kopt.UpdateFloor(kopt.Lion(0.1, weight_decay=0.3), floor=3.0)), weights, gradients
    )
    np.testing.assert_array_equal(done[0], other[0])
    assert np.linalg.norm(done[0]) < np.linalg.norm(plain[0])


def test_decay_spares_what_the_step_makes_larger():
    w, g = np.array([1.0, 1.0, -1.0, 2.0]), np.array([1.0, -1.0, -1.0, 0.0])
    (moved,) = descend(kopt.CautiousDecay(kopt.SGD(0.1, weight_decay=0.5)), [w], [[g]], "float64")
    np.testing.assert_allclose(moved, [0.9 - 0.05, 1.1, -0.9 + 0.05, 1.9], rtol=1e-7)


def test_gradients_are_taken_where_the_authors_take_them():
    """They move the weights ahead before the gradient is taken, and keep the weights of before."""
    slopes, x, m, ahead = np.linspace(0.5, 3, 5), np.zeros(5), np.zeros(5), []
    (w,) = variables([np.zeros(5)], "float64")
    optimizer = kopt.EMANesterov("sgd", learning_rate=0.1, momentum=0.9, start=3, end=12)
    for t in range(20):
        before = x
        x = x + (0.3 if 3 <= t < 12 else 0.0) * m
        ahead.append(x)
        np.testing.assert_allclose(w.numpy(), x, rtol=1e-7, atol=1e-12)
        optimizer.apply([tf.constant(slopes * w.numpy() - 1)], [w])
        x = x - float(np.float32(0.1)) * (slopes * x - 1)
        m = 0.9 * m + 0.1 * (x - before)
    np.testing.assert_allclose(w.numpy(), x, rtol=1e-7)
    assert not np.allclose(ahead[8], ahead[7] - 0.1 * (slopes * ahead[7] - 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kopt.Hyperball("lamb"), "Hyperball takes an optimizer that steps along a direction"),
        (lambda: kopt.CautiousDecay("ftrl"), "CautiousDecay takes an optimizer that steps"),
        (lambda: kopt.UpdateFloor(kopt.Hyperball("adamw")), "UpdateFloor takes an optimizer that steps"),
        (lambda: kopt.Hyperball(kopt.GradientNoise("adamw")), "Put Hyperball within GradientNoise, not around it"),
        (lambda: kopt.EMANesterov("adamw", start=5, end=5), "end must be after start"),
        (lambda: kopt.UpdateFloor("adamw", by="row"), "by"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
def test_a_switch_to_a_sphere_takes_the_length_of_that_moment(tmp_path):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((5,)), keras.layers.Dense(8), keras.layers.Dense(6), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile(kopt.Switch(kopt.SGD(0.1), second=kopt.Hyperball("adamw"), after=4), "mse")
    model.fit(regression(), shuffle=False, verbose=0)
    there = lengths(model)
    model.fit(regression(), shuffle=False, verbose=0)
    now = lengths(model)
    np.testing.assert_allclose([*now.values()][:2], [*there.values()][:2], rtol=1e-6)
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for m in (model, loaded):
        m.fit(regression(), shuffle=False, verbose=0)
    np.testing.assert_array_equal(flat(model), flat(loaded))

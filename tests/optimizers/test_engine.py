"""What stands around a rule, checked on rules made for the purpose and on numbers worked out by hand."""

import itertools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from problems import RATE, descend, flat, network, one_step, regression, variables, weights_and_gradients

import kopt
from kopt.optimizers.engine.tensor_math import debias, round_stochastically


class Normalized(kopt.Optimizer):
    """The gradient over the norm of all gradients: needs a sum over all weights before it can step."""

    shared = {"norm": 0.0}

    def contribute(self, g, w, s, t):
        return {"square": ops.sum(ops.square(g))}

    def settle(self, sums, s, t):
        return {"norm": ops.sqrt(sums["square"])}

    def rule(self, g, w, s, t):
        return g / s.norm, {}


class Centered(kopt.Optimizer):
    """Subtracts the mean over the rows: a rule that is not row-wise."""

    row_wise = False

    def rule(self, g, w, s, t):
        return g - ops.mean(g, axis=0, keepdims=True), {}


class Anchored(kopt.Optimizer):
    """Pulls towards the first weights, which it keeps."""

    slots = {"first": kopt.Slot("weight")}

    def rule(self, g, w, s, t):
        return g + (w - s.first), {"first": s.first}


# ------------------------------------------------------------------------------------------------- numbers


def test_debias_keeps_its_digits():
    exact = 1 - np.float64(0.999) ** np.arange(1, 2000)
    np.testing.assert_allclose(debias(0.999, tf.range(1.0, 2000.0)), exact, rtol=5e-7)
    assert float(debias(0.0, tf.constant(1.0))) == 1.0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_stochastic_rounding_is_unbiased_and_exact_on_what_fits(dtype):
    x = tf.constant([1.0, -0.3, 1e-3, 700.0, 0.0])
    drawn = round_stochastically(tf.tile(x[None], (4000, 1)), dtype, tf.random.uniform((4000, 5)))
    values, spacing = ops.cast(drawn, "float32").numpy(), {"bfloat16": 2.0**-7, "float16": 2.0**-10}[dtype]
    np.testing.assert_allclose(values.mean(0), x, rtol=spacing / 20)
    assert all(len(np.unique(values[:, i])) <= 2 for i in range(5))
    assert np.unique(values[:, 0]).tolist() == [1.0]


# ------------------------------------------------------------------------------------------------- clipping


def test_clipping_equals_its_definition():
    weights, (gradients,) = [np.zeros((2, 2)), np.zeros(2)], [[np.array([[3.0, 0], [0, -4.0]]), np.array([0.0, 12.0])]]
    cases = {
        ("clipvalue", 3.5): [np.clip(g, -3.5, 3.5) for g in gradients],
        ("clipnorm", 6.0): [g * min(1, 6 / np.linalg.norm(g)) for g in gradients],
        ("global_clipnorm", 2.0): [g * 2 / 13 for g in gradients],
    }
    for ((option, bound), expected), scale in itertools.product(cases.items(), [1.0, 4.0]):
        optimizer = kopt.SGD(1.0, loss_scale_factor=scale, **{option: bound})  # what is clipped is not scaled any more
        done = descend(optimizer, weights, [[scale * g for g in gradients]])
        for a, b in zip(done, expected, strict=True):
            np.testing.assert_allclose(a, -b, rtol=1e-6)
        assert int(optimizer.clipped_steps) == 1
        optimizer.apply([tf.zeros((2, 2)), tf.zeros(2)])
        assert int(optimizer.clipped_steps) == 1
    assert float(optimizer.gradient_norm) == 0.0  # with global_clipnorm it is always known


def test_repeated_rows_are_summed_before_they_are_clipped():
    g = tf.IndexedSlices(tf.constant([[3.0], [0.0], [1.0]]), tf.constant([2, 0, 2]), tf.constant([4, 1]))
    np.testing.assert_allclose(one_step(kopt.SGD(1.0, global_clipnorm=1.0), np.zeros((4, 1)), g).ravel(), [0, 0, -1, 0])


def test_rate_and_decay_of_each_weight_follow_their_own_factors():
    """w ← w (1 - m η f λₜ) without a gradient: m from `multipliers`, f from `decay_mask`, λ₁ = 0.8, λ₂ = 0.4."""
    decay = keras.optimizers.schedules.PolynomialDecay(0.8, decay_steps=2, end_learning_rate=0.0)
    optimizer = kopt.SGD(0.5, weight_decay=decay, decay_mask=[("kernel", 0.5)], multipliers=[("bias", 0.25)])
    done = descend(optimizer, [np.ones(1)] * 3, [[np.zeros(1)] * 3] * 2)
    expected = [(1 - 0.2) * (1 - 0.1), (1 - 0.1) * (1 - 0.05), (1 - 0.4) * (1 - 0.2)]
    np.testing.assert_allclose(np.ravel(done), expected, rtol=1e-6)


def test_watch_keeps_the_norm_only_while_it_is_on():
    optimizer, (v,) = kopt.SGD(0.1), variables([np.zeros(2)])
    optimizer.apply([tf.constant([3.0, 4.0])], [v])
    assert float(optimizer.gradient_norm) == 0.0
    optimizer.watch()
    optimizer.apply([tf.constant([3.0, 4.0])])
    assert float(optimizer.gradient_norm) == 5.0
    optimizer.watch(False)
    optimizer.apply([tf.constant([6.0, 8.0])])
    assert float(optimizer.gradient_norm) == 5.0


# ------------------------------------------------------------------------------------------------- averages, batches


def test_averages_equal_their_definition():
    weights, gradients = weights_and_gradients(6)
    optimizer = kopt.SGD(RATE, use_ema=True, ema_momentum=0.8)
    ws = variables(weights)
    average = None
    for gs in gradients:
        optimizer.apply([tf.constant(g, tf.float32) for g in gs], ws)
        now = [w.numpy() for w in ws]
        average = now if average is None else [0.8 * a + 0.2 * w for a, w in zip(average, now, strict=True)]
    optimizer.finalize_variable_values(ws)
    for w, a in zip(ws, average, strict=True):
        np.testing.assert_allclose(w.numpy(), a, rtol=1e-6)


def test_averages_cover_weights_without_a_gradient():
    a, b = variables([np.ones(2), np.ones(2)])
    optimizer = kopt.SGD(RATE, use_ema=True)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([tf.ones(2), None], [a, b])
    optimizer.finalize_variable_values([a, b])
    np.testing.assert_array_equal(b.numpy(), np.ones(2))


def test_accumulation_equals_the_mean_gradient_and_counts_updates():
    weights, gradients = weights_and_gradients(12)
    rates = keras.optimizers.schedules.ExponentialDecay(RATE, 1, 0.5)
    options = {"use_ema": True, "ema_overwrite_frequency": 2, "global_clipnorm": 0.2, "weight_decay": 0.1}
    small = kopt.Adam(rates, gradient_accumulation_steps=3, **options)
    a = descend(small, weights, gradients)
    means = [[np.mean(gs, axis=0) for gs in zip(*gradients[i : i + 3], strict=True)] for i in range(0, 12, 3)]
    b = descend(kopt.Adam(rates, **options), weights, means)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    assert int(small.iterations) == 4
    assert kopt.Adam(gradient_accumulation_steps=1).gradient_accumulation_steps is None
    done = descend(kopt.SGD(1.0, gradient_accumulation_steps=2), [np.zeros(1)], [[np.array([1.0])], [np.array([3.0])]])
    np.testing.assert_allclose(done, [[-2.0]])  # Adam would not tell a sum from a mean


@pytest.mark.few(1)
@pytest.mark.parametrize(("xla", "constraint"), [(False, None), (True, None), (True, "NonNeg")])
def test_accumulated_rows_stay_lazy(xla, constraint):
    """XLA cannot tell how many rows were read, so that it moves a whole table and keeps the others."""
    table = np.random.default_rng(0).uniform(1, 2, (5, 2))
    a, b = kopt.Adam(RATE, gradient_accumulation_steps=2), kopt.Adam(RATE)
    (v,), (w,) = variables([table]), variables([table])
    v.constraint = keras.constraints.get(constraint)
    a.build([v])
    add = tf.function(lambda g: a.apply([g]), autograph=False, jit_compile=xla)
    for first, second in (([0, 1, 1], [3]), ([0], [1])):
        for ids in (first, second):
            add(tf.IndexedSlices(tf.ones((len(ids), 2)), tf.constant(ids), tf.constant([5, 2])))
        both = first + second
        b.apply([tf.IndexedSlices(tf.ones((len(both), 2)) / 2, tf.constant(both), tf.constant([5, 2]))], [w])
    np.testing.assert_allclose(v.numpy(), w.numpy(), atol=1e-6)
    np.testing.assert_array_equal(v.numpy()[[2, 4]], table[[2, 4]].astype("float32"))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"on_nonfinite": "skip"}], ids=str)
def test_lazy_rows_of_two_replicas_equal_those_of_one(options, two_devices):
    rng = np.random.default_rng(0)
    ids, y = rng.integers(0, 9, (32, 3)), rng.normal(size=(32, 1)).astype("float32")

    def trained():
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Embedding(12, 4), keras.layers.Flatten(), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((3,), dtype="int32"), *layers])
        model.compile(kopt.Adam(RATE, weight_decay=0.1, **options), "mse")
        before = model.layers[0].get_weights()[0]
        model.fit(tf.data.Dataset.from_tensor_slices((ids, y)).batch(8), shuffle=False, epochs=2, verbose=0)
        np.testing.assert_array_equal(model.layers[0].get_weights()[0][9:], before[9:])
        return flat(model)

    one = trained()
    with two_devices.scope():
        np.testing.assert_allclose(trained(), one, atol=1e-6)


def test_empty_rows_and_constraints():
    empty = tf.IndexedSlices(tf.zeros((0, 2)), tf.zeros((0,), tf.int32), tf.constant([5, 2]))
    np.testing.assert_array_equal(one_step(kopt.Adam(), np.ones((5, 2)), empty), np.ones((5, 2)))
    v = keras.Variable(np.full((3, 2), 0.1), dtype="float32")
    v.constraint = keras.constraints.NonNeg()
    kopt.SGD(1.0).apply([tf.IndexedSlices(tf.ones((1, 2)), tf.constant([1]), tf.constant([3, 2]))], [v])
    np.testing.assert_allclose(v.numpy(), [[0.1, 0.1], [0, 0], [0.1, 0.1]])


def test_sums_of_repeated_ids_have_no_length_that_xla_takes_for_dynamic():
    (table,) = variables([np.zeros((6, 3))])
    optimizer = kopt.Adam()
    optimizer.build([table])
    signature = [tf.TensorSpec((None,), tf.int64), tf.TensorSpec((None, 3))]  # a batch of any size, as `fit` traces it
    step = tf.function(
        lambda ids, values: optimizer.apply([tf.IndexedSlices(values, ids, tf.constant([6, 3]))]),
        input_signature=signature,
        jit_compile=True,
        autograph=False,
    )
    compiled = step.experimental_get_compiler_ir(tf.constant([1, 4, 1], tf.int64), tf.ones((3, 3)))(stage="hlo")
    assert "sort(" in compiled
    assert "TopK" not in compiled


def test_a_missing_gradient_leaves_its_weight_alone():
    a, b = variables([np.ones(2), np.ones(2)])
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        kopt.Adam(weight_decay=0.1).apply([tf.ones(2), None], [a, b])
    assert (a.numpy() < 1).all() and (b.numpy() == 1).all()


# ------------------------------------------------------------------------------------------------- rules of all kinds


def test_two_phases_settle_global_sums():
    weights, gradients = weights_and_gradients(3)
    done = descend(Normalized(RATE), weights, gradients)
    for gs in gradients:
        norm = np.sqrt(sum((g**2).sum() for g in gs))
        weights = [w - RATE * g / norm for w, g in zip(weights, gs, strict=True)]
    for a, b in zip(done, weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_rule_that_is_not_row_wise_is_made_dense_and_says_so():
    g = tf.IndexedSlices(tf.constant([[1.0], [1.0]]), tf.constant([2, 2]), tf.constant([4, 1]))
    with pytest.warns(UserWarning, match="not row-wise"):
        moved = one_step(Centered(1.0), np.zeros((4, 1)), g)
    np.testing.assert_allclose(moved.ravel(), [0.5, 0.5, -1.5, 0.5])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_step(Centered(1.0, sparse="exact"), np.zeros((4, 1)), g)


def test_a_slot_can_begin_as_the_weight():
    optimizer = Anchored(0.5)
    done = descend(optimizer, [np.array([1.0, 2.0])], [[np.array([1.0, 0.0])], [np.array([0.0, 0.0])]])[0]
    np.testing.assert_allclose(done, [0.75, 2.0])


def test_bare_tensorflow_variables_and_a_custom_loop():
    x, w = tf.constant([[1.0, 2.0]]), tf.Variable([[1.0], [1.0]], name="w")
    optimizer = kopt.Adam(0.1)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum((x @ w) ** 2)
        optimizer.apply_gradients([(tape.gradient(loss, w), w)])
        return loss

    optimizer.build([w])
    losses = [float(step()) for _ in range(10)]
    assert losses[-1] < losses[0] / 2


# ------------------------------------------------------------------------------------------------- non-finite gradients


def test_skip_leaves_everything_as_it_was():
    weights, gradients = weights_and_gradients(4)
    bad = [[np.full_like(g, np.nan) for g in gradients[0]]]
    optimizer = kopt.Adam(RATE, on_nonfinite="skip")
    done = descend(optimizer, weights, gradients[:2] + bad + gradients[2:])
    for a, b in zip(done, descend(kopt.Adam(RATE), weights, gradients), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (int(optimizer.iterations), int(optimizer.nonfinite_steps)) == (4, 1)


@pytest.mark.few(3)
@pytest.mark.parametrize("dtypes", [("float64",) * 2, ("float64", "float32"), ("bfloat16", "float64")], ids=str)
@pytest.mark.parametrize("rows", [False, True])
def test_weights_of_several_dtypes_are_looked_at_together(dtypes, rows):
    optimizer = kopt.Adam(0.1, on_nonfinite="skip")
    weights = [keras.Variable(np.ones((3, 2)), dtype=d) for d in dtypes]
    for value, counted in ((1.0, 0), (np.inf, 1), (1.0, 1)):
        gradients = [tf.cast(tf.fill((3, 2), value), d) for d in dtypes]
        if rows:
            gradients[0] = tf.IndexedSlices(gradients[0][:2], tf.constant([1, 1]), (3, 2))
        optimizer.apply(gradients, weights)
        assert int(optimizer.nonfinite_steps) == counted
    moved = [ops.convert_to_numpy(ops.cast(w, "float64")) for w in weights]
    for w in moved:
        np.testing.assert_allclose(w[1], 0.8, atol=2e-2)


def test_skip_discards_the_batches_of_one_update():
    weights, gradients = weights_and_gradients(6)
    gradients[2][0] = gradients[2][0] * np.inf
    optimizer = kopt.SGD(RATE, on_nonfinite="skip", gradient_accumulation_steps=2)
    done = descend(optimizer, weights, gradients)
    expected = descend(kopt.SGD(RATE, gradient_accumulation_steps=2), weights, gradients[:2] + gradients[4:])
    for a, b in zip(done, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (int(optimizer.iterations), int(optimizer.nonfinite_steps)) == (2, 1)


def test_raise_names_the_weight_and_changes_nothing():
    optimizer = kopt.Adam(on_nonfinite="raise")
    a, b = variables([np.ones(2), np.ones(2)])
    with pytest.raises(FloatingPointError, match="bias"):
        optimizer.apply([tf.ones(2), tf.constant([1.0, np.inf])], [a, b])
    np.testing.assert_array_equal([a.numpy(), b.numpy()], np.ones((2, 2)))
    with pytest.raises(tf.errors.InvalidArgumentError, match="not finite"):
        tf.function(lambda g: optimizer.apply([tf.ones(2), g]), autograph=False)(tf.constant([1.0, np.nan]))
    model = network(kopt.Adam(on_nonfinite="raise"), jit_compile=True)
    with pytest.raises(ValueError, match="cannot stop an XLA-compiled train step"):
        model.fit(regression(), shuffle=False, verbose=0)


def test_ignore_lets_it_pass():
    assert np.isnan(one_step(kopt.SGD(), np.ones(2), np.array([np.nan, 1.0]))).any()

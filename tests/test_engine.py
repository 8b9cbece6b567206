"""What stands around a rule, checked on rules made for the purpose and on numbers worked out by hand."""

import json
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from problems import RATE, descend, flat, network, regression, variables, weights_and_gradients

import kopt
from kopt.optimizers._math import debias, round_stochastically


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


def one_step(optimizer, w, g):
    (v,) = variables([w])
    optimizer.apply([g if isinstance(g, tf.IndexedSlices) else tf.constant(g, v.dtype)], [v])
    return v.numpy()


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
    weights, (gradients,) = [np.zeros((2, 2)), np.zeros(2)], [[np.array([[3.0, 0], [0, 4.0]]), np.array([0.0, 12.0])]]
    cases = {
        "clipvalue": [np.clip(g, -2, 2) for g in gradients],
        "clipnorm": [g * min(1, 2 / np.linalg.norm(g)) for g in gradients],
        "global_clipnorm": [g * 2 / 13 for g in gradients],
    }
    for option, expected in cases.items():
        optimizer = kopt.SGD(1.0, **{option: 2.0})
        done = descend(optimizer, weights, [gradients])
        for a, b in zip(done, expected, strict=True):
            np.testing.assert_allclose(a, -b, rtol=1e-6)
        assert int(optimizer.clipped_steps) == 1
        optimizer.apply([tf.zeros((2, 2)), tf.zeros(2)])
        assert int(optimizer.clipped_steps) == 1
    assert float(optimizer.gradient_norm) == 0.0  # with global_clipnorm it is always known


def test_repeated_rows_are_summed_before_they_are_clipped():
    g = tf.IndexedSlices(tf.constant([[3.0], [0.0], [1.0]]), tf.constant([2, 0, 2]), tf.constant([4, 1]))
    np.testing.assert_allclose(one_step(kopt.SGD(1.0, global_clipnorm=1.0), np.zeros((4, 1)), g).ravel(), [0, 0, -1, 0])


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


def test_accumulated_rows_stay_lazy():
    table = np.random.default_rng(0).normal(size=(5, 2))
    a, b = kopt.Adam(RATE, gradient_accumulation_steps=2), kopt.Adam(RATE)
    (v,), (w,) = variables([table]), variables([table])
    for first, second in (([0, 1, 1], [3]), ([0], [1])):
        for ids in (first, second):
            a.apply([tf.IndexedSlices(tf.ones((len(ids), 2)), tf.constant(ids), tf.constant([5, 2]))], [v])
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


# ------------------------------------------------------------------------------------------------- the learning rate


def test_every_kind_of_rate():
    weights, gradients = weights_and_gradients(3)
    fixed = descend(kopt.SGD(1.0), weights, gradients)
    source = tf.Variable(1.0)
    for rate in (1, np.float32(1.0), lambda: source, lambda step: 1.0 + 0.0 * tf.cast(step, tf.float32)):
        for a, b in zip(descend(kopt.SGD(rate), weights, gradients), fixed, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_rate_can_be_set():
    model = network(kopt.Adam(0.1))
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.1 / (epoch + 1))
    history = model.fit(regression(), shuffle=False, epochs=3, callbacks=[schedule], verbose=0).history
    np.testing.assert_allclose(history["learning_rate"], [0.1, 0.05, 0.1 / 3])
    before = flat(model)
    model.optimizer.learning_rate = 0
    model.fit(regression(), shuffle=False, verbose=0)
    np.testing.assert_array_equal(flat(model), before)
    with pytest.raises(TypeError, match="created with one"):
        kopt.Adam(keras.optimizers.schedules.CosineDecay(0.1, 10)).learning_rate = 0.1


@pytest.mark.parametrize(
    ("schedule", "peak"),
    [
        (keras.optimizers.schedules.CosineDecay(0.0, 10, warmup_target=0.2, warmup_steps=5), 0.2),
        (keras.optimizers.schedules.ExponentialDecay(0.3, 1, 0.5), 0.3),
        (keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.4, 0.1]), 0.4),
    ],
)
def test_bounds_refer_to_the_peak_of_the_schedule(schedule, peak):
    optimizer = kopt.AdaBound(schedule)
    assert optimizer.base_learning_rate == pytest.approx(peak)
    assert np.isfinite(one_step(optimizer, np.ones(2), np.ones(2))).all()


def test_bounds_survive_a_change_of_the_rate():
    optimizer = kopt.AdaBound(0.01)
    optimizer.learning_rate = 0.001
    restored = kopt.AdaBound.from_config(optimizer.get_config())
    assert (restored.base_learning_rate, float(restored.learning_rate)) == (0.01, pytest.approx(0.001))
    with pytest.raises(ValueError, match="base_learning_rate"):
        kopt.AdaBound(lambda: 0.1)


# ------------------------------------------------------------------------------------------------- masks


def test_keras_way_to_exclude_from_decay_is_saved():
    optimizer = kopt.AdamW(1.0, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    restored = kopt.AdamW.from_config(optimizer.get_config())
    done = descend(restored, [np.ones(2), np.ones(2)], [[np.zeros(2), np.zeros(2)]])
    np.testing.assert_allclose(done, [[0.5, 0.5], [1, 1]])
    by_variable, (w,) = kopt.AdamW(), variables([np.ones(2)])
    by_variable.exclude_from_weight_decay(var_list=[w])
    assert by_variable.decay_mask == (("kernel$", 0.0),)
    with pytest.raises(AttributeError, match="after build"):
        restored.exclude_from_weight_decay(var_names=["kernel"])


def test_the_first_pattern_wins():
    optimizer = kopt.SGD(1.0, multipliers=[("bias$", 0.5), ("bias|kernel", 0.1)])
    done = descend(optimizer, [np.zeros(1)] * 3, [[np.ones(1)] * 3])
    np.testing.assert_allclose(np.ravel(done), [-0.1, -0.5, -1.0])


# ------------------------------------------------------------------------------------------------- state


def test_state_waits_for_build(tmp_path):
    model = network(kopt.Adam())
    model.fit(regression(), shuffle=False, verbose=0)
    model.save_weights(tmp_path / "w.weights.h5")
    fresh = network(kopt.Adam())
    fresh.load_weights(tmp_path / "w.weights.h5")
    for m in (model, fresh):
        m.fit(regression(), shuffle=False, verbose=0)
    np.testing.assert_array_equal(flat(model), flat(fresh))


def test_a_model_saved_before_training_loads(tmp_path):
    network(kopt.Adam(0.25)).save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert float(loaded.optimizer.learning_rate) == 0.25


def saved(optimizer, weights):
    optimizer.build(variables(weights))
    store = {}
    optimizer.save_own_variables(store)
    return store


@pytest.mark.parametrize(
    ("other", "weights", "message"),
    [
        (kopt.Lion(), [(2, 3)], "written by kopt.Adam"),
        (kopt.Adam(amsgrad=True), [(2, 3)], r"slot 'n.value' of weight 0 \(kernel\) is missing"),
        (kopt.Adam(), [(2, 4)], r"float32\[2, 3\], not float32\[2, 4\]"),
        (kopt.Adam(), [(2, 3), (3,)], "weight 1"),
        (kopt.Adam(state_dtype="bfloat16"), [(2, 3)], "bfloat16"),
        (kopt.Adam(keras.optimizers.schedules.CosineDecay(0.1, 5)), [(2, 3)], "'learning_rate' is unknown here"),
    ],
)
def test_state_that_does_not_fit_raises_and_names_what_differs(other, weights, message):
    store = saved(kopt.Adam(), [np.ones((2, 3))])
    other.build(variables([np.ones(s) for s in weights]))
    with pytest.raises(ValueError, match=message):
        other.load_own_variables(store)


def test_state_of_keras_is_refused():
    with pytest.raises(ValueError, match="no manifest"):
        kopt.Adam().load_own_variables({"0": np.array(1), "1": np.array(0.1)})


def test_a_new_process_resumes_bit_for_bit(tmp_path):
    model = network(kopt.AdaBound())
    data = regression()
    model.fit(data, shuffle=False, epochs=5, verbose=0)
    model.save(tmp_path / "m.keras")
    model.fit(data, shuffle=False, epochs=5, verbose=0)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import conftest, keras, kopt, numpy as np;"
        "from problems import *;"
        "m = keras.saving.load_model(sys.argv[2] + '/m.keras');"
        "m.fit(regression(), shuffle=False, epochs=5, verbose=0); np.save(sys.argv[2] + '/w.npy', flat(m))"
    )
    here = str(__import__("pathlib").Path(__file__).parent)
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, here, str(tmp_path)], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "w.npy"), flat(model))


# ------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kopt.Adam(-1e-3), "learning_rate must be a finite number in"),
        (lambda: kopt.Adam(float("nan")), "learning_rate must be"),
        (lambda: kopt.Adam("fast"), "Received: learning_rate='fast'"),
        (lambda: kopt.Adam(beta_1=1.5), r"Adam: beta_1 must be a finite number in \[0, 1\). Received: beta_1=1.5"),
        (lambda: kopt.Adam(epsilon=0), r"in \(0, inf\)"),
        (lambda: kopt.Adam(amsgrad=1), "True or False"),
        (lambda: kopt.Adam(beta1=0.9), "Did you mean 'beta_1'"),
        (lambda: kopt.Adam(clipnorm=1.0, clipvalue=1.0), "only one kind of clipping"),
        (lambda: kopt.Adam(gradient_accumulation_steps=1.5), "an integer in"),
        (lambda: kopt.Adam(ema_overwrite_frequency=3), "needs use_ema"),
        (lambda: kopt.Adam(on_nonfinite="stop"), "one of 'ignore', 'skip', 'raise'"),
        (lambda: kopt.Adam(multipliers=[("(", 1.0)]), "regular expression"),
        (lambda: kopt.Adam(decay_mask=["bias"]), "pairs"),
        (lambda: kopt.get("adabond"), "Did you mean adabound"),
        (lambda: kopt.get("???"), "Known names: adabound"),
        (lambda: kopt.Adam().apply([tf.ones(2)]), "is not built"),
        (lambda: kopt.Adam().apply([tf.ones(2)], variables([np.ones(2), np.ones(2)])), "1 gradients for 2 variables"),
        (lambda: kopt.Adam().apply([tf.ones((1,))], variables([np.ones(2)])), r"shape \(1,\) for 'kernel' of shape"),
        (lambda: kopt.Adam().build([keras.Variable(1, dtype="int32", name="n")]), "'n' has dtype int32"),
        (lambda: kopt.Adam(multipliers=[("embeding", 2)]).build(variables([np.ones(2)])), "Nearest: kernel"),
        (lambda: kopt.Adam().apply([None], variables([np.ones(2)])), "No gradients"),
        (lambda: type("Adam", (kopt.Optimizer,), {}), "belongs to kopt.Adam"),
    ],
)
def test_bad_input_says_what_to_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_unknown_variables_and_late_changes():
    optimizer = kopt.Adam()
    optimizer.build(variables([np.ones(2)]))
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([tf.ones(2)], variables([np.ones(2)]))
    with pytest.raises(AttributeError, match="cannot change after build"):
        optimizer.beta_1 = 0.5
    with pytest.raises(ValueError, match="beta_1"):
        kopt.Adam().beta_1 = 2.0


def test_repr_shows_what_was_chosen():
    assert repr(kopt.Adam(0.01, beta_1=0.8)) == "Adam(learning_rate=0.01, beta_1=0.8)"
    assert json.dumps(kopt.Adam(decay_mask=[("bias", 0)]).get_config()["decay_mask"]) == '[["bias", 0.0]]'
    assert "learning_rate=0.001" in str(__import__("inspect").signature(kopt.Adam))

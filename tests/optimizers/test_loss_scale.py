"""Dynamic loss scaling: kopt's own, and what is right inside of Keras'."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import flat, network, regression, variables

import kopt

KERAS = keras.optimizers.LossScaleOptimizer
STORM = "the loss scale fell below minimum_scale=0.0001.* look for NaN"
INSTEAD = r"give compile\(\) kopt.LossScaleOptimizer\("


@pytest.fixture
def float16():
    keras.config.set_dtype_policy("mixed_float16")


def fit(model, data, **options):
    """Fits in order and returns the losses."""
    return model.fit(data, shuffle=False, verbose=0, **options).history["loss"]


def spoiled(batches, rows, times=1):
    """Returns `regression`, some times over, with NaN in some rows of some of its batches."""
    x, y = (np.tile(a, (times, 1)) for a in next(regression(64).as_numpy_iterator()))
    y[[16 * i + k for i in batches for k in rows]] = np.nan
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(16)


def step(optimizer, w, g):
    """Makes one eager step with the gradient g of a loss that is not scaled yet."""
    optimizer.apply([tf.constant(g, "float32") * optimizer.scale_loss(tf.constant(1.0))], [w])


# ------------------------------------------------------------------------------------------------------- the scale


def test_the_scale_halves_doubles_and_counts_updates():
    (w,) = variables([[1.0, 2.0]])
    optimizer = kopt.LossScaleOptimizer(kopt.SGD(0.25), initial_scale=8.0, dynamic_growth_steps=2)
    seen = []
    for g in (1.0, np.inf, 1.0, 1.0, 1.0, np.nan):
        step(optimizer, w, [g, 1.0])
        seen.append((float(optimizer.dynamic_scale), int(optimizer.step_counter), int(optimizer.iterations)))
    assert seen == [(8, 1, 1), (4, 0, 1), (4, 1, 2), (8, 0, 3), (8, 1, 4), (4, 0, 4)]
    np.testing.assert_array_equal(w.numpy(), [0.0, 1.0])  # four updates, unscaled


def test_accumulated_batches_are_judged_together():
    (w,) = variables([[1.0, 2.0]])
    optimizer = kopt.LossScaleOptimizer(kopt.SGD(0.25, gradient_accumulation_steps=2), initial_scale=8.0)
    seen = []
    for g in (1.0, 3.0, np.inf, 1.0, 1.0, 1.0):
        step(optimizer, w, [g, 1.0])
        seen.append((float(optimizer.dynamic_scale), int(optimizer.step_counter), int(optimizer.iterations)))
    assert seen == [(8, 0, 0), (8, 1, 1), (8, 1, 1), (4, 0, 1), (4, 0, 1), (4, 1, 2)]
    np.testing.assert_array_equal(w.numpy(), [0.25, 1.5])


def test_rows_of_a_table_are_unscaled():
    (w,) = variables([np.zeros((4, 2))])
    optimizer = kopt.LossScaleOptimizer(kopt.SGD(1.0), initial_scale=4.0)
    optimizer.apply([tf.IndexedSlices(tf.ones((2, 2)), tf.constant([1, 1]), tf.constant([4, 2]))], [w])
    np.testing.assert_array_equal(w.numpy(), [[0, 0], [-0.5, -0.5], [0, 0], [0, 0]])


def test_the_scale_does_not_grow_beyond_float32():
    (w,) = variables([[1.0]])
    optimizer = kopt.LossScaleOptimizer(kopt.SGD(0.25), initial_scale=2.0**127, dynamic_growth_steps=1)
    step(optimizer, w, [0.0])
    assert float(optimizer.dynamic_scale) == 2.0**127


def test_a_storm_stops_an_eager_loop():
    (w,) = variables([[1.0]])
    optimizer = kopt.LossScaleOptimizer(kopt.SGD(), initial_scale=4.0, minimum_scale=1.0)
    step(optimizer, w, [np.inf]), step(optimizer, w, [np.inf])
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="minimum_scale=1, "):
            step(optimizer, w, [np.inf])
    assert float(optimizer.dynamic_scale) == 0.5  # it says what happened, and goes no further
    assert w.numpy() == 1.0


@pytest.mark.few(1)
@pytest.mark.parametrize("jit", [True, False])
def test_a_storm_stops_fit(float16, jit):
    model = network(kopt.LossScaleOptimizer(kopt.AdamW()), jit_compile=jit)
    before = flat(model)
    error = FloatingPointError if jit else tf.errors.InvalidArgumentError
    with pytest.raises(error, match=f"(?s){STORM}"):
        fit(model, spoiled(range(32), range(16), 8))
    np.testing.assert_array_equal(flat(model), before)
    assert float(model.optimizer.dynamic_scale) == 2.0**-14
    assert int(model.optimizer.iterations) == 0


@pytest.mark.parametrize(
    ("inner", "options", "error", "message"),
    [
        (keras.optimizers.SGD, {}, TypeError, "Use keras.optimizers.LossScaleOptimizer"),
        (lambda: kopt.SGD(on_nonfinite="raise"), {}, ValueError, "Leave it out"),
        (lambda: kopt.SGD(loss_scale_factor=8.0), {}, ValueError, "Use one of them"),
        (kopt.SGD, {"minimum_scale": 0.0}, ValueError, "minimum_scale"),
        (kopt.SGD, {"initial_scale": 1e-5}, ValueError, "initial_scale"),
        (kopt.SGD, {"dynamic_growth_steps": 0}, ValueError, "dynamic_growth_steps"),
    ],
)
def test_wrong_arguments_are_refused(inner, options, error, message):
    with pytest.raises(error, match=message):
        kopt.LossScaleOptimizer(inner(), **options)


# ------------------------------------------------------------------------------------------------------ around fit


@pytest.mark.few(1)
@pytest.mark.parametrize("wrap", [kopt.LossScaleOptimizer, KERAS])
@pytest.mark.parametrize("jit", [pytest.param(True, marks=pytest.mark.slow), False])
def test_what_surrounds_a_rule_goes_on_as_without(float16, wrap, jit):
    options = {"gradient_accumulation_steps": 2, "use_ema": True, "global_clipnorm": 0.3}

    def make():
        schedule = keras.optimizers.schedules.ExponentialDecay(1e-2, 2, 0.5)
        return kopt.AdamW(schedule, ema_overwrite_frequency=3, **options)

    plain, scaled = (network(make(), auto_scale_loss=False, jit_compile=jit), network(wrap(make()), jit_compile=jit))
    assert type(scaled.optimizer) is wrap  # compile adds no other
    for model in (plain, scaled):
        fit(model, regression(), epochs=4)
    inner = scaled.optimizer.inner_optimizer
    assert int(scaled.optimizer.iterations) == int(inner.iterations) == 8
    assert int(inner.clipped_steps) == int(plain.optimizer.clipped_steps) > 0
    assert float(scaled.optimizer.learning_rate) == float(plain.optimizer.learning_rate) < 1e-3
    np.testing.assert_allclose(flat(scaled), flat(plain), atol=2e-3)  # what float16 rounds away is another


@pytest.mark.few(1)
@pytest.mark.parametrize("wrap", [kopt.LossScaleOptimizer, KERAS])
def test_saved_and_loaded_it_goes_on(float16, wrap, tmp_path):
    model = network(wrap(kopt.AdamW(1e-2), initial_scale=64.0, dynamic_growth_steps=3))
    fit(model, spoiled([1], [0]))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.optimizer) is wrap
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    for one in (model, loaded):
        assert float(one.optimizer.dynamic_scale) == 32
        assert int(one.optimizer.step_counter) == 2
        fit(one, regression(), epochs=2)
    np.testing.assert_array_equal(flat(loaded), flat(model))
    assert float(loaded.optimizer.dynamic_scale) == float(model.optimizer.dynamic_scale) == 256


def test_state_waits_for_the_weights():
    (w,) = variables([[1.0]])
    saved, store = kopt.LossScaleOptimizer(kopt.SGD(), initial_scale=8.0, dynamic_growth_steps=5), {}
    step(saved, w, [1.0]), step(saved, w, [np.inf]), step(saved, w, [1.0])
    saved.save_own_variables(store)
    assert set(store) == {"step_counter", "dynamic_scale"}  # the inner optimizer writes its own
    fresh = kopt.LossScaleOptimizer.from_config(saved.get_config())
    fresh.load_own_variables(store)
    fresh.build([w])
    assert (float(fresh.dynamic_scale), int(fresh.step_counter)) == (4.0, 1)


@pytest.mark.few(1)
@pytest.mark.parametrize("wrap", [kopt.LossScaleOptimizer, KERAS])
def test_averages_are_evaluated(float16, wrap):
    model = network(wrap(kopt.ScheduleFreeAdamW(1e-2)))
    averages = kopt.AveragedWeights()
    fit(model, regression(), callbacks=[averages], validation_data=regression())
    raw = flat(model)
    with averages.weights():
        assert np.abs(flat(model) - raw).max() > 0


@pytest.mark.parametrize("batch", [pytest.param(64, marks=pytest.mark.slow), 16])
def test_rules_see_the_loss(float16, batch):
    rule = kopt.LBFGS() if batch == 64 else kopt.BGD(examples=64, batch_size=batch)
    losses = fit(network(kopt.LossScaleOptimizer(rule)), regression(batch), epochs=10)
    assert losses[-1] < losses[0] / 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (kopt.LBFGS, "hides the loss"),
        (lambda: kopt.BGD(step="fixed", examples=64, batch_size=16), "leaves single batches out"),
        (lambda: kopt.AdamW(on_nonfinite="raise"), "on_nonfinite='raise'"),
    ],
)
def test_the_loss_scaling_of_keras_is_refused_where_it_is_wrong(float16, make, message):
    with pytest.raises(ValueError, match=f"{message}.*{INSTEAD}"):
        fit(network(make()), regression())


@pytest.mark.few(1)
@pytest.mark.parametrize("jit", [True, False])
def test_a_storm_under_keras_ends_with_an_error(float16, jit):
    model = network(kopt.AdamW(), jit_compile=jit)
    before = flat(model)
    with pytest.raises(FloatingPointError, match=f"fall below 0.0001.*{INSTEAD}"):
        fit(model, spoiled(range(200), range(16), 50))
    np.testing.assert_array_equal(flat(model), before)


def test_a_scale_of_nothing_under_keras_stops_the_next_step():
    (w,) = variables([[1.0]])
    optimizer = KERAS(kopt.AdamW())
    step(optimizer, w, [1.0])
    before = w.numpy()
    optimizer.dynamic_scale.assign(0.0)
    with pytest.raises(FloatingPointError, match=INSTEAD):
        step(optimizer, w, [1.0])
    np.testing.assert_array_equal(w.numpy(), before)


def test_an_optimizer_that_leaves_the_scaling_of_keras_is_free():
    (w,) = variables([[1.0]])
    optimizer = KERAS(kopt.AdamW())
    step(optimizer, w, [1.0])
    optimizer.dynamic_scale.assign(0.0)
    optimizer.inner_optimizer.apply([tf.ones(1)], [w])
    assert int(optimizer.iterations) == 2


# ---------------------------------------------------------------------------------------------------- two replicas


def test_two_replicas_equal_one(float16, two_devices):
    options = {"initial_scale": 64.0, "dynamic_growth_steps": 3}
    one = network(kopt.LossScaleOptimizer(kopt.AdamW(1e-2), **options))
    with two_devices.scope():
        two = network(kopt.LossScaleOptimizer(kopt.AdamW(1e-2), **options))
    for model in (one, two):
        fit(model, regression(), epochs=2)
    for read in ("dynamic_scale", "step_counter", "iterations"):
        assert getattr(two.optimizer, read).numpy() == getattr(one.optimizer, read).numpy()
    np.testing.assert_allclose(flat(two), flat(one), atol=1e-4)  # float16 sums halves in another order


@pytest.mark.slow
@pytest.mark.parametrize("rows", [range(8), range(8, 16)], ids=["first", "second"])
def test_the_nan_of_one_replica_moves_no_weight_of_either(float16, two_devices, rows):
    with two_devices.scope():
        model = network(kopt.LossScaleOptimizer(kopt.AdamW(1e-2)))
    before = flat(model)
    fit(model, spoiled([0], rows).take(1))
    for v in model.trainable_variables:
        first, second = (x.numpy() for x in two_devices.experimental_local_results(v.value))
        np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(flat(model), before)
    scales = two_devices.experimental_local_results(model.optimizer.dynamic_scale.value)
    assert [x.numpy() for x in scales] == [2.0**14] * 2
    fit(model, regression())
    assert model.optimizer.iterations.numpy() == 4


@pytest.mark.slow
def test_averages_of_two_replicas_are_evaluated(float16, two_devices):
    with two_devices.scope():
        model = network(kopt.LossScaleOptimizer(kopt.ScheduleFreeAdamW(1e-2)))
    averages = kopt.AveragedWeights()
    fit(model, regression(), callbacks=[averages], validation_data=regression())
    raw = flat(model)
    with averages.weights():
        assert np.abs(flat(model) - raw).max() > 0


def test_a_storm_stops_two_replicas(float16, two_devices):
    with two_devices.scope():
        model = network(kopt.LossScaleOptimizer(kopt.AdamW(1e-2), initial_scale=2.0, minimum_scale=1.0))
    before = flat(model)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"(?s)minimum_scale=1, .* look for NaN"):
        fit(model, spoiled(range(4), range(8)))
    np.testing.assert_array_equal(flat(model), before)


def test_the_loss_scaling_of_keras_is_refused_on_two_replicas(float16, two_devices):
    with two_devices.scope():
        model = network(kopt.AdamW())
    with pytest.raises(ValueError, match=f"each replica alone.*{INSTEAD}"):
        fit(model, regression())

"""What a user sees of an optimizer: rates, masks, files and errors."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import descend, flat, network, one_step, regression, variables, weights_and_gradients

import kopt

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


@pytest.mark.slow
def test_a_new_process_resumes_bit_for_bit(tmp_path):
    model = network(kopt.AdaBound())
    data = regression()
    model.fit(data, shuffle=False, epochs=5, verbose=0)
    model.save(tmp_path / "m.keras")
    model.fit(data, shuffle=False, epochs=5, verbose=0)
    script = (
        "import sys; sys.path[:0] = sys.argv[1], sys.argv[1] + '/support'; import conftest, keras, kopt, numpy as np;"
        "from problems import *;"
        "m = keras.saving.load_model(sys.argv[2] + '/m.keras');"
        "m.fit(regression(), shuffle=False, epochs=5, verbose=0); np.save(sys.argv[2] + '/w.npy', flat(m))"
    )
    here = str(__import__("pathlib").Path(__file__).parents[1])
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
        (lambda: kopt.QHAdam(nu_1=1.1), r"nu_1 must be a finite number in \[0, 1\]. Received: nu_1=1.1"),
        (lambda: kopt.Adam(amsgrad=1), "True or False"),
        (lambda: kopt.Adam(beta1=0.9), "Did you mean 'beta_1'"),
        (lambda: kopt.Adam(clipnorm=1.0, clipvalue=1.0), "only one kind of clipping"),
        (lambda: kopt.Adam(gradient_accumulation_steps=1.5), "an integer in"),
        (lambda: kopt.Adam(ema_overwrite_frequency=3), "needs use_ema"),
        (lambda: kopt.Adam(on_nonfinite="stop"), "one of 'ignore', 'skip', 'raise'"),
        (lambda: kopt.Adam(multipliers=[("(", 1.0)]), "regular expression"),
        (lambda: kopt.Adam(decay_mask=["bias"]), "pairs"),
        (lambda: kopt.get("adabond"), "Did you mean adabound"),
        (lambda: kopt.get("???"), "Known names: adabelief, adabound"),
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

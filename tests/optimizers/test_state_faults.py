"""A state that does not fit is refused, by name and with advice, and nothing of the optimizer changes."""

import contextlib
import json
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import flat, network, regression

import kopt
from kopt.optimizers.engine.state.state_file import MANIFEST


@pytest.fixture(autouse=True)
def _eager():
    """Runs operation by operation, which for a few small steps is faster than to compile them."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def sampled(cases, fast):
    """Returns the cases as parameters; all but a few are slow together."""
    return [pytest.param(case, marks=() if case in fast else pytest.mark.slow) for case in cases]


def adam():
    return kopt.Adam(0.01)


def compiled(make=adam):
    return network(make(), run_eagerly=True)


def train(model, batches=2):
    for x, y in regression().take(batches):
        model.train_on_batch(x, y)
    return model


def bits(optimizer):
    """Returns every variable, bit for bit."""
    return [(v.name, v.numpy().tobytes()) for v in optimizer.variables]


# -------------------------------------------------------------------------------------------------------- the faults


def manifest(change):
    """Returns a fault of the manifest."""

    def fault(store):
        content = json.loads(store[MANIFEST].tobytes())
        content = change(content) or content
        store[MANIFEST] = np.frombuffer(json.dumps(content).encode(), np.uint8)

    return fault


def entry(name, change):
    """Returns a fault of one array."""

    def fault(store):
        store[name] = np.array(change(np.array(store[name])))

    return fault


def with_first(value):
    """Returns a change of the first element."""

    def change(array):
        array.flat[0] = value
        return array

    return change


def bfloat16(number):
    return np.array([number], "float32").view("uint32") >> 16


DAMAGED = "cannot be read: the file is damaged"
FAULTS = {  # what is wrong, how, and what the error says
    "no manifest": (lambda store: store.pop(MANIFEST), "no manifest, so kopt.Adam did not write it"),
    "bytes": (lambda store: store.update({MANIFEST: np.array([1, 2], np.uint8)}), DAMAGED),
    "a list": (manifest(lambda m: [1, 2]), DAMAGED),
    "no optimizer": (manifest(lambda m: m.pop("optimizer") and None), DAMAGED),
    "no built": (manifest(lambda m: m.pop("built") and None), DAMAGED),
    "no shape": (manifest(lambda m: m["entries"].update({"0.m.value": None})), DAMAGED),
    "weight 99": (
        lambda store: (
            store.update({"99.m.value": np.zeros(2, "float32")}),
            manifest(lambda m: m["entries"].update({"99.m.value": [[2], "float32"]}))(store),
        ),
        "does not fit this Adam: .*99|" + DAMAGED,
    ),
    "format": (manifest(lambda m: m.update(format=99)), "has format 99; this kopt reads format 1"),
    "missing": (lambda store: store.pop("0.m.value"), "lacks '0.m.value', which its manifest names"),
    "shape": (entry("0.m.value", np.transpose), r"slot 'm.value' of weight 0 \(.*dense.*/kernel\) is \(8, 5\), not as"),
    "dtype": (entry("0.m.value", lambda x: x.astype("int32")), "slot 'm.value' of weight 0 .*int32.*, not as"),
    "half an update": (entry("iteration", lambda x: x + 0.5), "'iteration' .*float64.*, not as"),
    "NaN": (entry("0.m.value", with_first(np.nan)), r"slot 'm.value' of weight 0 \(.*\) is not finite"),
    "inf": (entry("3.v.value", with_first(np.inf)), r"slot 'v.value' of weight 3 \(.*\) is not finite"),
    "negative count": (entry("iteration", lambda x: -x), "'iteration' is negative"),
    "negative skips": (entry("nonfinite_steps", lambda x: x - 1), "'nonfinite_steps' is negative"),
    "negative rate": (entry("learning_rate", lambda x: -x), "'learning_rate' is negative"),
    "NaN rate": (entry("learning_rate", with_first(np.nan)), "'learning_rate' is not finite"),
    "one value": (entry("0.m.value", lambda x: x + 1e-3), "was changed: it has not the SHA-256"),
    "count": (entry("iteration", lambda x: x + 1), "was changed: it has not the SHA-256"),
    "path": (manifest(lambda m: m["paths"].reverse()), "was changed: it has not the SHA-256"),
    "inf rate": (entry("learning_rate", with_first(np.inf)), "'learning_rate' is not finite"),
}
CODED = {  # of slots that are not stored as numbers
    "bfloat16": (entry("0.m.bfloat16", with_first(bfloat16(np.nan)[0])), "slot 'm.bfloat16' of weight 0 .*not finite"),
    "int8": (entry("0.m.scale", with_first(np.nan)), "slot 'm.scale' of weight 0 .*not finite"),
}


def spoil(model, fault):
    """Lets what is saved of the optimizer have a fault."""
    whole = type(model.optimizer).save_own_variables

    def save(store):
        good = {}
        whole(model.optimizer, good)
        fault(good)
        for name, array in good.items():
            store[name] = array

    vars(model.optimizer)["save_own_variables"] = save


def check_refused(model, path, message):
    """Loads the weights from a file whose state does not fit, and trains on."""
    before = bits(model.optimizer)
    with pytest.raises(ValueError, match=message) as caught:
        model.load_weights(path)
    assert "compile=False" not in str(caught.value)
    assert "The weights of the model are loaded; the optimizer stays as it was" in str(caught.value)
    assert bits(model.optimizer) == before
    count = int(model.optimizer._iterations)
    train(train(model, 1), 1)
    assert int(model.optimizer._iterations) == count + 2 and np.isfinite(flat(model)).all()


def check_load_model_refuses(path, message):
    with pytest.raises(ValueError, match=message) as caught:
        keras.saving.load_model(path)
    assert "Load the model with compile=False" in str(caught.value)
    assert keras.saving.load_model(path, compile=False).built


@pytest.mark.few(3)
@pytest.mark.parametrize("fault", sampled(FAULTS, ("no manifest", "no optimizer", "format", "missing", "shape", "NaN")))
def test_a_damaged_state_is_refused(fault, tmp_path):
    spoilt, message = FAULTS[fault]
    source = train(compiled(), 3)
    spoil(source, spoilt)
    source.save_weights(tmp_path / "m.weights.h5")
    source.save(tmp_path / "m.keras")
    check_load_model_refuses(tmp_path / "m.keras", message)
    for model in (compiled(), train(compiled())):
        check_refused(model, tmp_path / "m.weights.h5", message)
        model.set_weights([np.zeros(w.shape) for w in model.get_weights()])
        with pytest.raises(ValueError, match=message):
            model.load_weights(tmp_path / "m.weights.h5")
        np.testing.assert_array_equal(flat(model), flat(source))


@pytest.mark.parametrize("state_dtype", CODED)
def test_coded_slots_that_are_not_finite_are_refused(state_dtype, tmp_path):
    spoilt, message = CODED[state_dtype]

    def wide():
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(16), keras.layers.Dense(1)])
        model.compile(kopt.Adam(0.01, state_dtype=state_dtype), "mse", run_eagerly=True)
        return model

    source = train(wide())
    spoil(source, spoilt)
    source.save_weights(tmp_path / "m.weights.h5")
    source.save(tmp_path / "m.keras")
    check_load_model_refuses(tmp_path / "m.keras", message)
    check_refused(wide(), tmp_path / "m.weights.h5", message)
    check_refused(train(wide()), tmp_path / "m.weights.h5", message)


OTHER = {  # what was saved, and what is said of it by an optimizer not built and by one that is
    "Lion": (kopt.Lion, "written by kopt.Lion"),
    "Keras": (lambda: keras.optimizers.Adam(0.01), "no manifest, so kopt.Adam did not write it"),
    "amsgrad": (lambda: kopt.Adam(amsgrad=True), "slot 'n.*' .*unknown"),
    "state_dtype": (lambda: kopt.Adam(state_dtype="bfloat16"), "bfloat16|slot 'm.value' .*missing"),
    "use_ema": (lambda: kopt.Adam(use_ema=True), "use_ema is unknown|slot 'average' .*unknown"),
    "accumulation": (lambda: kopt.Adam(gradient_accumulation_steps=2), "accumulat.* unknown"),
    "schedule": (lambda: kopt.Adam(kopt.schedules.REX(0.1, steps=9)), "'learning_rate' is missing"),
}


@pytest.mark.few(4)
@pytest.mark.parametrize("built", [True, False], ids=["built", "new"])
@pytest.mark.parametrize("name", sampled(OTHER, ("Lion", "Keras", "amsgrad", "state_dtype")))
def test_a_state_of_other_options_is_refused(name, built, tmp_path):
    make, message = OTHER[name]
    train(compiled(make)).save_weights(tmp_path / "m.weights.h5")
    check_refused(train(compiled()) if built else compiled(), tmp_path / "m.weights.h5", message)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(5, 8), (8,)], "weight 2 .* is missing"),
        ([(5, 8), (8,), (8, 1), (1,), (2,)], "weight 4 .* is unknown"),
        ([(8, 5), (8,), (8, 1), (1,)], r"weight 0 .* is float32\[8, 5\], not float32\[5, 8\]"),
    ],
    ids=["fewer", "more", "shapes"],
)
@pytest.mark.parametrize("built", [True, False], ids=["built", "new"])
def test_a_state_of_other_weights_is_refused(shapes, message, built):
    saved, store = adam(), {}
    saved.build([keras.Variable(np.ones(shape), dtype="float32") for shape in shapes])
    saved.save_own_variables(store)
    model = compiled()
    weights, rate = model.trainable_variables, float(model.optimizer.learning_rate)
    if built:
        train(model)
        before = bits(model.optimizer)
        with pytest.raises(ValueError, match=message):
            model.optimizer.load_own_variables(store)
        assert bits(model.optimizer) == before
    else:  # only the weights can tell
        model.optimizer.load_own_variables(store)
        with pytest.raises(ValueError, match=f"{message}.*It is dropped"):
            model.optimizer.build(weights)
        assert int(model.optimizer._iterations) == 0 and float(model.optimizer.learning_rate) == rate
    assert np.isfinite(flat(train(model))).all()


def test_a_refused_state_does_not_take_the_place_of_one_that_waits():
    good, bad, optimizer = {}, {}, adam()
    source = train(compiled())
    source.optimizer.save_own_variables(good)
    source.optimizer.save_own_variables(bad)
    bad["0.m.value"] = np.full_like(bad["0.m.value"], np.nan)
    optimizer.load_own_variables(good)
    with pytest.raises(ValueError, match="not finite"):
        optimizer.load_own_variables(bad)
    optimizer.build(source.trainable_variables)
    again = {}
    optimizer.save_own_variables(again)
    assert again["0.m.value"].tobytes() == good["0.m.value"].tobytes()


# ------------------------------------------------------------------------------------------------------ skip_mismatch


WRAPPED = {
    "Adam": adam,
    "Lookahead": lambda: kopt.Lookahead("adam"),
    "Route": lambda: kopt.Route([("kernel", "adam"), ("", "lion")]),
    "Switch": lambda: kopt.Switch("adam", after=1),
    "ScheduleFree": lambda: kopt.ScheduleFree("sgd"),
    "average": lambda: kopt.Adam(use_ema=True, gradient_accumulation_steps=2),
}


def check_skipped(model, path, fresh):
    """Loads the weights and skips the state, as it says; the slots are fresh ones."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.load_weights(path, skip_mismatch=True)
        inner(model).build(model.trainable_variables)
    assert any("optimizer" in str(w.message).lower() or "object" in str(w.message) for w in caught), caught
    fresh.set_weights(model.get_weights())
    inner(fresh).build(fresh.trainable_variables)
    assert values(inner(model)) == values(inner(fresh))
    train(model), train(fresh)
    np.testing.assert_array_equal(flat(model), flat(fresh))


def inner(model):
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def values(optimizer):
    store = {}
    optimizer.save_own_variables(store)
    return {k: v.tobytes() for k, v in store.items() if k not in (MANIFEST, "learning_rate")}


@pytest.mark.parametrize("built", [True, False], ids=["built", "new"])
@pytest.mark.parametrize("name", sampled(WRAPPED, ("Lookahead", "Route")))
def test_a_mismatch_is_skipped_with_a_warning(name, built, tmp_path):
    make = WRAPPED[name]
    source = train(compiled(lambda: kopt.AdEMAMix(0.01)))
    source.save_weights(tmp_path / "m.weights.h5")
    model = train(compiled(make)) if built else compiled(make)
    check_skipped(model, tmp_path / "m.weights.h5", compiled(make))


@pytest.mark.parametrize("built", [True, False], ids=["built", "new"])
def test_other_weights_are_skipped_with_a_warning(built, tmp_path):
    keras.utils.set_random_seed(1)
    source = keras.Sequential([keras.Input((5,)), keras.layers.Dense(7), keras.layers.Dense(1)])
    source.compile(adam(), "mse", run_eagerly=True)
    train(source).save_weights(tmp_path / "m.weights.h5")
    check_skipped(train(compiled()) if built else compiled(), tmp_path / "m.weights.h5", compiled())


@pytest.mark.parametrize("built", [True, False], ids=["built", "new"])
def test_a_mismatch_below_a_loss_scale_is_skipped(built, tmp_path):
    keras.config.set_dtype_policy("mixed_float16")

    def make():
        return kopt.LossScaleOptimizer(kopt.Adam(0.01), initial_scale=8.0)

    train(compiled(lambda: kopt.LossScaleOptimizer(kopt.Lion()))).save_weights(tmp_path / "m.weights.h5")
    model = train(compiled(make)) if built else compiled(make)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.load_weights(tmp_path / "m.weights.h5", skip_mismatch=True)
    assert caught
    assert np.isfinite(flat(train(model))).all()
    assert int(inner(model)._iterations) == 2


@pytest.mark.parametrize(
    ("saved", "loaded", "message", "of_keras"),
    [
        (
            "mixed_float16",
            "float32",
            "of an optimizer inside of the LossScaleOptimizer.*set_dtype_policy",
            contextlib.nullcontext(),
        ),
        (
            "float32",
            "mixed_float16",
            "of kopt.Adam without the LossScaleOptimizer.*set_dtype_policy",
            pytest.warns(UserWarning, match="Skipping variable loading"),
        ),
    ],
    ids=["saved", "loaded"],
)
def test_a_loss_scale_that_compile_adds_at_one_end_alone_is_named(saved, loaded, message, of_keras, tmp_path):
    keras.config.set_dtype_policy(saved)
    train(compiled()).save(tmp_path / "m.keras")
    keras.config.set_dtype_policy(loaded)
    with of_keras:
        check_load_model_refuses(tmp_path / "m.keras", message)
    keras.config.set_dtype_policy(saved)
    assert int(inner(keras.saving.load_model(tmp_path / "m.keras"))._iterations) == 2


@pytest.mark.slow
@pytest.mark.parametrize("built", [True, False], ids=["built", "new"])
def test_two_fits_follow_a_refusal(built, tmp_path):
    tf.config.run_functions_eagerly(False)
    source = network(kopt.Lion())
    source.fit(regression(), shuffle=False, verbose=0)
    source.save_weights(tmp_path / "m.weights.h5")
    model = network(adam())
    if built:
        model.fit(regression(), shuffle=False, verbose=0)
    with pytest.raises(ValueError, match=r"written by kopt\.Lion"):
        model.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(flat(model), flat(source))
    model.fit(regression(), shuffle=False, verbose=0)
    model.fit(regression(), shuffle=False, verbose=0)
    assert int(model.optimizer.iterations) == (12 if built else 8)


def test_a_state_of_an_older_version_has_no_hash(tmp_path):
    model, other = train(compiled()), train(compiled(), 1)
    spoil(model, manifest(lambda m: m.pop("sha256") and None))
    model.save_weights(tmp_path / "a.weights.h5")
    other.load_weights(tmp_path / "a.weights.h5")
    assert [v for _, v in bits(other.optimizer)] == [v for _, v in bits(model.optimizer)]

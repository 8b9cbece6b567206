"""What is saved comes back, by way and by the state that it was in; what was reset is as new."""

import copy
import json
import pickle
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from problems import flat, look_at_curvature, network, regression, rules, tilted, variables, weights_and_gradients
from registry import one_of_each

import kopt
from kopt.optimizers.engine.state.state_file import MANIFEST
from kopt.schedules import WarmupCosine


@pytest.fixture(autouse=True)
def _eager():
    """Runs operation by operation, which for a few small steps is faster than to compile them."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def state(optimizer):
    """Returns what would be saved, without the paths of the weights, which may differ."""
    store = {}
    optimizer.save_own_variables(store)
    manifest = json.loads(np.asarray(store.pop(MANIFEST)).tobytes())
    return {k: (v.shape, v.dtype, v.tobytes()) for k, v in store.items()} | {"built": manifest["built"]}


def compiled(make):
    return network(make(), run_eagerly=True)


def train(model, batches=2):
    for x, y in regression().take(batches):
        model.train_on_batch(x, y)
    return model


OPTIMIZERS = {
    "Adam": lambda: kopt.Adam(0.01, amsgrad=True, use_ema=True),
    "accumulation": lambda: kopt.Adam(0.01, gradient_accumulation_steps=3, state_dtype="bfloat16"),
    "Lookahead": lambda: kopt.Lookahead(kopt.AdamW(0.01)),
    "Route": lambda: kopt.Route([("kernel", kopt.Adam(0.01)), ("", kopt.Prodigy())]),
    "Switch": lambda: kopt.Switch(kopt.Adam(0.01), second=kopt.SGD(0.1), after=3),
    "ScheduleFree": lambda: kopt.ScheduleFreeAdamW(0.01),
    "LBFGS": lambda: kopt.LBFGS(),
    "schedule": lambda: kopt.Adam(WarmupCosine(0.1, steps=20), state_dtype="int8"),
}


def beside(model, make, optimizer):
    """Returns another model with the weights of this one, and an optimizer of its own."""
    other = compiled(make)
    other.set_weights(model.get_weights())
    if optimizer is not None:
        other.compile(optimizer, "mse", run_eagerly=True)
    return other


def by_keras(model, make, path):
    model.save(path / "m.keras")
    loaded = keras.saving.load_model(path / "m.keras")
    loaded.run_eagerly = True
    return loaded


def by_weights(model, make, path):
    model.save_weights(path / "m.weights.h5")
    other = compiled(make)
    other.load_weights(path / "m.weights.h5")
    return other


def by_weights_when_built(model, make, path):
    model.save_weights(path / "m.weights.h5")
    other = train(compiled(make), 1)
    other.load_weights(path / "m.weights.h5")
    return other


def by_pickle(model, make, path):
    return beside(model, make, pickle.loads(pickle.dumps(model.optimizer)))


def by_deepcopy(model, make, path):
    return beside(model, make, copy.deepcopy(model.optimizer))


def by_store(model, make, path):
    store, other = {}, beside(model, make, None)
    model.optimizer.save_own_variables(store)
    other.optimizer.load_own_variables(store)
    return other


WAYS = [by_keras, by_weights, by_weights_when_built, by_pickle, by_deepcopy, by_store]
BEGUN = ["new", "trained", "waiting", "rate set while waiting", "twice"]


def begun(kind, make):
    """Returns a model whose optimizer is in that state."""
    model = compiled(make)
    if kind == "new":
        return model
    train(model)
    if "waiting" in kind:
        model = by_store(model, make, None)
        assert not model.optimizer.built
    if "rate" in kind:
        numbered = isinstance(model.optimizer._learning_rate, keras.Variable)
        model.optimizer.learning_rate = 0.375 if numbered else WarmupCosine(0.375, steps=20)
    return model


def cases():
    """Yields every combination; the larger part is slow together."""
    for name in OPTIMIZERS:
        for way in WAYS:
            for kind in BEGUN:
                if "rate" in kind and name == "schedule":  # which the configuration keeps, not the state
                    continue
                fast = (name == "Adam" and way != by_weights_when_built) or (kind == "trained" and way == by_store)
                marks = () if fast else pytest.mark.slow
                yield pytest.param(name, way, kind, marks=marks, id=f"{name}-{way.__name__}-{kind}")


@pytest.mark.few(6)
@pytest.mark.parametrize(("name", "way", "kind"), list(cases()))
def test_everything_is_kept(name, way, kind, tmp_path):
    make = OPTIMIZERS[name]
    model = begun(kind, make)
    other = way(model, make, tmp_path)
    if kind == "twice":
        other = way(other, make, tmp_path)
    assert int(other.optimizer._iterations) == int(model.optimizer._iterations) == (0 if kind == "new" else 2)
    assert float(other.optimizer.learning_rate) == float(model.optimizer.learning_rate)
    if "rate" in kind:
        assert float(other.optimizer.learning_rate) == 0.375
    if kind != "new" or not other.optimizer.built:
        assert state(other.optimizer) == state(model.optimizer)
    train(model), train(other)
    np.testing.assert_array_equal(flat(other), flat(model))
    assert state(other.optimizer) == state(model.optimizer)


@pytest.mark.few(4)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_was_saved_before_the_first_step_puts_everything_back_to_the_start(name, tmp_path):
    make = OPTIMIZERS[name]
    fresh, trained = compiled(make), train(compiled(make))
    fresh.save_weights(tmp_path / "m.weights.h5")
    assert int(trained.optimizer._iterations) == 2
    trained.load_weights(tmp_path / "m.weights.h5")
    assert int(trained.optimizer._iterations) == 0
    fresh.optimizer.build(fresh.trainable_variables)
    assert state(trained.optimizer) == state(fresh.optimizer)
    train(fresh), train(trained)
    np.testing.assert_array_equal(flat(trained), flat(fresh))
    assert state(trained.optimizer) == state(fresh.optimizer)


def test_a_rate_that_is_saved_takes_the_place_of_the_other():
    trained, other = train(compiled(OPTIMIZERS["Adam"])), compiled(lambda: kopt.Adam(0.5, amsgrad=True, use_ema=True))
    store = {}
    trained.optimizer.save_own_variables(store)
    other.optimizer.load_own_variables(store)
    assert float(other.optimizer.learning_rate) == float(trained.optimizer.learning_rate)


# --------------------------------------------------------------------------------------------------- reset and anchor


def stepped(optimizer, weights, gradients):
    """Makes a step for each of the gradients, on these variables."""
    optimizer.build(weights)
    first = [w.numpy().astype("float64") for w in weights]
    for gs in gradients:
        gs = [tf.constant(g, w.dtype) for g, w in zip(gs, weights, strict=True)]
        look_at_curvature(optimizer, gs)
        optimizer.apply(tilted(optimizer, weights, first, gs) if optimizer.needs_loss else gs, weights)
    return [w.numpy() for w in weights]


def check_reset(make, dtype="float32"):
    arrays, gradients = weights_and_gradients(8)
    used, weights = make(), variables(arrays, dtype)
    stepped(used, weights, gradients[:4])
    used.reset()
    fresh, others = make(), [keras.Variable(w.numpy(), dtype=dtype, name=w.name) for w in weights]
    fresh.build(others)
    assert state(used) == state(fresh)
    for a, b in zip(stepped(used, weights, gradients[4:]), stepped(fresh, others, gradients[4:]), strict=True):
        assert a.tobytes() == b.tobytes()
    assert state(used) == state(fresh)


@one_of_each
def test_reset_equals_a_fresh_optimizer(name):
    check_reset(rules()[name])


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"use_ema": True, "ema_overwrite_frequency": 2}, "float32"),
        ({"gradient_accumulation_steps": 3}, "float32"),
        ({"state_dtype": "bfloat16"}, "bfloat16"),
        ({"state_dtype": "int8", "rounding": "stochastic"}, "bfloat16"),
        ({"global_clipnorm": 0.1, "on_nonfinite": "skip"}, "float64"),
    ],
    ids=str,
)
def test_reset_reaches_what_surrounds_a_rule(options, dtype):
    check_reset(lambda: kopt.Lookahead(kopt.AdamW(0.1), **options), dtype)


def test_reset_leaves_the_rate_and_forgets_what_waits():
    optimizer, store = kopt.Adam(0.1), {}
    stepped(optimizer, variables([np.ones(2)]), [[np.ones(2)]])
    optimizer.learning_rate = 0.5
    optimizer.save_own_variables(store)
    optimizer.reset()
    waiting = kopt.Adam(0.1)
    waiting.load_own_variables(store)
    waiting.reset()
    waiting.build(variables([np.ones(2)]))
    assert float(optimizer.learning_rate) == float(waiting.learning_rate) == 0.5
    assert state(waiting) == state(optimizer)


REMEMBERED = {  # the slots that refer to a point among the weights, and those summed from there
    "Adam": set(),
    "SGD": set(),
    "DoG": set(),
    "Lookahead": {"slow"},
    "ScheduleFreeAdamW": {"z"},
    "MADGRAD": {"x0", "s"},
    "Mechanic": {"first", "delta"},
    "DAdaptAdaGrad": {"first", "s"},
}


@pytest.mark.parametrize("name", REMEMBERED)
def test_anchor_moves_exactly_what_remembers_weights(name):
    arrays, gradients = weights_and_gradients(3)
    optimizer, weights = rules()[name](), variables(arrays)
    stepped(optimizer, weights, gradients)
    for w in weights:
        w.assign(w + 1.0)
    before = state(optimizer)
    optimizer.anchor()
    after, current = state(optimizer), [w.numpy() for w in weights]
    changed = {k for k in before if before[k] != after[k]}
    assert {k.split(".")[1] for k in changed} == REMEMBERED[name]
    for key in changed:
        index, slot, _ = key.split(".")
        points = optimizer.slots[slot].init == "weight"
        assert after[key][2] == (current[int(index)] if points else np.zeros_like(current[int(index)])).tobytes()


# ----------------------------------------------------------------------------------- what the configuration remembers


def test_a_lambda_warns_when_it_is_saved_and_a_schedule_does_not(tmp_path):
    with warnings.catch_warnings(record=True) as caught:  # Keras warns too
        warnings.simplefilter("always")
        compiled(lambda: kopt.Adam(lambda: 0.1)).save(tmp_path / "l.keras")
        kopt.AdamW(weight_decay=lambda: 0.1).get_config()
    texts = [str(warning.message) for warning in caught]
    assert any(text.startswith("Adam: learning_rate is a lambda") for text in texts)
    assert any(text.startswith("AdamW: weight_decay is a lambda") for text in texts)
    compiled(lambda: kopt.AdamW(WarmupCosine(0.1, steps=9), weight_decay=WarmupCosine(0.1, steps=9))).save(
        tmp_path / "s.keras"
    )


@keras.saving.register_keras_serializable("tests")
class Twins(keras.layers.Layer):
    """A layer of two weights with one name, unless it is called "apart"."""

    def build(self, shape):
        names = ("left", "right") if self.name == "apart" else ("w", "w")
        self.left, self.right = (self.add_weight(name=k, shape=(shape[-1], 3), initializer="ones") for k in names)

    def call(self, x):
        return x @ self.left + 2 * (x @ self.right)


def twins(built):
    """Returns a model whose second weight does not decay, though the first has its name.

    Before build there is no order yet: a configuration knows a weight by its path alone.
    """
    model = keras.Sequential([keras.Input((2,)), Twins(name="twins" if built else "apart")], name="net")
    model.compile(kopt.SGD(1.0, weight_decay=0.5), "mse", run_eagerly=True)
    model.optimizer.exclude_from_weight_decay(var_list=[model.layers[0].right])
    if built:
        model.optimizer.build(model.trainable_variables)
    return model


def decayed(model, optimizer):
    """Returns what decay alone leaves of both weights, which are ones."""
    optimizer.apply([tf.zeros(w.shape) for w in model.trainable_variables], model.trainable_variables)
    return [float(w.numpy()[0, 0]) for w in model.trainable_variables]


COPIES = {
    "config": lambda o: type(o).from_config(o.get_config()),
    "json": lambda o: keras.optimizers.deserialize(json.loads(json.dumps(keras.optimizers.serialize(o)))),
    "pickle": lambda o: pickle.loads(pickle.dumps(o)),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("built", [True, False], ids=["built", "new"])
@pytest.mark.parametrize("way", [*COPIES, "keras", "weights", "model"])
def test_a_weight_excluded_from_decay_stays_so(way, built, tmp_path):
    model = twins(built)
    if way in COPIES:
        optimizer = COPIES[way](model.optimizer)
    elif way == "weights":
        model.save_weights(tmp_path / "m.weights.h5")
        model = twins(built)
        model.load_weights(tmp_path / "m.weights.h5")
        optimizer = model.optimizer
    else:
        model.save(tmp_path / "m.keras")
        model = keras.saving.load_model(tmp_path / "m.keras") if way == "keras" else pickle.loads(pickle.dumps(model))
        optimizer = model.optimizer
    assert decayed(model, optimizer) == [0.5, 1.0]


@pytest.mark.parametrize(
    "wrap", [kopt.Lookahead, kopt.LossScaleOptimizer, lambda x: kopt.Route([("", x)]), kopt.Switch]
)
def test_a_weight_excluded_within_stays_so(wrap):
    weights = [keras.Variable(np.ones((2, 3)), dtype="float32", name="w") for _ in range(2)]
    inner = kopt.SGD(1.0, weight_decay=0.5)
    inner.exclude_from_weight_decay(var_list=weights[1:])
    try:
        optimizer = wrap(inner)
    except ValueError as error:  # a composite may ask for it at the outside
        assert "exclude" in str(error)
        return
    optimizer.apply([tf.zeros((2, 3))] * 2, weights)
    assert [float(w.numpy()[0, 0]) for w in weights] == [0.5, 1.0]


def test_two_weights_of_one_name_stay_two():
    model = twins(True)
    x = np.ones((4, 2), "float32")
    model.train_on_batch(x, np.zeros((4, 3), "float32"))
    measured = model.optimizer.statistics()
    assert list(measured) == ["net/twins/w", "net/twins/w #2"]
    optimizer = kopt.Adam(0.1)
    model.compile(optimizer, "mse", run_eagerly=True)
    model.train_on_batch(x, np.zeros((4, 3), "float32"))
    kept = state(optimizer)
    assert kept["0.m.value"][2] != kept["1.m.value"][2]
    other, store = kopt.Adam(), {}
    optimizer.save_own_variables(store)
    other.load_own_variables(store)
    other.build(model.trainable_variables)
    assert state(other) == kept

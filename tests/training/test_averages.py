"""Averages by callback, event and interruption: the weights that training goes on from are never lost."""

import contextlib
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from problems import flat, network, regression, rules
from registry import every_rule_in_turn

import kopt

pytestmark = pytest.mark.filterwarnings("ignore:Even though the .tf.config")  # of the fixture below
slow = pytest.mark.slow
X, Y = (np.concatenate(list(part)) for part in zip(*regression().as_numpy_iterator(), strict=True))
HALVES = [(X[:32], Y[:32]), (X[32:], Y[32:])]
CASES = {
    "swa": (lambda: kopt.Adam(0.01), lambda: [kopt.SWA()]),
    "ema": (lambda: kopt.Adam(0.01), lambda: [kopt.EMA(0.7)]),
    "statistics": (lambda: kopt.Adam(0.01), lambda: [kopt.SWA(batches=HALVES)]),
    "use_ema": (lambda: kopt.AdamW(0.01, use_ema=True, ema_momentum=0.7), lambda: [kopt.AveragedWeights()]),
    "schedule-free": (lambda: kopt.ScheduleFreeAdamW(0.01), lambda: [kopt.AveragedWeights(batches=HALVES)]),
    "wrapped": (lambda: kopt.ScheduleFree("sgd", learning_rate=0.1), lambda: [kopt.AveragedWeights()]),
    "swa-ema": (lambda: kopt.Adam(0.01), lambda: [kopt.SWA(), kopt.EMA(0.7)]),
    "ema-swa": (lambda: kopt.Adam(0.01), lambda: [kopt.EMA(0.7), kopt.SWA(batches=HALVES)]),
}
every_case = pytest.mark.parametrize("case", CASES)
SHOWING = {"fit", "evaluate", "predict", "save", "get_weights", "set_weights"}  # what an average stands in front of


@pytest.fixture(autouse=True)
def _by_operation():  # `fit`, `evaluate` and their callbacks are the same Python
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def made(optimizer):
    """Returns a network whose passes draw numbers and change statistics."""
    keras.utils.set_random_seed(3)
    inner = layers.Dense(6), layers.BatchNormalization(), layers.Dropout(0.3), layers.Dense(1)
    model = keras.Sequential([keras.Input((5,)), *inner])
    model.compile(optimizer, "mse")
    return model


def pair(case):
    """Returns two equal models and the callbacks of the first."""
    optimizer, callbacks = CASES[case]
    return made(optimizer()), made(optimizer()), callbacks()


def fit(model, callbacks=(), epochs=3, **options):
    options = {"validation_data": (X, Y), "batch_size": 32, "shuffle": False, "verbose": 0} | options
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **options).history


def values(model):
    """Returns all that a model holds, past its methods."""
    return [v.numpy() for v in model.variables if "metric" not in v.path]


def equal(a, b):
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


class At(keras.callbacks.Callback):
    """Calls a function of the model, or raises an error, at one event after so many of them."""

    def __init__(self, event, act, after=0):
        super().__init__()
        self.act, self.calls = act, itertools.count(-after)
        setattr(self, event, self.happen)

    def happen(self, *_, **__):
        happens = next(self.calls) == 0
        if happens and isinstance(self.act, BaseException):
            raise self.act
        _ = happens and self.act(self.model)


class Watching(keras.callbacks.Callback):
    """Keeps what `get_weights` gives it at the end of each epoch, as a callback of Keras with a monitor gets it."""

    def __init__(self, monitor=None):
        super().__init__()
        self.epochs, self.monitor = [], monitor

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(self.model.get_weights())


@pytest.mark.few(2)
@every_case
def test_training_goes_on_as_without_it(case):
    model, plain, callbacks = pair(case)
    raw, seen, raw_values = Watching(), [], []
    history = fit(model, [*callbacks, raw, At("on_test_end", lambda m: seen.append(values(m)), 2)])
    fit(plain, [other := Watching(), At("on_test_end", lambda m: raw_values.append(values(m)), 2)])
    assert all(map(equal, raw.epochs, other.epochs))
    assert not equal(seen[0], raw_values[0])  # the last validation was at an average
    outside = model.evaluate(X, Y, verbose=0, callbacks=callbacks)
    assert equal(values(model), values(plain))
    if case == "swa":  # the last epoch counts, too
        assert outside != pytest.approx(history["val_loss"][-1], rel=1e-6)
    with callbacks[0].weights():
        assert not equal(values(model), values(plain)) or case == "use_ema"  # which Keras leaves in the model
        for call in (fit, lambda m: m.train_on_batch(X, Y), lambda m: m.set_weights(m.get_weights())):
            with pytest.raises(RuntimeError, match="Leave the block first"):
                call(model)
        assert model.evaluate(X, Y, verbose=0) == outside == model.evaluate(X, Y, verbose=0, callbacks=callbacks)
    fit(model, callbacks, 1), fit(plain, epochs=1)
    assert equal(values(model), values(plain))
    assert not SHOWING & {*vars(model)}


@pytest.mark.few(1)
@every_case
def test_another_callback_evaluates_at_the_average_and_reads_raw_weights(case):
    model, plain, callbacks = pair(case)
    read, plainly, evaluated = [], [], []

    def look(m):
        read.extend([*m.get_weights(), m.predict(X, verbose=0)])
        evaluated.append(m.evaluate(X, Y, verbose=0))
        with callbacks[0].weights():
            evaluated.append(m.evaluate(X, Y, verbose=0))
            assert not equal(m.get_weights(), read[:-1])

    at_end = At("on_epoch_end", lambda m: plainly.extend([*m.get_weights(), m.predict(X, verbose=0)]), 1)
    fit(model, [*callbacks, At("on_epoch_end", look, 1)], validation_data=None)
    fit(plain, [at_end], validation_data=None)
    assert equal(read, plainly)
    assert evaluated[0] == evaluated[1]
    assert equal(values(model), values(plain))


MOMENTS = ("test_begin", "test_batch_begin", "test_batch_end", "test_end", "epoch_end", "train_batch_end")
EVENTS = [f"on_{moment}" for moment in MOMENTS]
INTERRUPTIONS = [*EVENTS, "training data", "validation data", "checkpoint", "block"]
SOME = [("schedule-free", "block"), ("swa-ema", "on_test_batch_end"), ("ema-swa", "checkpoint")]
SOME += [("statistics", kind) for kind in ("on_test_begin", "on_test_end", "on_epoch_end", "validation data")]


class Failing(keras.utils.PyDataset):
    """Batches whose reading fails after some."""

    def __init__(self, good):
        super().__init__()
        self.good = itertools.count(-good)

    __len__ = lambda self: 2  # noqa: E731

    def __getitem__(self, i):
        if next(self.good) >= 0:
            raise ValueError("no more")
        return HALVES[i]


def interrupt(model, kind, callbacks, error):
    """Trains until something fails."""

    def in_block(_):
        with callbacks[0].weights() if callbacks else contextlib.nullcontext():
            raise error

    unwritable = keras.callbacks.ModelCheckpoint("/dev/null/x/{epoch}.weights.h5", save_weights_only=True)
    more = {"checkpoint": [unwritable], "block": [At("on_epoch_end", in_block, 1)]}
    more |= {event: [At(event, error, 3)] for event in EVENTS}
    options = {"x": X, "y": Y, "validation_data": (X, Y), "batch_size": 32, "shuffle": False, "verbose": 0}
    options |= {"training data": {"x": Failing(5), "y": None, "batch_size": None}}.get(kind, {})
    options |= {"validation data": {"validation_data": Failing(3)}}.get(kind, {})
    with pytest.raises((type(error), OSError, ValueError, tf.errors.OpError)):
        model.fit(epochs=5, callbacks=[*callbacks, *more.get(kind, [])], **options)


SOME += [pytest.param(*x, marks=slow) for x in itertools.product(CASES, INTERRUPTIONS) if x not in SOME]


@pytest.mark.few(1)
@pytest.mark.parametrize(("case", "kind"), SOME)
def test_an_interruption_leaves_the_raw_weights(case, kind):
    error = KeyboardInterrupt() if kind in EVENTS[::2] else ValueError("stop")
    model, plain, callbacks = pair(case)
    interrupt(model, kind, callbacks, error), interrupt(plain, kind, [], error)
    assert equal(values(model), values(plain))
    fit(model, callbacks, 2), fit(plain, epochs=2)
    assert equal(values(model), values(plain))
    assert not SHOWING & {*vars(model)}


NEXT = [
    lambda m, _: fit(m, epochs=1) and values(m),
    lambda m, _: [m.evaluate(X, Y, verbose=0)],
    lambda m, _: [m.predict(X, verbose=0)],
    lambda m, _: [m.test_on_batch(X, Y)],
    lambda m, _: m.train_on_batch(X, Y) and values(m),
    lambda m, _: m.get_weights(),
    lambda m, _: m.set_weights(m.get_weights()) or values(m),
    lambda m, path: m.save_weights(path / "m.weights.h5") or m.load_weights(path / "m.weights.h5") or values(m),
    lambda m, path: m.save(path / "m.keras") or keras.saving.load_model(path / "m.keras").get_weights(),
]


@slow
@pytest.mark.few(1)
@pytest.mark.parametrize("event", ["on_test_batch_begin", "on_test_end"])
def test_after_an_interrupted_evaluation_the_next_call_finds_the_raw_weights(event, tmp_path):
    model, plain, callbacks = pair("statistics")
    fit(model, callbacks, 2), fit(plain, epochs=2)
    for follows in NEXT:
        with pytest.raises(KeyboardInterrupt):
            model.evaluate(X, Y, verbose=0, callbacks=[At(event, KeyboardInterrupt()), *callbacks])
        assert not equal(values(model), values(plain))
        assert equal(follows(model, tmp_path), follows(plain, tmp_path))
        assert equal(values(model), values(plain))
        assert not SHOWING & {*vars(model)}


@pytest.mark.few(2)
@every_case
@pytest.mark.parametrize("first", [True, False], ids=["watch-first", "average-first"])
@pytest.mark.parametrize("monitor", ["val_loss", "loss"])
def test_what_is_watched_is_what_is_kept(case, first, monitor, tmp_path):
    model, plain, callbacks = pair(case)
    at_test, raw = [], Watching()
    spies = [At("on_test_end", lambda m: at_test.append(values(m)), i) for i in range(3)]
    kinds = {"{epoch}.keras": {}, "b.weights.h5": {"save_weights_only": True, "save_best_only": True}}
    watching = [keras.callbacks.ModelCheckpoint(tmp_path / name, monitor, **o) for name, o in kinds.items()]
    watching += [keras.callbacks.EarlyStopping(monitor, patience=9, restore_best_weights=True)]
    watching += [watched := Watching(monitor), raw]
    history = fit(model, [*spies, *(watching + callbacks if first else callbacks + watching)])
    names = [v.path for v in model.variables if "metric" not in v.path]
    kept = [names.index(v.path) for v in model.weights]
    wanted = [[e[i] for i in kept] for e in at_test] if monitor == "val_loss" else raw.epochs
    assert all(map(equal, watched.epochs, wanted))
    assert equal(keras.saving.load_model(tmp_path / "3.keras").get_weights(), wanted[2])
    plain.load_weights(tmp_path / "b.weights.h5")
    assert equal(plain.get_weights(), wanted[np.argmin(history[monitor])])
    assert equal(model.get_weights(), plain.get_weights())


def test_nothing_is_left_on_the_model():
    model, plain, callbacks = pair("swa")
    fit(model, callbacks, 2), fit(plain, epochs=2)
    assert set(vars(model)) == set(vars(plain))


def test_a_backup_has_the_raw_weights(tmp_path):
    model, plain, callbacks = pair("statistics")
    backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
    fit(model, [*callbacks, backup], 2), fit(plain, epochs=2)
    fit(model, [keras.callbacks.BackupAndRestore(tmp_path)], 3), fit(plain, epochs=1)
    assert equal(values(model), values(plain))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_averages_are_wide(dtype):
    keras.config.set_dtype_policy(dtype)
    fit(network(kopt.SGD(0.01)), [swa := kopt.SWA()], 2, validation_data=None)
    wide = {keras.backend.standardize_dtype(a.dtype) for a in swa.average()}
    assert wide == {"float64" if dtype == "float64" else "float32"}


def test_a_second_model_begins_anew():
    first, second, (swa,) = pair("swa")
    fit(first, [swa], 2), fit(second, [swa, last := Watching()], 1)
    assert equal(swa.average(), last.epochs[0][:4] + last.epochs[0][6:])


def test_freezing_and_thawing_mixes_nothing():
    model, swa, raw, other = network(kopt.Adam(0.01)), kopt.SWA(), Watching(), kopt.EMA(0.5)
    first, last = model.layers
    for trainable, callbacks in [(True, [swa]), (False, [swa, other]), (True, [swa, other])]:
        first.trainable = trainable
        model.compile(kopt.Adam(0.01), "mse")
        fit(model, [*callbacks, raw], 1, batch_size=64)
    seen, average = raw.epochs, swa.average()
    for i, epochs in enumerate([(0, 2), (0, 2), (0, 1, 2), (0, 1, 2)]):
        np.testing.assert_allclose(average[i], np.mean([seen[e][i] for e in epochs], 0), rtol=1e-5)
    assert equal(other.average()[:2], seen[2][:2])  # thawed: its own first look
    first.trainable = False
    with swa.weights():
        assert equal([v.numpy() for v in first.variables], seen[2][:2])
        np.testing.assert_allclose(last.kernel, average[2])


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: kopt.SWA(every=2), lambda: kopt.EMA(0.7, every=3)], ids=["swa", "ema"])
@pytest.mark.parametrize("early", [True, False])
def test_states_go_round(make, early, tmp_path):
    whole, part, rest = make(), make(), make()
    once, twice, _ = pair("swa")
    fit(once, [whole], 5), fit(twice, [part], 2)
    np.savez(tmp_path / "state.npz", **part.get_state())
    _ = early or rest.set_model(twice)
    rest.set_state(np.load(tmp_path / "state.npz"))
    assert equal([np.asarray(a) for a in rest.get_state().values()], [np.asarray(a) for a in part.get_state().values()])
    fit(twice, [rest], 5, initial_epoch=2)
    assert equal(whole.average(), rest.average())


def test_states_that_do_not_fit_are_refused():
    model, _, (swa,) = pair("swa")
    state = fit(model, [swa], 1) and swa.get_state()
    nan, turned = ({"0": x} for x in (np.full_like(state["0"], np.nan), state["0"].T))
    for target, more, match in [
        (network("sgd"), {}, "the state is of"),
        (model, nan, "not fin"),
        (model, turned, "not fit"),
    ]:
        late, early = kopt.SWA(), kopt.SWA()
        late.set_model(target), early.set_state(state | more)
        for call, given in ((late.set_state, state | more), (early.set_model, target)):
            with pytest.raises(ValueError, match=match):
                call(given)


def test_batches_can_be_read_again():
    for wrong in (iter(HALVES), (b for b in HALVES), 3):
        with pytest.raises(ValueError, match="batches"):
            kopt.SWA(batches=wrong)
    results = []
    for batches in (HALVES, Failing(100), tf.data.Dataset.from_tensor_slices((X, Y)).batch(32)):
        model, swa = made(kopt.Adam(0.01)), kopt.SWA(batches=batches)
        fit(model, [swa], 2)
        with swa.weights():
            results.append(np.concatenate([v.ravel() for v in values(model)]))
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-6)


@pytest.mark.few(4)
@every_rule_in_turn
def test_an_average_that_is_kept_is_where_training_goes_on(name):
    model, swa = network(rules()[name]()), kopt.SWA(keep=True)
    fit(model, [swa], 2, batch_size=64)
    kept = values(model)[:4]
    assert equal(kept, swa.average())
    if hasattr(model.optimizer, "averages"):
        assert equal([np.asarray(a) for a in model.optimizer.averages()], kept)
    fit(model, [swa], 1, batch_size=64)
    assert equal(values(model)[:4], swa.average())


@pytest.mark.few(1)
@pytest.mark.parametrize("rule", [kopt.Lookahead("sgd", k=2), kopt.ScheduleFreeSGD()], ids=str)
def test_fit_twice_with_an_average_of_the_optimizer(rule):
    """At its end `fit` leaves the average in the weights; the next one begins there."""
    model = network(type(rule).from_config(rule.get_config() | {"learning_rate": 0.1, "use_ema": True}))
    fit(model)
    there, model.optimizer.learning_rate = flat(model), 1e-6
    fit(model)
    np.testing.assert_allclose(flat(model), there, atol=1e-4)


@slow
@pytest.mark.parametrize("case", ["statistics", "use_ema", "schedule-free"])
def test_two_replicas(case, two_devices):
    tf.config.run_functions_eagerly(False)
    with two_devices.scope():
        (model, plain, callbacks), seen = pair(case), []
        fit(model, [*callbacks, At("on_test_end", lambda m: seen.append(m.get_weights()), 1)], 2)
        fit(plain, epochs=2)
        np.testing.assert_allclose(flat(model), flat(plain), atol=1e-6)
        assert not equal(seen[0], model.get_weights()) or case == "use_ema"
        outside = model.evaluate(X, Y, verbose=0, callbacks=callbacks)
        with callbacks[0].weights():
            assert model.evaluate(X, Y, verbose=0) == pytest.approx(outside, rel=1e-6)

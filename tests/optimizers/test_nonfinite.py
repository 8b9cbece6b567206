"""Gradients and weights that are not finite, or nearly so: rule by rule, and in each way that a step runs."""

import contextlib
import functools
import itertools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from problems import RATE, flat, look_at_curvature, network, regression, rules, variables
from registry import FIRST, every_rule_in_turn, every_variant

import kopt

BAD = [np.nan, np.inf, 1e30, 1e19, -2e18]
"""Single elements; the square of the last one is finite, and so large that rules may multiply it beyond that."""
JUST_BELOW = 4e17
SHAPES = ((4, 17), (3,))
MEASURED = ("gradient_norm", "shared.loss", "nonfinite_steps")
WAYS = {
    "engine": lambda f: f,
    "graph": lambda f: tf.function(f, autograph=False),
    "xla": lambda f: tf.function(f, autograph=False, jit_compile=True),
}
every_way = pytest.mark.parametrize("way", WAYS)
slow = pytest.mark.slow


@pytest.fixture
def by_operation():
    """Runs operation by operation: for a few small steps faster than to compile them."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


class Training:
    """An optimizer, its weights, and steps from a fixed row of random gradients."""

    def __init__(self, optimizer, shapes=SHAPES, dtype="float32", call=None):
        self.rng, self.optimizer, self.shapes, self.dtype = np.random.default_rng(0), optimizer, shapes, dtype
        self.weights = variables([self.rng.normal(size=s) for s in shapes], dtype)
        optimizer.build(self.weights)
        self.step = (call or (lambda f: f))(self._step)
        self.losses = 0

    def _step(self, loss, *gradients):
        if self.optimizer.needs_loss:
            self.optimizer.scale_loss(loss)
        look_at_curvature(self.optimizer, gradients)
        self.optimizer.apply(list(gradients), self.weights)

    def gradients(self):
        return [self.rng.normal(size=s) for s in self.shapes]

    def go(self, gradients=None):
        """Makes a step; one with gradients of its own takes nothing from the row."""
        if gradients is None:
            gradients, self.losses = self.gradients(), self.losses + 1
        self.step(tf.constant(2.0 - 0.1 * self.losses), *[tf.constant(g, self.dtype) for g in gradients])
        return self

    def spoilt(self, value, which=0):
        """Returns gradients with one element that is not as it should be."""
        gradients = [np.full(s, 0.25) for s in self.shapes]
        gradients[which].reshape(-1)[-1] = value
        return gradients

    def state(self):
        state = {k: v.numpy() for k, v in self.optimizer._held.variables(self.optimizer).items()}
        return state | {f"weight {i}": ops.convert_to_numpy(w) for i, w in enumerate(self.weights)}


def assert_same(a, b, but=("nonfinite_steps",)):
    assert a.keys() == b.keys()
    for k in a.keys() - set(but):
        np.testing.assert_array_equal(a[k], b[k], err_msg=k)


def assert_sound(training):
    """Nothing is NaN, and nothing that belongs to a weight is infinite."""
    for k, a in training.state().items():
        if k.endswith(".bfloat16"):
            a = (a.astype("uint32") << 16).view("float32")
        if a.dtype.kind not in "iub" and k not in MEASURED:
            a = a.astype("float64")
            assert (~np.isnan(a) if k[0] == "s" else np.isfinite(a)).all(), (k, a)


def assert_untouched(training, act, error=None, counted=1, match=None):
    """A step counts as not finite, changes nothing else, and perhaps raises an error."""
    before = training.state()
    with pytest.raises(error, match=match) if error else contextlib.nullcontext():
        act()
    after = training.state()
    assert_same(before, after)
    assert after["nonfinite_steps"] == before["nonfinite_steps"] + counted


MODES = [pytest.param(x, mode, marks=() if x in FIRST else slow) for mode in ("skip", "raise") for x in rules()]


@pytest.mark.few(9)
@pytest.mark.parametrize(("name", "mode"), MODES)
def test_a_huge_gradient_is_as_if_it_had_not_been(name, mode, by_operation):
    spoilt, clean = (Training(rules()[name](on_nonfinite=mode)) for _ in range(2))
    for i, value in enumerate(BAD):
        which, error = i % 2, FloatingPointError if mode == "raise" else None
        path = spoilt.weights[which].path
        assert_untouched(spoilt, lambda v=value, w=which: spoilt.go(spoilt.spoilt(v, w)), error, match=path)
        if i in (0, 2):
            spoilt.go(), clean.go()
    assert_same(spoilt.go().state(), clean.go().state())
    assert (int(spoilt.optimizer.iterations), int(spoilt.optimizer.nonfinite_steps)) == (3, len(BAD))


SEQUENCES = ("1.0n.", ".n1.0..", "0n0t..", "n1bn.n0.n1..")
"""A digit is the place of the only large element, n is a whole gradient just below the limit, 0 one of zeros, b one of
the bias, t a tiny one, and a dot one of usual size."""


def just_below(training, kind):
    gradients = training.gradients()
    if kind == "n":
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        return [g * JUST_BELOW / norm for g in gradients]
    if kind in "1b":
        which = int(kind == "b")
        gradients[which].reshape(-1)[2] = -JUST_BELOW
    return [g * {"0": 0.0, "t": 1e-20}.get(kind, 1.0) for g in gradients]


def go_just_below(optimizer, sequence, **options):
    training = Training(optimizer, **options)
    for kind in sequence:
        training.go(just_below(training, kind))
        assert_sound(training)
    assert not optimizer.bounded or int(optimizer.nonfinite_steps) == 0


@every_rule_in_turn
@pytest.mark.parametrize("sequence", [*(pytest.param(x, marks=slow) for x in SEQUENCES[:-1]), SEQUENCES[-1]])
def test_just_below_the_limit_everything_stays_finite(name, sequence, by_operation):
    go_just_below(rules()[name](on_nonfinite="skip"), sequence)


def test_only_the_weight_concerned_is_named(by_operation):
    training = Training(kopt.Adam(on_nonfinite="raise"))
    with pytest.raises(FloatingPointError, match=r"concerned: bias$"):
        training.go(training.spoilt(np.nan, 1))


@slow
@every_variant
def test_so_it_does_with_other_options(name, options, by_operation):
    for around in ({}, {"weight_decay": 0.1}, {"state_dtype": "int8"}, {"state_dtype": "bfloat16"}):
        if not around.keys() & options.keys():
            go_just_below(rules()[name](on_nonfinite="skip", **options, **around), SEQUENCES[-1])


@every_rule_in_turn
@pytest.mark.parametrize("mode", ["skip", pytest.param("ignore", marks=slow)])
def test_a_weight_without_elements(name, mode, by_operation):
    """Its sums are zero, its maxima minus infinity: nothing of that may get into the state."""
    shapes, make = (
        ((0, 3), (4, 17), (2, 0), (0,)),
        functools.partial(rules()[name], on_nonfinite=mode, weight_decay=0.1),
    )
    one, again, store = Training(make(), shapes).go().go(), Training(make(), shapes), {}
    assert_sound(one)
    one.optimizer.save_own_variables(store)
    again.optimizer.load_own_variables(store)
    for a, b in zip(again.weights, one.weights, strict=True):
        a.assign(b)
    again.rng, one.rng, again.losses = np.random.default_rng(5), np.random.default_rng(5), one.losses
    assert_same(one.go().state(), again.go().state(), ())


class Divided(kopt.Optimizer):
    """0/0 where the gradient is zero."""

    slots = {"m": kopt.Slot()}

    def rule(self, g, w, s, t):
        return g / ops.abs(g), {"m": s.m + g}


class Broken(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that gives a number that is none after two updates."""

    def __init__(self, value):
        self.value = value

    def __call__(self, step):
        return ops.where(ops.cast(step, "int32") >= 2, self.value, RATE)


FINE, ZERO, STEEP = ([np.full(s, value) for s in SHAPES] for value in (0.5, 0.0, 100.0))
CASES = {
    "rate": (lambda o: kopt.SGD(1e38, **o), STEEP),
    "rate-within": (lambda o: kopt.Route([("kernel", kopt.SGD(1e38)), ("", "sgd")], **o), STEEP),
    "rate-of-a-switch": (lambda o: kopt.Switch(kopt.SGD(1e38), second="adam", after=9, **o), STEEP),
    "nan-schedule": (lambda o: kopt.Adam(Broken(np.nan), **o), FINE),
    "inf-schedule": (lambda o: kopt.Momentum(Broken(np.inf), **o), FINE),
    "decay": (lambda o: kopt.AdamW(RATE, weight_decay=Broken(np.inf), **o), FINE),
    "own": (lambda o: Divided(RATE, **o), ZERO),
    "own-in-lookahead": (lambda o: kopt.Lookahead(Divided(RATE), **o), ZERO),
    "own-in-cautious": (lambda o: kopt.Cautious(Divided(RATE), **o), ZERO),
    "own-in-route": (lambda o: kopt.Route([("kernel", Divided(RATE)), ("", "adam")], **o), ZERO),
    "own-in-switch": (lambda o: kopt.Switch(Divided(RATE), second="adam", after=9, **o), ZERO),
    "own-comes-second": (lambda o: kopt.Switch("adam", second=Divided(RATE), after=2, **o), ZERO),
}


SOME = [("rate", "xla"), ("own", "xla"), *((case, "operation") for case in CASES)]
SOME += [pytest.param(case, way, marks=slow) for case in ("rate", "nan-schedule", "own") for way in ("engine", "graph")]


@pytest.mark.parametrize(("case", "way"), SOME)
def test_a_new_weight_that_is_not_finite(case, way, request):
    if way == "operation":
        request.getfixturevalue("by_operation")
    (make, gradients), usual = CASES[case], ZERO if case.startswith("rate") else FINE
    spoilt, clean = (Training(make({"on_nonfinite": "skip"}), call=WAYS.get(way)) for _ in range(2))
    spoilt.go(usual).go(usual), clean.go(usual).go(usual)
    assert_untouched(spoilt, lambda: spoilt.go(gradients))
    if "schedule" not in case and case != "decay":  # they stay where they are
        assert_same(spoilt.go(usual).state(), clean.go(usual).state())


@pytest.mark.parametrize("case", CASES)
def test_raise_names_the_new_weight(case, by_operation):
    (make, gradients), usual = CASES[case], ZERO if case.startswith("rate") else FINE
    training = Training(make({"on_nonfinite": "raise"})).go(usual).go(usual)
    assert_untouched(training, lambda: training.go(gradients), FloatingPointError, match="not finite.*kernel")


@pytest.mark.parametrize("way", ["engine", "xla"])
@pytest.mark.parametrize("mode", ["constraint", "float16", "float16-nearest", "float16-stochastic"])
def test_what_the_weight_itself_cannot_hold(mode, way):
    dtype, _, rounding = mode.partition("-")
    v = keras.Variable(np.full((2, 2), 6e4), dtype="float16" if dtype == "float16" else "float32", name="v")
    v.constraint = (lambda x: x * np.nan) if mode == "constraint" else None
    optimizer = kopt.SGD(1.0, on_nonfinite="skip", rounding=rounding or "kahan")
    optimizer.build([v])
    WAYS[way](lambda g: optimizer.apply([g], [v]))(tf.cast(tf.fill((2, 2), -2e4), v.dtype))
    np.testing.assert_array_equal(ops.cast(v, "float32"), ops.cast(ops.cast(np.full((2, 2), 6e4), v.dtype), "float32"))
    assert (int(optimizer.iterations), int(optimizer.nonfinite_steps)) == (0, 1)


GROWING = {
    "decay": lambda: kopt.SGD(10.0, weight_decay=1.0, on_nonfinite="skip"),  # w ← -9 w
    "multiplier": lambda: kopt.AdamW(weight_decay=0.1, multipliers=[("kernel", 1e36)], on_nonfinite="skip"),
    "trust": lambda: kopt.LAMB(10.0, on_nonfinite="skip"),  # ‖w‖ grows tenfold
    "way": lambda: kopt.DoG(1e3, on_nonfinite="skip"),
    "floor": lambda: kopt.UpdateFloor(kopt.SGD(50.0), on_nonfinite="skip"),  # a step is 17 ‖w‖ long
}


@pytest.mark.parametrize("case", GROWING)
def test_weights_that_grow_step_by_step_stay_finite(case, by_operation):
    training = Training(GROWING[case]())
    for _ in range(60):
        training.go()
        assert_sound(training)


OPTIONS = {
    "overwritten": {"use_ema": True, "ema_overwrite_frequency": 2},
    "clipped": {"global_clipnorm": 0.1},
    "scaled": {"loss_scale_factor": 256.0},
    "int8": {"state_dtype": "int8"},
    "bfloat16": {"state_dtype": "bfloat16"},
    "kahan": {"dtype": "bfloat16"},
    "stochastic": {"dtype": "bfloat16", "rounding": "stochastic"},
}
SEVERAL = OPTIONS["overwritten"] | OPTIONS["clipped"] | OPTIONS["scaled"] | OPTIONS["int8"] | OPTIONS["kahan"]


@pytest.mark.few(2)
@every_way
@pytest.mark.parametrize("name", ["Adam", *(pytest.param(x, marks=slow) for x in ("DoG", "Lookahead", "LBFGS"))])
def test_every_way_skips_and_goes_on(name, way):
    spoilt, clean = (Training(rules()[name](on_nonfinite="skip"), call=WAYS[way]) for _ in range(2))
    for i, value in enumerate(BAD):
        assert_untouched(spoilt, lambda v=value, i=i: spoilt.go(spoilt.spoilt(v, i % 2)))
    assert_same(spoilt.go().go().state(), clean.go().go().state())
    training = Training(rules()[name](on_nonfinite="raise"), call=WAYS[way])
    error = {"engine": FloatingPointError, "graph": tf.errors.InvalidArgumentError, "xla": ValueError}[way]
    match = "cannot stop" if way == "xla" else "not finite.*bias"
    assert_untouched(training, lambda: training.go(training.spoilt(1e19, 1)), error, int(way != "xla"), match)


@pytest.mark.few(1)
@pytest.mark.parametrize("way", ["engine", "xla"])
@pytest.mark.parametrize(
    "options", [SEVERAL, *(pytest.param(x, marks=slow) for x in OPTIONS.values())], ids=["several", *OPTIONS]
)
def test_what_surrounds_the_rule_is_skipped_too(options, way):
    options = dict(options)
    dtype = options.pop("dtype", "float32")
    make = functools.partial(kopt.AdamW, RATE, on_nonfinite="skip", **options)
    spoilt, clean = (Training(make(), dtype=dtype, call=WAYS[way]) for _ in range(2))
    spoilt.go(), clean.go()
    for value in (np.nan, 1e30):
        assert_untouched(spoilt, lambda v=value: spoilt.go(spoilt.spoilt(v)))
    for _ in range(3):
        assert_same(spoilt.go().state(), clean.go().state())


@pytest.mark.few(1)
@every_way
def test_one_bad_batch_discards_its_update_and_no_other(way):
    make = functools.partial(kopt.Adam, RATE, on_nonfinite="skip", gradient_accumulation_steps=3)
    spoilt, clean = (Training(make(), call=WAYS[way]) for _ in range(2))
    for place in range(3):
        for _ in range(3):
            spoilt.go(), clean.go()
        assert_same(spoilt.state(), clean.state())
        for i in range(3):
            spoilt.go(spoilt.spoilt(np.nan if i == place else 1.0))
        assert_same(spoilt.state(), clean.state())
    assert (int(spoilt.optimizer.nonfinite_steps), int(spoilt.optimizer.iterations)) == (3, 3)


ROWS = [*itertools.product(["lazy", "exact"], ["engine", "xla"], [None, 2])]


@pytest.mark.parametrize(
    ("sparse", "way", "steps"), [pytest.param(*x, marks=slow if x[0] == "exact" or x[2] else ()) for x in ROWS]
)
def test_rows_with_repeated_ids(sparse, way, steps):
    """Each of the repeated rows is below the limit, their sum is above."""
    fine, bad = [1.0, 2.0, 3.0], ([np.nan, 1, 1], [1, np.inf, 1], [3e17, 1, 3e17])

    def trained(*updates):
        table = keras.Variable(np.ones((6, 3)), dtype="float32", name="table")
        optimizer = kopt.Adam(RATE, on_nonfinite="skip", sparse=sparse, gradient_accumulation_steps=steps)
        optimizer.build([table])
        shape = tf.constant([6, 3])
        step = WAYS[way](lambda values, ids: optimizer.apply([tf.IndexedSlices(values, ids, shape)], [table]))
        for values in np.repeat(updates, steps or 1, axis=0):
            step(tf.constant(np.outer(values, np.ones(3)), "float32"), tf.constant([4, 1, 4]))
        state = {k: v.numpy() for k, v in optimizer._held.variables(optimizer).items()} | {"w": table.numpy()}
        return state, int(optimizer.nonfinite_steps)

    spoilt, count = trained(fine, *bad, fine)
    assert count == 3
    assert_same(spoilt, trained(fine, fine)[0])


def trained_without(rows_lost, make, **compile_options):
    """Returns the weights after a fit with one bad batch of four, and after one without the batches that it spoils."""
    x, y = (np.concatenate(list(part)) for part in zip(*regression().as_numpy_iterator(), strict=True))
    x[20, 1] = np.nan  # of the second batch; of several replicas the first one's half
    for rows in (np.arange(64), np.delete(np.arange(64), rows_lost)):
        model = network(make(), **compile_options)
        model.fit(x[rows], y[rows], batch_size=16, shuffle=False, verbose=0)
        assert model.optimizer.nonfinite_steps.numpy() == (len(rows) == 64)
        yield flat(model)


@pytest.mark.few(1)
@pytest.mark.parametrize("compiled", [False, True])
def test_fit_skips_a_batch(compiled):
    make = functools.partial(kopt.Adam, 0.01, on_nonfinite="skip")
    np.testing.assert_array_equal(*trained_without(np.arange(16, 32), make, jit_compile=compiled))


@slow
@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"use_ema": True}], ids=str)
def test_one_replica_stops_both(options, two_devices):
    lost = np.arange(0 if "gradient_accumulation_steps" in options else 16, 32)
    make = functools.partial(kopt.Adam, 0.01, on_nonfinite="skip", **options)
    with two_devices.scope():
        np.testing.assert_array_equal(*trained_without(lost, make))


@pytest.mark.parametrize("kind", [kopt.LookSAM, *(pytest.param(x, marks=slow) for x in (kopt.SAM, kopt.ASAM))])
def test_a_head_without_a_loss_stays_until_it_has_one(kind):
    inputs = keras.Input((5,))
    hidden = keras.layers.Dense(4, activation="tanh")(inputs)
    heads = {name: keras.layers.Dense(1, name=name)(hidden) for name in ("used", "unused")}
    model = kind.of(keras.Model(inputs, heads))
    optimizer, head = kopt.AdamW(0.01, weight_decay=0.5), model.model.get_layer("unused")
    data = regression().map(lambda x, y: (x, {"used": y, "unused": y}))
    before = head.get_weights()
    model.compile(optimizer, {"used": "mse"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras says that there is no gradient
        model.fit(data, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(before, head.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    model.compile(optimizer, {"used": "mse", "unused": "mse"})
    model.fit(data, epochs=2, shuffle=False, verbose=0)
    for a, b in zip(before, head.get_weights(), strict=True):
        assert np.isfinite(b).all() and (a != b).all()

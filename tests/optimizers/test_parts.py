"""Steps that move some weights after the others, and averages of weights that are updated whole and by rows."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kopt
from benchmarks import memory
from kopt.optimizers.engine import setup

SHAPES = [(12, 16), (16,), (6, 32), (), (40, 16)]
CASES = {
    "clip, average": (kopt.Adam, {"global_clipnorm": 0.5, "use_ema": True}),
    "each clipped, mean": (kopt.Adam, {"clipnorm": 0.5, "gradient_accumulation_steps": 2}),
    "values, skip": (kopt.Adam, {"clipvalue": 0.05, "on_nonfinite": "skip"}),
    "overwritten": (kopt.SGD, {"use_ema": True, "ema_overwrite_frequency": 2, "loss_scale_factor": 8.0}),
    "settled": (kopt.Prodigy, {"global_clipnorm": 0.5, "sparse": "exact"}),
}
QUICK = ("clip, average", "settled")


def trained(optimizer, steps=3):
    """Returns weights, averages and counters after some steps, one of which has a gradient of rows and one a NaN."""
    rng = np.random.default_rng(0)
    weights = [keras.Variable(rng.normal(size=s).astype("float32")) for s in SHAPES]
    optimizer.build(weights)
    step = tf.function(lambda gradients: optimizer.apply(gradients, weights), autograph=False)
    for i in range(steps):
        gradients = [tf.constant(rng.normal(size=s).astype("float32")) for s in SHAPES]
        gradients[4] = tf.IndexedSlices(gradients[4][:5], tf.constant([3, 9, 3, 0, 7]), tf.constant([40, 16]))
        if optimizer.on_nonfinite == "skip" and i == 1:
            gradients[0] *= np.nan
        step(gradients)
    averages = optimizer._model_variables_moving_average if optimizer.use_ema else []
    counters = [optimizer.iterations, optimizer.clipped_steps, optimizer.gradient_norm]
    return [np.asarray(v.numpy()) for v in [*weights, *averages, *counters]]


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("rule", "options"),
    [pytest.param(*case, id=name, marks=() if name in QUICK else pytest.mark.slow) for name, case in CASES.items()],
)
def test_parts_of_a_step_are_the_step(rule, options, monkeypatch):
    whole = trained(rule(**options))
    monkeypatch.setattr(setup, "PART", 300)
    optimizer = rule(**options)
    parts = trained(optimizer)
    assert len(optimizer.setup.parts()) > 2
    for a, b in zip(whole, parts, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.few(1)
@pytest.mark.parametrize("state_dtype", ["bfloat16", "int8"])
def test_rows_of_a_weight_follow_each_other(state_dtype, monkeypatch):
    """Decoded slots are those of a block of rows, and each block draws noise of its own."""
    monkeypatch.setattr(setup, "BLOCK", 5 * 16 * 4)
    equal = keras.Variable(np.zeros((23, 16), "float32"))
    optimizer = kopt.Adam(0.1, state_dtype=state_dtype)
    optimizer.build([equal])
    assert [part[1:] for part in optimizer.setup.parts()] == [(0, 5), (5, 5), (10, 5), (15, 5), (20, 3)]
    gradient = tf.constant(np.random.default_rng(0).normal(size=(23, 16)).astype("float32"))
    reference = keras.Variable(np.zeros((23, 16), "float32"))
    exact = kopt.Adam(0.1)
    for _ in range(4):
        optimizer.apply([gradient], [equal])
        exact.apply([gradient], [reference])
    np.testing.assert_allclose(equal.numpy(), reference.numpy(), atol=0.02)
    same = keras.Variable(np.zeros((10, 16), "float32"))
    other = kopt.Adam(0.1, state_dtype=state_dtype)
    for _ in range(2):
        other.apply([tf.tile(gradient[:5], [2, 1])], [same])
    first, second = np.split(same.numpy(), 2)
    assert not np.array_equal(first, second)


@pytest.mark.few(1)
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize(("kinds", "reload"), [("wrwnr", False), ("rwrwn", False), ("rrnwr", True)])
def test_averages_of_whole_weights_and_of_rows(kinds, reload, tmp_path):
    """An average is right whatever steps were traced before: of the whole weight, of rows, or of none of it."""
    rng, momentum = np.random.default_rng(0), 0.8
    variables = [keras.Variable(np.ones((5, 3), "float32")), keras.Variable(np.ones((2,), "float32"))]

    def made():
        return kopt.SGD(0.1, use_ema=True, ema_momentum=momentum)

    def step(optimizer):
        return tf.function(lambda gradients: optimizer.apply(gradients, variables), autograph=False)

    optimizer, averages = made(), [v.numpy() for v in variables]
    steps = {}
    for n, kind in enumerate(kinds, start=1):
        g, other = (tf.constant(rng.normal(size=v.shape).astype("float32")) for v in variables)
        if kind == "r":
            g = tf.IndexedSlices(g[:2], tf.constant([1, 4]), tf.constant([5, 3]))
        if reload and n == 4:
            store = {}
            optimizer.save_own_variables(store)
            optimizer, steps = made(), {}
            optimizer.build(variables)
            optimizer.load_own_variables(store)
        if kind not in steps:
            steps[kind] = step(optimizer)
        steps[kind]([None if kind == "n" else g, other])
        averages = [
            v.numpy() + (momentum if n > 1 else 0) * (a - v.numpy()) for v, a in zip(variables, averages, strict=True)
        ]
    for a, average in zip(averages, optimizer._model_variables_moving_average, strict=True):
        np.testing.assert_allclose(a, average.numpy(), rtol=1e-6)


@pytest.mark.slow
def test_short_slots_save_memory_in_fit():
    full, short = (memory.measured(name, 4096)[0] for name in ("kopt.Adam", "kopt.Adam int8"))
    assert short < 0.85 * full

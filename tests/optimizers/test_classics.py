"""What the contract does not see of classical rules: the average of ASGD, the lengths of Rprop."""

import keras
import numpy as np
import pytest
import references
import tensorflow as tf
from problems import RATE, descend, network, regression, variables, weights_and_gradients

import kopt


@pytest.mark.parametrize("t0", [0, 7, 30])
def test_asgd_averages_what_its_reference_does(t0):
    (weight, *_), gradients = weights_and_gradients()
    hyper = {"lambd": 0.5, "alpha": 0.75, "t0": t0, "weight_decay": 0.1}
    step = references.RULES["ASGD"](weight, learning_rate=RATE, **hyper)
    for g, *_ in gradients:
        last = step(g)
    optimizer = kopt.ASGD(RATE, **hyper)
    descend(optimizer, [weight], [gs[:1] for gs in gradients], "float64")
    np.testing.assert_allclose(optimizer.averages()[0], step.average, rtol=1e-12)
    assert np.array_equal(step.average, last) == (t0 == 30)


def test_asgd_is_evaluated_at_its_average():
    model = network(kopt.ASGD(0.1))
    seen = kopt.AveragedWeights(keep=True)
    model.fit(regression(), epochs=3, shuffle=False, verbose=0, callbacks=[seen])
    for v, a in zip(model.trainable_variables, model.optimizer.averages(), strict=True):
        np.testing.assert_allclose(v.numpy(), a, rtol=1e-6)


def test_rprop_finds_the_scale_of_each_weight():
    scales = np.array([1e-4, 1.0, 1e4])
    (w,) = variables([np.full(3, 7.0)])
    optimizer = kopt.Rprop(0.01)
    for _ in range(120):
        optimizer.apply([tf.constant(scales * w.numpy(), w.dtype)], [w])
    assert np.abs(w.numpy()).max() < 1e-3
    with pytest.raises(ValueError, match=r"shortest=2.0 is more than longest=1.0"):
        kopt.Rprop(shortest=2.0, longest=1.0)


def test_rprop_keeps_lengths_of_many_sizes_in_short_slots():
    gradient = np.where(np.arange(64) < 32, 1.0, [(-1.0) ** t for t in range(64)]).reshape(2, 32)
    points = []
    for state_dtype in ("float32", "int8"):
        w = keras.Variable(np.zeros((2, 32)), dtype="float32")
        optimizer = kopt.Rprop(state_dtype=state_dtype)
        for t in range(30):
            optimizer.apply([tf.constant(gradient * [[1.0], [(-1.0) ** t]], "float32")], [w])
        points.append(w.numpy())
    np.testing.assert_array_equal(*points)

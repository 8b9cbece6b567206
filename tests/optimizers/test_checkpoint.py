"""A `tf.train.Checkpoint` holds all of the state: new objects go on where it was written."""

import numpy as np
import pytest
import tensorflow as tf
from problems import flat, network, regression

import kopt


def train(model, epochs):
    model.fit(regression(), shuffle=False, epochs=epochs, verbose=0)
    return model


def checkpoint(model):
    return tf.train.Checkpoint(model=model, optimizer=model.optimizer)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "built"),
    [
        pytest.param({}, False, marks=pytest.mark.slow),
        ({"gradient_accumulation_steps": 3, "state_dtype": "int8"}, True),
    ],
    ids=str,
)
def test_five_epochs_checkpoint_five_equal_ten(options, built, tmp_path):
    straight = train(network(kopt.AdaBound(**options)), 10)
    path = checkpoint(train(network(kopt.AdaBound(**options)), 5)).save(tmp_path / "five")
    resumed = network(kopt.AdaBound(**options))
    if built:
        resumed.optimizer.build(resumed.trainable_variables)
    for weight in resumed.weights:
        weight.assign(7.0 + 0.0 * weight)
    status = checkpoint(resumed).restore(path)
    train(resumed, 5)
    status.assert_consumed()
    np.testing.assert_array_equal(flat(resumed), flat(straight))
    assert int(resumed.optimizer.iterations) == int(straight.optimizer.iterations)

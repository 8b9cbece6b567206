"""Keras finds the optimizers by the names under which they are saved."""

import keras
import numpy as np
import pytest
from problems import rules

import kopt


@pytest.mark.parametrize("name", rules())
def test_keras_makes_it_by_name(name):
    assert type(keras.optimizers.get(f"kopt>{name}")) is rules()[name]


def test_compile_takes_a_name():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("kopt>AdaBound", "mse")
    model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
    assert type(model.optimizer) is kopt.AdaBound and int(model.optimizer.iterations) == 1

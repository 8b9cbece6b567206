"""What tests of adapters look at, and the shake that gives them something to see."""

import keras
import numpy as np

from kopt.peft.model import adapters_of


def scramble(model, stddev=0.1):
    """Gives every trained weight of the adapters random values."""
    rng = np.random.default_rng(1)
    for layer in adapters_of(model).hosts.values():
        for name in layer.adapters:
            for variable in (layer.weights_of[name] | layer.copies[name]).values():
                if variable.trainable:
                    variable.assign(variable.numpy() + rng.normal(0, stddev, variable.shape))


def outputs(model, x):
    """Returns the first output of the model."""
    y = model(x, training=False)
    return np.asarray(keras.tree.flatten(y)[0])


def values(variables):
    """Returns copies of the values."""
    return [np.array(v.numpy()) for v in variables]


def same(a, b):
    """Returns whether all arrays have the same bits."""
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def weights(model, path, name, adapter="default"):
    """Returns one weight of an adapter."""
    return adapters_of(model).hosts[path].weights_of[adapter][name].numpy()

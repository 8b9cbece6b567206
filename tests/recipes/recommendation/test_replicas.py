"""Retrieval by two replicas: the items of both are negatives of each other, as those of one batch are."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kopt
from kopt import distribution
from recipes.recommendation.batches import batches
from recipes.recommendation.models import Retriever

LENGTH = 4


def pairs(kind):
    rng = np.random.default_rng(0)
    shape = (20,) if kind == "mf" else (20, LENGTH)
    x = {"user": rng.integers(1, 6, 20), "item": rng.integers(1, 9, shape)}
    if kind != "mf":
        x["history"] = rng.integers(1, 9, shape)
        for row, short in enumerate(rng.integers(0, LENGTH, 20)):  # the batches are padded unevenly
            x["item"][row, :short] = x["history"][row, :short] = 0
    return {name: part.astype("int32") for name, part in x.items()}


def trained(kind, strategy):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = Retriever(kind, {"size": 6, "dim": 4}, {"size": 9, "dim": 4}, length=LENGTH, hidden=8, positions=13)
        model.build()
        model.share.assign(np.linspace(0.05, 0.2, 9))
        # No rule that divides by the size of the gradient: that of some biases is nothing but rounding.
        model.compile(kopt.Momentum(0.05, global_clipnorm=1.0))
    distribution.share_loss(model)
    data = batches(pairs(kind), np.zeros(20, "float32"), 7)  # the last batch has 6 rows
    history = model.fit(distribution.shard(data, strategy), epochs=2, shuffle=False, verbose=0).history
    return np.concatenate([np.ravel(w) for w in model.get_weights()]), history["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mf", "two-tower", "sasrec"])
def test_two_replicas_are_one(kind, two_devices):
    weights, losses = trained(kind, tf.distribute.get_strategy())
    found, of_two = trained(kind, two_devices)
    np.testing.assert_allclose(of_two, losses, rtol=1e-6)
    np.testing.assert_allclose(found, weights, rtol=0, atol=2e-6)

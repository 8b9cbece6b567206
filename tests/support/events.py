"""A small training, and the event files that it leaves."""

import keras
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kopt.tensorboard import OptimizerStats

X = np.random.default_rng(0).normal(size=(24, 3)).astype("float32")
Y = X @ np.float32([[1.0], [-2.0], [0.5]])


def regression(optimizer, **options):
    """A linear model with weights W and b, mean squared error."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, name="linear")], name="model")
    model.compile(optimizer, "mse", **options)
    return model


def fit(model, stats, x=X, y=Y, batch_size=4, **options):
    """Six batches an epoch, in order."""
    options = {"epochs": 1, "verbose": 0, "shuffle": False} | options
    return model.fit(x, y, batch_size=batch_size, callbacks=[stats], **options)


def read(log_dir):
    """Returns {tag: {step: value}} of the scalars, and the accumulator for all else."""
    events = EventAccumulator(str(log_dir), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}, events


def run(tmp_path, optimizer, every=2, compile_options=None, **options):
    """Trains, and returns the scalars and the model."""
    model = regression(optimizer, **(compile_options or {}))
    fit(model, OptimizerStats(tmp_path, every), **options)
    return read(tmp_path)[0], model

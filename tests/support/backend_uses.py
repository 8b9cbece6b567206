"""What is done with optimizers around plain `fit`, as cases for every backend."""

import os
import pickle
import tempfile
import zlib

import keras
import numpy as np
from backend_optimizers import (
    EXACT,
    MAKERS,
    MOMENTUM,
    OPTIONS,
    WRAPPED,
    examples,
    network,
    numbers,
    variables,
    weights_and_gradients,
)
from backend_runs import Case
from keras import ops

import kopt

X, Y = examples()
AROUND = {"batch_size": 8, "shuffle": False, "verbose": 0}
ADAMW = OPTIONS["clipnorm"]


def fit(model, epochs=2, **options):
    model.fit(X, Y, epochs=epochs, **AROUND, **options)
    return model


def lookahead():
    return kopt.Lookahead(kopt.Momentum(**MOMENTUM, **EXACT), k=3)


# ------------------------------------------------------------------------------------------------- fit and its kin


def again():
    return fit(fit(network(OPTIONS["use_ema"]()))).get_weights()


def on_batches():
    model = network(OPTIONS["gradient_accumulation_steps"]())
    losses = [model.train_on_batch(X[i : i + 8], Y[i : i + 8]) for i in range(0, 40, 8)]
    return [*model.get_weights(), np.array(losses)]


def evaluated():
    model = fit(network(OPTIONS["use_ema"]()), validation_data=(X, Y))
    return [np.array(model.evaluate(X, Y, verbose=0)), model.predict(X, verbose=0), *model.get_weights()]


def slowed():
    lower = keras.callbacks.ReduceLROnPlateau("loss", factor=0.3, patience=1, min_delta=10.0)
    model = fit(network(ADAMW()), 4, callbacks=[lower])
    return [np.array(float(model.optimizer.learning_rate)), *model.get_weights()]


def set_between():
    model = fit(network(ADAMW()))
    model.optimizer.learning_rate = 0.003
    return fit(model).get_weights()


def begun_anew():
    model = fit(network(lookahead()))
    model.optimizer.reset()
    return fit(model).get_weights()


def anchored():
    model = fit(network(lookahead()))
    model.set_weights([0.9 * w for w in model.get_weights()])
    model.optimizer.anchor()
    return fit(model).get_weights()


def looked_at():
    model = network(kopt.AdaBound(**EXACT, global_clipnorm=0.1))
    fit(model)
    found = model.optimizer.statistics()
    scalars = [model.optimizer.gradient_norm, model.optimizer.clipped_steps, model.optimizer.iterations]
    return numbers([*(x for each in found.values() for x in each.values()), *scalars])


def with_another_model():
    first = fit(network(ADAMW()))
    second = network(kopt.AdamW.from_config(first.optimizer.get_config()))
    return fit(second).get_weights()


# ------------------------------------------------------------------------------------------------- kept and loaded


def pickled():
    return fit(pickle.loads(pickle.dumps(fit(network(ADAMW()))))).get_weights()


def saved():
    model = fit(network(OPTIONS["all of these"]()), 1)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.keras")
        model.save(path)
        return fit(keras.models.load_model(path)).get_weights()


# ------------------------------------------------------------------------------------------------- loops of one's own


def looped(make=ADAMW, steps=10):
    """Trains in the loop that the guides of Keras show for each backend."""
    return {"tensorflow": _taped, "jax": _stateless, "torch": _recorded}[keras.backend.backend()](make, steps)


def _parts(i):
    rows = slice(8 * (i % 5), 8 * (i % 5) + 8)
    return ops.convert_to_tensor(X[rows]), ops.convert_to_tensor(Y[rows])


def _taped(make, steps):
    import tensorflow as tf

    model = network(None)
    optimizer = make()
    for i in range(steps):
        x, y = _parts(i)
        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(ops.mean(ops.square(model(x, training=True) - y)))
        gradients = tape.gradient(loss, model.trainable_weights)
        optimizer.apply([tf.convert_to_tensor(g) for g in gradients], model.trainable_weights)
    return model.get_weights()


def _recorded(make, steps):
    import torch

    model = network(None)
    optimizer = make()
    for i in range(steps):
        x, y = _parts(i)
        model.zero_grad()
        optimizer.scale_loss(ops.mean(ops.square(model(x, training=True) - y))).backward()
        with torch.no_grad():
            optimizer.apply([v.value.grad for v in model.trainable_weights], model.trainable_weights)
    return model.get_weights()


def _stateless(make, steps):
    import jax

    model = network(None)
    optimizer = make()
    optimizer.build(model.trainable_variables)

    def loss_of(trainable, others, state, x, y):
        predicted, others = model.stateless_call(trainable, others, x, training=True)
        with keras.StatelessScope(list(zip(optimizer.variables, state, strict=True))):  # where a scale of losses is
            return optimizer.scale_loss(ops.mean(ops.square(predicted - y))), others

    @jax.jit
    def step(trainable, others, state, x, y):
        (_, others), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable, others, state, x, y)
        return optimizer.stateless_apply(state, gradients, trainable), others

    trainable = [v.value for v in model.trainable_variables]
    others, state = [v.value for v in model.non_trainable_variables], [v.value for v in optimizer.variables]
    for i in range(steps):
        (trainable, state), others = step(trainable, others, state, *_parts(i))
    return numbers(trainable)


# ------------------------------------------------------------------------------------------------- minimize


def minimized_model():
    model = network(None)
    result = kopt.minimize(model, X, Y, loss="mse", max_evaluations=20, batch_size=16)
    return [np.array(result.loss), *model.get_weights()]


def minimized_function():
    x = keras.Variable(np.array([-1.2, 1.0]), dtype="float32")

    def banana():
        return 100.0 * ops.square(x[1] - ops.square(x[0])) + ops.square(1.0 - x[0])

    result = kopt.minimize(banana, variables=[x], tolerance=1e-3)
    assert result.converged, result
    return numbers([x])


def minimized_within_bounds():
    x = keras.Variable(np.array([-1.2, 1.0]), dtype="float32")

    def banana():
        return 100.0 * ops.square(x[1] - ops.square(x[0])) + ops.square(1.0 - x[0])

    optimizer = kopt.LBFGSB(lower=-2.0, upper=[np.array([0.8, 2.0])])
    result = kopt.minimize(banana, variables=[x], optimizer=optimizer, tolerance=1e-3)
    assert result.converged, result
    return numbers([x])


def fitted_squares():
    model = network(None)
    squares = kopt.LevenbergMarquardt(products=8)
    result = kopt.minimize(model, X, Y, loss="mse", optimizer=squares, max_evaluations=6, batch_size=16)
    return [np.array(result.loss)]


def sharpened():
    model = kopt.SAM.of(network(None))
    model.compile(ADAMW(), "mse")
    return fit(model).get_weights()


def listed():
    """Returns, for every optimizer, how many variables Keras knows, and a checksum of their names and shapes."""
    found = []
    for make in {**MAKERS, **WRAPPED, **OPTIONS}.values():
        optimizer = make()
        optimizer.build(variables(weights_and_gradients()[0], "float32"))
        names = [f"{v.name}{tuple(v.shape)}" for v in optimizer.variables]
        found.append([len(names), zlib.crc32(repr(names).encode())])
    return [np.array(found)]


USES = {
    "the list of variables": Case(listed, bound=0.0),
    "fit twice": Case(again),
    "train_on_batch": Case(on_batches),
    "evaluate and predict with use_ema": Case(evaluated, bound=3e-6),
    "ReduceLROnPlateau": Case(slowed),
    "learning_rate set between two fits": Case(set_between),
    "run_eagerly=True": Case(lambda: fit(network(ADAMW(), run_eagerly=True)).get_weights()),
    "jit_compile=False": Case(lambda: fit(network(ADAMW(), jit_compile=False)).get_weights()),
    "jit_compile=True": Case(lambda: fit(network(ADAMW(), jit_compile=True)).get_weights(), only=("jax",)),
    "steps_per_execution": Case(
        lambda: fit(network(ADAMW(), steps_per_execution=5)).get_weights(),
        only=("jax",),
        remark="not in Keras on torch",
    ),
    "reset": Case(begun_anew),
    "anchor": Case(anchored),
    "statistics and counters": Case(looked_at),
    "the configuration for another model": Case(with_another_model),
    "pickle": Case(pickled),
    "save and load_model": Case(saved),
    "a loop of one's own": Case(looped),
    "a loop of one's own, BGD": Case(lambda: looped(kopt.BGD)),
    "a loop of one's own, kopt.LossScaleOptimizer": Case(lambda: looped(OPTIONS["kopt.LossScaleOptimizer"])),
    "minimize, a model": Case(minimized_model, bound=1e-5, remark="line searches make small differences grow"),
    "minimize, a function": Case(minimized_function, bound=1e-4, remark="each within the tolerance, 1e-3"),
    "minimize, a function within bounds": Case(
        minimized_within_bounds, bound=1e-4, remark="each within the tolerance, 1e-3"
    ),
    "minimize, least squares": Case(fitted_squares, bound=1e-5, remark="the loss after five steps"),
    "SAM": Case(sharpened, refused=("jax", "torch")),
}

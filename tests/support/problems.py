"""Small problems shared by the tests."""

import keras
import numpy as np
import references
import tensorflow as tf

import kopt
from kopt.optimizers.full_batch.full_batch import FullBatch

RATE = 2.0**-5  # exact in binary, so that float32 and float64 runs have the same rate


def rules():
    """Returns the rules of kopt by class name."""
    return {cls.__name__: cls for cls in kopt.registry().values() if cls.__module__.startswith("kopt.")}


SMALL = {name: {"rank": 2} for name in ("GaLore", "APOLLO")}
"""Arguments with which rules for large kernels do with small ones what they are for."""

BESIDE = {"last_radius": {"others": ["kernel"]}}
"""What else has to be given for an argument to act: without a model at hand no weight is the last matrix."""


def own_fields(cls):
    """Returns the arguments that the bases do not have."""
    around = {*kopt.Optimizer.fields, *FullBatch.fields}
    return {name: field for name, field in cls.fields.items() if name not in around}


def other_value(field):
    """Returns a value of an argument that differs visibly from its default."""
    default, span = field.default, field.range
    if isinstance(default, bool):
        return not default
    if field.name == "routes":
        return [["", "momentum"]]
    if field.name == "others":
        return ["kernel"]
    if field.name == "rank":
        return 1
    if field.name == "damping":
        return 0.1
    if field.name == "ratio":
        return 1.0  # the kernels here are nearly square
    if field.converted:
        return "momentum"
    if field.choices:
        return next(choice for choice in field.choices if choice != default)
    if default is None:
        return 7 if field.whole else (span.above or 0) + 2 * RATE
    if span.high == 1:
        return 0.5 if default < 0.4 or default > 0.6 else 0.7
    if field.whole:
        return 2 if default >= 10 else 3 * default + 1
    if abs(default) < 1e-6:
        return 0.01
    return max(1000 * default, 0.01) if abs(default) <= 1e-3 else 3 * default


def fair_rate(cls):
    """Returns RATE, or more for rules that multiply it with what they learn: below their default it hides that.

    Line searches find the length themselves, and with a fair first trial they all find it at once.
    """
    return RATE if cls().needs_loss else max(RATE, cls.fields["learning_rate"].default)


def weights_and_gradients(steps=20, shapes=((4, 3), (3,)), seed=0):
    """Returns first weights and, for each step, gradients, as float64 arrays.

    The gradients fade, so that maxima matter, and span four decades, so that bounds and epsilons do.
    """
    rng = np.random.default_rng(seed)
    weights, scales = [rng.normal(size=s) for s in shapes], [10 ** rng.uniform(-2.5, 1.5, s) for s in shapes]
    return weights, [[k * 0.7**t * rng.normal(size=k.shape) for k in scales] for t in range(steps)]


def variables(arrays, dtype="float32"):
    """Returns Keras variables named kernel, bias, ..."""
    names = ["kernel", "bias", "gamma", "beta"]
    return [keras.Variable(a, dtype=dtype, name=name) for a, name in zip(arrays, names, strict=False)]


def descend(optimizer, weights, gradients, dtype="float32", call=None):
    """Applies every gradient and returns the final weights as float64 arrays.

    Runs operation by operation, which for a few small steps is faster than to compile them, unless `call` wraps the
    step; that all ways agree is a test of its own.
    """
    ws = variables(weights, dtype)
    optimizer.build(ws)

    first = [w.numpy().astype("float64") for w in ws]

    def step(*gs):
        if optimizer.needs_loss:
            gs = tilted(optimizer, ws, first, gs)
        look_at_curvature(optimizer, gs)
        optimizer.apply(list(gs), ws)

    apply = (call or (lambda f: f))(step)
    tf.config.run_functions_eagerly(call is None)
    try:
        for gs in gradients:
            apply(*[tf.constant(g, dtype) for g in gs])
    finally:
        tf.config.run_functions_eagerly(False)
    return [w.numpy().astype("float64") for w in ws]


def look_at_curvature(optimizer, gradients):
    """Shows a rule that asks for it the curvature `references.curvature`."""
    if hasattr(optimizer, "observe"):
        optimizer.observe(lambda: [references.curvature(g) for g in gradients])


def tilted(optimizer, weights, first, gradients):
    """Shows the optimizer the loss of `references.tilted`, and returns its gradients."""
    moves = [tf.cast(w.value, "float64") - a for w, a in zip(weights, first, strict=True)]
    pulls = [references.pull(a) * d for d, a in zip(moves, first, strict=True)]
    slopes = [1 + tf.clip_by_value(tf.cast(g, "float64"), -references.NOISE, references.NOISE) for g in gradients]
    parts = zip(moves, pulls, slopes, strict=True)
    optimizer.scale_loss(tf.add_n([tf.reduce_sum(d * (p / 2 + g)) for d, p, g in parts]))
    return [tf.cast(p + g, w.dtype) for p, g, w in zip(pulls, slopes, weights, strict=True)]


def one_step(optimizer, w, g):
    """Applies one gradient, dense or IndexedSlices, and returns the weights."""
    (v,) = variables([w])
    optimizer.apply([g if isinstance(g, tf.IndexedSlices) else tf.constant(g, v.dtype)], [v])
    return v.numpy()


def network(optimizer, **compile_options):
    """Returns a compiled two-layer network with deterministic weights."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1)], name="net"
    )
    if hasattr(optimizer, "observe"):
        model = kopt.Curvature.of(model)
    model.compile(optimizer, "mse", **compile_options)
    return model


def regression(batch=16, rows=64):
    """Returns a dataset for `network` whose order is fixed."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(rows, 5)).astype("float32")
    y = np.tanh(x @ rng.normal(size=(5, 1))).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch)


def flat(model):
    """Returns all weights of a model as one array."""
    return np.concatenate([w.ravel() for w in model.get_weights()])

"""Optimizers as cases for every backend: with gradients that are given, and in `fit`."""

from collections.abc import Callable

import keras
import numpy as np
from backend_runs import Case
from keras import ops

import kopt

STEPS = 20
SIGNS = ("Lion", "SignSGD", "Tiger", "Grams", "Cautious", "AdamP")
"""What asks for the sign of something, which the last bit of a gradient may turn."""
REFUSED_ELSEWHERE = ("jax", "torch")
LOSS_TERMS = {"BGD": {}, "BGD, step='barzilai_borwein'": {"step": "barzilai_borwein"}}


def rules():
    """Returns the rules of kopt that can be made without arguments, by class name."""
    return {cls.__name__: cls for cls in kopt.registry().values() if cls.__module__.startswith("kopt.")}


# ------------------------------------------------------------------------------------------------- what they train


def weights_and_gradients(shapes=((12, 6), (6,), (6, 8), (8,)), seed=0):
    """Returns first weights and the gradients of every step, of several sizes, as float64 arrays."""
    rng = np.random.default_rng(seed)
    weights, scales = [rng.normal(size=s) for s in shapes], [10 ** rng.uniform(-2, 0, s) for s in shapes]
    return weights, [[k * 0.9**t * rng.normal(size=k.shape) for k in scales] for t in range(STEPS)]


def variables(arrays, dtype):
    """Returns variables with the names of layers."""
    names = ("embeddings", "bias", "kernel", "gamma")
    return [keras.Variable(a, dtype=dtype, name=name) for a, name in zip(arrays, names, strict=True)]


def numbers(tensors):
    """Returns tensors as float64 arrays."""
    return [np.asarray(ops.convert_to_numpy(ops.cast(x, "float64")), "float64") for x in tensors]


def descended(make: Callable, dtype: str = "float32") -> list[np.ndarray]:
    """Applies the same gradients on every backend; returns the weights."""
    optimizer, (weights, gradients) = make(), weights_and_gradients()
    trained = variables(weights, dtype)
    for each in gradients:
        if optimizer.needs_loss:  # of a bowl, so that the loss fits the gradient
            moves = [w - 0.5 * first for w, first in zip(numbers(trained), weights, strict=True)]
            optimizer.scale_loss(ops.convert_to_tensor(sum((0.5 * d * d).sum() for d in moves), dtype))
            each = moves
        optimizer.apply([ops.convert_to_tensor(g.astype("float32"), dtype) for g in each], trained)
    optimizer.finalize_variable_values(trained)
    return numbers(trained)


def network(optimizer, **options):
    """Returns a compiled model whose first weights are the same on every backend."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            layers.Embedding(12, 6),
            layers.LayerNormalization(),
            layers.Flatten(),
            layers.Dense(8, activation="tanh"),
            layers.Dense(1),
        ]
    )
    rng = np.random.default_rng(3)
    model.set_weights([w + rng.normal(0, 0.3, w.shape) * (w.ndim > 1) for w in map(np.zeros_like, model.get_weights())])
    model.layers[1].gamma.assign(np.ones(6))
    model.compile(optimizer, "mse", **options)
    return model


def examples():
    """Returns inputs and targets of five batches of 8."""
    rng = np.random.default_rng(4)
    x = rng.integers(0, 12, (40, 4))
    return x.astype("int32"), np.sin(x.sum(1, keepdims=True)).astype("float32")


def fitted(make: Callable, batch_size: int = 8, epochs: int = 4, **options) -> list[np.ndarray]:
    """Fits for 20 steps, in the same order on every backend; returns the weights."""
    model = network(make(), **options)
    model.fit(*examples(), batch_size=batch_size, epochs=epochs, shuffle=False, verbose=0)
    return model.get_weights()


# ------------------------------------------------------------------------------------------------- what is compared


def _cases() -> dict[str, tuple[Callable, dict]]:
    """Returns, by name, what makes an optimizer, and the arguments of its `Case`."""
    exact = {"sparse": "exact"}  # lazy rows are TensorFlow's
    found: dict[str, tuple[Callable, dict]] = {}
    for name, cls in rules().items():
        if issubclass(cls, kopt.optimizers.composites.Composite) or name == "LazyAdam":
            continue
        about = {"counted": True} if name in SIGNS else {}
        found[name] = (lambda cls=cls: cls(**exact), about)
    return found


CASES = _cases()
GRADIENTS = {name: Case(lambda make=make: descended(make), **about) for name, (make, about) in CASES.items()}
FIT = {name: Case(lambda make=make: fitted(make), **about) for name, (make, about) in CASES.items()}

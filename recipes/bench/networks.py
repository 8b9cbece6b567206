"""Problems of matrices, small networks and tables of embeddings."""

from typing import Any

import numpy as np
from keras import ops

from .problem import MATRIX, NETWORK, TABLE, Moment, Problem, near

_rng = np.random.default_rng(24)
SIDE, _ = MATRIX["kernel"]
ROWS, WIDTH = TABLE["embedding"]
INPUTS, UNITS = NETWORK["hidden_kernel"]
_, OUTPUTS = NETWORK["head_kernel"]
EXAMPLES, BATCH = 64, 8


def _normal(*shape: int) -> Any:
    return _rng.normal(size=shape).astype("float32")


def _mse(x: Any, y: Any) -> Any:
    return ops.mean(ops.square(x - y))


# ----------------------------------------------------------------------------------------------------- one matrix


def _turn() -> Any:
    return np.linalg.qr(_normal(SIDE, SIDE))[0]


_stretch = np.diag(np.logspace(0, 0.75, SIDE))
LEFT, RIGHT = ((_turn() @ _stretch @ _turn()).astype("float32") for _ in range(2))
GOAL = _normal(SIDE, SIDE)
ROTATION = _turn()
ROTATION[:, 0] *= np.sign(np.linalg.det(ROTATION))
STATES = _normal(16, SIDE)
_thin = _normal(SIDE, 3)
SQUARE = _thin @ _thin.T / SIDE


def _both_sides(w: list[Any]) -> Any:
    return ops.sum(ops.square(ops.matmul(ops.matmul(LEFT, w[0] - GOAL), RIGHT))) / 2


def _repeated(kernel: Any) -> Any:
    states = STATES
    for _ in range(6):
        states = ops.matmul(states, kernel)
    return states


AFTER_ALL = STATES @ np.linalg.matrix_power(ROTATION, 6)


def _recurrent(w: list[Any]) -> Any:
    return _mse(_repeated(w[0]), AFTER_ALL)


def _root(w: list[Any]) -> Any:
    return ops.sum(ops.square(ops.matmul(w[0], ops.transpose(w[0])) - SQUARE)) / float(np.sum(SQUARE**2))


MATRICES = [
    Problem("both sides", "conditioning", "a matrix of condition 1000, by its inputs and by its outputs",
            MATRIX, near(np.zeros((SIDE, SIDE))), lambda w, m: _both_sides(w), _both_sides, 300),
    Problem("recurrent", "networks", "the same matrix six times: small and large values vanish and explode",
            MATRIX, near(ROTATION / 2), lambda w, m: _recurrent(w), _recurrent, 400),
    Problem("symmetric", "networks", "the root of a matrix of rank 3: from a saddle to any of a sphere of minima",
            MATRIX, near(np.zeros((SIDE, SIDE)), 0.01), lambda w, m: _root(w), _root, 300),
]  # fmt: skip

# -------------------------------------------------------------------------------------------------------- networks

X = _normal(EXAMPLES, INPUTS)
LINEAR = X @ _normal(INPUTS, OUTPUTS) / INPUTS**0.5
BENT = np.maximum(X @ _normal(INPUTS, UNITS) / INPUTS**0.5, 0) @ _normal(UNITS, OUTPUTS) / UNITS**0.5
CLASSES = np.argmax(BENT - BENT.mean(axis=0), axis=1).astype("int32")


def _started(scale: float, bias: float = 0.0) -> Any:
    """Returns a start: normal kernels of a deviation of `scale` by the root of the fan-in, and one number as bias."""

    def start(rng: np.random.Generator) -> list[Any]:
        kernels = [scale * rng.normal(size=NETWORK[name]) for name in ("hidden_kernel", "head_kernel")]
        return [kernels[0] / INPUTS**0.5, np.full(UNITS, bias), kernels[1] / UNITS**0.5]

    return start


def _network(w: list[Any], x: Any, bend: Any) -> Any:
    return ops.matmul(bend(ops.matmul(x, w[0]) + w[1]), w[2])


def _deep(w: list[Any]) -> Any:
    return _mse(_network(w, X, lambda x: x), LINEAR)


def _asleep(w: list[Any]) -> Any:
    return _mse(_network(w, X, ops.relu), BENT)


def _cross_entropy(w: list[Any], x: Any, y: Any) -> Any:
    logits = _network(w, x, ops.tanh)
    return ops.mean(ops.sparse_categorical_crossentropy(y, logits, from_logits=True))


def _batch(w: list[Any], m: Moment) -> Any:
    rows = ops.cast(EXAMPLES * m.uniform[:BATCH], "int32")
    return _cross_entropy(w, ops.take(X, rows, axis=0), ops.take(CLASSES, rows, axis=0))


NETWORKS = [
    Problem("deep", "networks", "two linear layers from weights near 0, a saddle of all", NETWORK,
            _started(0.05), lambda w, m: _deep(w), _deep, 300),
    Problem("dead units", "networks", "rectified units that hardly any example wakes at first", NETWORK,
            _started(1.0, -2.0), lambda w, m: _asleep(w), _asleep, 500),
    Problem("batches", "networks", "a classifier that sees 8 of 64 examples at each step", NETWORK,
            _started(1.0), _batch, lambda w: _cross_entropy(w, X, CLASSES), 500),
]  # fmt: skip

# ---------------------------------------------------------------------------------------------------------- tables

TRUE_ROWS, TRUE_WEIGHT = _normal(ROWS, WIDTH), np.ones(WIDTH, "float32")
_zipf = np.cumsum(1 / np.arange(1, ROWS + 1))
ZIPF = (_zipf / _zipf[-1]).astype("float32")


def _evenly(m: Moment) -> Any:
    return ops.cast(ROWS * m.uniform[:BATCH], "int32")


def _by_zipf(m: Moment) -> Any:
    return ops.searchsorted(ZIPF, m.uniform[:BATCH] * 0.999)


def _rows(w: list[Any], ids: Any) -> Any:
    kept = 0 * ops.sum(w[1])  # the vector has a gradient too
    return ops.sum(ops.square(ops.take(w[0], ids, axis=0) - ops.take(TRUE_ROWS, ids, axis=0))) / 2 + kept


def _products(w: list[Any], ids: Any) -> Any:
    error = ops.matmul(ops.take(w[0], ids, axis=0), w[1]) - ops.take(TRUE_ROWS @ TRUE_WEIGHT, ids, axis=0)
    return ops.sum(ops.square(error)) / 2


def _row_error(w: list[Any]) -> Any:
    return _mse(w[0], TRUE_ROWS)


def _product_error(w: list[Any]) -> Any:
    return _mse(ops.matmul(w[0], w[1]), TRUE_ROWS @ TRUE_WEIGHT)


def _table(rng: np.random.Generator) -> list[Any]:
    return [0.1 * rng.normal(size=TABLE["embedding"]), 0.5 + 0.1 * rng.normal(size=TABLE["w"])]


TABLES = [
    Problem("table", "rare gradients", "an embedding, each row read once in eight steps: gradients have rows",
            TABLE, _table, lambda w, m: _rows(w, _evenly(m)), _row_error, 500),
    Problem("rare rows", "rare gradients", "the row of rank k is read in proportion to 1/k, the last one 14 times",
            TABLE, _table, lambda w, m: _rows(w, _by_zipf(m)), _row_error, 500),
    Problem("rows and a weight", "rare gradients", "rare rows times a weight that every step moves",
            TABLE, _table, lambda w, m: _products(w, _by_zipf(m)), _product_error, 500),
]  # fmt: skip

PROBLEMS = [*MATRICES, *NETWORKS, *TABLES]

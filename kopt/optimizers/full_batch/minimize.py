"""Minimizing a function, or the loss of a model on all its data, to a tolerance."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kopt.declare import Count, NonNegative, checked
from kopt.declare.registry import get
from kopt.optimizers.engine.backends.backend import backend
from kopt.optimizers.full_batch.lbfgsb import LBFGSB
from kopt.optimizers.full_batch.levenberg_marquardt import LevenbergMarquardt
from kopt.optimizers.full_batch.residuals import Residuals, residuals_of
from kopt.optimizers.full_batch.result import Result
from kopt.optimizers.optimizer import Optimizer


@checked
def minimize(
    target: Any,
    x: Any = None,
    y: Any = None,
    *,
    variables: Sequence[Any] | None = None,
    loss: Any = None,
    optimizer: Any = "lbfgs",
    tolerance: NonNegative = 1e-5,
    max_evaluations: Count = 1000,
    batch_size: Count | None = None,
    sample_weight: Any = None,
    training: bool = False,
    compiled: bool = True,
) -> Result:
    """Minimizes a function of variables, or the loss of a model on all of its data.

    Args:
        target: a Keras model, or a function of no argument that reads `variables` and returns a scalar; with
            `LevenbergMarquardt`, residuals of any shape, whose squares are summed.
        x: inputs of the model: an array, or a list or dictionary of arrays.
        y: targets of the model.
        variables: what the function depends on: Keras variables, which are changed in place. Of a model its trainable
            weights.
        loss: loss of the model, as in `compile`; None for what it was compiled with. `LevenbergMarquardt` takes
            "mse".
        optimizer: a kopt optimizer that has made no step yet, or its name; or a `LevenbergMarquardt`, or an
            `LBFGSB` for variables within bounds.
        tolerance: ≥ 0; the run ends when no element of the gradient is larger.
        max_evaluations: ≥ 1; the run ends after so many evaluations.
        batch_size: ≥ 1; examples to evaluate at a time, where all do not fit. Loss and gradient are those of all.
        sample_weight: weights of the examples.
        training: whether the model runs in training mode. Line searches need a function without dropout.
        compiled: compile the function; False runs it operation by operation, for a look inside.

    Raises:
        TypeError: the target is neither a model nor a function, or the optimizer is not one of kopt.
        ValueError: arguments are missing, contradict each other or are out of range; the value is no scalar, or does
            not depend on a variable.
    """
    optimizer = get(optimizer) if isinstance(optimizer, str) else optimizer
    squares = isinstance(optimizer, LevenbergMarquardt)
    if not isinstance(optimizer, LevenbergMarquardt | LBFGSB):
        _check_optimizer(optimizer)
    if isinstance(target, keras.Model):
        if variables is not None:
            raise ValueError("The variables of a model are its trainable weights: set `trainable` of its layers.")
        batches = _batches(x, y, sample_weight, batch_size)
        function = (residuals_of if squares else _loss_of)(target, loss, training, batches[0][1])
        variables = target.trainable_weights
        if not variables:
            raise ValueError(f"The model {target.name!r} has no trainable weights.")
    elif callable(target):
        if any(a is not None for a in (x, y, loss, batch_size, sample_weight)):
            raise ValueError("x, y, loss, batch_size and sample_weight belong to a model, not to a function.")
        if not variables or not all(hasattr(v, "assign") for v in variables):
            raise ValueError(
                f"minimize needs the Keras variables that the function reads. Received: variables={variables!r}"
            )
        function, batches = target, [(1.0, ())]
    else:
        raise TypeError(f"minimize needs a Keras model or a function. Received: {target!r}")
    state = target.non_trainable_variables if isinstance(target, keras.Model) else []
    if squares:
        products = backend.products(function, list(variables), state, compiled)
        return optimizer.minimize(Residuals(products, list(variables), batches), tolerance, max_evaluations)
    if not isinstance(optimizer, LBFGSB):
        optimizer.build(list(variables))
    differentiate = backend.differentiated(function, list(variables), state, compiled)

    def evaluate() -> tuple[Any, list[Any]]:
        loss, gradients = 0.0, [0.0] * len(variables)
        for share, batch in batches:
            value, parts = differentiate(*batch)
            loss = loss + share * value
            gradients = [a + share * g for a, g in zip(gradients, parts, strict=True)]
        return loss, gradients

    if isinstance(optimizer, LBFGSB):
        return optimizer.minimize(evaluate, list(variables), tolerance, max_evaluations)
    return _run(optimizer, list(variables), evaluate, tolerance, max_evaluations)


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"minimize needs a kopt optimizer or the name of one. Received: optimizer={optimizer!r}")
    if int(ops.convert_to_numpy(optimizer.iterations)) > 0:
        raise ValueError("minimize needs an optimizer that has made no step yet. Create a new one.")
    if (optimizer.gradient_accumulation_steps or 1) > 1:
        raise ValueError(
            "minimize evaluates all examples at each step, so gradient_accumulation_steps has no use. "
            "To evaluate them in parts, pass batch_size to minimize."
        )


def _run(
    optimizer: Any,
    variables: list[Any],
    evaluate: Callable[[], tuple[Any, list[Any]]],
    tolerance: float,
    most: int,
) -> Result:
    count, ended = 0, False
    while True:
        loss, gradients = evaluate()
        count += 1
        value = float(ops.convert_to_numpy(loss))
        norm = max(float(np.abs(ops.convert_to_numpy(g)).max(initial=0.0)) for g in gradients)
        stalled = getattr(optimizer, "stalls", 0) > 1
        if norm <= tolerance:
            return Result(True, f"the gradient is within {tolerance:g}", count, value, norm)
        if count == 1 and not (math.isfinite(value) and math.isfinite(norm)):
            return Result(False, "loss or gradient are not finite at the start", count, value, norm)
        if ended or count == most:
            reason = "no step decreases the loss at this precision" if stalled else f"{count} evaluations were made"
            return Result(False, reason, count, value, norm)
        optimizer.scale_loss(loss)
        optimizer.apply(gradients, variables)
        ended = count == most - 1 or getattr(optimizer, "stalls", 0) > 1
        if ended:  # the last evaluation is at the best point, not at a trial
            optimizer.finalize_variable_values(variables)


def _batches(x: Any, y: Any, sample_weight: Any, size: int | None) -> list[tuple[float, Any]]:
    """Returns the data in batches, each with its share of the examples."""
    if x is None:
        raise ValueError("A model needs data: give minimize(model, x, y).")
    data = keras.tree.map_structure(lambda a: None if a is None else np.asarray(a), (x, y, sample_weight))
    lengths = {len(a) for a in keras.tree.flatten(data) if a is not None}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"x, y and sample_weight must have the same number of examples. Received: {sorted(lengths)}")
    (length,) = lengths
    size = int(size or length)

    def part(begin: int) -> tuple[Any, Any, Any]:
        cut = lambda a: None if a is None else ops.convert_to_tensor(a[begin : begin + size])  # noqa: E731
        return keras.tree.map_structure(cut, data)

    return [(min(size, length - i) / length, part(i)) for i in range(0, length, size)]


def _loss_of(model: Any, loss: Any, training: bool, batch: tuple[Any, Any, Any]) -> Callable[..., Any]:
    """Returns the loss of a model as a function of x, y and the sample weights."""
    if loss is None and not model.compiled:
        raise ValueError(f"The model {model.name!r} is not compiled. Pass loss=... to minimize, or compile it.")
    given = None if loss is None else keras.losses.get(loss)

    def function(x: Any, y: Any, sample_weight: Any) -> Any:
        predicted = model(x, training=training)
        if given is None:
            return model.compute_loss(x, y, predicted, sample_weight, training=training)
        if isinstance(given, keras.Loss):
            value = given(y, predicted, sample_weight)
        else:
            values = given(y, predicted)
            value = ops.mean(values if sample_weight is None else values * ops.cast(sample_weight, values.dtype))
        return sum(model.losses, value)

    function(*batch)  # builds model and loss
    return function

"""What callbacks and train steps read of Keras beyond what it documents.

No other file here does so: after an upgrade of Keras, look here. The names that are gone are said by
`tests/test_keras_internals.py`.
"""

from typing import Any

from keras import ops


def flatten_layers(model: Any) -> list[Any]:
    """Returns a model and all layers in it, at any depth."""
    layers: list[Any] = model._flatten_layers()
    return layers


def takes_training(model: Any) -> bool:
    """Returns whether the `call` of a model takes the argument `training`."""
    return bool(model._call_has_training_arg)


def loss_metric(model: Any) -> Any:
    """Returns the metric in which a compiled model shows its loss."""
    return model._loss_tracker


def innermost(model: Any) -> Any:
    """Returns the optimizer of a model, without Keras' loss scaling around it; None if it is not compiled.

    A callback asks for it by `innermost(self.model)` each time: on JAX `fit` keeps the variables of model and optimizer
    elsewhere, and it is the attribute `model` of a callback that brings them up to date.
    """
    optimizer: Any = getattr(model, "optimizer", None)
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def copied(variable: Any) -> Any:
    """Returns the value of a variable as a tensor of its own, which no gradient goes through."""
    return ops.stop_gradient(ops.copy(variable))


def trained_by(optimizer: Any) -> list[Any]:
    """Returns the variables that an optimizer was built for."""
    return list(optimizer._trainable_variables)


def moving_averages(optimizer: Any) -> list[Any]:
    """Returns the averages of an optimizer with `use_ema=True`, in the order of `trained_by`."""
    return list(optimizer._model_variables_moving_average)


def count_batches(optimizer: Any) -> Any:
    """Returns the number of batches that an optimizer has seen; `iterations` counts accumulated ones as one."""
    return optimizer._iterations

"""What callbacks and train steps read of Keras beyond what it documents.

No other file here does so: after an upgrade of Keras, look here. The names that are gone are said by
`tests/test_keras_internals.py`.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import ops


def flatten_layers(model: Any) -> list[Any]:
    """Returns a model and all layers in it, at any depth."""
    layers: list[Any] = model._flatten_layers()
    return layers


def takes_training(model: Any) -> bool:
    """Returns whether the `call` of a model takes the argument `training`."""
    return bool(model._call_has_training_arg)


def mask_of(predicted: Any) -> Any:
    """Returns the mask that layers hung on what they computed, by which losses leave out padding; None without one."""
    return keras.src.backend.get_keras_mask(predicted)


def set_mask(tensor: Any, mask: Any) -> Any:
    """Hangs such a mask on a tensor, and returns it."""
    keras.src.backend.set_keras_mask(tensor, mask=mask)
    return tensor


def sublayers(layer: Any) -> list[Any]:
    """Returns the layers that a layer holds itself."""
    return list(layer._layers)


def surroundings() -> Callable[[], Any]:
    """Returns a function that makes a context like the present one of a call: training or not, and the precision."""
    names = ("current_call_ctx", "autocast_scope")
    state = keras.src.backend.common.global_state
    then = [state.get_global_attribute(name) for name in names]

    @contextlib.contextmanager
    def again() -> Iterator[None]:
        now = [state.get_global_attribute(name) for name in names]
        try:
            for name, value in zip(names, then, strict=True):
                state.set_global_attribute(name, value)
            yield
        finally:
            for name, value in zip(names, now, strict=True):
                state.set_global_attribute(name, value)

    return again


def loss_metric(model: Any) -> Any:
    """Returns the metric in which a compiled model shows its loss."""
    return model._loss_tracker


def innermost(model: Any) -> Any:
    """Returns the optimizer of a model, without Keras' loss scaling around it; None if it is not compiled.

    A callback asks for it by `innermost(self.model)` each time: on JAX `fit` keeps the variables of model and optimizer
    elsewhere, and it is the attribute `model` of a callback that brings them up to date.
    """
    return unwrapped(getattr(model, "optimizer", None))


def unwrapped(optimizer: Any) -> Any:
    """Returns an optimizer without Keras' loss scaling around it."""
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


def global_seed() -> Any:
    """Returns the state of the generator that draws where no seed is given; None if none ever has."""
    generator = keras.src.backend.common.global_state.get_global_attribute("global_seed_generator")
    return None if generator is None else generator.state


def begin_global_seed() -> None:
    """Makes that generator if there is none."""
    keras.src.random.seed_generator.global_seed_generator()


def get_backend_generators() -> list[Any]:
    """Returns the states of torch's own generators, from which dropout draws on that backend; elsewhere none."""
    if keras.backend.backend() != "torch":
        return []
    import torch

    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def set_backend_generators(states: Sequence[Any]) -> None:
    """Puts them back, given as arrays."""
    if states:
        import torch

        first, *others = (torch.from_numpy(state) for state in states)
        torch.set_rng_state(first)
        if others:
            torch.cuda.set_rng_state_all(others)


def sync_variables(model: Any) -> None:
    """Gives the variables of a model the values that they have reached inside of `fit`: JAX keeps them elsewhere."""
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def build_metrics(model: Any, batch: Any) -> None:
    """Creates the variables of loss and metrics that `compile` was given, as the first step would."""
    given = (model._compile_loss, model._compile_metrics)
    if not all(part is None or part.built for part in given):
        model._symbolic_build(data_batch=batch)


def train_step(model: Any) -> Callable[..., Any]:
    """Returns the function by which `fit` trains on the next batches."""
    step: Callable[..., Any] = model.train_function
    return step


def read_only(model: Any, seen: Callable[[Any], Any]) -> Callable[..., Any]:
    """Returns a function for the same place that reads the next batches, does not train on them, and gives way again.

    Args:
        model: in `fit`.
        seen: function of the first of these batches that returns the logs.
    """
    trained = train_step(model)

    def step(*arguments: Any) -> Any:
        model.train_function = trained  # first: what ends here must not leave a model that learns nothing
        batches = arguments[-1]  # an iterator, on torch a list of what was read
        if not isinstance(batches, list):
            batches = [next(batches) for _ in range(model.steps_per_execution)]
        logs = seen(batches[0])
        return (logs, arguments[0]) if len(arguments) == 2 else logs  # JAX hands its state on

    return step

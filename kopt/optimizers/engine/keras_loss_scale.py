"""What an optimizer knows of the dynamic loss scaling of Keras around it.

`compile` puts `keras.optimizers.LossScaleOptimizer` around every optimizer in mixed float16. It judges the gradient of
each replica before the reduction, hides the loss, leaves out single batches, and lets the scale fall to 0. What cannot
be right inside of it is refused, in words that name what to use.
"""

import sys
from typing import Any

import keras
from keras import ops

from kopt.optimizers.engine.backends.backend import backend
from kopt.optimizers.engine.contract import Options

MINIMUM_SCALE = 1e-4
"""A loss scale below this one says that gradients overflow for another reason than the scale."""


def find_scale() -> Any:
    """Returns the loss scale of the nearest caller that scales losses in the way of Keras, or None.

    In no other way does Keras' wrapper tell what it wraps.
    """
    base, frame = keras.optimizers.LossScaleOptimizer, sys._getframe().f_back
    while frame is not None:
        caller, frame = frame.f_locals.get("self"), frame.f_back
        if isinstance(caller, base):
            return caller.dynamic_scale if type(caller).apply is base.apply else None
    return None


def check(owner: str, scale: Any, options: Options, needs_loss: bool, counts_batches: bool) -> None:
    """Raises an error if a step inside of Keras' loss scaling would be wrong.

    Args:
        owner: name of the optimizer's class.
        scale: the loss scale.
        options: of the optimizer.
        needs_loss: whether its rule looks at the loss.
        counts_batches: whether its rule counts the batches of an epoch.

    Raises:
        ValueError: it would be wrong at any scale.
        FloatingPointError: the scale has fallen to nothing (eager; inside a graph `tf.errors.InvalidArgumentError`).
    """
    if backend.replicas() > 1:
        raise ValueError(_unfit(owner, "judges the gradient of each replica alone, and lets the NaN of one through"))
    if needs_loss:
        raise ValueError(_unfit(owner, "hides the loss, which this rule needs"))
    if counts_batches and options.gradient_accumulation_steps:
        raise ValueError(_unfit(owner, "leaves single batches out of an epoch, which this rule counts"))
    if options.on_nonfinite == "raise":
        without = ", without on_nonfinite: it raises by itself"
        raise ValueError(_unfit(owner, "keeps every NaN from on_nonfinite='raise'", without))
    backend.stop_unless(lambda: ops.convert_to_tensor(scale) >= MINIMUM_SCALE, _fallen(owner))


def check_at_end(owner: str, scale: Any) -> None:
    """Raises `FloatingPointError` if the scale has fallen to nothing."""
    if not float(ops.convert_to_numpy(scale)) >= MINIMUM_SCALE:
        raise FloatingPointError(_fallen(owner))


def _unfit(owner: str, fault: str, more: str = "") -> str:
    return (
        f"{owner}: keras.optimizers.LossScaleOptimizer, which compile() puts around it in mixed float16, {fault}; "
        f"give compile() kopt.LossScaleOptimizer({owner}(...)) instead{more}."
    )


def _fallen(owner: str) -> str:
    return _unfit(owner, f"let the scale fall below {MINIMUM_SCALE:g}, for the gradients overflow at every scale")

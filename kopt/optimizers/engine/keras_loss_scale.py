"""What an optimizer knows of the dynamic loss scaling of Keras around it."""

import sys
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kopt.optimizers.engine.parameter import OptimizerParts

MINIMUM_SCALE = 1e-4
"""A loss scale below this one says that gradients overflow for another reason than the scale."""


class Scaled(OptimizerParts):
    """Refuses what cannot be right inside of Keras' own `LossScaleOptimizer`, and names what to use.

    `compile` puts it around every optimizer in mixed float16. It judges the gradient of each replica before the
    reduction, hides the loss, leaves out single batches, and lets the scale fall to 0.
    """

    _keras_scale: Any = None
    """The loss scale of Keras, if that is around this optimizer."""

    def _look_around(self) -> None:
        """Looks for Keras' wrapper among the callers: in no other way does it tell what it wraps."""
        scaler = _keras_scaler()
        # Past the tracking of attributes: it is no state of this optimizer.
        self.__dict__["_keras_scale"] = None if scaler is None else scaler.dynamic_scale
        if scaler is not None and not self.built and self.on_nonfinite == "ignore":
            self.on_nonfinite = "skip"  # at a scale of 0 every gradient is NaN, and XLA cannot stop

    def _check_scaler(self) -> None:
        if self._keras_scale is None:
            return
        if self._replicas() > 1:
            raise ValueError(self._unfit("judges the gradient of each replica alone, and lets the NaN of one through"))
        if self.needs_loss:
            raise ValueError(self._unfit("hides the loss, which this rule needs"))
        if getattr(self, "examples", None) is not None and self.gradient_accumulation_steps:
            raise ValueError(self._unfit("leaves single batches out of an epoch, which this rule counts"))
        if self.on_nonfinite == "raise":
            without = ", without on_nonfinite: it raises by itself"
            raise ValueError(self._unfit("keeps every NaN from on_nonfinite='raise'", without))
        self._stop_unless(ops.convert_to_tensor(self._keras_scale) >= MINIMUM_SCALE, self._fallen())

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Ends `fit`, with an error if the loss scale of Keras has fallen to nothing.

        Raises:
            FloatingPointError: the scale is below 10⁻⁴.
        """
        super().finalize_variable_values(var_list)  # type: ignore[misc]
        if self._keras_scale is not None and not float(ops.convert_to_numpy(self._keras_scale)) >= MINIMUM_SCALE:
            raise FloatingPointError(self._fallen())

    def _fallen(self) -> str:
        return self._unfit(f"let the scale fall below {MINIMUM_SCALE:g}, for the gradients overflow at every scale")

    def _unfit(self, fault: str, more: str = "") -> str:
        name = type(self).__name__
        return (
            f"{name}: keras.optimizers.LossScaleOptimizer, which compile() puts around it in mixed float16, {fault}; "
            f"give compile() kopt.LossScaleOptimizer({name}(...)) instead{more}."
        )


def _keras_scaler() -> Any:
    """Returns the nearest caller that scales losses in the way of Keras, or None."""
    base, frame = keras.optimizers.LossScaleOptimizer, sys._getframe().f_back
    while frame is not None:
        caller, frame = frame.f_locals.get("self"), frame.f_back
        if isinstance(caller, base):
            return caller if type(caller).apply is base.apply else None
    return None

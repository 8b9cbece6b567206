"""Dynamic loss scaling for float16."""

import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from kopt.optimizers.engine.backends.backend import backend
from kopt.optimizers.engine.backends.records import Write
from kopt.optimizers.engine.keras_loss_scale import MINIMUM_SCALE
from kopt.optimizers.optimizer import Any, Optimizer, Tensor

STATE = ("step_counter", "dynamic_scale")


@keras.saving.register_keras_serializable("kopt")
class LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    r"""Dynamic loss scaling that checks the gradient that is applied, of all replicas and accumulated batches.

        s ← s / 2, and no update        if a gradient is not finite
        s ← 2 s                         after `dynamic_growth_steps` updates without that

    The loss is multiplied and the gradients are divided by s, so that small ones do not vanish in float16. Rules that
    need the loss see the unscaled one. In mixed float16 `compile` wraps every optimizer but these in a loss scaling.

    Args:
        inner_optimizer: the kopt optimizer that makes the updates.
        initial_scale: ≥ `minimum_scale`, s of the first update.
        dynamic_growth_steps: ≥ 1, updates from one doubling to the next.
        name: name of the optimizer.
        minimum_scale: > 0; when s falls below it, gradients overflow at every scale, and training ends.

    Raises:
        TypeError: `inner_optimizer` is not of kopt.
        ValueError: an argument is out of range, or the inner optimizer has one that contradicts dynamic scaling.
        FloatingPointError: s has fallen below `minimum_scale`; inside a graph `tf.errors.InvalidArgumentError`. An
            XLA-compiled train step cannot stop: it skips what is not finite, and the end of `fit` raises.

    Reference: Micikevicius et al., 2018, arXiv:1710.03740.
    """

    _pending: dict[str, Any] | None = None

    def __init__(
        self,
        inner_optimizer: Optimizer,
        initial_scale: float = 2.0**15,
        dynamic_growth_steps: int = 2000,
        name: str | None = None,
        *,
        minimum_scale: float = MINIMUM_SCALE,
        **options: Any,
    ) -> None:
        if not isinstance(inner_optimizer, Optimizer):
            raise TypeError(
                "kopt.LossScaleOptimizer is for the optimizers of kopt. Use keras.optimizers.LossScaleOptimizer for "
                f"{inner_optimizer!r}."
            )
        if inner_optimizer.on_nonfinite == "raise":
            raise ValueError(
                "kopt.LossScaleOptimizer: on_nonfinite='raise' would stop at the first overflow, which is expected. "
                "Leave it out: what is not finite at any scale raises at minimum_scale."
            )
        if inner_optimizer.loss_scale_factor is not None:
            raise ValueError("kopt.LossScaleOptimizer and loss_scale_factor both scale the loss. Use one of them.")
        if not 0 < minimum_scale <= initial_scale < math.inf:
            raise ValueError(
                "kopt.LossScaleOptimizer: 0 < minimum_scale <= initial_scale < inf is needed. Received: "
                f"{minimum_scale=!r}, {initial_scale=!r}"
            )
        if dynamic_growth_steps != int(dynamic_growth_steps) or dynamic_growth_steps < 1:
            raise ValueError(
                f"kopt.LossScaleOptimizer: an integer in [1, inf) is needed. Received: {dynamic_growth_steps=!r}"
            )
        super().__init__(inner_optimizer, initial_scale, dynamic_growth_steps, name, **options)
        inner_optimizer.on_nonfinite = "skip"
        self.minimum_scale = minimum_scale

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the state, and that of the inner optimizer."""
        if self.built:
            return
        super().build(variables)
        with backend.outside_graph():
            self._restore_pending()

    def scale_loss(self, loss: Any) -> Any:
        """Returns the loss to differentiate; the inner optimizer takes note of the true one."""
        return super().scale_loss(self.inner_optimizer.scale_loss(loss))

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Makes one update from the gradients of the scaled loss, or accumulates towards one.

        Args:
            grads: gradients, one a variable; `None` leaves a variable alone.
            trainable_variables: the variables, on first use; later they may be left out.

        Raises:
            ValueError: as `apply` of the inner optimizer.
            FloatingPointError: the scale has fallen below `minimum_scale` (eager; inside a graph
                `tf.errors.InvalidArgumentError`).
        """
        inner = self.inner_optimizer
        if trainable_variables is None and not self.built:
            raise ValueError("LossScaleOptimizer is not built. Pass the variables, or call build(variables) first.")
        variables = list(self._trainable_variables if trainable_variables is None else trainable_variables)
        self.build(variables)
        scale, updates, skipped = (ops.copy(backend.value(self.dynamic_scale)), *self._counts())
        inner.apply([self._unscaled(g, v, scale) for g, v in zip(grads, variables, strict=True)], variables)
        updates, skipped = (after - before for after, before in zip(self._counts(), (updates, skipped), strict=True))
        self._rescale(scale, updates, skipped > 0)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Keeps weights from decaying: see `Optimizer.exclude_from_weight_decay`."""
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def reset(self) -> None:
        """Puts the scale and the inner optimizer back to their start: see `Optimizer.reset`."""
        if self.built:
            self.step_counter.assign(0)
            self.dynamic_scale.assign(self.initial_scale)
        self.inner_optimizer.reset()

    def anchor(self) -> None:
        """Takes the weights as they are now: see `Optimizer.anchor`."""
        self.inner_optimizer.anchor()

    # On the backends without assignments: `apply` in a scope that records them, as of any other optimizer.
    stateless_apply = keras.optimizers.Optimizer.stateless_apply

    def _counts(self) -> tuple[Tensor, Tensor]:
        """Returns the number of updates done and of those skipped."""
        inner = self.inner_optimizer  # copied, because torch changes its tensors in place
        return inner.setup.updates(), ops.copy(backend.value(inner.nonfinite_steps))

    def _unscaled(self, g: Any, variable: Any, scale: Tensor) -> Any:
        return g if g is None or self._overwrite_variable_with_gradient(variable) else ops.divide(g, scale)

    def _rescale(self, scale: Tensor, updates: Tensor, overflow: Tensor) -> None:
        """Ends an update: halves the scale, doubles it or counts."""
        count = backend.value(self.step_counter) + ops.cast(updates, self.step_counter.dtype)
        full = count >= self.dynamic_growth_steps
        doubled = ops.where(ops.logical_and(full, ops.isfinite(2 * scale)), 2 * scale, scale)
        halved = ops.where(scale >= self.minimum_scale, scale / 2, scale)
        new = ops.where(overflow, halved, doubled)
        count = ops.where(ops.logical_or(overflow, full), ops.zeros_like(count), count)
        backend.commit([Write(self.step_counter, count), Write(self.dynamic_scale, new)])
        backend.stop_unless(lambda: new >= self.minimum_scale, self._fallen())

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Ends `fit`.

        Raises:
            FloatingPointError: the scale has fallen below `minimum_scale`.
        """
        super().finalize_variable_values(var_list)
        known = self.built and backend.holds(self.dynamic_scale)
        if known and not float(ops.convert_to_numpy(self.dynamic_scale)) >= self.minimum_scale:
            raise FloatingPointError(self._fallen())

    def _fallen(self) -> str:
        return (
            f"kopt.LossScaleOptimizer: the loss scale fell below minimum_scale={self.minimum_scale:g}, because "
            "the gradients are not finite at any scale: look for NaN in the data and in the loss, lower "
            "the learning rate, or use mixed_bfloat16."
        )

    # ---------------------------------------------------------------------------------------------------- saving

    def save_own_variables(self, store: Any) -> None:
        """Writes scale and counter; the inner optimizer writes its own state."""
        for name, value in (self._pending or {}).items():
            store[name] = value  # loaded, and still waiting for `build`
        for name in STATE if self.built else ():
            store[name] = getattr(self, name).numpy()

    def load_own_variables(self, store: Any) -> None:
        """Restores scale and counter; an optimizer that is not built yet keeps them until it is."""
        self._pending = {name: np.asarray(store[name]) for name in store.keys() if name in STATE}  # noqa: SIM118
        if self.built:
            self._restore_pending()

    def _restore_pending(self) -> None:
        for name, value in (self._pending or {}).items():
            getattr(self, name).assign(value)
        self._pending = None

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, fit for JSON."""
        return {**super().get_config(), "minimum_scale": self.minimum_scale}

"""How a step runs on the other backends of Keras: as plain operations, compiled by whatever compiles the train step."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from keras import ops

from kopt.optimizers.engine.parameter import Gradient, OptimizerParts, Parameter, Write


class Engine(OptimizerParts):
    """Executes the pure steps of `Optimizer` with `keras.ops` alone."""

    def _execute(self, grads: Sequence[Any], rate: Any, loss: Any = None) -> None:
        flags = (self._accumulate if self.gradient_accumulation_steps else self._step)(grads, rate, loss)
        if self.on_nonfinite == "raise" and flags is not None and not bool(ops.all(flags)):
            raise FloatingPointError(
                f"{type(self).__name__}: a gradient or new weight is not finite; the update was skipped."
            )

    def _in_graph(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def _stop_unless(self, fine: Any, message: str) -> None:
        """Goes on: what compiles the train step may not let it stop."""

    def _replicas(self) -> int:
        return 1

    def differentiated(self, function: Callable[..., Any], variables: Sequence[Any], compiled: bool) -> Any:
        """Not on this backend."""
        raise NotImplementedError("kopt.minimize needs the TensorFlow backend.")

    def _commit(self, writes: list[Write]) -> None:
        for write in writes:
            write.variable.assign(write.value)

    def _commit_if(self, condition: Any, compute: Callable[[], tuple[list[Write], Any]]) -> Any:
        writes, flags = compute()
        if condition is not None:
            for write in writes:
                write.value = ops.where(condition, write.value, self._value(write.variable))
            flags = None if flags is None else ops.logical_or(flags, ops.logical_not(condition))
        self._commit(writes)
        return flags

    def _static_shape(self, g: Any) -> tuple[int | None, ...] | None:
        return None if g is None else tuple(g.shape)

    def _read_gradient(self, g: Any, p: Parameter) -> Gradient:
        return Gradient(ops.cast(g, p.dtype))

    def _uniform(self, x: Any, update: Any, salt: int) -> Any:
        raise ValueError(
            "Stochastic rounding (rounding='stochastic', state_dtype='bfloat16', 'int8') needs the TensorFlow backend."
        )

    def _add_beside(self, variable: Any, name: str, shape: Any, dtype: str, initializer: Any) -> Any:
        return self.add_variable(shape, initializer, dtype, name=f"{variable.path.replace('/', '_')}_{name}")

    def _outside_graph(self) -> Any:
        return contextlib.nullcontext()

    def _where_slots_begin(self, variables: Sequence[Any]) -> Any:
        return contextlib.nullcontext()

    def _value(self, variable: Any) -> Any:
        return ops.convert_to_tensor(variable)

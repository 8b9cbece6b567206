"""How the state of an optimizer begins, and begins anew."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kopt.optimizers.engine.parameter import OptimizerParts, Parameter
from kopt.optimizers.engine.slots import Slot, codec
from kopt.optimizers.engine.step import is_short
from kopt.optimizers.engine.tensor_math import Tensor


class Start(OptimizerParts):
    """Creates the variables of an optimizer, and puts them back to their start."""

    def reset(self) -> None:
        """Puts slots, counters and averages back to their start, from the weights as they are now.

        Needed where weights are set from outside and the rule remembers where it came from: the slow weights of
        `Lookahead`, z of the Schedule-Free rules, the way of `DoG` from its first point, the history of `LBFGS`; and
        before a second training, as after a search for the learning rate. The learning rate stays as it is.
        """
        self._pending = None
        kept = (self._learning_rate, getattr(self, "_watched", None))
        with self._outside_graph():
            for variable in self.variables:
                if not any(variable is v for v in kept):
                    variable.assign(ops.zeros(variable.shape, variable.dtype))
            self._begin(self._starts)

    def anchor(self) -> None:
        """Takes the weights as they are now for the point that slots refer to; moments and counters stay.

        For weights that were set from outside while training goes on, as when an average is left in the model: the slow
        weights of `Lookahead`, z of the Schedule-Free rules, the first weights of `MADGRAD` or `Mechanic` follow, and
        what was summed from there begins anew. Nothing changes in rules that only step from where they are.
        """
        anchored = {
            id(variable)
            for p in getattr(self, "_parameters", ())
            for name, slot in self.owners()[p.owner].slots.items()
            if slot.init == "weight" or slot.anchored
            for variable in p.slots.get(name, {}).values()
        }
        with self._outside_graph():
            self._begin([(v, initial) for v, initial in self._starts if id(v) in anchored])
            for p in getattr(self, "_parameters", ()):
                if p.residual is not None:
                    p.residual.assign(ops.zeros(p.residual.shape, p.residual.dtype))

    def _begin(self, starts: Sequence[tuple[Any, Callable[..., Tensor]]]) -> None:
        for variable, initial in starts:
            variable.assign(initial(tuple(variable.shape), variable.dtype))

    def _add_scalar(self, name: str, initial: Any, dtype: str) -> Any:
        constant, shape = keras.initializers.Constant(initial), np.shape(initial)
        variable = self.add_variable(shape, constant, dtype, aggregation="only_first_replica", name=name)
        self._starts.append((variable, constant))
        return variable

    def _add_state(self, variable: Any, parameter: Parameter) -> Parameter:
        if self._overwrite_variable_with_gradient(variable):
            return parameter  # a float8 scale: Keras assigns its gradient
        shape = tuple(variable.shape)
        for name, slot in self.owners()[parameter.owner].slots.items():
            storage = codec(slot, self.state_dtype, shape)
            stored = storage.parts(slot.shape_for(shape), parameter.dtype)
            parameter.slots[name] = {
                part: self._add_beside(
                    variable, f"{name}_{part}", part_shape, dtype, _initial(storage, slot, part, parameter)
                )
                for part, (part_shape, dtype) in stored.items()
            }
            for part, kept in parameter.slots[name].items():
                self._starts.append((kept, _initial(storage, slot, part, parameter)))
        if self.rounding == "kahan" and is_short(variable):
            parameter.residual = self._add_beside(variable, "residual", shape, variable.dtype, "zeros")
        if self.use_ema:
            parameter.average = vars(self)["_averages"][parameter.index]
            parameter.averaged_at = self._add_beside(variable, "averaged_at", shape[:1], "int32", "zeros")
        if self.gradient_accumulation_steps:
            parameter.accumulator = self._accumulated_gradients[parameter.index]
            if shape and self._lazy(parameter):
                parameter.read = self._add_beside(variable, "read", shape[:1], "bool", "zeros")
        return parameter

    def add_variable_from_reference(self, reference_variable: Any, name: Any = None, initializer: Any = "zeros") -> Any:
        """Adds a variable like another one, in the precision of the arithmetic."""
        shape, dtype = tuple(reference_variable.shape), work_dtype(reference_variable)
        return self._add_beside(reference_variable, name or "var", shape, dtype, initializer)


def path_of(variable: Any) -> str:
    """Returns the path of a variable; a bare tf.Variable has a name only."""
    return getattr(variable, "path", None) or variable.name


def work_dtype(variable: Any) -> str:
    """Returns the type of the arithmetic on a variable: float32, or float64 beside float64."""
    return "float64" if keras.backend.standardize_dtype(variable.dtype) == "float64" else "float32"


def _initial(storage: Any, slot: Slot, part: str, p: Parameter) -> Callable[..., Tensor]:
    def initializer(shape: Any, dtype: Any = None, **_: Any) -> Tensor:
        if slot.init == "weight":
            x = ops.copy(ops.cast(p.variable, p.dtype))  # a cast may pass the buffer of the weight on
        else:
            x = ops.full(slot.shape_for(tuple(p.variable.shape)), slot.init, dtype=p.dtype)
        return storage.encode(x, ops.zeros_like)[part]

    return initializer

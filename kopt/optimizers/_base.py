"""Everything around a rule.

A subclass declares its hyperparameters and slots and writes one pure function, `rule`, from gradient, weight and
slots to a direction and new slots. `Optimizer` computes a whole step as a list of `Write`s, without side effects; the
engine of the backend compiles that computation and carries the writes out.
"""

import operator
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from kopt import _paths
from kopt._hyper import Configurable, hyper
from kopt._registry import register
from kopt.optimizers._math import Tensor
from kopt.optimizers._rate import LearningRate, Rate
from kopt.optimizers._records import Parameter
from kopt.optimizers._slots import CODECS, Slot, codec
from kopt.optimizers._state import StateFile
from kopt.optimizers._step import Step, is_short

if keras.backend.backend() == "tensorflow":
    from kopt.optimizers._tensorflow import Engine
else:
    from kopt.optimizers._portable import Engine  # type: ignore[assignment]


class Optimizer(Configurable, Rate, StateFile, Step, Engine, keras.optimizers.Optimizer):
    r"""Base of all rules: w ← w - η k (u + λ w), where `rule` gives the direction u. Rules of another form say so.

    Args:
        learning_rate: η ≥ 0: a number, a `LearningRateSchedule`, or a callable of no argument or of the number of
            updates done. Inside `fit` a callable is traced once: let it read variables. A number can be set at any
            time through `optimizer.learning_rate`.
        weight_decay: λ ≥ 0, decoupled and scaled by η (AdamW's form).
        decay_mask: (regular expression, factor) pairs; the first found in the path of a weight scales its λ.
            `[(r"bias$|gamma$|beta$", 0.0)]` decays matrices only. Every weight not matched decays fully.
        multipliers: (regular expression, factor) pairs that scale η for the weights whose path they match.
        clipnorm, clipvalue, global_clipnorm: > 0; bound on the norm of each gradient, on each element, or on the norm
            of all gradients together. At most one; applied to the gradient of the whole batch.
        use_ema, ema_momentum, ema_overwrite_frequency: keep an average of the weights, decayed by `ema_momentum` in
            [0, 1) at each update, and copy it into the weights every so many updates and at the end of `fit`.
        loss_scale_factor: > 0; the loss is multiplied and the gradients are divided by it.
        gradient_accumulation_steps: ≥ 1; batches whose mean gradient makes one update. Schedules, bias correction and
            averages count updates.
        on_nonfinite: what a NaN or infinite gradient does. "ignore" does not look; "skip" leaves weights, slots and
            `iterations` as they were; "raise" does so too and raises (not inside an XLA-compiled train step).
            Skipped steps are counted in `nonfinite_steps`.
        sparse: "lazy" updates only the rows of an embedding that the batch read; "exact" gives what the dense
            gradient gives, and touches every row. Rules that are not row-wise are always exact.
        rounding: of bfloat16 and float16 weights. "kahan" keeps the rounding error in one more slot of the weight's
            type; "stochastic" rounds up or down at random, right on average; "nearest" loses small updates.
        state_dtype: storage of the slots: "float32"; "bfloat16", half the memory, relative error 2⁻⁷ a store; "int8", a
            quarter, error 3 % of the largest in its block of at most 256, for weights with 16 elements a row or more.
        name: name of the optimizer.

    Raises:
        ValueError: an argument is out of range, unknown, or contradicts another.
    """

    leading = "learning_rate"
    learning_rate: LearningRate = hyper(1e-3)
    weight_decay: float | None = hyper(None, 0)
    decay_mask: _paths.Rules = hyper(())
    multipliers: _paths.Rules = hyper(())
    clipnorm: float | None = hyper(None, above=0)
    clipvalue: float | None = hyper(None, above=0)
    global_clipnorm: float | None = hyper(None, above=0)
    use_ema: bool = hyper(False)
    ema_momentum: float = hyper(0.99, 0, 1)
    ema_overwrite_frequency: int | None = hyper(None, 1, integer=True)
    loss_scale_factor: float | None = hyper(None, above=0)
    gradient_accumulation_steps: int | None = hyper(None, 1, integer=True)
    on_nonfinite: str = hyper("ignore", choices=("ignore", "skip", "raise"))
    sparse: str = hyper("lazy", choices=("lazy", "exact"))
    rounding: str = hyper("kahan", choices=("kahan", "stochastic", "nearest"))
    state_dtype: str = hyper("float32", choices=tuple(CODECS))
    name: str = hyper("")

    row_wise: ClassVar[bool] = True
    """Whether the rule on some rows of a weight gives some rows of the rule."""
    scale_free: ClassVar[bool] = False
    """Whether multiplying every gradient by the same c > 0 changes nothing."""
    random: ClassVar[bool] = False
    """Whether the rule draws random numbers: XLA draws others than TensorFlow does."""
    precise: ClassVar[bool] = False
    """Whether the sums over all weights and the shared values are float64 beside float32 weights too."""

    @property
    def slots(self) -> Mapping[str, Slot]:
        """What the rule remembers of each weight, by name. Usually a class attribute."""
        return {}

    @property
    def shared(self) -> Mapping[str, Any]:
        """What all weights share, by name: initial numbers or arrays. Usually a class attribute."""
        return {}

    @property
    def needs_loss(self) -> bool:
        """Whether the rule looks at the loss: the shared value `loss`. Usually a class attribute."""
        return False

    def owners(self) -> Mapping[str, "Optimizer"]:
        """The optimizers whose rules move the weights, by a key that begins the names of what they share."""
        return {"": self}

    def owner(self, path: str) -> str:
        """Returns the key of the one that moves the weight of this path."""
        return ""

    def rule(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the direction u and the new slots. Pure: it assigns nothing.

        Args:
            g: gradient, shape of w, float32 (float64 beside float64 weights).
            w: weight.
            s: namespace of the slots, of the settled shared values, and of `learning_rate`, η with the multiplier of
                this weight, `multiplier`, and `weight_decay`, its λ, both Python numbers.
            t: number of this update, 1, 2, ...; a scalar of the dtype of w.
        """
        raise NotImplementedError(f"{type(self).__name__} must define rule(self, g, w, s, t).")

    def advance(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the new weight, w - η (u + λ w), and the new slots.

        A rule that is no step along a direction, or that has its own place for the decay, defines this one instead of
        `rule`. Arguments as there.
        """
        u, new = self.rule(g, w, s, t)
        return w - s.learning_rate * (u + s.weight_decay * w if s.weight_decay else u), new

    def contribute(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> dict[str, Tensor]:
        """Returns what is summed over all weights before any rule runs. Rules that define it are not row-wise."""
        return {}

    def settle(self, sums: dict[str, Tensor], s: Any, t: Tensor) -> dict[str, Tensor]:
        """Returns the new shared values from the sums of `contribute` and the old ones in s, with `learning_rate`."""
        return {}

    def rate(self, s: Any, t: Tensor) -> Tensor:
        """Returns what multiplies η on each element, from the slots after the update. For rules that adapt it."""
        return 1.0

    def measure(self, s: Any, t: Tensor) -> dict[str, Tensor]:
        """Returns further scalars worth plotting, from the slots of one weight after the update."""
        return {}

    @property
    def decay(self) -> float:
        """λ of w ← w - η (u + λ w)."""
        return self.weight_decay or 0.0

    def share(self, batch: Tensor) -> Tensor:
        """Returns the weight in the mean of accumulated batch number 0, 1, ..., as a multiple of an equal share."""
        return 1.0

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not abstract:
            register(cls)

    def __init__(self, *args: Any, **options: Any) -> None:
        if len(args) > 1:
            raise TypeError(f"{type(self).__name__} takes one argument by position, {self.leading}. Received: {args}")
        options |= dict(zip([self.leading], args, strict=False))
        learning_rate = self._check_rate(options.pop("learning_rate", self.hypers["learning_rate"].default))
        values = self._checked(options)
        del values["learning_rate"]
        super().__init__(learning_rate=learning_rate, name=values.pop("name") or None)
        clips = {k: values[k] for k in ("clipnorm", "clipvalue", "global_clipnorm") if values[k] is not None}
        if len(clips) > 1:
            raise ValueError(f"{type(self).__name__}: only one kind of clipping can be set. Received: {clips}")
        if values["ema_overwrite_frequency"] and not values["use_ema"]:
            raise ValueError(f"{type(self).__name__}: ema_overwrite_frequency needs use_ema=True.")
        if values["gradient_accumulation_steps"] == 1:
            values["gradient_accumulation_steps"] = None
        for name in ("decay_mask", "multipliers"):
            values[name] = _paths.check_rules(f"{type(self).__name__}.{name}", values[name])
        for name, value in values.items():
            setattr(self, name, value)

    # ------------------------------------------------------------------------------------------------------ build

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Keras' way to put weights in front of `decay_mask` with factor 0; only before build."""
        patterns = [re.escape(_path(v)) + "$" for v in var_list or ()] + list(var_names or ())
        rules = [(pattern, 0.0) for pattern in patterns] + list(self.decay_mask)
        self.decay_mask = _paths.check_rules(f"{type(self).__name__}.decay_mask", rules)

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the state for `variables`.

        Raises:
            ValueError: a variable is not of a floating-point type, or a pattern matches no path.
        """
        if self.built:
            return
        name, paths = type(self).__name__, [_path(v) for v in variables]
        for v, path in zip(variables, paths, strict=True):
            if not keras.backend.is_float_dtype(v.dtype):
                raise ValueError(
                    f"{name}: {path!r} has dtype {keras.backend.standardize_dtype(v.dtype)}; only floating-point "
                    "variables can be trained. Create it with trainable=False."
                )
        multipliers = _paths.resolve(f"{name}.multipliers", self.multipliers, paths)
        decays = _paths.resolve(f"{name}.decay_mask", self.decay_mask, paths)
        super().build(variables)
        self.nonfinite_steps = self._add_scalar("nonfinite_steps", 0, "int")
        self.clipped_steps = self._add_scalar("clipped_steps", 0, "int")
        self.gradient_norm = self._add_scalar("gradient_norm", 0.0, "float32")
        self._watched = self._add_scalar("watched", False, "bool")
        wide = any(rule.precise for rule in self.owners().values()) or "float64" in map(_work_dtype, variables)
        self._scalar_dtype = dtype = "float64" if wide else "float32"
        shared = {owner + k: initial for owner, rule in self.owners().items() for k, initial in rule.shared.items()}
        shared |= {"loss": 0.0} if self.needs_loss else {}
        self._shared = {k: self._add_scalar(k, initial, dtype) for k, initial in shared.items()}
        with self._where_slots_begin():
            self._parameters = tuple(
                self._add_state(v, Parameter(v, path, _work_dtype(v), i, self.owner(path), multipliers[i], decays[i]))
                for i, (v, path) in enumerate(zip(variables, paths, strict=True))
            )
        with self._outside_graph():
            self._restore_pending()

    def _add_scalar(self, name: str, initial: Any, dtype: str) -> Any:
        constant, shape = keras.initializers.Constant(initial), np.shape(initial)
        return self.add_variable(shape, constant, dtype, aggregation="only_first_replica", name=name)

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
        shape, dtype = tuple(reference_variable.shape), _work_dtype(reference_variable)
        return self._add_beside(reference_variable, name or "var", shape, dtype, initializer)

    def _frozen(self) -> bool:
        return getattr(self, "built", False)

    # ------------------------------------------------------------------------------------------------------- step

    def scale_loss(self, loss: Any) -> Any:
        """Returns the loss to differentiate; `fit` calls it before the gradients are taken.

        A rule that needs the loss takes note of it here: a training loop of your own must call this method, too.
        """
        if self.needs_loss:
            # Past the tracking of attributes: it is no state. Each replica has its own thread.
            self.__dict__.setdefault("_noted_losses", {})[threading.get_ident()] = loss
        return super().scale_loss(loss)

    def _take_loss(self) -> Tensor | None:
        if not self.needs_loss:
            return None
        loss = self.__dict__.get("_noted_losses", {}).pop(threading.get_ident(), None)
        if loss is None:
            raise ValueError(
                f"{type(self).__name__} needs the loss of every step. Call optimizer.scale_loss(loss) before the "
                "gradients are taken, as fit does. In mixed float16, whose loss scaling hides the loss, give "
                "loss_scale_factor to the optimizer and auto_scale_loss=False to compile()."
            )
        return ops.cast(loss, self._scalar_dtype)

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Makes one update, or accumulates towards one.

        Args:
            grads: gradients, one a variable; `None` leaves a variable alone.
            trainable_variables: the variables, on first use; later they may be left out.

        Raises:
            ValueError: no gradient at all, an unknown variable, a gradient of another shape, or a loss that the rule
                needs and `scale_loss` has not seen.
            FloatingPointError: a gradient is not finite and `on_nonfinite` is "raise" (eager; inside a graph
                `tf.errors.InvalidArgumentError`).
        """
        grads = list(grads)
        if not grads:
            return
        if trainable_variables is None and not self.built:
            raise ValueError(f"{type(self).__name__} is not built. Pass the variables, or call build(variables) first.")
        variables = list(self._trainable_variables if trainable_variables is None else trainable_variables)
        if len(grads) != len(variables):
            raise ValueError(f"{type(self).__name__}: {len(grads)} gradients for {len(variables)} variables.")
        self.build(variables)
        if not self._in_order(variables):
            self._check_variables_are_known(variables)
        grads, variables = self._filter_empty_gradients(grads, variables)
        grads, variables = self._overwrite_variables_directly_with_gradients(grads, variables)
        if not self._in_order(variables):
            by_index = {self._get_variable_index(v): g for g, v in zip(grads, variables, strict=True)}
            grads = [by_index.get(i) for i in range(len(self._parameters))]
        self._execute(grads, ops.cast(self.learning_rate, self._scalar_dtype), self._take_loss())

    def _in_order(self, variables: Sequence[Any]) -> bool:
        """Whether these are the variables of `build`, one by one; saves the look-ups that an eager step would feel."""
        return len(variables) == len(self._parameters) and all(map(operator.is_, variables, self._trainable_variables))

    # -------------------------------------------------------------------------------------- statistics and config

    def watch(self, on: bool = True) -> None:
        """Keeps `gradient_norm`, the global norm before clipping, up to date; with `global_clipnorm` it always is."""
        self._watched.assign(on)

    def statistics(self) -> dict[str, dict[str, Tensor]]:
        """Returns, by path of the weight, `effective_learning_rate` (each element's) and what `measure` adds."""
        return self._in_graph(self._statistics)(ops.cast(self.learning_rate, self._scalar_dtype))

    def _statistics(self, learning_rate: Tensor) -> dict[str, dict[str, Tensor]]:
        result = {}
        for p in self._parameters:
            rule, update = self.owners()[p.owner], ops.maximum(self._updates(), 1)
            s = self._seen(p, self._read_slots(p), self._read_shared(), learning_rate, update)
            t = ops.cast(update, p.dtype)
            result[p.path] = {"effective_learning_rate": s.learning_rate * rule.rate(s, t), **rule.measure(s, t)}
        return result

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, fit for JSON."""
        rate = self._given_rate()
        if not isinstance(rate, float):
            rate = keras.saving.serialize_keras_object(rate)
        config = {"name": self.name, "learning_rate": rate}
        own = {name: getattr(self, name) for name in self.hypers if name not in config}
        return config | {k: [list(pair) for pair in v] if isinstance(v, tuple) else v for k, v in own.items()}

    def __repr__(self) -> str:
        config = self.get_config()
        changed = [
            f"{k}={config[k]!r}" for k, h in self.hypers.items() if k != "name" and config[k] != _plain(h.default)
        ]
        return f"{type(self).__name__}({', '.join(changed)})"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _path(variable: Any) -> str:
    return getattr(variable, "path", None) or variable.name  # a bare tf.Variable has no path


def _work_dtype(variable: Any) -> str:
    return "float64" if keras.backend.standardize_dtype(variable.dtype) == "float64" else "float32"


def _initial(storage: Any, slot: Slot, part: str, p: Parameter) -> Callable[..., Tensor]:
    def initializer(shape: Any, dtype: Any = None, **_: Any) -> Tensor:
        if slot.init == "weight":
            x = ops.cast(p.variable, p.dtype)
        else:
            x = ops.full(slot.shape_for(tuple(p.variable.shape)), slot.init, dtype=p.dtype)
        return storage.encode(x, ops.zeros_like)[part]

    return initializer

"""Everything around a rule.

A subclass declares its hyperparameters and slots and writes one pure function, `rule`, from gradient, weight and
slots to a direction and new slots. `Optimizer` computes a whole step as a list of `Write`s, without side effects; the
engine of the backend compiles that computation and carries the writes out.
"""

import dataclasses
import operator
import threading
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import keras
from keras import ops
from typing_extensions import override

from kopt.declare import Configurable, Convert, Count, Fraction, NonNegative, OpenFraction, Positive, Share, path_rules
from kopt.declare.keras_bases import KerasOptimizer
from kopt.declare.registry import OPTIMIZERS
from kopt.optimizers.engine import rule_checks
from kopt.optimizers.engine.keras_loss_scale import Scaled
from kopt.optimizers.engine.learning_rate import LearningRate, Rate, WeightDecay, deserialized, serialized
from kopt.optimizers.engine.parameter import Parameter
from kopt.optimizers.engine.slots import Slot
from kopt.optimizers.engine.start import Start, path_of, work_dtype
from kopt.optimizers.engine.state_file import StateFile
from kopt.optimizers.engine.step import Step as Steps
from kopt.optimizers.engine.tensor_math import (
    Tensor,
    beside,
    debias,
    ema,
    rectification,
    soft,
    sum_of_squares,
    with_decay,
)

if TYPE_CHECKING or keras.backend.backend() == "tensorflow":
    from kopt.optimizers.engine.on_tensorflow import Engine
else:
    from kopt.optimizers.engine.on_jax_and_torch import Engine

# fmt: off
__all__ = [
    "Any", "Count", "Fraction", "LearningRate", "Literal", "Mapping", "NonNegative", "OpenFraction",
    "Optimizer", "Positive", "Share", "Slot", "Slots", "Step", "Tensor", "beside", "debias", "ema", "override",
    "rectification", "soft", "sum_of_squares", "with_decay",
]
# fmt: on
"""What the file of a rule imports."""

Slots = SimpleNamespace
"""What a rule sees beside gradient and weight: its slots, the shared values, `learning_rate` and `weight_decay`."""
Step = tuple[Tensor, dict[str, Tensor]]
"""What a rule returns: the direction, or the new weight, and the new slots."""


class Optimizer(Configurable, Rate, Start, StateFile, Scaled, Steps, Engine, KerasOptimizer):
    r"""Base of all rules: w ← w - η k (u + λ w), where `rule` gives the direction u. Rules of another form say so.

    Args:
        learning_rate: η ≥ 0: a number, a `LearningRateSchedule`, or a callable of no argument or of the number of
            updates done. Inside `fit` a callable is traced once: let it read variables. A number can be set at any
            time through `optimizer.learning_rate`, and a schedule can take its place.
        weight_decay: λ ≥ 0, decoupled and scaled by η (AdamW's form); None is 0. A number, or a schedule or callable
            as for `learning_rate`.
        decay_mask: (regular expression, factor) pairs; the first found in the path of a weight scales its λ.
            `[(r"bias$|gamma$|beta$", 0.0)]` decays matrices only. Every weight not matched decays fully.
        undecayed: weights that do not decay, as paths or (place in the order of `build`, path). It is made for files:
            `exclude_from_weight_decay` knows the weights by themselves, and puts them here when it is saved.
        multipliers: (regular expression, factor) pairs that scale η for the weights whose path they match.
        clipnorm: > 0, bound on the norm of each gradient. Clipping is of the gradient of the whole batch; at most one
            kind can be given.
        clipvalue: > 0, bound on each element of a gradient.
        global_clipnorm: > 0, bound on the norm of all gradients together.
        use_ema: keep an average of the weights, and copy it into them at the end of `fit`.
        ema_momentum: in [0, 1), what the average keeps of itself at each update.
        ema_overwrite_frequency: ≥ 1, updates after which the average is copied into the weights.
        loss_scale_factor: > 0; the loss is multiplied and the gradients are divided by it.
        gradient_accumulation_steps: ≥ 1; batches whose mean gradient makes one update. Schedules, bias correction and
            averages count updates.
        on_nonfinite: what a NaN, an infinite or a huge gradient does, or a new weight that is not finite. "ignore" does
            not look; "skip" leaves weights, slots and `iterations` as they were; "raise" does so too and raises (not
            inside an XLA-compiled train step). Huge is a square that overflows, or nearly so: a norm above 5e17 in
            float32. Skipped steps are counted in `nonfinite_steps`.
        sparse: "lazy" updates only the rows of an embedding that the batch read; "exact" gives what the dense
            gradient gives, and touches every row. Rules that are not row-wise are always exact.
        rounding: of bfloat16 and float16 weights. "kahan" keeps the rounding error in one more slot of the weight's
            type; "stochastic" rounds up or down at random, right on average; "nearest" loses small updates.
        state_dtype: storage of the slots. "float32"; "bfloat16", half the memory, relative error 2⁻⁷ a store; "int8", a
            quarter, error 3 % of the largest in its block of at most 256, for weights with 16 elements a row or more.
        name: name of the optimizer; None makes one.

    Beside the slots, `iterations` and the rate, `variables` has four scalars that Keras' optimizers lack:
    `nonfinite_steps`, `clipped_steps`, `gradient_norm`, and whether the last is watched.

    Raises:
        ValueError: an argument is out of range, unknown, or contradicts another.
    """

    learning_rate: LearningRate = dataclasses.field(default=1e-3, kw_only=False)
    weight_decay: WeightDecay = None
    decay_mask: Annotated[Any, Convert(path_rules.check_rules)] = ()
    undecayed: Annotated[Any, Convert(path_rules.check_places)] = ()
    multipliers: Annotated[Any, Convert(path_rules.check_rules)] = ()
    clipnorm: Positive | None = None
    clipvalue: Positive | None = None
    global_clipnorm: Positive | None = None
    use_ema: bool = False
    ema_momentum: Fraction = 0.99
    ema_overwrite_frequency: Count | None = None
    loss_scale_factor: Positive | None = None
    gradient_accumulation_steps: Count | None = None
    on_nonfinite: Literal["ignore", "skip", "raise"] = "ignore"
    sparse: Literal["lazy", "exact"] = "lazy"
    rounding: Literal["kahan", "stochastic", "nearest"] = "kahan"
    state_dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    name: str | None = None

    row_wise: ClassVar[bool] = True
    """Whether the rule on some rows of a weight gives some rows of the rule."""
    scale_free: ClassVar[bool] = False
    """Whether multiplying every gradient by the same c > 0 changes nothing."""
    random: ClassVar[bool] = False
    """Whether the rule draws random numbers: XLA draws others than TensorFlow does."""
    precise: ClassVar[bool] = False
    """Whether the sums over all weights and the shared values are float64 beside float32 weights too."""

    bounded: ClassVar[bool] = True
    """Whether gradients that are not huge give finite weights and slots at usual rates: the step does not grow with the
    weight, nor with what was won before. If not, "skip" and "raise" look at all that is new, which takes longer. A rule
    outside of kopt is not bounded unless it says so."""

    if not TYPE_CHECKING:  # class attributes or properties: `OptimizerParts` says so to type checkers

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
                this weight, `multiplier`, a Python number, and `weight_decay`, its λ: a Python number too, unless it
                follows a schedule.
            t: number of this update, 1, 2, ...; a scalar of the dtype of w.
        """
        raise NotImplementedError(f"{type(self).__name__} must define rule(self, g, w, s, t).")

    def advance(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the new weight, w - η (u + λ w), and the new slots.

        A rule that is no step along a direction, or that has its own place for the decay, defines this one instead of
        `rule`. Arguments as there.
        """
        u, new = self.direction(g, w, s, t)
        return w - s.learning_rate * with_decay(u, w, s), dict(new)

    def direction(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Returns what `rule` returns, or raises `TypeError` saying what it should."""
        name = type(self).__name__
        u, new = rule_checks.check_step(name, "rule", self.rule(g, w, s, t))
        rule_checks.check_slots(name, self.slots, {k: getattr(s, k) for k in self.slots}, new, w, w)
        return u, new

    def stepped(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns what `advance` returns, or raises an error saying what it should."""
        name = type(self).__name__
        moved, new = rule_checks.check_step(name, "advance", self.advance(g, w, s, t))
        rule_checks.check_slots(name, self.slots, {k: getattr(s, k) for k in self.slots}, new, w, moved)
        return moved, dict(new)

    def settled(self, sums: dict[str, Tensor], s: Any, t: Tensor) -> dict[str, Tensor]:
        """Returns what `settle` returns, or raises an error saying what it should."""
        new = self.settle(sums, s, t)
        rule_checks.check_shared(type(self).__name__, self.shared, new)
        return new

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

    def decay(self, updates: Tensor) -> Any:
        """Returns λ of w ← w - η (u + λ w) at the update that follows so many: a Python number, or a tensor."""
        return self._decay_after(updates)

    def share(self, batch: Tensor) -> Tensor:
        """Returns the weight in the mean of accumulated batch number 0, 1, ..., as a multiple of an equal share."""
        return 1.0

    def __init_subclass__(cls, abstract: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "bounded" not in vars(cls) and not cls.__module__.startswith("kopt."):
            cls.bounded = False
        if isinstance(cls.slots, Mapping) and isinstance(cls.shared, Mapping):
            rule_checks.check_names(cls.__name__, cls.slots, cls.shared)
        if not abstract:
            OPTIMIZERS.register(cls)

    def __init__(self, *args: Any, **options: Any) -> None:
        values = self._checked(args, options)
        rate, name = values.pop("learning_rate"), values.pop("name")
        keras.optimizers.Optimizer.__init__(self, learning_rate=rate, name=name or None)
        clips = {k: values[k] for k in ("clipnorm", "clipvalue", "global_clipnorm") if values[k] is not None}
        if len(clips) > 1:
            raise ValueError(f"{type(self).__name__}: only one kind of clipping can be set. Received: {clips}")
        if values["ema_overwrite_frequency"] and not values["use_ema"]:
            raise ValueError(f"{type(self).__name__}: ema_overwrite_frequency needs use_ema=True.")
        if values["gradient_accumulation_steps"] == 1:
            values["gradient_accumulation_steps"] = None
        for key, value in values.items():
            setattr(self, key, value)
        self.__dict__.update(_excluded=[], _starts=[])  # past the tracking of attributes: they are no state
        self.__post_init__()

    # ------------------------------------------------------------------------------------------------------ build

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Keeps weights from decaying; only before build.

        Args:
            var_list: variables, which are these and no others of the same name. Those not trained are left out.
            var_names: regular expressions, put in front of `decay_mask` with factor 0.
        """
        rules = [(pattern, 0.0) for pattern in var_names or ()]
        self.decay_mask = [rule for rule in rules if rule not in self.decay_mask] + list(self.decay_mask)
        known = {id(v) for v in self._excluded}
        new = [v for v in var_list or () if id(v) not in known]
        if new and self._frozen():
            raise AttributeError(f"{type(self).__name__}: weights cannot be excluded from decay after build.")
        self._excluded.extend(new)

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the state for `variables`.

        Raises:
            ValueError: a variable is not of a floating-point type or has no value yet, or a pattern matches no path.
        """
        self._look_around()
        if self.built:
            return
        name, paths = type(self).__name__, [path_of(v) for v in variables]
        for v, path in zip(variables, paths, strict=True):
            if not keras.backend.is_float_dtype(v.dtype):
                raise ValueError(
                    f"{name}: {path!r} has dtype {keras.backend.standardize_dtype(v.dtype)}; only floating-point "
                    "variables can be trained. Create it with trainable=False."
                )
        multipliers = path_rules.resolve(f"{name}.multipliers", self.multipliers, paths)
        decays = path_rules.resolve(f"{name}.decay_mask", self.decay_mask, paths)
        excluded = {id(v) for v in self._excluded}
        places = {i for i, v in enumerate(variables) if id(v) in excluded}
        places |= {*path_rules.find_places(f"{name}.undecayed", self.undecayed, paths)}
        decays = [0.0 if i in places else decay for i, decay in enumerate(decays)]
        self.__dict__["_places"] = sorted(places)
        labels = path_rules.unique(paths)
        for rule in self.owners().values():
            rule_checks.check_names(type(rule).__name__, rule.slots, rule.shared)
        super().build(variables)
        self.nonfinite_steps = self._add_scalar("nonfinite_steps", 0, "int")
        self.clipped_steps = self._add_scalar("clipped_steps", 0, "int")
        self.gradient_norm = self._add_scalar("gradient_norm", 0.0, "float32")
        self._watched = self._add_scalar("watched", False, "bool")
        wide = any(rule.precise for rule in self.owners().values()) or "float64" in map(work_dtype, variables)
        self._scalar_dtype = dtype = "float64" if wide else "float32"
        shared = {owner + k: initial for owner, rule in self.owners().items() for k, initial in rule.shared.items()}
        shared |= {"loss": 0.0} if self.needs_loss else {}
        self._shared = {k: self._add_scalar(k, initial, dtype) for k, initial in shared.items()}
        with self._where_slots_begin(variables):
            self._parameters = tuple(
                self._add_state(
                    v, Parameter(v, path, labels[i], work_dtype(v), i, self.owner(path), multipliers[i], decays[i])
                )
                for i, (v, path) in enumerate(zip(variables, paths, strict=True))
            )
        with self._outside_graph():
            self._restore_pending()

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
                "gradients are taken, as fit does."
            )
        return ops.cast(loss, self._scalar_dtype)

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        """Makes one update, or accumulates towards one.

        Args:
            grads: gradients, one a variable; `None` leaves a variable alone.
            trainable_variables: the variables, on first use; later they may be left out.

        Raises:
            ValueError: no gradient at all, an unknown variable, a gradient of another shape, a loss that the rule
                needs and `scale_loss` has not seen, or the loss scaling of Keras around what it cannot do right.
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
        self._check_scaler()
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
            result[p.label] = {"effective_learning_rate": s.learning_rate * rule.rate(s, t), **rule.measure(s, t)}
        return result

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, fit for JSON."""
        config = super().get_config() | {"name": self.name}
        config |= {k: serialized(type(self).__name__, k, config[k]) for k in ("learning_rate", "weight_decay")}
        if self.built:
            config["undecayed"] = [[i, self._parameters[i].path] for i in self._places]
        elif self._excluded:  # there is no order yet
            config["undecayed"] += [path_of(v) for v in self._excluded if v.trainable]
        return config

    def _argument(self, name: str) -> Any:
        given = {"learning_rate": self._given_rate, "name": lambda: None}
        return given[name]() if name in given else super()._argument(name)

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        """Makes the optimizer of a configuration."""
        rates = {k: deserialized(config[k], custom_objects) for k in ("learning_rate", "weight_decay") if k in config}
        return cls(**config | rates)

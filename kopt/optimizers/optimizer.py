"""The class that a rule extends, and all that the file of a rule imports. The engine carries out its steps."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import keras
from keras import ops
from typing_extensions import override

from kopt.declare import Configurable, Convert, Count, Fraction, NonNegative, OpenFraction, Positive, Share, path_rules
from kopt.declare.keras_bases import KerasOptimizer
from kopt.declare.registry import OPTIMIZERS
from kopt.optimizers.engine import learning_rate, rule_checks
from kopt.optimizers.engine.backends.backend import backend
from kopt.optimizers.engine.contract import Options, checked_options
from kopt.optimizers.engine.held import Held
from kopt.optimizers.engine.learning_rate import LearningRate, WeightDecay
from kopt.optimizers.engine.run import run
from kopt.optimizers.engine.setup import Setup, updates_done
from kopt.optimizers.engine.state import start
from kopt.optimizers.engine.state.layout import Layout
from kopt.optimizers.engine.state.slots import Slot
from kopt.optimizers.engine.state.state_file import Expected, StateFile
from kopt.optimizers.engine.statistics import leave_averages, pay_averages, statistics

# fmt: off
# isort: off
from kopt.optimizers.engine.tensor_math import (
    Tensor, cube_root, debias, dot, ema, mean, soft, sum_of_squares, total, with_decay,
)

__all__ = [
    "Any", "Count", "Fraction", "Layout", "LearningRate", "Literal", "Mapping", "NonNegative", "OpenFraction",
    "Optimizer", "Positive", "Share", "Slot", "Slots", "Step", "Tensor", "cube_root", "debias", "dot",
    "ema", "mean", "override", "soft", "sum_of_squares", "total", "with_decay",
]
# isort: on
# fmt: on

Slots = SimpleNamespace  # what a rule sees beside gradient and weight: slots, shared values, learning_rate ...
Step = tuple[Tensor, dict[str, Tensor]]  # what a rule returns: the direction, or the new weight, and the new slots


class Optimizer(Configurable, KerasOptimizer):
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
    `nonfinite_steps`, `clipped_steps`, `gradient_norm`, whether it is watched; with `use_ema` the updates of averages.

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

    kept = ("built", "setup", "nonfinite_steps", "clipped_steps", "gradient_norm")
    # Facts of a rule: class attributes, or properties where they follow from the arguments.

    if not TYPE_CHECKING:  # where `KerasOptimizer` has them, so that checkers take attributes and properties
        slots = {}
        """What the rule remembers of each weight: a `Slot` by name."""
        shared = {}
        """What all weights share: initial numbers or arrays by name."""
        needs_loss = False
        """Whether the rule looks at the loss: the shared value `loss`."""

    row_wise: ClassVar[Any] = True
    """Whether the rule on some rows of a weight gives some rows of the rule."""
    precise: ClassVar[Any] = False
    """Whether the sums over all weights and the shared values are float64 beside float32 weights too."""
    bounded: ClassVar[Any] = True
    """Whether the step grows neither with the weight nor with what was won before. If not, "skip" and "raise" look at
    all that is new. A rule outside of kopt is not bounded unless it says so."""
    by_layer: ClassVar[Any] = False
    """Whether the rule asks what the axes of a weight are for in its layer: s.layout."""
    work: ClassVar[Any] = 3
    """Arrays like a weight that a rule which is not row-wise writes out for a while; found with LAMB and Adafactor."""
    scale_free: ClassVar[bool] = False
    """Whether multiplying every gradient by the same c > 0 changes nothing."""

    def rules_by_key(self) -> Mapping[str, "Optimizer"]:
        """Returns what moves the weights: itself, or one optimizer a route. The key prefixes their shared values."""
        return {"": self}

    def key_of(self, path: str) -> str:
        """Returns the key of the rule that moves the weight of this path."""
        return ""

    def is_row_wise(self, layout: Layout) -> bool:
        """Returns whether the rule is row-wise on a weight of this layout."""
        return bool(self.row_wise)

    def stacks(self, layout: Layout) -> bool:
        """Returns whether weights of this layout move faster as one, `Layout.stacked`, each as alone, without index."""
        return False

    def check_weights(self, paths: Sequence[str]) -> None:
        """Raises `ValueError` if a pattern of the rule is found in none of these paths, those of its weights."""

    def rule(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the direction u and the new slots. Pure: it assigns nothing.

        Args:
            g: gradient, shape of w, float32 (float64 beside float64 weights).
            w: weight.
            s: namespace of the slots, of the settled shared values, and of `learning_rate`, η with the multiplier of
                this weight, `multiplier`, a Python number, and `weight_decay`, its λ: a Python number too, unless it
                follows a schedule; `index`, the place of the weight, its `layout`, and `update`, t as an integer.
            t: number of this update, 1, 2, ...; a scalar of the dtype of w.
        """
        raise NotImplementedError(f"{type(self).__name__} must define rule(self, g, w, s, t).")

    def advance(self, g: Tensor, w: Tensor, s: Any, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the new weight, w - η (u + λ w), and slots; rules of another form define it in place of `rule`."""
        u, new = rule_checks.direction(self, g, w, s, t)
        return w - s.learning_rate * self.decayed(u, w, s), dict(new)

    def decayed(self, u: Tensor, w: Tensor, s: Any) -> Tensor:
        """Returns u + λ w."""
        return with_decay(u, w, s)

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

    def rate_after(self, updates: Tensor) -> Any:
        """Returns η of the update that follows so many."""
        return learning_rate.following(self._learning_rate, updates)

    def decay(self, weight_decay: Any, updates: Tensor) -> Any:
        """Returns λ of w ← w - η (u + λ w) after so many updates, from this option: a Python number, or a tensor."""
        return learning_rate.following(weight_decay or 0.0, updates)

    def share(self, batch: Tensor) -> Tensor:
        """Returns how much accumulated batch number 0, 1, ... counts in the mean gradient; 1 is an equal share."""
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
        for key, value in (values | checked_options(type(self).__name__, values)).items():
            setattr(self, key, value)
        self._held = Held(type(self).__name__, StateFile(type(self).__name__))
        self.__post_init__()

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Keeps weights from decaying; only before build.

        Args:
            var_list: variables, which are these and no others of the same name. Those not trained are left out.
            var_names: regular expressions, put in front of `decay_mask` with factor 0.
        """
        rules = [(pattern, 0.0) for pattern in var_names or () if (pattern, 0.0) not in self.decay_mask]
        self.decay_mask = [*rules, *self.decay_mask]
        self._held.exclude(var_list or ())

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the state for `variables`.

        Raises:
            ValueError: a variable is not of a floating-point type or has no value yet, or a pattern matches no path.
        """
        if self._held.look_around() and not self.built and self.on_nonfinite == "ignore":
            self.on_nonfinite = "skip"  # at a loss scale of 0 every gradient is NaN, and XLA cannot stop
        if self.built:
            return
        backend.check_place(type(self).__name__)
        parameters = start.parameters(self, variables, self._held)
        super().build(variables)
        self._held.built = setup = start.setup(self, parameters, self._held)
        self.nonfinite_steps, self.clipped_steps = setup.nonfinite_steps, setup.clipped_steps
        self.gradient_norm, self._watched, self._shared = setup.gradient_norm, setup.watched, setup.shared
        with backend.outside_graph():
            self._held.file.restore_waiting(self._held.variables(self), [p.path for p in parameters], self.reset)
            setup.note_debts()

    def add_variable_from_reference(self, reference_variable: Any, name: Any = None, initializer: Any = "zeros") -> Any:
        """Adds a variable like another one, in the precision of the arithmetic."""
        shape, dtype = tuple(reference_variable.shape), start.work_dtype(reference_variable)
        return backend.add_beside(self, reference_variable, name or "var", shape, dtype, initializer)

    @property
    def setup(self) -> Setup:
        """What the steps work on: the weights and all that is kept for them. Only after `build`."""
        return self._held.setup

    def reset(self) -> None:
        """Puts slots, counters and averages back to their start, from the weights as they are now.

        Needed where weights are set from outside and the rule remembers where it came from (`Lookahead`, `DoG`,
        `LBFGS`, Schedule-Free), and before a second training. The learning rate stays as it is.
        """
        self._held.file.waiting = None
        start.reset(self.variables, (self._learning_rate, getattr(self, "_watched", None)), self._held.starts)

    def anchor(self) -> None:
        """Takes the weights as they are now for the point that slots refer to; moments and counters stay.

        For weights that were set from outside while training goes on, as when an average is left in the model: the slow
        weights of `Lookahead`, z of Schedule-Free, the first weights of `MADGRAD` follow; what was summed begins anew.
        """
        if self.built:
            start.anchor(self.setup.parameters, self._held.starts)

    def _frozen(self) -> bool:
        return getattr(self, "built", False)

    def scale_loss(self, loss: Any) -> Any:
        """Returns the loss to differentiate; call it before the gradients are taken: a rule may take note of it."""
        if self.needs_loss:
            loss = self._held.noted(loss)
        return super().scale_loss(loss)

    @backend.unconverted
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
        given = (p.variable for p in self.setup.parameters) if trainable_variables is None else trainable_variables
        variables = list(given)
        if len(grads) != len(variables):
            raise ValueError(f"{type(self).__name__}: {len(grads)} gradients for {len(variables)} variables.")
        self.build(variables)
        self._held.check_scale(self)
        if not self.setup.in_order(variables):
            self._check_variables_are_known(variables)
        grads, variables = self._filter_empty_gradients(grads, variables)
        grads, variables = self._overwrite_variables_directly_with_gradients(grads, variables)
        if not self.setup.in_order(variables):
            by_index = {self._get_variable_index(v): g for g, v in zip(grads, variables, strict=True)}
            grads = [by_index.get(i) for i in range(len(self.setup.parameters))]
        self._held.traced |= backend.is_traced()
        run(self.setup, grads, self.learning_rate, self._held.take_loss() if self.needs_loss else None)

    def watch(self, on: bool = True) -> None:
        """Keeps `gradient_norm`, the global norm before clipping, up to date; with `global_clipnorm` it always is."""
        self._watched.assign(on)

    def statistics(self) -> dict[str, dict[str, Tensor]]:
        """Returns, by path of the weight, `effective_learning_rate` (each element's) and what `measure` adds."""
        return statistics(self.setup, self.learning_rate)

    @property
    def _model_variables_moving_average(self) -> list[Any]:
        """The averages. Keras and its callbacks know them by this name, and read their values next."""
        if not self.use_ema:
            raise AttributeError("There are averages with use_ema=True only.")  # callbacks of Keras look for them
        if self._held.built is not None:
            pay_averages(self._held.built)
        return self._held.averages

    @_model_variables_moving_average.setter
    def _model_variables_moving_average(self, averages: list[Any]) -> None:
        self._held.averages = averages

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """Leaves the average in the weights, and what slots remember of the weights with it; `fit` ends with it.

        Raises:
            FloatingPointError: the loss scale of Keras around this optimizer has fallen to nothing.
        """
        if backend.holds(self._iterations):
            if self.use_ema and self.built:
                leave_averages(self.setup)
                self.anchor()
            self._held.check_scale_at_end()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "learning_rate":
            owner, old = type(self).__name__, self._learning_rate
            value = value if ops.is_tensor(value) else self.fields[name].check(owner, value)
            learning_rate.check_new(owner, old, value, self._held.traced)
        super().__setattr__(name, value)

    def _get_current_learning_rate(self) -> Any:
        rate = self._learning_rate
        if isinstance(rate, keras.Variable):
            return rate
        return self.rate_after(updates_done(self._iterations, self.gradient_accumulation_steps or 1))

    def save_own_variables(self, store: Any) -> None:
        """Writes state and manifest into a Keras store."""
        self._held.file.write(store, self._held.variables(self), self._held.paths())

    def load_own_variables(self, store: Any) -> None:
        """Restores the state; what was saved before the first step puts everything back to the start.

        Raises:
            ValueError: the state is damaged, or does not fit; nothing of the optimizer is changed.
        """
        expected = Expected.of(self.rules_by_key(), Options.of(self), self.needs_loss)
        self._held.file.read(store, self._held.variables(self), self._held.paths(), expected, self.reset)
        if self.built:
            self.setup.note_debts()

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, fit for JSON."""
        config = super().get_config() | {"name": self.name}
        config |= learning_rate.serialized(type(self).__name__, config)
        if self.built:
            config["undecayed"] = [[i, self.setup.parameters[i].path] for i in self._held.undecayed]
        elif self._held.excluded:  # there is no order yet
            config["undecayed"] += [start.path_of(v) for v in self._held.excluded if v.trainable]
        return config

    def _argument(self, name: str) -> Any:
        rate = learning_rate.given(self._learning_rate) if name == "learning_rate" else None
        return rate if name in ("learning_rate", "name") else super()._argument(name)

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Self:
        """Makes the optimizer of a configuration."""
        return cls(**learning_rate.deserialized(config, custom_objects))

"""What passes between an optimizer and the engine of its backend."""

import dataclasses
from typing import Any, ClassVar

from kopt.optimizers.engine.tensor_math import Tensor


@dataclasses.dataclass
class Parameter:
    """A weight and what the optimizer keeps for it."""

    variable: Any
    path: str
    label: str  # the path, told apart from that of another weight
    dtype: str  # of the arithmetic: float32, or float64 beside float64 weights
    index: int = 0
    owner: str = ""  # key of the optimizer whose rule moves it, in `Optimizer.owners`
    multiplier: float = 1.0
    decay: float = 1.0
    slots: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    residual: Any = None
    average: Any = None
    averaged_at: Any = None
    accumulator: Any = None
    read: Any = None
    marked: bool | None = None  # whether `read` says which rows were accumulated, once a gradient was seen


@dataclasses.dataclass
class Gradient:
    """The gradient of one parameter, in the precision of the arithmetic.

    Of a table that was read sparsely, `value` holds one row for every entry of `rows`: the sum over its repeated ids.
    Entries past the number of distinct ids have zero gradient and repeat the first row; `keep` maps them onto it, so
    that a scatter writes equal values. `touched`, [rows], marks those of a whole table that an update may move.
    """

    value: Tensor
    rows: Tensor = None
    keep: Tensor = None
    touched: Tensor = None


@dataclasses.dataclass
class Write:
    """An assignment that ends a step: to the whole variable, or to some rows of it."""

    variable: Any
    value: Tensor
    rows: Tensor = None


class OptimizerParts:
    """What the parts that make up an optimizer (rate, state, step, engine) see of each other; types only."""

    built: bool
    fields: Any
    variables: Any
    weight_decay: Any
    undecayed: Any
    use_ema: bool
    ema_momentum: float
    ema_overwrite_frequency: int | None
    gradient_accumulation_steps: int | None
    loss_scale_factor: float | None
    clipnorm: float | None
    clipvalue: float | None
    global_clipnorm: float | None
    on_nonfinite: str
    rounding: str
    sparse: str
    state_dtype: str
    slots: Any
    shared: Any
    nonfinite_steps: Any
    clipped_steps: Any
    gradient_norm: Any
    _iterations: Any
    _learning_rate: Any
    _distribution_strategy: Any
    _parameters: tuple[Parameter, ...]
    _scalar_dtype: str
    _shared: dict[str, Any]
    _watched: Any
    _starts: list[Any]
    _pending: Any
    _traced: bool = False
    _untrack_variable: Any
    _accumulated_gradients: Any
    _overwrite_variable_with_gradient: Any
    _trainable_variables: Any

    row_wise: ClassVar[bool]
    owners: Any
    share: Any
    needs_loss: Any
    reset: Any
    add_variable: Any
    _step: Any
    _lazy: Any
    _read: Any
    _read_weight: Any
    _stored: Any
    _write: Any
    _accumulate: Any
    _add: Any
    _means: Any
    _begin_anew: Any
    _check_shape: Any
    _marked_rows: Any
    _updates: Any
    _replicas: Any
    _stop_unless: Any
    _static_shape: Any
    _value: Any
    _rows: Any
    _sparse: Any
    _uniform: Any
    _read_gradient: Any
    _commit: Any
    _in_graph: Any
    _outside_graph: Any
    anchor: Any
    _add_beside: Any
    _counters: Any
    _rate_of: Any
    _commit_if: Any
    _where_slots_begin: Any

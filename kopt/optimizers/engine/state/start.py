"""How the state of an optimizer begins, and begins anew.

Keras creates the averages, the accumulators and the counter of batches, and knows the scales of float8; it has no
public names for them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kopt.declare import path_rules
from kopt.optimizers.engine import rule_checks
from kopt.optimizers.engine.backends.backend import backend
from kopt.optimizers.engine.contract import Options, Rule
from kopt.optimizers.engine.held import Held, Starts
from kopt.optimizers.engine.parameter import Parameter, is_short
from kopt.optimizers.engine.setup import Setup
from kopt.optimizers.engine.state.codecs import Codec
from kopt.optimizers.engine.state.layout import Layout, layouts
from kopt.optimizers.engine.state.slots import Slot
from kopt.optimizers.engine.tensor_math import Tensor


def _check(owner: str, variables: Sequence[Any], rules: Mapping[str, Rule]) -> None:
    """Raises `ValueError` if a variable cannot be trained, or the slots of a rule have names that they cannot have."""
    for v in variables:
        if not keras.backend.is_float_dtype(v.dtype):
            raise ValueError(
                f"{owner}: {path_of(v)!r} has dtype {keras.backend.standardize_dtype(v.dtype)}; only floating-point "
                "variables can be trained. Create it with trainable=False."
            )
    for rule in rules.values():
        rule_checks.check_names(type(rule).__name__, rule.slots, rule.shared)


def parameters(optimizer: Any, variables: Sequence[Any], held: Held) -> tuple[Parameter, ...]:
    """Returns the weights with their rules, multipliers and decays; they have no state yet.

    Raises:
        ValueError: a variable cannot be trained, or a pattern matches no path.
    """
    owner, options, rules = held.owner, Options.of(optimizer), optimizer.rules_by_key()
    _check(owner, variables, rules)
    paths = [path_of(v) for v in variables]
    multipliers = path_rules.resolve(f"{owner}.multipliers", optimizer.multipliers, paths)
    decays = path_rules.resolve(f"{owner}.decay_mask", optimizer.decay_mask, paths)
    excluded = {id(v) for v in held.excluded}
    places = {i for i, v in enumerate(variables) if id(v) in excluded}
    held.undecayed = sorted(places | {*path_rules.find_places(f"{owner}.undecayed", optimizer.undecayed, paths)})
    keys = [optimizer.key_of(path) for path in paths]
    for key, rule in rules.items():
        rule.check_weights([path for path, its in zip(paths, keys, strict=True) if its == key])
    seen = layouts(variables, paths) if any(rule.by_layer for rule in rules.values()) else None
    return tuple(
        Parameter(
            v,
            path,
            label,
            Layout(v.shape, path) if seen is None else seen[i],
            work_dtype(v),
            i,
            key,
            rules[key],
            options,
            multiplier,
            decay=0.0 if i in held.undecayed else decay,
        )
        for i, (v, path, label, key, multiplier, decay) in enumerate(
            zip(variables, paths, path_rules.unique(paths), keys, multipliers, decays, strict=True)
        )
    )


def setup(optimizer: Any, parameters: tuple[Parameter, ...], held: Held) -> Setup:
    """Creates counters, shared values and what is kept for each weight; returns all that a step works on."""
    variables, rules = [p.variable for p in parameters], optimizer.rules_by_key()
    wide = any(rule.precise for rule in rules.values()) or "float64" in map(work_dtype, variables)
    dtype = backend.widest() if wide else "float32"

    def scalar(name: str, initial: Any, dtype: str) -> Any:
        constant, shape = keras.initializers.Constant(initial), np.shape(initial)
        variable = optimizer.add_variable(shape, constant, dtype, aggregation="only_first_replica", name=name)
        held.starts.append((variable, constant))
        return variable

    counters = {
        "nonfinite_steps": scalar("nonfinite_steps", 0, "int"),
        "clipped_steps": scalar("clipped_steps", 0, "int"),
        "gradient_norm": scalar("gradient_norm", 0.0, "float32"),
        "watched": scalar("watched", False, "bool"),
    }
    shared = {key + k: initial for key, rule in rules.items() for k, initial in rule.shared.items()}
    shared |= {"loss": 0.0} if optimizer.needs_loss else {}
    made = Setup(
        owner=held.owner,
        optimizer=optimizer,
        rules=rules,
        options=Options.of(optimizer),
        needs_loss=optimizer.needs_loss,
        scalar_dtype=dtype,
        iterations=optimizer._iterations,
        shared={k: scalar(k, initial, dtype) for k, initial in shared.items()},
        parameters=parameters,
        averages_at=scalar("averages_at", [0] * len(parameters), "int32") if optimizer.use_ema else None,
        **counters,
    )
    for p in parameters:
        p.averages_at = made.averages_at
    held.starts += _add_state(optimizer, parameters, held.averages)
    return made


def _add_state(optimizer: Any, parameters: Sequence[Parameter], averages: Sequence[Any]) -> Starts:
    """Creates what an optimizer keeps for its weights, beside the averages and accumulators that Keras creates."""
    copying = any(slot.from_weight for p in parameters for slot in p.rule.slots.values())
    starts = Starts()
    with backend.where_slots_begin(type(optimizer).__name__, [p.variable for p in parameters], copying):
        for i, p in enumerate(parameters):
            if optimizer._overwrite_variable_with_gradient(p.variable):
                continue  # a float8 scale: Keras assigns its gradient
            p.average = averages[i] if p.options.use_ema else None
            p.accumulator = optimizer._accumulated_gradients[i] if p.options.gradient_accumulation_steps else None
            starts += _add_beside(optimizer, p)
    return starts


def _add_beside(optimizer: Any, p: Parameter) -> Starts:
    """Creates what is kept for one weight."""
    shape, starts = tuple(p.variable.shape), Starts()

    def add(name: str, shape: Any, dtype: Any, initial: Any = "zeros") -> Any:
        return backend.add_beside(optimizer, p.variable, name, shape, dtype, initial)

    for name, slot in p.rule.slots.items():
        storage = p.storage(name)
        stored = storage.parts(slot.shape_for(p.layout), p.dtype)
        initial = {part: _initial(storage, slot, part, p) for part in stored}
        p.slots[name] = {part: add(f"{name}_{part}", *of, initial[part]) for part, of in stored.items()}
        starts += [(variable, initial[part]) for part, variable in p.slots[name].items()]
    if p.options.rounding == "kahan" and is_short(p.variable):
        p.residual = add("residual", shape, p.variable.dtype)
    if p.average is not None:
        p.averaged_at = add("averaged_at", shape[:1], "int32")
    if p.accumulator is not None and shape and p.lazy:
        p.read = add("read", shape[:1], "bool")
    return starts


def reset(variables: Sequence[Any], kept: Sequence[Any], starts: Starts) -> None:
    """Puts all variables but those that are kept back to their start."""
    with backend.outside_graph():
        for variable in variables:
            if not any(variable is v for v in kept):
                variable.assign(ops.zeros(variable.shape, variable.dtype))
        _begin(starts)


def anchor(parameters: Sequence[Parameter], starts: Starts) -> None:
    """Takes the weights as they are now for the point that slots refer to."""
    anchored = {
        id(variable)
        for p in parameters
        for name, slot in p.rule.slots.items()
        if slot.from_weight or slot.anchored
        for variable in p.slots.get(name, {}).values()
    }
    with backend.outside_graph():
        _begin([(v, initial) for v, initial in starts if id(v) in anchored])
        for p in parameters:
            if p.residual is not None:
                p.residual.assign(ops.zeros(p.residual.shape, p.residual.dtype))


def _begin(starts: Starts) -> None:
    for variable, initial in starts:
        variable.assign(initial(tuple(variable.shape), variable.dtype))


def path_of(variable: Any) -> str:
    """Returns the path of a variable; a bare tf.Variable has a name only."""
    return getattr(variable, "path", None) or variable.name


def work_dtype(variable: Any) -> str:
    """Returns the type of the arithmetic on a variable: float32, or float64 beside float64."""
    return backend.widest() if keras.backend.standardize_dtype(variable.dtype) == "float64" else "float32"


def _initial(storage: Codec, slot: Slot, part: str, p: Parameter) -> Callable[..., Tensor]:
    def initializer(shape: Any, dtype: Any = None, **_: Any) -> Tensor:
        if slot.from_weight:
            x = slot.first(ops.cast(p.variable, p.dtype), p.layout)
            x = ops.copy(x)  # a cast may pass the buffer of the weight on
            return storage.encode(x, ops.zeros_like)[part]
        row = [1, *slot.shape_for(p.layout)[1:]] if shape else []
        encoded = storage.encode(ops.full(row, slot.init, p.dtype), ops.zeros_like)[part]
        return ops.copy(ops.broadcast_to(encoded, shape))  # all rows are equal, each in its own memory

    return initializer

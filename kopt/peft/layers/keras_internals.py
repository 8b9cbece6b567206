"""What adapters read and change of Keras beyond what it documents.

No other file of this wing but the one for KerasHub does so: after an upgrade of Keras, look here. The names that are
gone are said by `tests/test_keras_internals.py`.
"""

import contextlib
import functools
import gc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.src.backend.common import global_state
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.backend.common.variables import AutocastScope
from keras.src.layers.convolutional.base_conv import BaseConv as BaseConv
from keras.src.layers.convolutional.base_conv_transpose import BaseConvTranspose as BaseConvTranspose
from keras.src.models.functional import Functional as Functional
from keras.src.utils.naming import to_snake_case as to_snake_case

_CHILD = "kopt_adapters"
"""The attribute under which a host keeps the child layer with its adapters. Files contain it."""
_COMPILED = ("train_function", "test_function", "predict_function", "generate_function")
_STEPS = ("train_step", "test_step")
TAKES_WEIGHTS_BY_PLACE = keras.backend.backend() == "jax"
"""Whether compiled functions hold for the weights alone that were trainable when they were traced."""
_KERNELS = ("_kernel", "_embeddings", "kernel", "pointwise_kernel")
_BOOKKEEPING = ("_layers", "_operations", "_operations_by_depth", "_inbound_nodes", "_outbound_nodes", "_modules")
"""Attributes in which Keras lists layers that other attributes hold, or that only lie beside them in a graph."""

# ------------------------------------------------------------------------------------------- the class of a layer


def original_class(layer: Any) -> Any:
    """Returns the class that a layer or model had before it got adapters."""
    cls = type(layer)
    return getattr(cls, "kopt_original", cls)


def plain_class(layer: Any) -> Any:
    """Returns the class that a layer or model had before kopt changed it."""
    cls = original_class(layer)
    return getattr(cls, "kopt_plain", cls)


def set_class(layer: Any, cls: Any) -> None:
    """Changes the class of a layer or model, which stays the same object."""
    object.__setattr__(layer, "__class__", cls)  # past Keras' own __setattr__, which tracks what it is given


def attention_through(cls: Any, find: Callable[[Any], Callable[..., tuple[Any, Any, Any]] | None]) -> None:
    """Lets a subclass of Keras' `MultiHeadAttention` change keys, values and mask once these are computed.

    Keras says of `_compute_attention` that users can override it.

    Args:
        cls: the class.
        find: returns, for a layer, the function that changes them; None changes nothing.
    """
    before = cls._compute_attention

    @functools.wraps(before)
    def compute(
        self: Any, query: Any, key: Any, value: Any, attention_mask: Any = None, *args: Any, **options: Any
    ) -> Any:
        change = find(self)
        if change is not None:
            if options.pop("use_causal_mask", False):  # a kernel for it would count the keys that are added
                causal = self._compute_causal_mask(query, value)
                attention_mask = causal if attention_mask is None else ops.logical_and(attention_mask, causal)
            key, value, attention_mask = change(key, value, attention_mask)
        return before(self, query, key, value, attention_mask, *args, **options)

    cls._compute_attention = compute


# ------------------------------------------------------------------------------------- the child that holds adapters


def child_of(layer: Any) -> Any:
    """Returns the child layer with the adapters of a layer, or None if it is no host."""
    return holder_of(layer, _CHILD).get(_CHILD)


def attach(layer: Any, child: Any, cls: type) -> None:
    """Makes `child` the child layer with the adapters of `layer`, and `cls` the class of `layer`."""
    with unlocked(layer):
        setattr(layer, _CHILD, child)
    child._parent_path = layer.path or layer.name
    child._path = f"{child._parent_path}/{child.name}"
    set_class(layer, cls)


def detach(layer: Any) -> None:
    """Undoes `attach`."""
    set_class(layer, original_class(layer))
    with unlocked(layer):
        layer._tracker.untrack(child_of(layer))
        delattr(layer, _CHILD)


@contextlib.contextmanager
def unlocked(layer: Any) -> Iterator[None]:
    """Lets a built layer take or drop variables and child layers."""
    layer._tracker.unlock()
    try:
        yield
    finally:
        layer._tracker.lock()


def unpickler(cls: Any) -> Any:
    """Returns the function that makes models or layers from what `__reduce__` of Keras wrote."""
    return cls._unpickle_model


# ------------------------------------------------------------------------------------------------- layers of a model


def flatten_layers(model: Any) -> list[Any]:
    """Returns a model or layer and all layers in it, at any depth."""
    layers: list[Any] = model._flatten_layers()
    return layers


def child_layers(layer: Any) -> list[Any]:
    """Returns the layers directly below, without the child that holds adapters."""
    inner = getattr(layer, "_functional", None)  # a Sequential's other view of the same layers
    return [c for c in layer._layers if c is not inner and c is not child_of(layer)]


def holder_of(layer: Any, name: str) -> dict[str, Any]:
    """Returns the dictionary with an attribute of a layer; on torch there is one for attributes that are layers."""
    own = vars(layer)
    children: dict[str, Any] = own.get("_modules", own)
    return children if name in children else own


def attributes_of(layer: Any) -> dict[str, Any]:
    """Returns the attributes of a layer, without the lists in which Keras and TensorFlow keep the same things again."""
    own = vars(layer)
    return {
        name: value
        for name, value in {**own, **own.get("_modules", {})}.items()
        if name not in _BOOKKEEPING and not name.startswith("_self_")  # TensorFlow's
    }


# --------------------------------------------------------------------------------------------- variables of a layer


def direct_variables(layer: Any) -> list[Any]:
    """Returns the variables that a layer itself created to be trained, also while they are frozen."""
    return list(layer._trainable_variables)


def all_variables(layer: Any) -> dict[str, keras.Variable]:
    """Returns the variables that a layer itself created and keeps as attributes, by attribute."""
    created = {id(v) for v in [*layer._trainable_variables, *layer._non_trainable_variables]}
    return {name: v for name, v in vars(layer).items() if id(v) in created}


def own_variables(layer: Any) -> dict[str, keras.Variable]:
    """Returns those of the direct variables that the layer keeps as attributes, by attribute."""
    own = {id(v) for v in direct_variables(layer)}
    return {name: v for name, v in vars(layer).items() if id(v) in own} if own else {}


def kernel_attribute(layer: Any) -> str | None:
    """Returns the attribute that holds the kernel or table of embeddings of a layer, if it has one."""
    attributes = vars(layer)
    return next((a for a in _KERNELS if isinstance(v := attributes.get(a), keras.Variable) and len(v.shape) >= 2), None)


def exchange_variables(layer: Any, gone: Iterable[str], new: Mapping[str, Mapping[str, Any]], place: int = 0) -> None:
    """Takes variables from a layer, and gives it others that are zero.

    Args:
        layer: the layer.
        gone: attributes that hold the variables.
        new: arguments of `add_weight` by attribute.
        place: where those that are trainable stand among the direct variables, whose order files may have.
    """
    removed = [vars(layer)[attr] for attr in gone]
    with strategy_of(removed[0]), unlocked(layer):
        for attr, variable in zip(gone, removed, strict=True):
            untrack(layer, variable)
            super(keras.layers.Layer, layer).__delattr__(attr)  # that of Keras collects garbage each time
        others = direct_variables(layer)
        for attr, options in new.items():
            setattr(layer, attr, layer.add_weight(initializer="zeros", **options))
        added = direct_variables(layer)[len(others) :]
        layer._trainable_variables[:] = [*others[:place], *added, *others[place:]]


def register_weights(model: Any) -> None:
    """Lets torch know the weights that the layers of a model have now: a layer lists those in it when it is built.

    What is in no such list keeps its gradients from one batch to the next. The other backends have no lists.
    """
    for outer in [model, *models_around(model)]:
        for layer in flatten_layers(outer):
            if hasattr(layer, "_track_variables") and layer.built:
                layer._track_variables()


def track(layer: Any, variable: keras.Variable) -> None:
    """Makes an unlocked layer know a variable that another one has created."""
    layer._track_variable(variable)


def untrack(layer: Any, variable: keras.Variable) -> None:
    """Makes an unlocked layer forget a variable."""
    layer._untrack_variable(variable)


def stored_value(variable: keras.Variable) -> Any:
    """Returns the value of a variable in its own dtype, also inside a layer that computes in another."""
    with AutocastScope(None):
        return variable.value


def snapshot(variable: keras.Variable) -> np.ndarray[Any, Any]:
    """Returns the value of a variable as an array that no later assignment changes."""
    if keras.backend.backend() == "tensorflow":  # which gives the variable another buffer then: this one needs no copy
        return np.asarray(stored_value(variable).value())
    return np.array(variable.numpy())


def is_trainable(layer: Any) -> bool:
    """Returns the flag of the layer itself."""
    return bool(layer._trainable)


def set_trainable(layer: Any, value: bool) -> None:
    """Sets the flag of the layer itself; `layer.trainable = value` would set those of all that is in it too."""
    layer._trainable = value


# ----------------------------------------------------------------------------- kernels that Keras has in int8 or int4


def quantized_parts(layer: Any) -> dict[str, keras.Variable]:
    """Returns the variables that are the kernel of a quantized layer of Keras together, by attribute, itself first."""
    attributes, main = vars(layer), kernel_attribute(layer)
    assert main is not None
    names = (main, *(f"{main.lstrip('_')}_{part}" for part in ("scale", "zero")), "g_idx")
    return {name: attributes[name] for name in names if isinstance(attributes.get(name), keras.Variable)}


def quantized_shape(layer: Any) -> tuple[int, ...]:
    """Returns the shape that the kernel of a quantized layer of Keras stands for."""
    own = tuple(next(iter(quantized_parts(layer).values())).shape)
    if layer.quantization_mode != "int4":
        return own
    if isinstance(layer, keras.layers.EinsumDense):
        return tuple(layer.original_kernel_shape)
    return (own[0], layer.output_dim if isinstance(layer, keras.layers.Embedding) else layer.units)


def dequantized(layer: Any, parts: Mapping[str, Any]) -> Any:
    """Returns the kernel that the `parts` of a quantized layer of Keras stand for, in float32."""
    shape, embedding = quantized_shape(layer), isinstance(layer, keras.layers.Embedding)
    main, scale = (parts[name] for name in list(quantized_parts(layer))[:2])
    zero = next((value for name, value in parts.items() if name.endswith("zero")), None)
    scale = ops.cast(scale, "float32")
    if layer.quantization_mode == "int8":
        einsum = isinstance(layer, keras.layers.EinsumDense)
        scale = layer._adjust_scale_for_dequant(scale) if einsum else scale
        return ops.cast(main, "float32") / (ops.expand_dims(scale, -1) if embedding else scale)
    packed = ops.convert_to_tensor(main)
    whole = ops.cast(keras.quantizers.unpack_int4(packed, math.prod(shape) // packed.shape[0], axis=-1), "float32")
    if zero is None:
        return ops.reshape(whole / (ops.expand_dims(scale, -1) if embedding else scale), shape)
    groups, axis = ops.cast(parts["g_idx"], "int32"), -1 if embedding else 0
    zero = ops.take(ops.cast(zero, "float32"), groups, axis=axis)
    return ops.reshape((whole - zero) * ops.take(scale, groups, axis=axis), shape)


def requantized(layer: Any, kernel: Any) -> dict[str, Any]:
    """Returns what Keras makes of a float kernel in the format of a quantized layer, by attribute."""
    cls, config = original_class(layer), layer.quantization_config
    if config is None and layer.quantization_mode == "int4":  # read from a file that says it in the dtype alone
        config = keras.quantizers.Int4QuantizationConfig(block_size=layer._int4_block_size)
    twin = cls.from_config(cls.get_config(layer) | {"dtype": "float32", "quantization_config": None})
    twin.build_from_config(cls.get_build_config(layer))
    vars(twin)[kernel_attribute(twin)].assign(kernel)
    twin.quantize(layer.quantization_mode, config=config)
    return {attr: np.asarray(vars(twin)[attr].numpy()) for attr in quantized_parts(layer)}


def say_not_quantized(layer: Any) -> None:
    """Makes a layer that has got a float kernel again one that Keras can quantize."""
    compute, variables = layer.compute_dtype, layer.variable_dtype  # its policy loses its name when KerasHub saves it
    say_quantized(layer, False)
    layer.quantization_config = None
    layer.dtype_policy = compute if compute == variables else f"mixed_{compute}"


def say_quantized(layer: Any, value: bool) -> None:
    """Tells Keras whether a layer is quantized, so that it does not do so once more."""
    layer._is_quantized = value


# ------------------------------------------------------------------------------------------- calls and compilation


def symbolic_calls(layer: Any) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Returns the arguments of the calls of a layer that are nodes of a graph."""
    return [(node.arguments.args, node.arguments.kwargs) for node in layer._inbound_nodes]


def in_forward_pass() -> bool:
    """Returns whether some Keras layer is being called, also by `stateless_call`, as JAX trains and predicts."""
    return global_state.get_global_attribute("current_call_ctx") is not None or in_stateless_scope()


def strategy_of(variable: keras.Variable) -> contextlib.AbstractContextManager[Any]:
    """Returns the scope of the distribution strategy that a variable was created under."""
    strategy = getattr(variable.value, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def causal_padding(convolution: Any) -> Any:
    """Returns by how much a convolution with padding="causal" pads each axis of its input."""
    return convolution._compute_causal_padding()


def exchange_functions(model: Any, functions: Mapping[str, Any]) -> dict[str, Any]:
    """Gives a model compiled functions in the place of those that it has, which are returned, by attribute.

    That which trains is left alone.
    """
    had = {attr: function for attr in _COMPILED[1:] if (function := getattr(model, attr, None)) is not None}
    for attr in had.keys() | functions.keys():
        setattr(model, attr, functions.get(attr))
    if TAKES_WEIGHTS_BY_PLACE:
        _renew_steps(model)
    return had


def _renew_steps(model: Any) -> None:
    """Gives a model steps that JAX has not seen.

    JAX keeps what it traced by function, and to it the method `train_step` of a model is always the same function.
    """
    for name in _STEPS:
        step = getattr(model, name)
        vars(model)[name] = functools.partial(getattr(step, "func", step))


def forget_functions(model: Any) -> None:
    """Makes a model, and those of `models_around`, trace their compiled functions anew when they are needed next."""
    for outer in [model, *models_around(model)]:
        exchange_functions(outer, {})
        if getattr(outer, "train_function", None) is not None:
            outer.train_function = None


def models_around(model: Any) -> list[Any]:
    """Returns the models with layers of another one, if they remember what it was, as on JAX and torch.

    On JAX compiled functions take weights by their places in two lists: the trainable ones, and the others. A function
    that was traced before weights changed lists would take one for another. On torch see `register_weights`. No layer
    knows what it is a part of, so all objects are looked through.
    """
    if keras.backend.backend() == "tensorflow":
        return []
    layers = {id(layer) for layer in flatten_layers(model)}
    models = [x for x in gc.get_objects() if issubclass(type(x), keras.Model) and x is not model]
    return [x for x in models if any(id(layer) in layers for layer in flatten_layers(x))]


def trained_by(optimizer: Any) -> list[Any]:
    """Returns the variables that an optimizer was built for."""
    return list(optimizer._trainable_variables)


def compilation(model: Any) -> Any:
    """Returns the object that each `compile` makes anew, or None."""
    return vars(model).get("_compile_config")


def set_optimizer(model: Any, optimizer: Any) -> None:
    """Gives a compiled model another optimizer, which its files then tell of too."""
    model.optimizer = optimizer
    if compilation(model) is not None:
        compilation(model).config["optimizer"] = optimizer

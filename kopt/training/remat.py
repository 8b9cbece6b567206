"""Activations that are computed again when the gradient needs them, instead of being kept."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from kopt.declare.patterns import check_pattern, is_found
from kopt.optimizers.engine.backends.backend import backend
from kopt.training.keras_internals import flatten_layers, mask_of, set_mask, sublayers, surroundings

Tensor = Any


def remat(model: Any, blocks: Sequence[str] | None = None) -> Callable[[], None]:
    r"""Lets chosen layers keep their inputs alone for the gradient, and compute all between once more.

    Training takes less memory, and up to a third more time, with adapters up to two thirds; weights and gradients are
    the same to rounding. Dropout draws the same numbers in both computations, and statistics such as those of batch
    normalization move once. Any train step profits: that of `fit`, of `kopt.SAM`, one with adapters, put in before or
    after. Files stay as they are: a model that is loaded, or cloned, keeps its activations until `remat` is called on
    it.

    Args:
        model: a built Keras model.
        blocks: regular expressions that are searched in the paths of layers, as [r"transformer_layer_\d+$"]; within a
            layer that is chosen no other one is. None: the outermost layers that are made of others, as the blocks of a
            transformer, where there are two or more of a class; in other models all outermost layers with weights but
            tables, which saves what lies within them.

    Returns:
        A function that puts everything back.

    Raises:
        RuntimeError: the backend of Keras is not TensorFlow: use `keras.RematScope` there.
        ValueError: no layer is found, or, when the model is called, a layer adds losses in its `call`.

    Reference: Chen et al., 2016, arXiv:1604.06174.
    """
    if (found := keras.backend.backend()) != "tensorflow":
        raise RuntimeError(f"kopt.remat runs on TensorFlow; use keras.RematScope. Received: the backend {found}")
    chosen = _chosen(model, blocks)
    for layer in chosen:
        vars(layer)["call"] = _recomputing(layer)  # not by the attribute, which Keras would track

    def undo() -> None:
        for layer in chosen:
            vars(layer).pop("call", None)
        model.train_function = None

    model.train_function = None  # an earlier one was traced without
    return undo


def _chosen(model: Any, blocks: Sequence[str] | None) -> list[Any]:
    layers = [layer for layer in flatten_layers(model) if layer is not model]
    if blocks is not None:
        patterns = [check_pattern(block) for block in blocks]
        chosen = [layer for layer in layers if any(is_found(p, layer.path or layer.name) for p in patterns)]
        if not chosen:
            near = ", ".join(layer.path or layer.name for layer in layers[:10])
            raise ValueError(f"remat: no layer of {model.name!r} is found by {list(blocks)}. Layers: {near} ...")
        return _outermost(chosen)
    made = [layer for layer in _outermost(layers) if sublayers(layer) and layer.weights]
    while len(made) == 1:  # a model around a model
        made = [layer for layer in sublayers(made[0]) if sublayers(layer) and layer.weights]
    classes = [type(layer) for layer in made]
    chosen = [layer for layer in made if classes.count(type(layer)) > 1]
    plain = [x for x in _outermost(layers) if x.weights and not isinstance(x, keras.layers.Embedding)]
    if not (chosen or plain):
        raise ValueError(f"remat: the model {model.name!r} has no layers with weights. Build it, or give `blocks`.")
    return chosen or plain


def _outermost(layers: Sequence[Any]) -> list[Any]:
    """Returns the layers that are not within others of them."""
    within = {id(inner) for layer in layers for inner in flatten_layers(layer) if inner is not layer}
    return [layer for layer in layers if id(layer) not in within]


def _recomputing(layer: Any) -> Callable[..., Any]:
    """Returns a `call` of a layer that computes it again for the gradient."""
    import tensorflow as tf

    def call(*args: Any, **kwargs: Any) -> Any:
        leaves = keras.tree.flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if tf.is_tensor(leaf)]
        if not places or any(isinstance(leaf, keras.KerasTensor) for leaf in leaves):
            return type(layer).call(layer, *args, **kwargs)
        learned = list(layer.trainable_variables)
        state = list(layer.non_trainable_variables)
        masks, again = [mask_of(leaves[i]) for i in places], surroundings()
        structure, moved = list[Any](), list[Any]()

        def computed(tensors: Sequence[Tensor]) -> list[Tensor]:
            inputs, values = tensors[: len(places)], tensors[len(places) :]
            given = list(leaves)
            for i, x, mask in zip(places, inputs, masks, strict=True):
                given[i] = x if mask is None else set_mask(tf.identity(x), mask)
            mapping = list(zip([*learned, *state], values, strict=True))
            with again(), keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
                positional, named = keras.tree.pack_sequence_as((args, kwargs), given)
                result = type(layer).call(layer, *positional, **named)
            if scope.losses:
                raise ValueError(f"remat: {layer.path!r} adds losses in its call. Choose other layers by `blocks`.")
            known = {id(value) for value in values}
            moved[:] = [v for v in state if id(scope.get_current_value(v)) not in known]
            structure[:] = [result]
            return [*keras.tree.flatten(result), *(scope.get_current_value(v) for v in moved)]

        @tf.custom_gradient
        def run(*tensors: Tensor) -> Any:
            outputs = computed(tensors)
            count = len(outputs) - len(moved)

            def gradient(*upstream: Tensor) -> list[Any]:
                held = _behind(tensors, [g for g in upstream[:count] if g is not None])
                sources = [x for x in [*held[: len(places)], *held[len(places) :][: len(learned)]] if _differs(x)]
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(sources)
                    results = computed(held)[:count]
                pairs = [(y, g) for y, g in zip(results, upstream, strict=False) if g is not None and _differs(y)]
                found = iter(tape.gradient([y for y, _ in pairs], sources, [g for _, g in pairs]))
                ends = len(places) + len(learned)
                return [next(found) if i < ends and _differs(x) else None for i, x in enumerate(held)]

            return outputs, gradient

        # Values as inputs, and not as variables: so frozen weights cost nothing, and weights may be moved ones (SAM).
        outputs = run(*(leaves[i] for i in places), *(tf.convert_to_tensor(v.value) for v in [*learned, *state]))
        outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        last = len(outputs) - len(moved)
        for variable, value in zip(moved, outputs[last:], strict=True):
            variable.assign(value)
        return keras.tree.pack_sequence_as(structure[0], outputs[:last])

    return call


def _differs(x: Tensor) -> bool:
    """Returns whether a tensor can have a gradient."""
    return bool(x.dtype.is_floating)


def _behind(tensors: Sequence[Tensor], upstream: Sequence[Tensor]) -> list[Tensor]:
    """Returns the same tensors, known only after the gradients from above, so that no compiler joins both computations.

    XLA forgets control dependencies, and keeps barriers.
    """
    import tensorflow as tf
    from tensorflow.compiler.tf2xla.ops.gen_xla_ops import xla_optimization_barrier

    if tf.executing_eagerly():
        return list(tensors)
    if backend.place() == "compiled":
        return list(xla_optimization_barrier([*tensors, *upstream]))[: len(tensors)]
    with tf.control_dependencies(list(upstream)):
        return [tf.identity(x) for x in tensors]

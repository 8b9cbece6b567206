"""What is seen of batches before an adapter starts: the inputs of layers, and the gradients of their kernels.

Both are those of the base. A method that only looks on is put in for the time, so that every layer that can have an
adapter can be watched, in models of every kind and on every backend.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops
from typing_extensions import override

from kopt.peft.adapter import Adapter, Array, Base, Weight
from kopt.peft.host import AdapterLayer, as_float32, base_value
from kopt.peft.layers import (
    Site,
    Tensor,
    all_variables,
    child_of,
    direct_variables,
    find_site,
    flatten_layers,
    is_trainable,
    set_optimizer,
)
from kopt.peft.methods import LoRA
from kopt.peft.model import ModelAdapters, Plan, add_adapter, disable_adapter

_NAME = "kopt_onlooker"
_MASK = "padding_mask"


class _Inputs(Adapter):
    """Hands what its hosts take to a function."""

    mergeable = False

    def __init__(self, see: Callable[[Site, Tensor], None], **options: Any) -> None:
        super().__init__(**options)
        self.see = see

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        return {"seen": Weight((1,), trainable=False)}

    @override
    def forward(self, x: Tensor, base: Base, p: Any) -> Tensor:
        self.see(base.site, x)
        return base(x)


class _Change(Adapter):
    """W' = W + D, whose gradient is that of W."""

    @override
    def weights(self, site: Site) -> dict[str, Weight]:
        return {"change": Weight(("in", "out"))}

    @override
    def effective(self, w: Tensor, p: Any) -> Tensor:
        return w + p.gate * p.change


def watch_inputs(model: Any, paths: Iterable[str], batches: Any, see: Callable[[str, Array], None]) -> None:
    """Runs the base on batches, and hands what dense layers take, as [n, in], to a function.

    Positions that the "padding_mask" of a batch leaves out are left out.

    Args:
        model: the model.
        paths: of the layers.
        batches: as `fit` takes them.
        see: function of the path and of what the layer takes in one call, of at least one row.

    Raises:
        ValueError: no batch reaches a layer, or what it takes is not finite.
    """
    mask: Array | None = None
    reached, damaged = set[str](), list[str]()

    def notice(site: Site, x: Tensor) -> None:
        rows = site.rows(np.asarray(ops.convert_to_numpy(ops.cast(x, "float32"))))
        if mask is not None and rows.shape[: mask.ndim] == mask.shape:
            rows = rows[mask]
        path, rows = names[id(site)], rows.reshape(-1, rows.shape[-1])
        if not np.isfinite(rows).all():
            damaged.append(path)  # an error here would come out of the model's call as one of Keras
        elif len(rows):
            reached.add(path)
            see(path, rows)

    with _onlooker(model, _Inputs(notice), paths) as current, disable_adapter(model):
        names = {id(layer.site): path for path, layer in current.hosts.items()}
        for batch in _each(batches):
            x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
            mask = np.asarray(x[_MASK], bool) if isinstance(x, Mapping) and _MASK in x else None
            model(keras.tree.map_structure(lambda value: ops.convert_to_tensor(np.asarray(value)), x), training=False)
            if damaged:
                raise ValueError(f"In a batch the inputs of {damaged[0]} have NaN or infinite values.")
    if left := [path for path in paths if path not in reached]:
        raise ValueError(
            f"No batch reaches {', '.join(left[:5])}: the model does not use them, or the batches have no rows that "
            f"{_MASK!r} leaves in. Leave them out with exclude_modules, or take other batches."
        )


def mean_gradients(model: Any, paths: Iterable[str], batches: Any) -> dict[str, Array]:
    """Returns the gradient of the compiled loss for the kernel of each layer, [*batch, in, out], the mean of batches.

    The model is as in training: dropout drops.

    Raises:
        ValueError: the model is not compiled, or the loss does not depend on a layer.
    """
    before = getattr(model, "optimizer", None)
    if before is None:
        raise ValueError("Gradients are those of a loss: call model.compile(optimizer, loss) first.")
    count = 0
    with _onlooker(model, _Change(), paths) as current:
        active, merged = list(current.active), list(current.merged)
        statistics, thawed = _statistics(model), list[Any]()
        try:
            current.choose([_NAME])
            # A plain step of the rate 1 from D = 0 gives D = -∇L: Keras' trainers differentiate on every backend.
            set_optimizer(model, keras.optimizers.SGD(1.0))
            changes = {path: current.hosts[path].weights_of[_NAME]["change"] for path in paths}
            learned = {id(change) for change in changes.values()}
            thawed = [v for v in model.trainable_variables if id(v) not in learned]  # layers may be, beside the hosts
            for variable in thawed:
                variable.trainable = False
            total = {path: np.zeros(change.shape) for path, change in changes.items()}
            for batch in _each(batches):
                count += 1
                x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
                model.train_on_batch(x, y, sample_weight=weight)
                for path, change in changes.items():
                    total[path] -= change.numpy()
                    change.assign(np.zeros(change.shape, "float32"))
        finally:
            set_optimizer(model, before)
            model.train_function = None
            model.reset_metrics()
            for variable in thawed:
                variable.trainable = True
            for variable, value in statistics:
                variable.assign(value)
            current.choose(active)
            current.merge(merged)
    if damaged := [path for path, value in total.items() if not np.isfinite(value).all()]:
        raise ValueError(f"The gradient of the loss at {damaged[0]} has NaN or infinite values.")
    if flat := [path for path, value in total.items() if not value.any()]:
        raise ValueError(
            f"The loss has no gradient at {', '.join(flat[:5])}. Do the batches have targets: (x, y)? Leave out layers "
            "that the model does not use with exclude_modules."
        )
    return {path: value / count for path, value in total.items()}


def lora_of(step: Plan) -> LoRA:
    """Returns what is put on a layer, which `initialize` has seen to be a LoRA."""
    assert isinstance(step.adapter, LoRA)
    return step.adapter


def kernel_of(layer: Any) -> Array:
    """Returns the kernel of a layer, of a host that of the base, as [*batch, in, out]."""
    child = child_of(layer)
    site = find_site(layer) if child is None else child.site
    assert site is not None
    value: Array = site.matrix(as_float32(site.variable) if child is None else base_value(child, site.attr))
    return value


def _statistics(model: Any) -> list[tuple[Any, Array]]:
    """Returns what training steps change beside weights, with its values: moving means of layers that were thawed."""
    thawed = [x for x in flatten_layers(model) if is_trainable(x) and not isinstance(x, AdapterLayer)]
    found = [v for x in thawed for v in all_variables(x).values() if not any(v is w for w in direct_variables(x))]
    return [(v, np.array(v.numpy())) for v in found]


@contextlib.contextmanager
def _onlooker(model: Any, adapter: Adapter, paths: Iterable[str]) -> Iterator[ModelAdapters]:
    """Puts a method in for a block, beside the adapters that are there."""
    before = getattr(model, "optimizer", None)
    current = add_adapter(model, adapter, _NAME, {path: {} for path in paths})
    try:
        yield current
    finally:
        current.remove(_NAME)
        if before is not None:
            set_optimizer(model, before)


def _each(batches: Any) -> Iterable[Any]:
    """Returns the batches one by one.

    Raises:
        ValueError: this is one batch alone, or there is none.
    """
    if isinstance(batches, keras.utils.PyDataset):
        batches = [batches[i] for i in range(len(batches))]
    if isinstance(batches, (Mapping, str, tuple)) or hasattr(batches, "shape") or not isinstance(batches, Iterable):
        raise ValueError(
            "batches must be a list or data set of batches, as fit takes them: [x, ...] or [(x, y), ...]. Received: "
            f"{type(batches).__name__}"
        )
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise ValueError("batches has no batch.")

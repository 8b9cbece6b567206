"""A classifier of pictures: a backbone, a head, and the method by which they are trained."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import tyro

from ..fine_tuning import adapter_files, methods
from ..fine_tuning.methods import Method, low_rank, plain
from ..run.batches import Array, EpochOrder, change_light, in_epochs, shift_and_rotate, told_by
from ..run.errors import DataError, UsageError
from ..run.flags import OptionalCount, OptionalPath, OptionalPositive
from ..run.optimizer_flags import OptimizerFlags
from .backbones import PREPARE, Backbone

HEAD = "logits"
OWN = ("rank", "alpha", "target", "head_learning_rate", "adapter", "merge")
_ANY = frozenset({"target", "head_learning_rate", "adapter", "merge"})
METHODS = {
    # Tried on EfficientNet-Lite0, many convolutions one after the other: 2e-3, as for texts, is too much.
    "lora": Method(5e-4, 5e-3, low_rank("LoRA"), frozenset(OWN)),
    "dora": Method(5e-4, 5e-3, low_rank("DoRA"), frozenset(OWN)),
    "ia3": Method(1e-2, 5e-3, plain("IA3"), _ANY),
    "head": Method(5e-3, None, None),
    "full": Method(3e-4, 5e-3, None, frozenset({"head_learning_rate"})),
}
SCRATCH = Method(3e-3, None, None, METHODS["full"].flags)
"""Training everything from random weights."""
Augment = Literal["none", "move", "photo"]


@dataclasses.dataclass(frozen=True)
class TuneFlags:
    """The method of fine-tuning."""

    method: Literal["auto", "lora", "dora", "ia3", "head", "full"] = "auto"
    """What is trained: an adapter and the head, only the head, or all; auto is lora, or full from random weights."""
    rank: OptionalCount = None
    """Rank of lora and dora. Default: 16."""
    alpha: OptionalPositive = None
    """Numerator of the scale alpha/rank of lora and dora. Default: twice the rank."""
    target: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Layer to adapt: a name (can be repeated) or a regular expression of paths. Default: all convolutions and dense
    layers, but not convolutions of each channel alone."""
    head_learning_rate: OptionalPositive = None
    """Learning rate of the head. Default: with adamw one that suits the method, else --learning-rate."""
    adapter: OptionalPath = None
    """Adapter to start from: a run, or an adapter folder."""
    merge: bool = False
    """Also save the model with the adapter merged into it, as model.keras."""

    @property
    def adapts(self) -> bool:
        """Returns whether the method has an adapter."""
        return self.method in METHODS and METHODS[self.method].make is not None


def choose(flags: TuneFlags, trained: bool) -> TuneFlags:
    """Returns the flags with the method that "auto" stands for.

    Raises:
        UsageError: the method keeps a backbone that has learnt nothing, or does not use a flag.
    """
    if flags.method == "auto":
        flags = dataclasses.replace(flags, method="lora" if trained else "full")
    if not trained and flags.method != "full":
        raise UsageError(
            f"--method {flags.method}: the backbone has learnt nothing. Give --weights, or take --method full."
        )
    methods.check(flags, METHODS, OWN)
    return flags


def method_of(flags: TuneFlags, trained: bool) -> Method:
    """Returns the method with its learning rates."""
    return METHODS[flags.method] if trained else SCRATCH


def multipliers(flags: TuneFlags, optim: OptimizerFlags, trained: bool) -> list[tuple[str, float]]:
    """Returns the factors of the learning rate by path of a weight."""
    factor = method_of(flags, trained).head_factor(optim, flags.head_learning_rate)
    return [] if factor is None else [(rf"(^|/){HEAD}/", factor)]


def build(base: Backbone, classes: int, dropout: float, tune: TuneFlags) -> Any:
    """Returns a model from bytes [n, side, side, 3] to the logits of the classes, trained as the method says.

    Raises:
        UsageError: the adapter does not fit the model.
        DataError: the backbone gives no features, or a saved adapter cannot be read.
    """
    import keras
    from keras import layers

    inputs = keras.Input((base.side, base.side, 3), name="pictures")
    prepare = layers.Dense(3, dtype="float32", trainable=False, name=PREPARE)
    x = prepare(inputs)
    prepare.set_weights([base.scale, base.offset])
    whole = tune.method == "full" and base.trained
    # Means and variances that others have found hold for few pictures as well; what is trained goes on from them.
    x = base.model(x, training=False) if whole else base.model(x)
    shape = getattr(x, "shape", ())
    pools = {4: layers.GlobalAveragePooling2D, 3: layers.GlobalAveragePooling1D}
    if len(shape) not in pools:
        raise DataError(f"the backbone gives no features by place but {type(x).__name__} of shape {tuple(shape)}.")
    x = pools[len(shape)](dtype="float32", name="mean")(x)
    x = layers.Dropout(dropout, dtype="float32", name="dropout")(x)
    logits = layers.Dense(classes, dtype="float32", name=HEAD)(x)
    model = keras.Model(inputs, logits, name="picture_classifier")
    base.model.trainable = tune.method == "full"
    if tune.adapts:
        _adapt(model, tune)
    return model


def _adapt(model: Any, tune: TuneFlags) -> None:
    from kopt import peft

    method = METHODS[tune.method]
    assert method.make is not None
    if tune.adapter is not None:
        adapter_files.check_kind(tune.adapter, tune.method, method)
        adapter_files.load(model, tune.adapter)
        return
    cls, options = method.make(peft, tune.rank, tune.alpha, 0.0, model.input_shape[1])
    target = methods.names_or_pattern(tune.target) if tune.target else methods.linear_layers(model, but=[HEAD, PREPARE])
    methods.add(model, tune.method, cls, options | {"target_modules": target, "modules_to_save": [HEAD]})


def batches(
    x: Array,
    rows: Array,
    targets: Array,
    batch_size: int,
    shuffle_seed: int | None = None,
    augment: Augment = "none",
    weights: Array | None = None,
) -> Any:
    """Returns a `tf.data.Dataset` of batches of pictures, whose method `set_epoch` chooses their order.

    Args:
        x: all pictures, in memory or not.
        rows: numbers of those to take.
        targets: of each of those, [len(rows), class].
        batch_size: pictures a batch; the last batch may be smaller.
        shuffle_seed: seed of a new order in each epoch. `None` keeps the order.
        augment: what is changed at random: "move" shifts, turns and scales, "photo" also mirrors and changes the light.
        weights: how much each of those counts.
    """
    import tensorflow as tf

    order, size, side = EpochOrder(shuffle_seed), len(rows), x.shape[1]
    parts = [targets] if weights is None else [targets, weights]

    def plan(rng: np.random.Generator | None) -> Iterator[Any]:
        at = np.arange(size) if rng is None else rng.permutation(size)
        seeds = (rng or np.random.default_rng(0)).integers(2**31 - 8, size=(-(-size // batch_size), 2))
        for seed, start in zip(seeds, range(0, size, batch_size), strict=True):
            now = at[start : start + batch_size]
            yield (x[rows[now]], *(part[now] for part in parts), seed)

    signature: list[Any] = [tf.TensorSpec((None, *x.shape[1:]), tf.uint8)]
    signature += [tf.TensorSpec((None, *part.shape[1:]), tf.float32) for part in parts]
    signature.append(tf.TensorSpec((2,), tf.int64))
    dataset = in_epochs(order, plan, tuple(signature), -(-size // batch_size))

    def finish(pictures: Any, *others: Any) -> Any:
        *rest, seed = others
        if augment != "none":
            pictures = shift_and_rotate(pictures, seed, 0.08 * side, 10.0, 0.1, mirrored=augment == "photo")
        if augment == "photo":
            pictures = change_light(pictures, seed)
        return (tf.cast(pictures, tf.float32), *rest)

    return told_by(order, dataset.map(finish, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2))

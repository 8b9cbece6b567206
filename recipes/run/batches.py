"""From arrays to batches: held-out examples, targets, `tf.data` pipelines and augmentation."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .errors import UsageError

Array = np.ndarray[Any, Any]


class EpochOrder:
    """What draws the order of the examples: it follows from a seed and the number of the epoch alone.

    The epochs are 0, 1, ... one after the other, until one is set: then it stays.

    Args:
        seed: ≥ 0; `None` draws nothing.
    """

    def __init__(self, seed: int | None) -> None:
        self._seed, self._epoch, self._told = seed, -1, False

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, as `kopt.checkpoint.Checkpoint` does."""
        self._epoch, self._told = epoch, True

    def draw(self) -> np.random.Generator | None:
        """Returns the generator of the epoch."""
        if not self._told:
            self._epoch += 1
        return None if self._seed is None else np.random.default_rng([self._seed, self._epoch])


def in_epochs(
    order: EpochOrder, plan: Callable[[np.random.Generator | None], Iterable[Any]], signature: Any, steps: int
) -> Any:
    """Returns a `tf.data.Dataset` of what `plan` gives for each epoch; its `set_epoch` tells it the epoch.

    Args:
        order: what draws.
        plan: function of a generator, `None` for the plain order, that returns one element a step.
        signature: `tf.TensorSpec` of an element.
        steps: elements in an epoch.
    """
    import tensorflow as tf

    dataset = tf.data.Dataset.from_generator(lambda: plan(order.draw()), output_signature=signature)
    return dataset.apply(tf.data.experimental.assert_cardinality(steps))


def told_by(order: EpochOrder, dataset: Any) -> Any:
    """Returns a dataset with the method `set_epoch` of its order."""
    dataset.set_epoch = order.set_epoch
    return dataset


def hold_out(
    x: Array,
    y: Array | None,
    fraction: float,
    seed: int,
    flag: str = "--validation-split",
    names: Sequence[str] = (),
) -> tuple[Array, Array, Array, Array]:
    """Returns x and y without a random `fraction` of each class, then x and y of this fraction.

    Args:
        x: examples.
        y: their classes; `None` takes the fraction of all examples, and gives zeros for y.
        fraction: in (0, 1).
        seed: of the choice.
        flag: which set the fraction.
        names: of the classes, for the error; without them their numbers.

    Raises:
        UsageError: `fraction` leaves one side without some class.
    """
    from sklearn.model_selection import train_test_split

    classes = np.zeros(len(x), np.int64) if y is None else y
    try:
        x_kept, x_held, y_kept, y_held = train_test_split(x, classes, test_size=fraction, stratify=y, random_state=seed)
    except ValueError as error:
        alone = [names[k] if names else str(k) for k in np.flatnonzero(np.bincount(classes) == 1).tolist()]
        reason = f"there is one example alone of {', '.join(alone[:5])}" if alone else " ".join(str(error).split())
        advice = "Give more examples of each class, a larger share, or a file or folder for that set."
        raise UsageError(f"{flag} {fraction}: {reason}. {advice}") from error
    return x_kept, y_kept, x_held, y_held


def one_hot(y: Array, classes: int, smoothing: float = 0.0) -> Array:
    """Returns the target distributions: 1 - smoothing on the class and the rest spread over all classes."""
    return np.eye(classes, dtype=np.float32)[y] * np.float32(1 - smoothing) + np.float32(smoothing / classes)


def batches(
    x: Array,
    y: Array,
    batch_size: int,
    shuffle_seed: int | None = None,
    augment: Callable[[Any, Any], Any] | None = None,
) -> Any:
    """Returns a `tf.data.Dataset` of batches, whose method `set_epoch` chooses their order.

    Args:
        x: examples.
        y: targets.
        batch_size: examples a batch; the last batch may be smaller.
        shuffle_seed: seed of a new order in each epoch. `None` keeps the order of x.
        augment: function of a batch of examples and a seed of shape [2] that changes the examples.
    """
    import tensorflow as tf

    x, y = tf.constant(x), tf.constant(y)
    size, order = len(x), EpochOrder(shuffle_seed)

    def plan(rng: np.random.Generator | None) -> Iterator[Any]:
        rows = np.arange(size) if rng is None else rng.permutation(size)
        # Seeds that travel with the batches give the same images whatever thread works on them.
        seeds = (rng or np.random.default_rng(0)).integers(2**31, size=(-(-size // batch_size), 2))
        for seed, start in zip(seeds, range(0, size, batch_size), strict=True):
            yield rows[start : start + batch_size], seed

    signature = (tf.TensorSpec((None,), tf.int64), tf.TensorSpec((2,), tf.int64))
    rows = in_epochs(order, plan, signature, -(-size // batch_size))
    dataset = rows.map(lambda i, seed: (tf.gather(x, i), tf.gather(y, i), seed))
    if augment is None:
        dataset = dataset.map(lambda x, y, _: (x, y))
    else:
        dataset = dataset.map(lambda x, y, seed: (augment(x, seed), y), num_parallel_calls=tf.data.AUTOTUNE)
    return told_by(order, dataset.prefetch(tf.data.AUTOTUNE))


def class_weights(y: Array, classes: int) -> Array:
    """Returns for each example the inverse frequency of its class; their mean is 1."""
    return (len(y) / (classes * np.maximum(np.bincount(y, minlength=classes), 1)))[y].astype(np.float32)


def shift_and_rotate(
    images: Any, seed: Any, pixels: float = 2.0, degrees: float = 10.0, zoom: float = 0.0, mirrored: bool = False
) -> Any:
    """Returns images, each shifted, rotated and scaled at random.

    Args:
        images: bytes [n, height, width], or with channels [n, height, width, channel].
        seed: of what is random, [2].
        pixels: largest shift to each side.
        degrees: largest rotation to each side.
        zoom: by which share a side grows or shrinks at most.
        mirrored: whether half of the images exchange left and right.

    Returns:
        Images of the same shape. Pixels from outside are 0, or with channels those at the edge.
    """
    import keras
    import tensorflow as tf

    plain = len(images.shape) == 3
    n, height, width = tf.shape(images)[0], images.shape[1], images.shape[2]
    seed = tf.cast(seed, tf.int32)
    turn, right, down = tf.unstack(tf.random.stateless_uniform([3, n], seed, -1.0, 1.0))
    angle = turn * (degrees * np.pi / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    size, side = tf.unstack(tf.random.stateless_uniform([2, n], seed + 1, -1.0, 1.0))
    factor = 1.0 + zoom * size
    cos, sin = cos / factor, sin / factor
    flip = tf.where(side < 0, -1.0, 1.0) if mirrored else tf.ones_like(side)
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    # The transform maps a pixel of the result to where it is read from; the middle stays but for the shift.
    dx = right * pixels + middle_x - flip * cos * middle_x + sin * middle_y
    dy = down * pixels + middle_y - flip * sin * middle_x - cos * middle_y
    zero = tf.zeros_like(cos)
    transforms = tf.stack([flip * cos, -sin, dx, flip * sin, cos, dy, zero, zero], axis=1)
    moved = keras.ops.image.affine_transform(
        tf.cast(images[..., None] if plain else images, tf.float32),
        transforms,
        "bilinear",
        fill_mode="constant" if plain else "nearest",
        data_format="channels_last",
    )
    return tf.cast(tf.round(moved[..., 0] if plain else moved), images.dtype)


def change_light(images: Any, seed: Any, share: float = 0.2) -> Any:
    """Returns images [n, height, width, channel] of bytes with another brightness and contrast, each at random.

    Args:
        images: bytes.
        seed: of what is random, [2].
        share: how much brighter or darker, and with how much more or less contrast, at most.
    """
    import tensorflow as tf

    seed = tf.cast(seed, tf.int32) + 2
    light, contrast = tf.unstack(tf.random.stateless_uniform([2, tf.shape(images)[0], 1, 1, 1], seed, -share, share))
    values = tf.cast(images, tf.float32)
    mean = tf.reduce_mean(values, axis=(1, 2, 3), keepdims=True)
    values = (values - mean) * (1.0 + contrast) + mean + 255.0 * light
    return tf.cast(tf.round(tf.clip_by_value(values, 0.0, 255.0)), images.dtype)

"""From arrays to batches: held-out examples, targets, `tf.data` pipelines and augmentation."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import UsageError

Array = np.ndarray[Any, Any]


def hold_out(x: Array, y: Array, fraction: float, seed: int) -> tuple[Array, Array, Array, Array]:
    """Returns x and y without a random `fraction` of each class, then x and y of this fraction.

    Raises:
        UsageError: `fraction` leaves one side without some class.
    """
    from sklearn.model_selection import train_test_split

    try:
        x_kept, x_held, y_kept, y_held = train_test_split(x, y, test_size=fraction, stratify=y, random_state=seed)
    except ValueError as error:
        raise UsageError(f"--validation-split {fraction}: {' '.join(str(error).split())}") from error
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
    """Returns a `tf.data.Dataset` of batches.

    Args:
        x: examples.
        y: targets.
        batch_size: examples a batch; the last batch may be smaller.
        shuffle_seed: seed of a new order in each epoch. `None` keeps the order of x.
        augment: function of a batch of examples and a seed of shape [2] that changes the examples.
    """
    import tensorflow as tf

    x, y = tf.constant(x), tf.constant(y)
    # Shuffling indices instead of examples fills the shuffle buffer at once and copies nothing.
    rows = tf.data.Dataset.range(len(x))
    if shuffle_seed is not None:
        rows = rows.shuffle(len(x), seed=shuffle_seed, reshuffle_each_iteration=True)
    dataset = rows.batch(batch_size).map(lambda i: (tf.gather(x, i), tf.gather(y, i)))
    if augment is not None:
        # Seeds that travel with the batches give the same images whatever thread works on them.
        seeds = tf.data.Dataset.random(shuffle_seed or 0, rerandomize_each_iteration=True).batch(2)
        dataset = tf.data.Dataset.zip(dataset, seeds).map(
            lambda batch, seed: (augment(batch[0], seed), batch[1]), num_parallel_calls=tf.data.AUTOTUNE
        )
    return dataset.prefetch(tf.data.AUTOTUNE)


def shift_and_rotate(images: Any, seed: Any, pixels: float = 2.0, degrees: float = 10.0) -> Any:
    """Returns images [n, height, width], each shifted and rotated at random; pixels from outside the image are 0."""
    import keras
    import tensorflow as tf

    n, height, width = tf.shape(images)[0], images.shape[1], images.shape[2]
    turn, right, down = tf.unstack(tf.random.stateless_uniform([3, n], tf.cast(seed, tf.int32), -1.0, 1.0))
    angle = turn * (degrees * np.pi / 180)
    cos, sin = tf.cos(angle), tf.sin(angle)
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    # The transform maps a pixel of the result to where it is read from; the middle stays but for the shift.
    dx = right * pixels + middle_x - cos * middle_x + sin * middle_y
    dy = down * pixels + middle_y - sin * middle_x - cos * middle_y
    zero = tf.zeros_like(cos)
    transforms = tf.stack([cos, -sin, dx, sin, cos, dy, zero, zero], axis=1)
    moved = keras.ops.image.affine_transform(
        tf.cast(images, tf.float32)[..., None],
        transforms,
        "bilinear",
        fill_mode="constant",
        data_format="channels_last",
    )
    return tf.cast(tf.round(moved[..., 0]), images.dtype)

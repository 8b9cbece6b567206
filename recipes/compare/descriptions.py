"""Digits and their written descriptions: a task with two kinds of data, neither of which is enough."""

from typing import Any

import numpy as np

from ..run.batches import Array

FACTS = {
    "parity": (("even", "odd"), lambda digit: digit % 2),
    "size": (("small", "large"), lambda digit: int(digit >= 5)),
    "holes": (("open", "looped"), lambda digit: int(digit in (0, 6, 8, 9))),
    "lines": (("curved", "straight"), lambda digit: int(digit in (1, 4, 7))),
}
"""What a description can tell of a digit: its two words, and which of them is true."""
LOOKS = ("bold", "thin")
FORMS = ("a {look} {fact} digit", "somebody wrote a {fact} number", "this one is {fact} and {look}", "{fact} , {look}")
LENGTH = 6
"""Words of the longest description."""
NOISE = 0.3
"""Standard deviation of what is added to the pixels, from 0 to 1: without it the image would be enough."""


def vocabulary() -> list[str]:
    """Returns all words; the first one stands for none."""
    texts = [word for form in FORMS for word in form.split() if "{" not in word]
    facts = [word for pair, _ in FACTS.values() for word in pair]
    return ["", *dict.fromkeys([*texts, *facts, *LOOKS])]


def describe(digits: Array, images: Array, rng: np.random.Generator) -> list[str]:
    """Returns a sentence for each digit, which tells one fact of it, and in most forms how much ink there is.

    Args:
        digits: 0 to 9, [n].
        images: from 0 to 1, [n, side, side].
        rng: draws facts and forms.
    """
    ink = images.mean(axis=(1, 2))
    bold, names, found = ink > np.median(ink), list(FACTS), list[str]()
    for digit, is_bold in zip(digits, bold, strict=True):
        pair, which = FACTS[names[rng.integers(len(names))]]
        form = FORMS[rng.integers(len(FORMS))]
        found.append(form.format(fact=pair[which(int(digit))], look=LOOKS[0 if is_bold else 1]))
    return found


def encode(texts: list[str]) -> Array:
    """Returns the numbers of the words, [n, LENGTH], with zeros behind them."""
    numbers = {word: i for i, word in enumerate(vocabulary())}
    rows = [[numbers[word] for word in text.split()] for text in texts]
    return np.array([row + [0] * (LENGTH - len(row)) for row in rows], "int32")


def pairs(images: Array, digits: Array, seed: int) -> dict[str, Array]:
    """Returns noisy images and encoded descriptions, by the names of the inputs of `two_towers`.

    Args:
        images: from 0 to 1, [n, side, side].
        digits: [n].
        seed: of noise and descriptions.
    """
    rng = np.random.default_rng(seed)
    words = encode(describe(digits, images, rng))
    noisy = images + NOISE * rng.normal(size=images.shape)
    return {"image": noisy.astype("float32"), "words": words}


def two_towers(side: int) -> Any:
    """Returns a model from images and words to the logits of ten classes.

    The paths of its weights begin with `image`, `words` and `head`, for rules by tower.
    """
    import keras
    from keras import layers

    image = keras.Input((side, side), name="image")
    x = layers.Reshape((side, side, 1))(image)
    for i, filters in enumerate((8, 16)):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"image_conv{i}")(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Dense(64, activation="relu", name="image_dense")(layers.Flatten()(x))
    words = keras.Input((LENGTH,), dtype="int32", name="words")
    y = layers.Embedding(len(vocabulary()), 32, mask_zero=True, name="words_embedding")(words)
    y = layers.Dense(64, activation="relu", name="words_dense")(layers.GlobalAveragePooling1D()(y))
    z = layers.Dense(64, activation="relu", name="head_dense")(layers.Concatenate()([x, y]))
    return keras.Model({"image": image, "words": words}, layers.Dense(10, name="head_logits")(z))

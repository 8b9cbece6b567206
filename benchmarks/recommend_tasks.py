"""The small tasks of `benchmarks.recommend`.

`DEVELOPMENT` are those that the rules of `kopt.recommend` were improved by: five at first, then the five by which
what came of it was judged. `JUDGING` are those written after the rules, of five rows of their table.
"""

import unicodedata
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers
from sklearn import datasets

from recipes.compare.tasks import Task


def _dense(inputs: int, hidden: list[int], outputs: int, activation: str) -> Callable[[], Any]:
    def make() -> Any:
        body = [layers.Dense(width, activation) for width in hidden]
        return keras.Sequential([keras.Input((inputs,)), *body, layers.Dense(outputs)])

    return make


def _classes() -> Any:
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _scaled(x: Any) -> Any:
    return ((x - x.mean(axis=0)) / x.std(axis=0)).astype("float32")


def _split(x: Any, y: Any, held: int) -> tuple[Any, Any]:
    order = np.random.default_rng(7).permutation(len(y))
    x, y = x[order], y[order]
    return (x[held:], y[held:]), (x[:held], y[:held])


def diabetes() -> Task:
    """Returns a regression on ten measurements."""
    x, y = datasets.load_diabetes(return_X_y=True)
    parts = _split(_scaled(x), _scaled(y)[:, None], 90)
    return Task("diabetes, dense 10-32-1", _dense(10, [32], 1, "relu"), "mse", *parts, 32, 160)


def spirals() -> Task:
    """Returns three spiral arms in the plane, to be told apart."""
    rng = np.random.default_rng(11)
    arm, radius = rng.integers(3, size=1500), np.sqrt(rng.random(1500))
    angle = 2 * np.pi * arm / 3 + 4 * radius + 0.15 * rng.normal(size=1500)
    x = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype("float32")
    parts = _split(x, arm, 500)
    return Task("three spirals, dense 2-32-32-3", _dense(2, [32, 32], 3, "relu"), _classes(), *parts, 50, 200)


def cancer() -> Task:
    """Returns a diagnosis from thirty measurements, all examples in one batch."""
    x, y = datasets.load_breast_cancer(return_X_y=True)
    parts = _split(_scaled(x), y, 150)
    size = len(parts[0][1])
    return Task("breast cancer, dense 30-16-2, full batch", _dense(30, [16], 2, "tanh"), _classes(), *parts, size, 120)


def names() -> Task:
    """Returns the names of Unicode characters, each letter to be predicted from those before it."""
    text = "\n".join(unicodedata.name(chr(code), "") for code in range(0x250, 0x1800)).encode()
    used = sorted(set(text))
    rows = np.array([used.index(byte) for byte in text[: len(text) // 17 * 17]], "int32").reshape(-1, 17)

    def make() -> Any:
        tokens = keras.Input((16,), dtype="int32")
        places = layers.Embedding(16, 32)(keras.ops.arange(16))
        x = layers.Embedding(len(used), 32)(tokens) + places
        x = x + layers.MultiHeadAttention(2, 16)(layers.LayerNormalization()(x), x, use_causal_mask=True)
        x = x + layers.Dense(32)(layers.Dense(64, "gelu")(layers.LayerNormalization()(x)))
        return keras.Model(tokens, layers.Dense(len(used))(x))

    train, test = _split(rows[:, :-1], rows[:, 1:], 400)
    return Task("names of characters, one block of attention", make, _classes(), train, test, 32, 200)


def shop() -> Task:
    """Returns drawn ratings of articles by customers, a product of three tastes and what each is liked in general."""
    rng = np.random.default_rng(13)
    pairs = np.stack([rng.integers(300, size=16_000), rng.integers(150, size=16_000)], axis=1).astype("int32")
    tastes, kinds, liked = rng.normal(size=(300, 3)), rng.normal(size=(150, 3)), rng.normal(size=150)
    y = (tastes[pairs[:, 0]] * kinds[pairs[:, 1]]).sum(axis=1) / 1.7 + 0.5 * liked[pairs[:, 1]]
    y = (y + 0.3 * rng.normal(size=len(y))).astype("float32")[:, None]

    def make() -> Any:
        pair = keras.Input((2,), dtype="int32")
        customer, article = (layers.Embedding(size, 8)(pair[:, i]) for i, size in enumerate((300, 150)))
        bias = layers.Embedding(150, 1)(pair[:, 1])
        return keras.Model(pair, layers.Add()([layers.Dot(axes=1)([customer, article]), bias]))

    return Task("ratings of a shop, factorization", make, "mse", *_split(pairs, y, 3000), 100, 260)


def shapes() -> Task:
    """Returns pictures of discs, squares, crosses and rings at any place, in noise."""
    rng, size = np.random.default_rng(17), 2000
    kind, reach = rng.integers(4, size=size), rng.uniform(2, 4, size=(size, 1, 1))
    place = rng.uniform(4, 8, size=(2, size, 1, 1))
    down, right = np.abs(np.arange(12)[:, None] - place[0]), np.abs(np.arange(12) - place[1])
    radius, side = np.hypot(down, right), np.maximum(down, right)
    cross = (np.minimum(down, right) < 0.8) & (side < reach)
    drawn = np.stack([radius < reach, side < 0.9 * reach, cross, np.abs(radius - reach) < 0.7])
    x = drawn[kind, np.arange(size)] + 0.4 * rng.normal(size=(size, 12, 12))

    def make() -> Any:
        body = [layers.Conv2D(16, 3, activation="relu"), layers.MaxPooling2D(), layers.Conv2D(32, 3, activation="relu")]
        return keras.Sequential([keras.Input((12, 12, 1)), *body, layers.GlobalAveragePooling2D(), layers.Dense(4)])

    parts = _split(x[..., None].astype("float32"), kind, 500)
    return Task("shapes in noise, two convolutions", make, _classes(), *parts, 50, 200)


def sums() -> Task:
    """Returns sequences of numbers of which the marked ones are to be added up."""
    rng, shape = np.random.default_rng(19), (4000, 12)
    numbers, marks = rng.normal(size=shape), rng.random(shape) < 0.3
    y = (numbers * marks).sum(axis=1, keepdims=True).astype("float32")

    def make() -> Any:
        return keras.Sequential([keras.Input((12, 2)), layers.GRU(32), layers.Dense(1)])

    parts = _split(np.stack([numbers, marks], axis=-1).astype("float32"), y, 1000)
    return Task("sums of marked numbers, GRU of 32", make, "mse", *parts, 50, 240)


def wine() -> Task:
    """Returns the cultivar of a wine from thirteen measurements."""
    x, y = datasets.load_wine(return_X_y=True)
    return Task("wine, dense 13-24-3", _dense(13, [24], 3, "tanh"), _classes(), *_split(_scaled(x), y, 58), 16, 140)


def friedman() -> Task:
    """Returns Friedman's first regression: five of ten inputs count."""
    x, y = datasets.make_friedman1(n_samples=2000, noise=0.5, random_state=23)
    parts = _split(_scaled(x), _scaled(y)[:, None], 500)
    return Task("Friedman's first, dense 10-128-128-1", _dense(10, [128, 128], 1, "gelu"), "mse", *parts, 50, 240)


def clicks() -> Task:
    """Returns whether a visitor clicks on a page: the nearer their two places in a plane, the more often."""
    rng = np.random.default_rng(29)
    pairs = np.stack([rng.integers(200, size=16_000), rng.integers(120, size=16_000)], axis=1).astype("int32")
    visitors, pages = rng.normal(size=(200, 2)), rng.normal(size=(120, 2))
    distance = np.hypot(*(visitors[pairs[:, 0]] - pages[pairs[:, 1]]).T)
    y = (rng.random(len(pairs)) < 1 / (1 + np.exp(4 * (distance - 1.5)))).astype("float32")[:, None]

    def make() -> Any:
        pair = keras.Input((2,), dtype="int32")
        both = [layers.Embedding(size, 8)(pair[:, i]) for i, size in enumerate((200, 120))]
        return keras.Model(pair, layers.Dense(1)(layers.Dense(32, "relu")(layers.Concatenate()(both))))

    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    return Task("clicks, two tables and a dense head", make, loss, *_split(pairs, y, 3000), 64, 260)


def figures() -> Task:
    """Returns figures as a pen draws them: circles either way round, eights and zigzags, begun anywhere."""
    rng, size = np.random.default_rng(41), 3000
    kind = rng.integers(4, size=size)
    turns, begun = rng.uniform(0.8, 1.6, size=(size, 1)), rng.uniform(0, 2 * np.pi, size=(size, 1))
    angle = begun + 2 * np.pi * turns * np.linspace(0, 1, 20)
    zigzag = np.stack([np.linspace(-1, 1, 20) + 0 * angle, 2 * np.abs(2 * ((2 * angle / np.pi) % 1) - 1) - 1])
    circle, eight = np.stack([np.cos(angle), np.sin(angle)]), np.stack([np.sin(angle), np.sin(2 * angle)])
    drawn = np.stack([circle, circle * [[[1]], [[-1]]], eight, zigzag])[kind, :, np.arange(size)]
    x = drawn.transpose(0, 2, 1) + 0.3 * rng.normal(size=(size, 20, 2))

    def make() -> Any:
        return keras.Sequential([keras.Input((20, 2)), layers.LSTM(24), layers.Dense(4)])

    parts = _split(x.astype("float32"), kind, 600)
    return Task("figures of a pen, LSTM of 24", make, _classes(), *parts, 50, 240)


def kinds() -> Task:
    """Returns four kinds of things, told apart by eight of twenty measurements."""
    x, y = datasets.make_classification(900, 20, n_informative=8, n_redundant=4, n_classes=4, random_state=43)
    parts = _split(_scaled(x), y, 250)
    return Task("four kinds, dense 20-32-16-4", _dense(20, [32, 16], 4, "relu"), _classes(), *parts, 32, 160)


def orders() -> Task:
    """Returns whether a customer orders an article on a day of the week: by tastes, by prices, more on some days."""
    rng, sizes = np.random.default_rng(47), (250, 180, 7)
    rows = np.stack([rng.integers(n, size=18_000) for n in sizes], axis=1).astype("int32")
    tastes, articles = rng.normal(size=(250, 2)), rng.normal(size=(180, 2))
    means, prices, days = rng.normal(size=250), rng.normal(size=180), rng.normal(size=7)
    customer, article, day = rows.T
    fits = (tastes[customer] * articles[article]).sum(axis=1)
    logits = 1.5 * fits - 1.5 * np.maximum(prices[article] - means[customer], 0) + days[day]
    y = (rng.random(len(rows)) < 1 / (1 + np.exp(-logits))).astype("float32")[:, None]

    def make() -> Any:
        row = keras.Input((3,), dtype="int32")
        tables = [layers.Embedding(size, 6)(row[:, i]) for i, size in enumerate(sizes)]
        return keras.Model(row, layers.Dense(1)(layers.Dense(24, "relu")(layers.Concatenate()(tables))))

    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    return Task("orders, three tables and a dense head", make, loss, *_split(rows, y, 3000), 64, 260)


def mirrored() -> Task:
    """Returns rows of eight letters, each to be written backwards."""
    rng = np.random.default_rng(53)
    rows = rng.integers(8, size=(4000, 8)).astype("int32")

    def make() -> Any:
        letters = keras.Input((8,), dtype="int32")
        x = layers.Embedding(8, 24)(letters) + layers.Embedding(8, 24)(keras.ops.arange(8))
        x = x + layers.MultiHeadAttention(2, 12)(layers.LayerNormalization()(x), x)
        x = x + layers.Dense(24)(layers.Dense(48, "gelu")(layers.LayerNormalization()(x)))
        return keras.Model(letters, layers.Dense(8)(x))

    parts = _split(rows, rows[:, ::-1].copy(), 500)
    return Task("letters backwards, one block of attention", make, _classes(), *parts, 50, 240)


def beats() -> Task:
    """Returns signals in which one of four pulses comes twice, in noise."""
    rng, size = np.random.default_rng(59), 2500
    kind, t = rng.integers(4, size=size), np.arange(48)
    at, width = rng.uniform(6, 42, size=(2, size, 1)), rng.uniform(1.5, 3, size=(size, 1))
    pulses = np.zeros((4, size, 48))
    for place in at:
        u = (t - place) / width
        hill = np.exp(-(u**2))
        pulses += np.stack([hill, hill * u * 2, hill * (1 - 2 * u**2), (np.abs(u) < 1) * 0.8])
    x = pulses[kind, np.arange(size)] + 0.25 * rng.normal(size=(size, 48))

    def make() -> Any:
        body = [layers.Conv1D(16, 5, activation="relu"), layers.MaxPooling1D(), layers.Conv1D(32, 5, activation="relu")]
        return keras.Sequential([keras.Input((48, 1)), *body, layers.GlobalMaxPooling1D(), layers.Dense(4)])

    parts = _split(x[..., None].astype("float32"), kind, 500)
    return Task("beats in noise, two convolutions in time", make, _classes(), *parts, 50, 200)


DEVELOPMENT: dict[str, Callable[[], Task]] = {
    "diabetes": diabetes,
    "spirals": spirals,
    "cancer": cancer,
    "names": names,
    "shop": shop,
    "shapes": shapes,
    "sums": sums,
    "wine": wine,
    "friedman": friedman,
    "clicks": clicks,
}
JUDGING: dict[str, Callable[[], Task]] = {
    "figures": figures,
    "kinds": kinds,
    "orders": orders,
    "mirrored": mirrored,
    "beats": beats,
}

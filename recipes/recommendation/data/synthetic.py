"""Ratings whose best reachable error is known, for a run without a file."""

import numpy as np

from .features import Feature, Table
from .interactions import Interactions, Vocabulary

NOISE = 0.5
"""Standard deviation of the noise in a synthetic rating, which is the RMSE of the best model."""


def synthetic_ratings(
    users: int = 1000, items: int = 500, count: int = 200_000, factors: int = 4
) -> tuple[Interactions, Table, Table]:
    """Returns synthetic ratings: products of latent factors, with biases and noise, of items of skewed popularity.

    The two features of an item partly determine its factors. Users prefer to rate what they like.
    """
    rng = np.random.default_rng(0)
    vocabularies = Vocabulary(f"user {i}" for i in range(users)), Vocabulary(f"item {i}" for i in range(items))
    kind, era = rng.integers(0, 8, items), rng.integers(0, 5, items)
    q = rng.normal(size=(8, factors))[kind] + 0.5 * rng.normal(size=(items, factors))
    p = rng.normal(size=(users, factors)) / factors**0.5
    liked = p @ q.T + 0.4 * rng.normal(size=(users, 1)) + 0.4 * rng.normal(size=(1, items)) + 0.2 * era
    popularity = 1 / np.arange(1, items + 1) ** 0.6
    odds = rng.permutation(popularity)[None] * np.exp(0.7 * liked)
    picked = np.argsort(-np.log(odds) + np.log(-np.log(rng.uniform(size=odds.shape))), 1)[:, : count // users]
    user, item = np.repeat(np.arange(users), picked.shape[1]), picked.ravel()
    label = 3 + liked[user, item] + NOISE * rng.normal(size=len(user))
    rows = rng.permutation(len(user))
    who, what = ((part[rows] + 1).astype(np.int32) for part in (user, item))
    time = np.arange(len(rows), dtype=np.float64)
    whole = Interactions(*vocabularies, who, what, label[rows].astype(np.float32), time, "made ratings")
    features = [
        Feature("kind", [f"kind {i}" for i in range(8)], np.insert(kind + 1, 0, 0)[:, None].astype(np.int32)),
        Feature("era", [f"era {i}" for i in range(5)], np.insert(era + 1, 0, 0)[:, None].astype(np.int32)),
    ]
    titles = [f"Item {i}, of kind {k} and era {e}" for i, (k, e) in enumerate(zip(kind, era, strict=True))]
    return whole, Table(["", *vocabularies[0].keys], []), Table(["", *titles], features)

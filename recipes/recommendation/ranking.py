"""Metrics of rankings and ratings, and the baselines that need no model."""

from collections.abc import Callable, Sequence

import numpy as np

from ..run.batches import Array
from .batches import by_user
from .data.interactions import Interactions

Scores = Callable[[Array], Array]
"""Function of numbers of users [n] that gives the scores [n, items] of all items."""
MAX_USERS = 10_000
"""Ranks are measured on at most this many users of the test set, drawn at random."""
CHUNK = 128


def rank(scores: Scores, test: Interactions, seen: Interactions, ks: Sequence[int]) -> dict[str, float]:
    """Returns recall and NDCG at each k, the mean reciprocal rank, and the share of items recommended to any user.

    The test items of a user are ranked among all items except those that the user has already seen.

    Args:
        scores: what is measured.
        test: the items to find.
        seen: the items to leave out.
        ks: lengths of the lists.
    """
    users = np.unique(test.user)
    if len(users) > MAX_USERS:
        users = np.sort(np.random.default_rng(0).choice(users, MAX_USERS, replace=False))
    (wanted, wanted_at), (known, known_at) = by_user(test), by_user(seen)
    names = ["mrr", *(f"{name}_at_{k}" for k in ks for name in ("recall", "ndcg"))]
    found: dict[str, list[float]] = {name: [] for name in names}
    shown: set[int] = set()
    for start in range(0, len(users), CHUNK):
        some = users[start : start + CHUNK]
        for user, values in zip(some, np.array(scores(some), np.float32), strict=True):
            relevant = np.unique(wanted[wanted_at[user] : wanted_at[user + 1]])
            values[np.setdiff1d(known[known_at[user] : known_at[user + 1]], relevant)] = -np.inf
            values[0] = -np.inf
            ranks = np.sort([count_ahead(values, item) for item in relevant]) + 1
            found["mrr"].append(1 / ranks[0])
            for k in ks:
                gains = 1 / np.log2(ranks[ranks <= k] + 1)
                ideal = 1 / np.log2(np.arange(2, min(k, len(ranks)) + 2))
                found[f"recall_at_{k}"].append(len(gains) / len(ranks))
                found[f"ndcg_at_{k}"].append(gains.sum() / ideal.sum())
            shown.update(np.argsort(-values, kind="stable")[: ks[0]].tolist())
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return means | {"coverage": len(shown - {0}) / (len(test.items) - 1)}


def count_ahead(values: Array, item: int) -> int:
    """Returns how many items are ranked before one; of equal scores the lower number comes first."""
    return int((values > values[item]).sum() + (values[:item] == values[item]).sum())


def popularity(seen: Interactions) -> Array:
    """Returns how often each item [items] was chosen."""
    return np.bincount(seen.item, minlength=len(seen.items)).astype(np.float32)


def score_by_popularity(seen: Interactions) -> Scores:
    """Returns scores that are the same for every user: how often each item was chosen."""
    counts = popularity(seen)
    return lambda users: np.tile(counts, (len(users), 1))


def fit_biases(
    train: Interactions,
    strength: float = 5.0,
    rounds: int = 10,
    *,
    start: Array | None = None,
    free: tuple[Array, Array] | None = None,
) -> tuple[float, Array, Array]:
    """Returns the mean rating and the biases of users and items, shrunk as if `strength` more ratings had no bias.

    Reference: Koren, 2010, doi:10.1145/1644873.1644874, section 2.1, by alternating exact minima.

    Args:
        train: interactions with labels.
        strength: of the shrinkage.
        rounds: how often biases of items and of users are found.
        start: ratings [n] that the biases are added to; `None` takes their mean.
        free: masks [users] and [items] of the biases that may differ from 0; `None` is all.
    """
    assert train.label is not None
    mean = float(train.label.mean(dtype=np.float64)) if start is None else 0.0
    rest = train.label - (mean if start is None else start.astype(np.float64))
    user, item = np.zeros(len(train.users)), np.zeros(len(train.items))
    free_user, free_item = (True, True) if free is None else free
    sides = (item, train.item, free_item, user, train.user), (user, train.user, free_user, item, train.item)
    for _ in range(rounds):
        for own, ids, may, other, others in sides:
            sums = np.bincount(ids, rest - other[others], len(own))
            own[:] = may * sums / (np.bincount(ids, minlength=len(own)) + strength)
    return mean, user, item


def best(scores: Array, k: int) -> Array:
    """Returns the numbers of the k items with the highest scores [items], the best first, without those of -inf.

    Of equal scores the lower number comes first.
    """
    k = min(k, len(scores))
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    some = np.flatnonzero((scores >= least) & np.isfinite(scores))
    return np.asarray(some[np.argsort(-scores[some], kind="stable")][:k])


def rating_errors(predicted: Array, truth: Array) -> dict[str, float]:
    """Returns root mean square and mean absolute error."""
    difference = predicted.astype(np.float64) - truth
    return {"rmse": float(np.sqrt((difference**2).mean())), "mae": float(np.abs(difference).mean())}

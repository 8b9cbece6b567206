"""Runs scikit-surprise's SVD and implicit's ALS on the splits of recipes.recommendation.

    pip install scikit-surprise implicit
    python -m benchmarks.recommenders --interactions ratings.csv --user-column userId --item-column movieId \
        --label-column rating --time-column timestamp [--seeds 0 1 2 3 4]
    python -m benchmarks.recommenders --data movielens-100k --seeds

Prints the RMSE of SVD on the random split of each seed, and the ranks of ALS on the leave-one-out split, measured as
the recipe measures its own, beside the baselines: on the validation set, trained without it, and on the test set.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np

from recipes.recommendation import ranking
from recipes.recommendation.data import splits
from recipes.recommendation.data.data_flags import DataFlags


def svd(data, seed):
    """Returns the RMSE of SVD with its defaults."""
    import surprise

    def rows(part):
        return list(zip(part.user.tolist(), part.item.tolist(), part.label.astype(float).tolist(), strict=True))

    low, high = float(data.known.label.min()), float(data.known.label.max())
    frame = surprise.Dataset(surprise.Reader(rating_scale=(low, high)))
    train = frame.construct_trainset([(*row, None) for row in rows(data.known)])
    model = surprise.SVD(random_state=seed)
    model.fit(train)
    found = np.array([p.est for p in model.test(rows(data.test))])
    return ranking.rating_errors(found, data.test.label)["rmse"]


def als(data, ks, seed, **options):
    """Returns the ranks of ALS."""
    import implicit
    import scipy.sparse

    train = data.known
    shape = len(train.users), len(train.items)
    matrix = scipy.sparse.csr_matrix((np.ones(len(train), np.float32), (train.user, train.item)), shape)
    model = implicit.als.AlternatingLeastSquares(random_state=seed, num_threads=1, **options)
    model.fit(matrix, show_progress=False)
    return ranking.rank(lambda users: model.user_factors[users] @ model.item_factors.T, data.test, train, ks)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interactions", type=Path)
    parser.add_argument("--data")
    for name in ("user", "item", "label", "time"):
        parser.add_argument(f"--{name}-column")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    flags = parser.parse_args()
    given = {k: v for k, v in vars(flags).items() if v is not None and k != "seeds"}
    pairs = DataFlags(**given)
    found = []
    for seed in flags.seeds:
        data = splits.load(pairs, True, seed)
        mean, user, item = ranking.fit_biases(data.known)
        plain = ranking.rating_errors(mean + user[data.test.user] + item[data.test.item], data.test.label)["rmse"]
        found.append(svd(data, seed))
        print(f"seed {seed}: SVD rmse {found[-1]:.4f}, biases {plain:.4f}", flush=True)
    if found:
        print(f"SVD rmse, mean of {len(found)}: {statistics.mean(found):.4f}")
    data = splits.load(pairs, False, 0)
    print("popularity", ranking.rank(ranking.score_by_popularity(data.known), data.test, data.known, (10,)))
    for factors in (32, 64, 100):
        for regularization in (0.01, 0.1):
            options = {"factors": factors, "regularization": regularization}
            before = data._replace(known=data.train, test=data.validation)
            held = als(before, (10,), 0, **options)["ndcg_at_10"]
            print("ALS", options, f"validation {held:.4f}, test", als(data, (10,), 0, **options), flush=True)


if __name__ == "__main__":
    main()

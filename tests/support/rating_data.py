"""Interactions made for the tests of the recommendation recipe, and where its runs are."""

import json
from pathlib import Path

import keras
import numpy as np

from recipes.recommendation import training
from recipes.recommendation.data.features import Feature, Table
from recipes.recommendation.data.interactions import Interactions, Vocabulary
from recipes.recommendation.data.splits import Data
from recipes.recommendation.flags import ModelFlags, Train, fill
from recipes.recommendation.saved_run import Saved

USERS, ITEMS = 30, 20
TASTES = Feature("taste", ["odd", "even"], np.array([[0], [1], [2], [1], [0]], np.int32))
AGES = Feature("age", ["1.0 to 30.0", "30.0 to 60.0"], np.array([[0], [1], [2], [2], [0]], np.int32), (1.0, 30.0, 60.0))
GENRES = Feature("genre", ["War", "Drama"], np.array([[0, 0], [1, 0], [2, 0], [1, 2], [1, 0], [2, 0]], np.int32))


def interactions(user, item, label=None, time=None, users=USERS, items=ITEMS):
    known = Vocabulary(map(str, range(1, users + 1))), Vocabulary(map(str, range(1, items + 1)))
    parts = [np.array(user, np.int32), np.array(item, np.int32)]
    label = None if label is None else np.array(label, np.float32)
    return Interactions(*known, *parts, label, None if time is None else np.array(time, np.float64), "made")


def folder(name):
    return Path("saved_models/recommendation") / name


def read_metrics(name):
    return json.loads((folder(name) / "metrics.json").read_text())


def make_model(kind="two-tower", hidden=3, task="rating", buckets=0):
    """A model of four users and five items, of which the last ones have features but no interactions."""
    part = interactions([1, 1, 2, 2, 3], [1, 2, 2, 3, 1], [5, 3, 2, 4, 1], users=4, items=5)
    sizes = {"embedding_dim": 2, "hidden": hidden, "history": 3, "hash_buckets": buckets, "dropout": 0.0}
    flags = fill(Train(choose=ModelFlags(task=task, model=kind, **sizes)))
    titles = ["", *(f"Film {i}" for i in range(1, 6))]
    data = Data(part, None, part, part, Table(["", "1", "2", "3", "4"], [TASTES, AGES]), Table(titles, [GENRES]), None)
    keras.utils.set_random_seed(1)
    model = training.build(flags, data, part)
    for variable in model.trainable_variables:
        if "bag" in variable.path:
            variable.assign(10 * variable)
    return Saved(model, part.users, part.items, titles, training.meanings(flags, data), part), flags

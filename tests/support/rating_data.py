"""Interactions made for the tests of the recommendation recipe, and where its runs are."""

import json
from pathlib import Path

import numpy as np

from recipes.recommendation.data.interactions import Interactions, Vocabulary

USERS, ITEMS = 30, 20


def interactions(user, item, label=None, time=None, users=USERS, items=ITEMS):
    known = Vocabulary(map(str, range(1, users + 1))), Vocabulary(map(str, range(1, items + 1)))
    parts = [np.array(user, np.int32), np.array(item, np.int32)]
    label = None if label is None else np.array(label, np.float32)
    return Interactions(*known, *parts, label, None if time is None else np.array(time, np.float64), "made")


def folder(name):
    return Path("saved_models/recommendation") / name


def read_metrics(name):
    return json.loads((folder(name) / "metrics.json").read_text())

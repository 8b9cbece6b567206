"""A trained model with its ids and interactions, as a run saves and restores it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from kopt import peft

from ..readers.arrays import read_npz
from ..readers.files import read_json
from ..run.batches import Array
from ..run.errors import DataError
from ..run.folder import atomic, load_model, read_flags
from . import ranking
from .data.features import Feature, Sides
from .data.interactions import Interactions, Vocabulary, in_order
from .flags import Train
from .models import Recommender


@dataclasses.dataclass
class Saved:
    """The model of a run, the ids of its users and items, and the interactions that it was trained on."""

    model: Recommender
    users: Vocabulary
    items: Vocabulary
    titles: list[str]
    features: Sides
    """Those of the model, with the meaning of their numbers and no values: the model has these."""
    train: Interactions

    @property
    def popularity(self) -> Array:
        """Returns how often each item [items] was chosen."""
        return ranking.popularity(self.train)

    def rate(self, users: Array, items: Array) -> Array:
        """Returns the predicted ratings [n] of pairs of numbers."""
        return np.asarray(self.model.predict({"user": users, "item": items}, batch_size=8192, verbose=0))

    def write(self, folder: Path, adapter: bool) -> None:
        """Writes everything but the model, each file at once or not at all.

        Args:
            folder: of the run.
            adapter: whether to write the adapter of the model in a folder of its own, too.
        """
        features = [[_meaning(feature) for feature in side] for side in self.features]
        ids = {"users": self.users.keys, "items": self.items.keys, "titles": self.titles, "features": features}
        with atomic(folder / "vocabulary.json") as path:
            path.write_text(json.dumps(ids, ensure_ascii=False) + "\n", encoding="utf-8")
        rows = in_order(self.train)
        with atomic(folder / "interactions.npz") as path, path.open("wb") as file:
            np.savez_compressed(file, user=self.train.user[rows], item=self.train.item[rows])
        if adapter:
            peft.save_pretrained(self.model, folder / "adapter")

    @classmethod
    def load(cls, folder: Path) -> "Saved":
        """Returns what `write` has written to the folder of a run, and its model.

        Raises:
            DataError: a file is missing or damaged.
        """
        try:
            ids = read_json(folder / "vocabulary.json")
            user, item = read_npz(folder / "interactions.npz", ["user", "item"])
            users, items, titles = Vocabulary(ids["users"]), Vocabulary(ids["items"]), ids["titles"]
            of_users, of_items = ([_feature(**each) for each in side] for side in ids["features"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{folder}: vocabulary.json does not hold users, items, titles and features. Train again."
            ) from error
        train = Interactions(users, items, user, item, None, None, str(folder))
        return cls(load_model(folder), users, items, titles, (of_users, of_items), train)


def _meaning(feature: Feature) -> dict[str, Any]:
    return {"name": feature.name, "keys": feature.keys, "bounds": list(feature.bounds)}


def _feature(name: str, keys: list[str], bounds: list[float]) -> Feature:
    return Feature(name, keys, np.zeros((0, 1), np.int32), tuple(bounds))


def restore(folder: Path) -> tuple[Train, Saved]:
    """Returns the flags of a run and what it has saved.

    Raises:
        DataError: the folder holds no complete run.
    """
    return read_flags(folder, Train), Saved.load(folder)

"""MovieLens 100K, which the package recbole carries."""

from ...readers import packaged
from .features import Table, read_table
from .interactions import Columns, Interactions, Vocabulary, read_interactions

PACKAGE = "recbole"
FOLDER = "recbole/dataset_example/ml-100k"
COLUMNS = Columns("user_id", "item_id", "rating", "timestamp")


def find() -> packaged.PackagedFile | None:
    """Returns the folder of the data; `None` if the package is not installed."""
    return packaged.find(PACKAGE, FOLDER)


def read(
    found: packaged.PackagedFile, users: Vocabulary | None = None, items: Vocabulary | None = None
) -> tuple[Interactions, Table, Table]:
    """Returns 100,000 ratings of films with the features of users and films, as GroupLens collected them.

    Args:
        found: the folder.
        users: those that there may be; `None` takes all.
        items: the same for films.

    Raises:
        DataError: a file is missing or damaged.
    """
    place = found.path
    whole = read_interactions(place / "ml-100k.inter", COLUMNS, "error", users, items)
    user_table = read_table(place / "ml-100k.user", COLUMNS.user, None, whole.users, "error")
    item_table = read_table(place / "ml-100k.item", COLUMNS.item, "movie_title", whole.items, "error")
    return whole, user_table, item_table


def source(found: packaged.PackagedFile) -> str:
    """Returns where the data are from and on what terms."""
    return f"MovieLens 100K in {found}; the data on the terms of GroupLens"

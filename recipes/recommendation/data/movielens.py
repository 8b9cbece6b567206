"""MovieLens 100K, which the package recbole carries."""

from ...readers import packaged
from .features import Sides, Table, read_table
from .interactions import Columns, Interactions, Vocabulary, read_interactions

PACKAGE = "recbole"
FOLDER = "recbole/dataset_example/ml-100k"
COLUMNS = Columns("user_id", "item_id", "rating", "timestamp")
TITLE = "movie_title"


def find() -> packaged.PackagedFile | None:
    """Returns the folder of the data; `None` if the package is not installed."""
    return packaged.find(PACKAGE, FOLDER)


def read(
    found: packaged.PackagedFile,
    users: Vocabulary | None = None,
    items: Vocabulary | None = None,
    like: Sides | None = None,
) -> tuple[Interactions, Table, Table]:
    """Returns 100,000 ratings of films with the features of users and films, as GroupLens collected them.

    Args:
        found: the folder.
        users: those that there may be; `None` takes all.
        items: the same for films.
        like: the features to read of users and of films; `None` is all.

    Raises:
        DataError: a file is missing or damaged.
    """
    place = found.path
    whole = read_interactions(place / "ml-100k.inter", COLUMNS, "error", users, items)
    of_users, of_items = (None, None) if like is None else like
    user_table = read_table(place / "ml-100k.user", COLUMNS.user, None, whole.users, "error", like=of_users)
    item_table = read_table(place / "ml-100k.item", COLUMNS.item, TITLE, whole.items, "error", like=of_items)
    return whole, user_table, item_table


def source(found: packaged.PackagedFile) -> str:
    """Returns where the data are from and on what terms."""
    return f"MovieLens 100K in {found}; the data on the terms of GroupLens"

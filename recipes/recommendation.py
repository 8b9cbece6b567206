"""Recommendation: learn from who chose what, evaluate, recommend, adapt to what is new.

python -m recipes.recommendation --interactions ratings.csv --label-column rating --task rating
python -m recipes.recommendation evaluate --model saved_models/recommendation/RUN
python -m recipes.recommendation predict --model saved_models/recommendation/RUN --user 42 --k 10 --exclude-seen
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from recipes import _cli, _interactions, _pairs, _recommend_flags, _run
from recipes._cli import UsageError
from recipes._recommend_flags import Train
from recipes._run import OptionalPath

RECIPE = "recommendation"
RunPath = Annotated[Path, tyro.conf.arg(metavar="RUN")]


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Print the test metrics of a run, and those of its baseline where that can be had, as JSON."""

    model: RunPath
    """Folder of a run."""
    interactions: OptionalPath = None
    """File with the columns that the run was trained on, all of it for the test; None is the test set of the run."""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Print place, item, title and score of the best items for a user, separated by tabs."""

    model: RunPath
    """Folder of a run."""
    user: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A user; can be repeated."""
    k: int = 10
    """How many items."""
    exclude_seen: bool = False
    """Leave out what the user has chosen before."""


def train(flags: Train) -> int:
    """Trains and saves a model; returns the exit code."""
    _run.check_run_flags(flags.run)
    _recommend_flags.check(flags)
    folder = _run.run_folder(flags.run, RECIPE, f"{flags.choose.kind}-{flags.optim.optimizer}")
    _run.prepare(flags.run)
    from recipes import _recommend

    return _recommend.train(flags, folder)


def evaluate(flags: Evaluate) -> int:
    """Prints the test metrics of a run as JSON; returns the exit code."""
    from recipes import _recommend

    was, saved = _recommend.restore(flags.model)
    data = was.data if flags.interactions is None else dataclasses.replace(was.data, interactions=flags.interactions)
    if flags.interactions is None:
        part = _pairs.load(data, was.choose.task == "rating", was.run.seed, saved.users, saved.items)
        test, train = part.test, part.train
    else:
        known = saved.users, saved.items
        test = _interactions.read_interactions(flags.interactions, data.columns, data.on_bad_row, *known)
        train = None
    metrics = _recommend.measure(was, saved, test, train)
    print(json.dumps({**metrics, "data": test.source, "test_examples": len(test)}, indent=2))
    return 0


def predict(flags: Predict) -> int:
    """Prints the best items for each user; returns the exit code."""
    _run.at_least("--k", flags.k, 1)
    if not flags.user:
        raise UsageError("predict: give at least one --user.")
    from recipes import _recommend

    was, saved = _recommend.restore(flags.model)
    scorer = saved.scorer(was)
    for user in flags.user:
        number = saved.users.find(user)
        known = bool(number) and bool((saved.train.user == number).any())
        if not known:
            print(f"user {user!r} is unknown: these are the most popular items.", file=sys.stderr)
        scores = scorer(np.array([number]))[0] if known else saved.popularity
        scores = np.array(scores, np.float64)
        scores[0] = -np.inf
        if flags.exclude_seen:
            scores[saved.train.item[saved.train.user == number]] = -np.inf
        best = [i for i in np.argsort(-scores, kind="stable")[: flags.k] if np.isfinite(scores[i])]
        lead = [user] if len(flags.user) > 1 else []
        for place, item in enumerate(best, 1):
            print("\t".join([*lead, str(place), saved.items.keys[item - 1], saved.titles[item], f"{scores[item]:.4f}"]))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv` (default: the program's arguments) and returns the exit code."""
    return _cli.exit_code(functools.partial(_main, sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    commands = {"train": Train, "evaluate": Evaluate, "predict": Predict}
    flags = _cli.parse(argv, commands, f"python -m recipes.{RECIPE}")
    _cli.import_quietly()
    if isinstance(flags, Evaluate):
        return evaluate(flags)
    return predict(flags) if isinstance(flags, Predict) else train(flags)


if __name__ == "__main__":
    sys.exit(main())

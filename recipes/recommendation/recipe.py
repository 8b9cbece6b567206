"""Recommendation: learn from the choices of users, evaluate, recommend, adapt to new interactions.

python -m recipes.recommendation --interactions ratings.csv --label-column rating --task rating
python -m recipes.recommendation evaluate --model saved_models/recommendation/RUN
python -m recipes.recommendation predict --model saved_models/recommendation/RUN --user 42 --k 10 --exclude-seen
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Sequence

import numpy as np
import tyro

from ..run.command_line import run_command
from ..run.errors import UsageError
from ..run.facts import peak_memory
from ..run.fit import Run
from ..run.flags import Count, OptionalPath, RunPath
from ..run.folder import read_flags
from . import splits
from .card import card, summary
from .flags import Train, check, take_model_flags


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Print the test metrics of a run as JSON, and those of its baseline if it can be computed."""

    model: RunPath
    """Folder of a run."""
    interactions: OptionalPath = None
    """Test file with the columns of the training file. Default: the test set of the run."""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Print rank, item, title and score of the best items for a user, separated by tabs."""

    model: RunPath
    """Folder of a run."""
    user: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Id of a user; can be repeated."""
    k: Count = 10
    """Number of items."""
    exclude_seen: bool = False
    """Leave out items that the user has already chosen."""


def train(flags: Train, arguments: Sequence[str] | None = None) -> int:
    """Trains and saves a model; returns the exit code. `arguments` are those of the command line, for the card."""
    check(flags)
    if flags.adapt is not None:
        flags = take_model_flags(flags, read_flags(flags.adapt, Train))
    flags = dataclasses.replace(flags, data=splits.choose(flags.data))
    with Run("recommendation", flags, arguments, label=f"{flags.choose.kind}-{flags.optim.optimizer}") as run:
        return train_in(run, flags)


def train_in(run: Run, flags: Train) -> int:
    """Trains and saves a model in the folder of a run; returns the exit code."""
    from . import training
    from .saved_run import Saved

    old = None if flags.adapt is None else Saved.load(flags.adapt)
    rated = flags.choose.task == "rating"
    ids = (None, None) if old is None else (old.users, old.items)
    data = splits.load(flags.data, rated, flags.run.seed, *ids)
    model = training.build(flags, data) if old is None else training.add_adapters(old.model, flags.rank)
    seen = data.train if old is None else training.append(old.train, data.train)
    titles = data.items.titles if old is None else old.titles
    saved = Saved(model, data.train.users, data.train.items, titles, seen)
    batches, validation = training.make_batches(flags, data, model)
    optimizer = training.build_optimizer(flags, run.count_steps(batches))
    training.compile_model(model, optimizer, rated, run.jit)
    trained, everything = training.count_parameters(model)
    users, items = len(data.train.users) - 1, len(data.train.items) - 1
    about = (
        f"{flags.choose.kind}, {trained:,} trainable parameters, {flags.optim.optimizer}; {data.train.source}: "
        f"{len(data.train):,} interactions, {users:,} users, {items:,} items"
    )
    if not run.begin(model, batches, about):
        return 0

    metric = "rmse" if rated else f"ndcg_at_{flags.ks[0]}"
    callbacks = [] if rated else [training.Ranking(flags, saved, data.test)]
    watched = "val_loss" if rated else f"val_{metric}"
    run.fit(model, batches, validation, callbacks=callbacks, metric=metric, watched=watched)
    run.save_model(model)
    saved.write(run.folder, adapter=old is not None)
    results = training.measure(flags, saved, data.test, data.train)
    size = {"peak_memory_mb": peak_memory(), "trained_parameters": trained, "parameters": everything}
    metrics = run.facts(
        {"task": flags.choose.task, "model": flags.choose.kind, **size},
        results | ({"floor_rmse": data.floor} if data.floor else {}),
        {"data": data.train.source, "users": users, "items": items}
        | {"train_examples": len(data.train), "test_examples": len(data.test)},
    )
    run.tracking.vectors(*training.popular_items(saved, rated))
    return run.finish(metrics, card(run.command, metrics), summary(metrics))


def evaluate(flags: Evaluate) -> int:
    """Prints the test metrics of a run as JSON; returns the exit code."""
    from . import training
    from .saved_run import restore

    trained, saved = restore(flags.model)
    rated, ids = trained.choose.task == "rating", (saved.users, saved.items)
    if flags.interactions is None:
        data = splits.load(trained.data, rated, trained.run.seed, *ids)
        test, train = data.test, data.train
    else:
        test = splits.read_more(trained.data, flags.interactions, *ids)
        train = None
    metrics = training.measure(trained, saved, test, train)
    print(json.dumps({**metrics, "data": test.source, "test_examples": len(test)}, indent=2))
    return 0


def predict(flags: Predict) -> int:
    """Prints the best items for each user; returns the exit code."""
    if not flags.user:
        raise UsageError("predict: give at least one --user.")
    from .saved_run import restore

    trained, saved = restore(flags.model)
    score = saved.scorer(trained)
    for user in flags.user:
        number = saved.users.find(user)
        known = bool(number) and bool((saved.train.user == number).any())
        if not known:
            print(f"user {user!r} is unknown: these are the most popular items.", file=sys.stderr)
        scores = np.array(score(np.array([number]))[0] if known else saved.popularity, np.float64)
        scores[0] = -np.inf
        if flags.exclude_seen:
            scores[saved.train.item[saved.train.user == number]] = -np.inf
        best = [i for i in np.argsort(-scores, kind="stable")[: flags.k] if np.isfinite(scores[i])]
        lead = [user] if len(flags.user) > 1 else []
        for rank, item in enumerate(best, 1):
            print("\t".join([*lead, str(rank), saved.items.keys[item - 1], saved.titles[item], f"{scores[item]:.4f}"]))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv` (default: the program's arguments) and returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    start = functools.partial(train, arguments=arguments)
    return run_command("recommendation", arguments, {Train: start, Evaluate: evaluate, Predict: predict})

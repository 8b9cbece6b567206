"""Recommendation: learn from the choices of users, evaluate, recommend, adapt to new interactions.

python -m recipes.recommendation --interactions ratings.csv --label-column rating --task rating
python -m recipes.recommendation evaluate --model saved_models/recommendation/RUN
python -m recipes.recommendation predict --model saved_models/recommendation/RUN --user 42 --k 10 --exclude-seen
"""

import dataclasses
import functools
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from ..readers import formats
from ..readers.formats import Format
from ..readers.records import OnBadRow
from ..run import signals
from ..run.command_line import Commands, run_command
from ..run.errors import UsageError
from ..run.facts import peak_memory
from ..run.fit import MANY, Run
from ..run.flags import Count, OptionalPath, RunPath, refuse
from ..run.folder import check_empty, new_folder, read_flags
from .card import card, summary
from .data import splits
from .flags import Train, Unknown, check, fill, take_model_flags


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Print the test metrics of a run as JSON, and those of its baseline if it can be computed."""

    model: RunPath
    """Folder of a run."""
    interactions: OptionalPath = None
    """Test file with the columns of the training file. Default: the test set of the run."""


@dataclasses.dataclass(frozen=True)
class Predict:
    """Print rank, item, title and score of the best items for a user, separated by tabs, or write them to a file."""

    model: RunPath
    """Folder of a run."""
    user: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Id of a user; can be repeated."""
    users_file: OptionalPath = None
    """More users: a file of rows with the column of the run's --user-column; other columns may be features."""
    output: OptionalPath = None
    """CSV or JSONL file to write instead: user, rank, item, title, score, and what the score is from (basis)."""
    k: Count = 10
    """Number of items."""
    exclude_seen: bool = False
    """Leave out items that the user has already chosen."""
    unknown: Unknown = "popular"
    """A user without interactions and features is given the most popular items, left out (skip), or an error."""
    on_bad_row: OnBadRow = "error"
    """error stops at the first row of --users-file that cannot be used; skip leaves such rows out and counts them."""
    form: Format = dataclasses.field(default_factory=Format)


@dataclasses.dataclass(frozen=True)
class Export:
    """Write the vectors of users and items, their ids, and a SavedModel that recommends in any TensorFlow program."""

    model: RunPath
    """Folder of a run."""
    to: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Folder to write, which must be empty or new."""
    k: Count = 10
    """Number of items in the lists that the SavedModel gives."""
    exclude_seen: bool = False
    """Leave out items that the user has already chosen."""


def train(flags: Train, arguments: Sequence[str] | None = None) -> int:
    """Trains and saves a model; returns the exit code. `arguments` are those of the command line, for the card."""
    check(flags)
    if flags.adapt is not None:
        flags = take_model_flags(flags, read_flags(flags.adapt, Train))
    if flags.embedding_optimizer is not None:
        from .training import build_optimizer

        build_optimizer(flags, MANY)  # a wrong value is found before the folder is made and the data are read
    flags = fill(dataclasses.replace(flags, data=splits.choose(flags.data)))
    with Run("recommendation", flags, arguments, label=f"{flags.choose.kind}-{flags.optim.optimizer}") as run:
        return train_in(run, flags)


def train_in(run: Run, flags: Train) -> int:
    """Trains and saves a model in the folder of a run; returns the exit code."""
    from . import growth, training, trial
    from .saved_run import Saved

    rated = flags.choose.task == "rating"
    if flags.adapt is None:
        source = splits.read(flags.data, rated, unrated=flags.choose.kind != "mf")
    else:
        old = Saved.load(flags.adapt)
        new = splits.read(flags.data, rated, unrated=bool(old.features[1]), like=old.features)
        source = splits.extend(new, old.users, old.items, old.features)
    data = splits.split(source, flags.data, rated, flags.run.seed)
    with run.workers.scope():
        saved, batches = training.start(flags, data, data.train, run.jit)
    held = data.validation
    validation = training.make_batches(flags, held, saved.model) if rated and held is not None else None
    trained, everything = training.count_parameters(saved.model)
    again, folds = flags.refit and held is not None, flags.data.folds > 0
    beside = again + folds + (again and folds)
    if not run.begin(saved.model, batches, describe(flags, data, trained), beside):
        return 0
    flags = run.flags  # with the learning rate that --lr-find has found

    metric = "rmse" if rated else f"ndcg_at_{flags.ks[0]}"
    watched = "val_loss" if rated else f"val_{metric}"
    measure = None if rated or held is None else functools.partial(training.rank, flags, saved, held)
    settle = functools.partial(growth.settle_unseen, saved.model, saved.train)
    run.fit(saved.model, batches, validation, measure=measure, metric=metric, watched=watched, settle=settle)
    saved.write(run.folder, adapter=flags.adapt is not None)
    run.save_model(saved.model)
    best = trial.best_epoch(run.outcome.history, watched)
    trials, refitted = trial.Trials(run.folder, flags), None
    if again and run.outcome.interrupted is None:
        run.print(f"Refit: {best} epochs on training and validation set")
        refitted = trial.refit(flags, data, best, run.jit, trials.place("refit"))
    if refitted is not None:
        saved = refitted.saved
        saved.write(run.folder, adapter=flags.adapt is not None)
        run.save_model(saved.model)
    seen = data.train if refitted is None else data.known
    results = training.measure(flags, saved, data.test, seen)
    of_folds = {}
    if folds and signals.received() is None:
        of_folds = trial.cross_validate(flags, source, results, run.jit, trials)
    run.outcome = run.outcome._replace(interrupted=signals.received())
    size = {"peak_memory_mb": peak_memory(), "trained_parameters": trained, "parameters": everything}
    metrics = run.facts(
        {"task": flags.choose.task, "model": flags.choose.kind, **size},
        results | of_folds | ({"floor_rmse": data.floor} if data.floor else {}),
        {"data": data.known.source, "users": len(data.known.users) - 1, "items": len(data.known.items) - 1}
        | {"train_examples": len(seen), "validation_examples": 0 if held is None else len(held)}
        | {"test_examples": len(data.test), "refit_epochs": None if refitted is None else best},
    )
    run.tracking.vectors(*training.popular_items(saved, data.items))
    return run.finish(metrics, card(run.command, metrics), summary(metrics))


def describe(flags: Train, data: splits.Data, trained: int) -> str:
    """Returns in one line what is trained."""
    users, items = len(data.known.users) - 1, len(data.known.items) - 1
    held = 0 if data.validation is None else len(data.validation)
    return (
        f"{flags.choose.kind}, {trained:,} trainable parameters, {flags.optim.optimizer}; {data.known.source}: "
        f"{users:,} users, {items:,} items, {len(data.train):,} interactions for training, {held:,} for validation, "
        f"{len(data.test):,} for the test"
    )


def evaluate(flags: Evaluate) -> int:
    """Prints the test metrics of a run as JSON; returns the exit code."""
    from . import training
    from .saved_run import restore

    trained, saved = restore(flags.model)
    rated, ids = trained.choose.task == "rating", (saved.users, saved.items)
    if flags.interactions is None:
        data = splits.load(trained.data, rated, trained.run.seed, *ids)
        test, seen = data.test, data.known if trained.refit else data.train
    else:
        test = splits.read_test(trained.data, flags.interactions, rated, *ids)
        seen = None
    metrics = training.measure(trained, saved, test, seen)
    learnt = int(np.isin(splits.pairs(test), splits.pairs(saved.train)).sum())
    facts = {"data": test.source, "test_examples": len(test), "examples_learnt_from": learnt}
    print(json.dumps({**metrics, **facts}, indent=2))
    return 0


def predict(flags: Predict) -> int:
    """Prints or writes the best items for each user; returns the exit code."""
    if not flags.user and flags.users_file is None:
        raise UsageError("predict: give at least one --user, or a --users-file.")
    if not all(user.strip() for user in flags.user):
        raise UsageError("--user: is empty.")
    formats.check(flags.form, (flags.users_file,))
    refuse(flags, ("on_bad_row",), flags.users_file is None and "without --users-file")
    from . import lists
    from .saved_run import restore

    if flags.output is not None:
        lists.check_output(flags.output, (flags.users_file,))
    trained, saved = restore(flags.model)
    asked: Iterator[lists.Asked] = (lists.Asked(user.strip(), []) for user in flags.user)
    if flags.users_file is not None:
        column = trained.data.columns.user
        asked = itertools.chain(asked, lists.read_users(flags.users_file, column, saved, flags.on_bad_row, flags.form))
    strangers = lists.Strangers(flags.unknown)
    made = lists.Lists(saved, trained, flags.k, flags.exclude_seen).make(lists.once(asked))
    found = strangers.sort_out(made)
    if flags.output is not None:
        count = lists.write(flags.output, saved, found)
        strangers.report()
        print(f"lists for {count} {'user' if count == 1 else 'users'} written to {flags.output}")
        return 0
    lead = ["user"] if len(flags.user) > 1 or flags.users_file is not None else []
    for listed in found:
        for row in lists.rows(saved, listed):
            print(
                "\t".join(
                    [*(row[name] for name in lead), str(row["rank"]), row["item"], row["title"], f"{row['score']:.4f}"]
                )
            )
    strangers.report()
    return 0


def export(flags: Export) -> int:
    """Writes vectors, ids and a SavedModel to a folder; returns the exit code."""
    check_empty(flags.to)
    from . import serving
    from .saved_run import restore

    trained, saved = restore(flags.model)
    with new_folder(flags.to) as folder:
        users = serving.write(folder, saved, trained, flags.k, flags.exclude_seen)
    print(f"{users} users and {len(saved.items) - 1} items exported to {flags.to}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command in `argv` (default: the program's arguments) and returns the exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    start = functools.partial(train, arguments=arguments)
    commands: Commands = {Train: start, Evaluate: evaluate, Predict: predict, Export: export}
    return run_command("recommendation", arguments, commands)

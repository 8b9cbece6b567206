"""The flags of the recommendation recipe."""

import dataclasses
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from ..run.errors import UsageError
from ..run.flags import (
    Count,
    CountOrZero,
    NonNegative,
    OptionalCount,
    OptionalFraction,
    OptionalName,
    OptionalNumber,
    OptionalPath,
    RunFlags,
    optional,
)
from ..run.optimizer_flags import OptimizerFlags, check_name
from .data import data_flags, splits
from .data.data_flags import DataFlags

Task = Literal["rating", "retrieval", "sequential"]
Unknown = Literal["popular", "skip", "error"]
"""What to do about a user of whom nothing is known."""
MODELS: dict[Task, tuple[str, ...]] = {
    "rating": ("mf", "two-tower", "dcn", "dlrm"),
    "retrieval": ("two-tower", "mf"),
    "sequential": ("sasrec",),
}


class Numbers(NamedTuple):
    """Flags that each model has a default of its own for."""

    batch_size: int = 256
    embedding_dim: int = 32
    dropout: float = 0.0


NUMBERS = {
    ("retrieval", "two-tower"): Numbers(32, 64, 0.3),
    ("sequential", "sasrec"): Numbers(32, 64, 0.2),
}
"""Of models with a history."""


@dataclasses.dataclass(frozen=True)
class ModelFlags:
    """The task and the model."""

    task: Task = "rating"
    """rating predicts a rating, retrieval finds items for a user, sequential predicts the item that comes next."""
    model: Annotated[str | None, optional("{mf,two-tower,dcn,dlrm,sasrec}")] = None
    """Default: mf for rating (or two-tower, dcn, dlrm), two-tower for retrieval (or mf), sasrec for sequential."""
    embedding_dim: OptionalCount = None
    """Size of the embeddings of users and items. Default: 32, of models with a history 64."""
    hidden: CountOrZero = 64
    """Width of the dense layers of two-tower, dcn and dlrm; with 0, two-tower only adds up its embeddings."""
    dropout: OptionalFraction = None
    """Dropout rate. Default: 0, of models with a history 0.3 for retrieval and 0.2 for sequential."""
    l2: NonNegative = 0.02
    """L2 penalty on the embeddings of each batch (rating models only)."""
    hash_buckets: CountOrZero = 0
    """Rows of each embedding table, shared by the ids through hashing; with 0 each id has its own row."""
    history: Count = 50
    """Number of past items that sasrec, and two-tower for retrieval, take into account."""

    @property
    def kind(self) -> Any:
        """Returns which model."""
        return self.model or MODELS[self.task][0]


@dataclasses.dataclass(frozen=True)
class Train:
    """Learn to recommend from interactions of users with items."""

    epochs: Count = 20
    """Passes over the training set."""
    batch_size: OptionalCount = None
    """Interactions per step, of models with a history sequences. Default: 256 interactions, 32 sequences."""
    top_k: tyro.conf.UseAppendAction[tuple[Count, ...]] = ()
    """Length of the ranked lists that are measured. Default: 10. Repeatable; early stopping watches the first."""
    embedding_optimizer: OptionalName = None
    """Optimizer of kopt for the embedding tables. Default: --optimizer."""
    embedding_learning_rate: OptionalNumber = None
    """Learning rate of --embedding-optimizer. Default: that optimizer's own."""
    refit: bool = True
    """After the best epoch is known, train again from the start on the training and the validation set, and save that
    model; --no-refit saves the model that was measured on the validation set."""
    adapt: OptionalPath = None
    """Run to continue from: its model is frozen, and only low-rank adapters on its embedding tables are trained."""
    rank: Count = 4
    """Rank of the adapters that --adapt adds."""
    choose: ModelFlags = dataclasses.field(default_factory=ModelFlags)
    data: DataFlags = dataclasses.field(default_factory=DataFlags)
    optim: OptimizerFlags = dataclasses.field(
        default_factory=lambda: OptimizerFlags(optimizer="adamw", learning_rate=3e-3, lr_schedule="linear")
    )
    run: RunFlags = dataclasses.field(default_factory=RunFlags)

    @property
    def ks(self) -> tuple[int, ...]:
        """Returns the lengths of the ranked lists."""
        return self.top_k or (10,)


def fill(flags: Train) -> Train:
    """Returns the flags with the numbers of the model where none are given."""
    numbers = NUMBERS.get((flags.choose.task, flags.choose.kind), Numbers())._asdict()
    own = {name: number for name, number in numbers.items() if getattr(flags.choose, name, 0) is None}
    size = numbers["batch_size"] if flags.batch_size is None else flags.batch_size
    return dataclasses.replace(flags, batch_size=size, choose=dataclasses.replace(flags.choose, **own))


def check(flags: Train) -> None:
    """Checks the flags against each other.

    Raises:
        UsageError: one does not fit another.
    """
    task, kind = flags.choose.task, flags.choose.kind
    if kind in ("dcn", "dlrm") and not flags.choose.hidden:
        raise UsageError(f"--hidden 0: expected at least 1 for --model {kind}.")
    if kind not in MODELS[task]:
        raise UsageError(f"--model {kind}: --task {task} supports {', '.join(MODELS[task])}.")
    unknown = flags.adapt is not None and flags.choose == ModelFlags()  # until the run is read
    if task == "rating" and not unknown and flags.data.interactions is not None and flags.data.label_column is None:
        raise UsageError("--task rating: set the column of the ratings with --label-column, or choose another --task.")
    if flags.run.early_stopping is not None and not flags.data.validation_share:
        raise UsageError("--early-stopping: needs a --validation-share of more than 0 to watch.")
    if flags.embedding_learning_rate is not None and flags.embedding_optimizer is None:
        raise UsageError("--embedding-learning-rate: give --embedding-optimizer too.")
    if flags.embedding_optimizer is not None and flags.optim.lr_find:
        raise UsageError("--lr-find: finds one learning rate. Leave out --embedding-optimizer, or give both rates.")
    if flags.embedding_optimizer is not None:
        check_name(flags.embedding_optimizer, "--embedding-optimizer")
    if flags.adapt is None and flags.rank != Train().rank:
        raise UsageError("--rank: give --adapt too.")
    if not unknown:
        _check_effects(flags)
    data_flags.check(flags.data)


def _check_effects(flags: Train) -> None:
    """Checks that each flag that is not at its default does something.

    Raises:
        UsageError: one has no effect with the task, the model or the split.
    """
    choose, data, plain = flags.choose, flags.data, Train()
    kind, rating = choose.kind, choose.task == "rating"
    looks_back = kind == "sasrec" or (choose.task == "retrieval" and kind == "two-tower")
    split = data.split or splits.default_split(rating)
    effects = (
        ("hidden", choose.hidden, plain.choose.hidden, kind not in ("mf", "sasrec"), f"--model {kind}"),
        ("l2", choose.l2, plain.choose.l2, rating, f"--task {choose.task}"),
        ("history", choose.history, plain.choose.history, looks_back, f"--model {kind} for {choose.task}"),
        ("top-k", flags.top_k, plain.top_k, not rating, f"--task {choose.task}"),
        ("implicit-threshold", data.implicit_threshold, None, not rating, f"--task {choose.task}"),
        ("folds", data.folds, 0, rating, f"--task {choose.task}"),
        ("users-file", data.users_file, None, kind not in ("mf", "sasrec"), f"--model {kind}"),
        ("test-share", data.test_share, plain.data.test_share, split != "leave-one-out", f"--split {split}"),
    )
    for name, value, default, works, where in effects:
        if value != default and not works:
            raise UsageError(f"--{name} has no effect with {where}. Leave it out.")


def take_model_flags(flags: Train, before: Train) -> Train:
    """Returns the flags of a run that continues from another one, with the model of that one.

    Raises:
        UsageError: the flags describe another model, or do not fit this one.
    """
    if flags.choose != ModelFlags() and fill(flags).choose != before.choose:
        raise UsageError(
            f"--adapt {flags.adapt}: the model of a run cannot be changed. Remove the flags that describe another one."
        )
    flags = dataclasses.replace(flags, choose=before.choose)
    check(flags)
    return flags

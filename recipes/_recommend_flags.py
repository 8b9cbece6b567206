"""The flags of the recommendation recipe."""

import dataclasses
from typing import Annotated, Any, Literal

import tyro

from recipes import _pairs, _run
from recipes._cli import UsageError
from recipes._optimizer import Number, OptimizerFlags
from recipes._pairs import PairFlags
from recipes._run import OptionalPath, RunFlags

Task = Literal["rating", "retrieval", "sequential"]
MODELS: dict[Task, tuple[str, ...]] = {
    "rating": ("mf", "two-tower", "dcn", "dlrm"),
    "retrieval": ("two-tower", "mf"),
    "sequential": ("sasrec",),
}


@dataclasses.dataclass(frozen=True)
class ModelFlags:
    """What is learnt."""

    task: Task = "rating"
    """rating predicts a number, retrieval finds items for a user, sequential the item that comes next."""
    model: Annotated[str | None, tyro.conf.arg(metavar="{mf,two-tower,dcn,dlrm,sasrec}")] = None
    """mf, two-tower, dcn or dlrm for ratings, two-tower or mf for retrieval, sasrec for sequences; None: the first."""
    embedding_dim: int = 32
    """Length of the vectors of users and items."""
    hidden: int = 64
    """Width of the dense layers of two-tower, dcn and dlrm; with 0 two-tower has none, and adds up its vectors."""
    dropout: float = 0.0
    """Share of the features dropped."""
    l2: float = 0.02
    """Of ratings, weight of the squared vectors of each example in the loss."""
    hash_buckets: int = 0
    """Rows of each table of ids, which then share them; 0 gives each id its own row."""
    history: int = 50
    """Items that sasrec, and two-tower for retrieval, look back at."""

    @property
    def kind(self) -> Any:
        """Returns which model."""
        return self.model or MODELS[self.task][0]


@dataclasses.dataclass(frozen=True)
class Train:
    """Learn to recommend from interactions of users with items."""

    epochs: int = 20
    """Passes over the training set."""
    batch_size: int = 256
    """Interactions per step; of what looks back, sequences."""
    top_k: tyro.conf.UseAppendAction[tuple[int, ...]] = ()
    """Length of the lists on which rankings are measured; can be repeated, and the first one is watched. None is 10."""
    embedding_optimizer: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Optimizer of kopt for the tables; None is --optimizer."""
    embedding_learning_rate: Number = None
    """Its learning rate; None is its own."""
    adapt: OptionalPath = None
    """A run whose model is taken on: low-rank adapters on its tables learn, and nothing else."""
    rank: int = 4
    """Of these adapters."""
    choose: ModelFlags = dataclasses.field(default_factory=ModelFlags)
    data: PairFlags = dataclasses.field(default_factory=PairFlags)
    optim: OptimizerFlags = dataclasses.field(
        default_factory=lambda: OptimizerFlags(optimizer="adamw", learning_rate=3e-3, lr_schedule="linear")
    )
    run: RunFlags = dataclasses.field(default_factory=RunFlags)

    @property
    def ks(self) -> tuple[int, ...]:
        """Returns the lengths of the lists."""
        return self.top_k or (10,)


def check(flags: Train) -> None:
    """Checks the numbers that a type cannot, and that each flag means something.

    Raises:
        UsageError: one is out of range, or means nothing.
    """
    for name, value in (
        ("epochs", flags.epochs),
        ("batch-size", flags.batch_size),
        ("rank", flags.rank),
        ("embedding-dim", flags.choose.embedding_dim),
        ("history", flags.choose.history),
        ("top-k", min(flags.ks)),
    ):
        _run.at_least(f"--{name}", value, 1)
    _run.at_least("--hidden", flags.choose.hidden, 1 if flags.choose.kind in ("dcn", "dlrm") else 0)
    _run.at_least("--hash-buckets", flags.choose.hash_buckets, 0)
    _run.at_least("--l2", flags.choose.l2, 0)
    if not 0 <= flags.choose.dropout < 1:
        raise UsageError(f"--dropout {flags.choose.dropout}: expected 0 or more and less than 1.")
    task, known = flags.choose.task, MODELS[flags.choose.task]
    if flags.choose.kind not in known:
        raise UsageError(f"--model {flags.choose.kind}: --task {task} has {', '.join(known)}.")
    unknown = flags.adapt is not None and flags.choose == ModelFlags()  # until the run is read
    if task == "rating" and not unknown and flags.data.interactions is not None and flags.data.label_column is None:
        raise UsageError("--task rating: name the column of the ratings by --label-column, or choose another --task.")
    if flags.embedding_learning_rate is not None and flags.embedding_optimizer is None:
        raise UsageError("--embedding-learning-rate: give --embedding-optimizer too.")
    _pairs.check(flags.data)

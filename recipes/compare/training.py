"""One run of a comparison: an optimizer with one rate and one seed on a task."""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ..run.errors import UsageError
from ..run.optimizer_flags import OptimizerFlags, default_learning_rate, make_optimizer
from . import contestants, functions, tasks

EVALUATIONS = 30
"""Of a run."""
Kind = Literal["trial", "seed", "carried"]
"""carried: with a rate that was tuned on another task."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all runs of a comparison have in common."""

    task: str
    data: str
    steps: int
    batch_size: int
    lr_schedule: Any
    warmup: str


@dataclasses.dataclass(frozen=True)
class Job:
    """One run."""

    setting: Setting
    entry: str
    """Name of the optimizer, and arguments of it."""
    kind: Kind
    number: int
    rate: float
    seed: int

    @property
    def title(self) -> str:
        """Returns the name of the run."""
        return f"{self.entry}, {self.kind} {self.number}"


def flags_of(entry: str, setting: Setting, rate: float | None = None) -> OptimizerFlags:
    """Returns the flags of an optimizer of a comparison."""
    name, *options = contestants.words(entry)
    schedule = {"lr_schedule": setting.lr_schedule, "warmup": setting.warmup}
    return OptimizerFlags(optimizer=name, opt=tuple(options), learning_rate=rate, **schedule)


@functools.cache
def rate_of(entry: str) -> float:
    """Returns the learning rate that an optimizer has by default."""
    return default_learning_rate(contestants.words(entry)[0])


def run(job: Job) -> dict[str, Any]:
    """Returns what a run comes to; it is also the first function of a process.

    `points` are the evaluations, with step, seconds of training, value of the metric and training loss; `diverged` says
    that the loss was not finite, `error` why the optimizer cannot do the task.
    """
    begun = time.perf_counter()
    task = tasks.load(job.setting.task, job.setting.data)
    found: dict[str, Any] = {"points": [], "diverged": False, "error": None}
    try:
        found |= _on_functions(job) if job.setting.task == tasks.OF_FUNCTIONS else _on_task(job, task)
    except (UsageError, ValueError, TypeError, NotImplementedError) as error:
        found["error"] = " ".join(str(error).split())[:300]
    return found | {"wall_seconds": round(time.perf_counter() - begun, 2)}


def _on_task(job: Job, task: tasks.Task) -> dict[str, Any]:
    import keras

    import kopt

    setting = job.setting
    keras.backend.clear_session()
    keras.utils.set_random_seed(job.seed)
    x, y = task.train
    size, rng = task.size, np.random.default_rng(job.seed)
    sizes: dict[str, Any] = {"examples": size, "batch_size": setting.batch_size}
    optimizer = make_optimizer(flags_of(job.entry, setting, job.rate), setting.steps, **sizes)
    model = task.model()
    model.compile(optimizer, task.loss, metrics=["accuracy"] if task.metric == "accuracy" else None)
    average = None
    if hasattr(optimizer, "averages"):
        average = kopt.AveragedWeights()
        average.set_model(model)

    def evaluate() -> float:
        if average is None:
            return float(model.evaluate(*task.test, batch_size=1000, verbose=0, return_dict=True)[task.metric])
        with average.weights():
            return float(model.evaluate(*task.test, batch_size=1000, verbose=0, return_dict=True)[task.metric])

    points: list[dict[str, Any]] = [{"step": 0, "seconds": 0.0, "value": evaluate(), "train_loss": None}]
    times, order, every = list[float](), rng.permutation(size), max(1, setting.steps // EVALUATIONS)
    at, loss, mini, kinds = 0, math.nan, minibatches(optimizer), list[Any]()
    # A rule of whole losses sees all examples at each update; for others batches of one size are compiled once.
    least = 1 if getattr(optimizer, "examples", None) is not None else setting.batch_size
    model.reset_metrics()
    for step in range(1, setting.steps + 1):
        rows, at = order[at : at + setting.batch_size], at + setting.batch_size
        if at + least > size:
            order, at = rng.permutation(size), 0
        if mini is not None and step > mini:
            rows = np.arange(size)
        batch = keras.tree.map_structure(lambda part, rows=rows: part[rows], (x, y))
        kinds.append((len(rows), step % (optimizer.gradient_accumulation_steps or 1) == 0))
        clock = time.perf_counter()
        loss = float(model.train_on_batch(*batch, return_dict=True)["loss"])
        times.append(time.perf_counter() - clock)
        if not math.isfinite(loss):
            break
        if step % every == 0 or step == setting.steps:
            if step == setting.steps:  # as `fit` does at its end: a line search leaves its trial point
                optimizer.finalize_variable_values(model.trainable_variables)
            points.append({"step": step, "seconds": 0.0, "value": evaluate(), "train_loss": loss})
            model.reset_metrics()
    return {
        "points": timed(points, times, kinds),
        "diverged": not math.isfinite(loss) or not math.isfinite(points[-1]["value"]),
        "milliseconds": 1e3 * statistics.median(times),
        "bytes": sum(np.dtype(v.dtype).itemsize * math.prod(v.shape) for v in optimizer.variables),
        "parameters": sum(math.prod(v.shape) for v in model.trainable_variables),
    }


def minibatches(optimizer: Any) -> int | None:
    """Returns after how many steps an optimizer is given all examples at once; `None` if never.

    Such is `kopt.Switch` to a rule that compares whole losses, which has mini-batches until its turn.
    """
    second = getattr(optimizer, "second", None)
    return int(optimizer.after) if second is not None and second.needs_loss else None


def timed(points: list[dict[str, Any]], times: list[float], kinds: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """Returns the points with the seconds of training until then; steps that compile count as others of their kind.

    Args:
        points: the evaluations.
        times: seconds of each step.
        kinds: of each step; the first one of a kind compiles. Without it all are of one kind.
    """
    usual, kinds = list(times), kinds or [0] * len(times)
    for kind in set(kinds):
        first, *others = (i for i, found in enumerate(kinds) if found == kind)
        usual[first] = statistics.median(times[i] for i in others) if others else min(times)
    clock = np.cumsum([0.0, *usual])
    return [point | {"seconds": round(float(clock[point["step"]]), 5)} for point in points]


def _on_functions(job: Job) -> dict[str, Any]:
    setting = job.setting
    flags = flags_of(job.entry, setting, job.rate)
    make = lambda: make_optimizer(flags, setting.steps, examples=1, batch_size=1)  # noqa: E731
    values, ways, each, size = functions.descend(make, setting.steps, job.seed)
    every = max(1, setting.steps // 100)
    steps = [*range(0, setting.steps, every), setting.steps]
    points = [{"step": t, "seconds": round(t * each, 5), "value": values[t], "train_loss": values[t]} for t in steps]
    finite = all(np.isfinite(way).all() for way in ways.values())
    weights = 2 * len(functions.FUNCTIONS)
    ways = {name: [x if np.isfinite(x).all() else None for x in way] for name, way in ways.items()}
    about = {"milliseconds": 1e3 * each, "bytes": size, "parameters": weights, "ways": ways}
    return {"points": points if finite else points[:1], "diverged": not finite, **about}

"""One run of a comparison: an optimizer with one rate and one seed on a task."""

import dataclasses
import functools
import math
import statistics
import time
from typing import Any, Literal

import numpy as np

from ..run.errors import UsageError
from ..run.optimizer_flags import OptimizerFlags, default_learning_rate, make_optimizer
from . import functions, tasks

EVALUATIONS = 30
"""Of a run."""
Kind = Literal["trial", "seed"]


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
    name, *options = entry.split()
    schedule = {"lr_schedule": setting.lr_schedule, "warmup": setting.warmup}
    return OptimizerFlags(optimizer=name, opt=tuple(options), learning_rate=rate, **schedule)


@functools.cache
def rate_of(entry: str) -> float:
    """Returns the learning rate that an optimizer has by default."""
    return default_learning_rate(entry.split()[0])


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
    size, rng = len(y), np.random.default_rng(job.seed)
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
    at, loss = 0, math.nan
    model.reset_metrics()
    for step in range(1, setting.steps + 1):
        rows, at = order[at : at + setting.batch_size], at + setting.batch_size
        if at + setting.batch_size > size:
            order, at = rng.permutation(size), 0
        batch = keras.tree.map_structure(lambda part, rows=rows: part[rows], (x, y))
        clock = time.perf_counter()
        loss = float(model.train_on_batch(*batch, return_dict=True)["loss"])
        times.append(time.perf_counter() - clock)
        if not math.isfinite(loss):
            break
        if step % every == 0 or step == setting.steps:
            points.append({"step": step, "seconds": 0.0, "value": evaluate(), "train_loss": loss})
            model.reset_metrics()
    return {
        "points": timed(points, times),
        "diverged": not math.isfinite(loss) or not math.isfinite(points[-1]["value"]),
        "milliseconds": 1e3 * statistics.median(times),
        "bytes": sum(np.dtype(v.dtype).itemsize * math.prod(v.shape) for v in optimizer.variables),
        "parameters": sum(math.prod(v.shape) for v in model.trainable_variables),
    }


def timed(points: list[dict[str, Any]], times: list[float]) -> list[dict[str, Any]]:
    """Returns the points with the seconds of training until then; the first step, which compiles, counts as others."""
    usual = statistics.median(times)
    clock = np.cumsum([0.0, usual, *times[1:]])
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

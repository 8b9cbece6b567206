"""All runs of a comparison: each is a file, made once, in as many processes as there are cores for."""

import concurrent.futures
import contextlib
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import re
import signal
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..run.folder import atomic
from . import protocol, training
from .training import Job, Kind, Setting

RUNS = "runs"
"""Folder of the runs in that of a comparison."""
LONGEST = 80
"""Letters of the name of an optimizer's folder."""


class Runs:
    """The runs of a comparison.

    Args:
        folder: of the comparison.
        setting: what they have in common.
        entries: the optimizers; the first one is the base.
        trials: rates of each.
        seeds: runs of the best trial of each.
        trial_seeds: runs of each rate in the trials, by other seeds than those above; their mean says which is best.
        span: ratio of the highest rate to the lowest, whose middle is the optimizer's own rate.
        target: of the task; `None` takes what the base ends with.
        sign: -1 if the metric is to be large.
        carried: rates of the optimizers that were tuned on another task, which are tried with the same seeds.
    """

    def __init__(
        self,
        folder: Path,
        setting: Setting,
        entries: Sequence[str],
        trials: int,
        seeds: int,
        span: float,
        target: float | None,
        sign: int,
        carried: Mapping[str, float] | None = None,
        trial_seeds: int = 1,
    ) -> None:
        self.carried = dict(carried or {})
        self.folder, self.setting, self.entries = folder / RUNS, setting, list(entries)
        self.trials, self.trial_seeds, self.seeds, self.span, self.sign = trials, trial_seeds, seeds, span, sign
        self._given = target
        words = json.dumps([*vars(setting).values(), trials, span])
        self.protocol = hashlib.sha256(words.encode()).hexdigest()[:16]
        """Of all that two runs must have in common to be compared."""
        self._found = dict[str, dict[str, Any]]()

    def jobs(self, kind: Kind) -> list[Job]:
        """Returns the trials of all optimizers, or the seeds of their best trials or of the rates carried over."""
        return [job for entry in self.entries for job in self._jobs(entry, kind)]

    def _jobs(self, entry: str, kind: Kind) -> list[Job]:
        middle, root = training.rate_of(entry), self.span**0.5
        rates = [protocol.log_uniform(middle / root, middle * root, place) for (place,) in protocol.places(self.trials)]
        if kind == "trial":
            numbered = itertools.product(range(self.trial_seeds), enumerate(rates))
            return [
                Job(self.setting, entry, "trial", i + seed * len(rates), rate, seed) for seed, (i, rate) in numbered
            ]
        if kind == "carried":
            rate = self.carried.get(entry)
        else:
            rate = None if (best := self.best(entry)) is None else best.rate
        return [] if rate is None else [Job(self.setting, entry, kind, i, rate, i) for i in self._numbers()]

    def _numbers(self) -> range:
        return range(self.trial_seeds, self.trial_seeds + self.seeds)

    def tried(self, entry: str) -> dict[float, list[dict[str, Any]]]:
        """Returns the runs of each rate that an optimizer has tried, in the order of the trials."""
        found = dict[float, list[dict[str, Any]]]()
        for job in self._jobs(entry, "trial"):
            if (run := self.read(job)) is not None:
                found.setdefault(job.rate, []).append(run)
        return found

    @property
    def target(self) -> float:
        """Returns what is to be reached, as `protocol.curve` has it."""
        if self._given is not None:
            return self.sign * self._given
        return min(map(self.end, self.tried(self.entries[0]).values()), default=math.inf)

    def end(self, runs: Sequence[dict[str, Any]]) -> float:
        """Returns the mean of the last values of these runs, as `protocol.curve` has them; `inf` if one diverged."""
        return statistics.mean(
            math.inf if run["diverged"] or run["error"] else protocol.last(protocol.curve(run, self.sign))
            for run in runs
        )

    def best(self, entry: str) -> Job | None:
        """Returns the first run of the best rate: the one that needs the fewest steps, or has the least last loss."""
        scores = {rate: self.score(runs) for rate, runs in self.tried(entry).items()}
        works = {rate: score for rate, score in scores.items() if score[1] < math.inf}
        best = min(works, key=lambda rate: works[rate]) if works else None
        return next((job for job in self._jobs(entry, "trial") if job.rate == best), None)

    def score(self, runs: Sequence[dict[str, Any]]) -> tuple[float, float]:
        """Returns what makes one rate better than another, means of its runs: fewer steps, then the least last loss."""
        if self._given is None:
            return math.inf, self.end(runs)
        return statistics.mean(
            protocol.steps_to(self.target, protocol.curve(run, self.sign)) for run in runs
        ), self.end(runs)

    def file(self, job: Job) -> Path:
        """Returns the file of a run."""
        name = re.sub(r"[^a-z0-9.=_-]+", "-", job.entry.lower())
        if len(name) > LONGEST:
            name = f"{name[:LONGEST]}-{hashlib.sha256(job.entry.encode()).hexdigest()[:8]}"
        return self.folder / name / f"{job.kind}-{job.number}.json"

    def read(self, job: Job) -> dict[str, Any] | None:
        """Returns a run; `None` if it has not been made, or by other rules."""
        path = self.file(job)
        if path.as_posix() not in self._found:
            try:
                run = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return None
            if run.get("protocol") != self.protocol or run.get("rate") != job.rate:
                return None
            self._found[path.as_posix()] = run
        found = self._found[path.as_posix()]
        return found if found["rate"] == job.rate else None

    def write(self, job: Job, found: dict[str, Any]) -> None:
        """Keeps what a run has come to."""
        path = self.file(job)
        path.parent.mkdir(parents=True, exist_ok=True)
        known = {"protocol": self.protocol, "optimizer": job.entry, "rate": job.rate, "seed": job.seed}
        with atomic(path) as part:
            part.write_text(json.dumps(known | found) + "\n", encoding="utf-8")
        self._found.pop(path.as_posix(), None)

    def make(self, kind: Kind, processes: int, report: Callable[[Job, dict[str, Any]], None]) -> None:
        """Makes the runs that are missing, and calls `report` with each."""
        missing = [job for job in self.jobs(kind) if self.read(job) is None]
        for job, found in in_processes(missing, processes):
            self.write(job, found)
            report(job, found)


def in_processes(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Yields runs as they are done; with one process they are made in this one."""
    if processes == 1:
        for job in jobs:
            yield job, training.run(job)
        return
    threads = max(1, (os.cpu_count() or 1) // processes)
    pool = concurrent.futures.ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(threads,)
    )
    try:
        futures = {pool.submit(training.run, job): job for job in jobs}
        for future in concurrent.futures.as_completed(futures):
            yield futures[future], future.result()
    except BaseException:  # a signal, or nobody reads on
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(threads: int) -> None:
    """Is what a process begins with: its share of cores and GPUs; Ctrl-C is for the process that started it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    from kopt.start import filtered_stderr

    with filtered_stderr():
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        for gpu in tf.config.list_physical_devices("GPU"):  # else the first process takes the memory of all
            tf.config.experimental.set_memory_growth(gpu, True)

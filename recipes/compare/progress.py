"""How far a comparison is: a table of all optimizers, or a line for each run."""

import math
import sys
from types import TracebackType
from typing import Any, Literal, Self

from . import protocol
from .runs import Runs
from .tasks import Task
from .training import Job

Kind = Literal["auto", "rich", "plain", "none"]


class Progress:
    """Shows runs as they are done.

    Args:
        kind: rich shows a table, plain prints lines, none nothing; auto is rich on a terminal.
        runs: of the comparison.
        task: of the comparison.
    """

    def __init__(self, kind: Kind, runs: Runs, task: Task) -> None:
        self._runs, self._task = runs, task
        self._live: Any = None
        self._kind = ("rich" if sys.stdout.isatty() else "plain") if kind == "auto" else kind

    def __enter__(self) -> Self:
        if self._kind != "none":
            setting, runs = self._runs.setting, self._runs
            times = f" on {runs.trial_seeds} seeds" if runs.trial_seeds > 1 else ""
            each = f"{runs.trials} trials{times} and {runs.seeds} further seeds of {setting.steps} steps"
            print(f"{setting.task}: {self._task.about}; {len(runs.entries)} optimizers, {each}", flush=True)
        if self._kind == "rich":
            from rich.live import Live

            self._live = Live(self._table(), auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, traceback: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def add(self, job: Job, found: dict[str, Any]) -> None:
        """Shows a run that is done."""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        elif self._kind == "plain":
            print(f"{job.title}: rate {job.rate:.2g}, {self._result(found)}", flush=True)

    def _result(self, run: dict[str, Any]) -> str:
        if run["error"]:
            return f"cannot: {run['error']}"
        end = f"last {self._task.metric} {run['points'][-1]['value']:.4f}, {run['milliseconds']:.1f} ms a step"
        if run["diverged"]:
            return f"diverged, {end}"
        steps = protocol.steps_to(self._runs.target, protocol.curve(run, self._runs.sign))
        return f"{steps:.0f} steps to the target, {end}" if steps < math.inf else end

    def _table(self) -> Any:
        from rich.table import Table

        table, runs = Table("optimizer", "trials", "seeds", "best rate", "its trial"), self._runs
        for entry in runs.entries:
            cells = [entry]
            for jobs in (runs.jobs("trial"), runs.jobs("seed")):
                made = [runs.read(job) is not None for job in jobs if job.entry == entry]
                cells.append(f"{sum(made)} of {len(made)}")
            best = runs.best(entry)
            found = None if best is None else runs.read(best)
            cells += ["", ""] if best is None or found is None else [f"{best.rate:.2g}", self._result(found)]
            table.add_row(*cells)
        return table

"""The devices and processes that train one run: which of them writes files, and how they begin and end together."""

import contextlib
import dataclasses
import json
import signal
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from . import signals
from .errors import EndedError, LostError, RecipeError, UsageError
from .flags import RunFlags
from .folder import Folder

OFTEN = 16
"""Steps from one question to the next whether a signal has come to any worker."""


class Workers:
    """The devices and processes of a run, as its flags say; made before anything else of TensorFlow.

    Args:
        flags: of the run.

    Raises:
        UsageError: the flags do not fit each other, or not this machine.
        LostError: a worker has not come in time.
    """

    def __init__(self, flags: RunFlags) -> None:
        self._strategy: Any = None
        self._ends = contextlib.ExitStack()
        self._temporary: Any = None
        given = flags.workers is not None or flags.worker_index is not None
        if flags.distribute != "multiworker" and given:
            raise UsageError("--workers and --worker-index: give --distribute multiworker too.")
        if flags.distribute == "none":
            return
        if flags.jit == "on":
            raise UsageError("--jit on: Keras compiles no train step of several replicas. Leave it out.")
        from kopt import distribution

        options: dict[str, Any] = {}
        if flags.distribute == "multiworker":
            workers = None if flags.workers is None else [part.strip() for part in flags.workers.split(",")]
            options = {"workers": workers, "index": flags.worker_index, "timeout": flags.start_timeout}
        try:
            self._strategy = distribution.strategy(flags.distribute, **options)
        except ValueError as error:
            raise UsageError(f"--distribute {flags.distribute}: {error}") from error
        except distribution.WorkerLostError as error:
            raise LostError(str(error)) from error
        self._ends.enter_context(distribution.together(self._strategy))

    @property
    def replicas(self) -> int:
        """Returns how many there are."""
        return 1 if self._strategy is None else int(self._strategy.num_replicas_in_sync)

    @property
    def several(self) -> bool:
        """Whether there are other processes."""
        return self._strategy is not None and hasattr(self._strategy, "cluster_resolver")

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        from kopt import distribution

        return distribution.is_chief(self._strategy)

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the block in which model and optimizer are made."""
        return contextlib.nullcontext() if self._strategy is None else self._strategy.scope()

    def place(self, flags: Any, recipe: str, label: str) -> Folder:
        """Returns the folder of the run; of a process that does not write, one that does not stay.

        Raises:
            RecipeError: it cannot be used. All workers raise it.
        """
        if not self.several:
            return Folder(flags, recipe, label)
        from kopt import distribution

        with self._until_an_error():
            if self.writes:
                try:
                    found = Folder(flags, recipe, label)
                except RecipeError as error:
                    distribution.from_chief(self._strategy, json.dumps([error.code, str(error)]).encode())
                    raise
                distribution.from_chief(self._strategy, json.dumps([None, found.resumes]).encode())
                return found
            code, said = json.loads(distribution.from_chief(self._strategy, b""))
            if code is not None:
                raise EndedError(code)
            self._temporary = tempfile.TemporaryDirectory(prefix="kopt-worker-")
            folder = Path(self._temporary.name) / "run"
            own = dataclasses.replace(flags.run, output_dir=folder, run_name=None, resume="never", overwrite=False)
            found = Folder(dataclasses.replace(flags, run=own), recipe, label)
            found.resumes = said
            return found

    @contextlib.contextmanager
    def _until_an_error(self) -> Any:
        try:
            yield
        except BaseException as error:
            self.close(error)
            raise

    def share(self, model: Any, *data: Any) -> list[Any]:
        """Returns the parts of batches that the replicas get, and has the model weigh its loss by them."""
        if self._strategy is None:
            return list(data)
        from kopt import distribution

        distribution.share_loss(model)
        return [None if each is None else distribution.shard(each, self._strategy) for each in data]

    def stopped(self, step: int) -> bool:
        """Returns whether a signal has come: of several workers to any of them, which they ask each other now and then.

        Args:
            step: how many are done.
        """
        if self.several and step % OFTEN == 0:
            from kopt import distribution

            own = signals.received()
            if distribution.total(self._strategy, np.array([own is not None], np.int32))[0]:
                signals.note(own or signal.SIGTERM)
                return True
        return signals.received() is not None and not self.several

    def part(self, model: Any) -> None:
        """Waits for all workers, after which the chief goes on alone with a model that needs no other one.

        Raises:
            EndedError: this is another worker: it is done.
        """
        if self._strategy is None:
            return
        from kopt import distribution

        self._end(None)
        if not self.writes:
            ended = signals.received()
            raise EndedError(0 if ended is None else signals.exit_code(ended))
        distribution.detach(model)

    def close(self, error: BaseException | None) -> None:
        """Ends what has begun.

        Raises:
            LostError: another worker is gone, which is why there was an error.
        """
        if self._temporary is not None:
            self._temporary.cleanup()
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        from kopt import distribution

        ends = self._ends.pop_all()
        try:
            ends.__exit__(type(error) if error is not None else None, error, getattr(error, "__traceback__", None))
        except distribution.WorkerLostError as lost:
            raise LostError(str(lost)) from lost

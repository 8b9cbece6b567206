"""The devices and processes that train one run: which of them writes files, and how they begin and end together."""

import contextlib
import dataclasses
import json
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import signals
from .errors import EndedError, LostError, RecipeError, UsageError
from .flags import RunFlags
from .folder import LOCK, Folder

OFTEN = 16
"""Steps from one question to the next whether a signal has come to any worker."""


@contextlib.contextmanager
def alone(folder: Path, taken: str) -> Iterator[None]:
    """Makes a folder, and keeps other processes out of it for the time of the block.

    Args:
        folder: of several runs, such as a comparison.
        taken: what is said if another process is in it.

    Raises:
        UsageError: one is, or the folder cannot be made.
    """
    import filelock

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except (filelock.Timeout, OSError) as error:
        reason = taken if isinstance(error, filelock.Timeout) else error.strerror
        raise UsageError(f"{folder}: {reason}. Choose another --output-dir.") from error
    try:
        yield
    finally:
        lock.release()


def check_tf32() -> None:
    """Raises `UsageError` if no device here can round the factors of products to TF32."""
    import tensorflow as tf

    details = map(tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU"))
    if not any(found.get("compute_capability", (0, 0)) >= (8, 0) for found in details):
        raise UsageError("--precision tf32: no GPU here has it (NVIDIA, compute capability 8.0 or more). Take float32.")


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
        if flags.precision == "tf32":
            check_tf32()
        self._temporary: Any = None
        self._local: Any = None
        given = flags.workers is not None or flags.worker_index is not None
        if flags.distribute != "multiworker" and given:
            raise UsageError("--workers and --worker-index: give --distribute multiworker too.")
        if flags.distribute != "multiworker" and flags.sync_every is not None:
            raise UsageError("--sync-every: give --distribute multiworker too, or start it by kopt launch.")
        if flags.distribute == "none":
            return
        if flags.jit == "on" and flags.sync_every is None:
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
        if flags.sync_every is not None:
            self._local = distribution.LocalSGD(self._strategy, sync_every=flags.sync_every)

    @property
    def replicas(self) -> int:
        """Returns how many make a step together."""
        return 1 if self._joint is None else int(self._joint.num_replicas_in_sync)

    @property
    def _joint(self) -> Any:
        """Returns the strategy under which the model is made; None where each process makes steps by itself."""
        return None if self._local is not None else self._strategy

    @property
    def callbacks(self) -> list[Any]:
        """Returns those that `fit` and checkpoints need, before all others."""
        return [] if self._local is None else [self._local]

    @property
    def several(self) -> bool:
        """Whether there are other processes."""
        from kopt import distribution

        return distribution.count_workers(self._strategy) > 1

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes files and prints."""
        from kopt import distribution

        return distribution.is_chief(self._strategy)

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Returns the block in which model and optimizer are made."""
        return contextlib.nullcontext() if self._joint is None else self._joint.scope()

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

    def share(self, model: Any, training: Any, validation: Any) -> tuple[Any, Any]:
        """Returns the parts of batches that the replicas get, and has the model weigh its loss by them."""
        if self._strategy is None:
            return training, validation
        from kopt import distribution

        if self._local is not None:  # all measure the same weights
            return self._local.shard(training), validation
        distribution.share_loss(model)
        shared = [None if each is None else distribution.shard(each, self._strategy) for each in (training, validation)]
        return shared[0], shared[1]

    def measured(self, measure: Callable[[], Mapping[str, float]] | None) -> Callable[[], Mapping[str, float]] | None:
        """Returns what gives all workers the figures of the chief, which alone takes them."""
        if measure is None or not self.several:
            return measure
        from kopt import distribution

        def take() -> Mapping[str, float]:
            found = json.dumps({k: float(v) for k, v in measure().items()}) if self.writes else ""
            figures: dict[str, float] = json.loads(distribution.from_chief(self._strategy, found.encode()))
            return figures

        return take

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

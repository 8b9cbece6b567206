"""The same cases on every backend of Keras: each backend in a process of its own, their results side by side."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

REFERENCE = "tensorflow"
OTHERS = {"jax": "JAX", "torch": "torch"}
"""The backends that are compared with TensorFlow, with their names for readers."""
SCRIPT = pathlib.Path(__file__).with_name("backend_cases.py")

Found = Mapping[str, list[np.ndarray] | str]
"""By name of the case: the arrays, or the words of the error that refused it."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What every backend does alike.

    Attributes:
        run: makes it on the backend of this process, and returns arrays of numbers in an order that all share.
        bound: the largest difference from TensorFlow, as a share of the largest number, that is right.
        counted: whether the share of elements that differ by more than `bound` is told instead; it may be 0.1 %. For
            rules that ask for a sign alone.
        by_array: whether the share is of the largest number of the same array, not of all.
        only: the backends that are compared.
        refused: backends on which an error says that this does not work there.
        remark: what a reader of the table should know.
    """

    run: Callable[[], Sequence[Any]]
    bound: float = 1e-6
    counted: bool = False
    by_array: bool = False
    only: tuple[str, ...] = tuple(OTHERS)
    refused: tuple[str, ...] = ()
    remark: str = ""

    def difference(self, found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
        """Returns how far arrays are from those of TensorFlow."""
        assert [a.shape for a in found] == [b.shape for b in expected]
        scales = [max(np.abs(b).max(initial=0.0), 1e-30) for b in expected]
        scales = scales if self.by_array else [max(scales)] * len(scales)
        parts = [np.abs(a - b) / scale for a, b, scale in zip(found, expected, scales, strict=True)]
        every = np.concatenate([part.ravel() for part in parts])
        assert np.isfinite(every).all()
        return float((every > self.bound).mean() if self.counted else every.max())

    def holds(self, difference: float) -> bool:
        """Whether a difference is small enough."""
        return difference <= (1e-3 if self.counted else self.bound)


def run(backend: str, names: Sequence[str], **environment: str) -> Found:
    """Runs cases, named "section/name", in a process with this backend."""
    room = SCRIPT.parents[2]
    own = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    own["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    path = os.pathsep.join([str(room), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "found.npz")
        command = [sys.executable, str(SCRIPT), str(file), *names]
        done = subprocess.run(
            command, env={**os.environ, **own, "PYTHONPATH": path, **environment}, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"The cases failed on {backend}:\n{done.stderr[-4000:]}")
        with np.load(file) as arrays:
            return read(names, arrays)


def read(names: Sequence[str], arrays: Mapping[str, np.ndarray]) -> Found:
    """Returns what `written` has made."""
    found: dict[str, list[np.ndarray] | str] = {}
    for name in names:
        if f"{name}/refused" in arrays:
            found[name] = str(arrays[f"{name}/refused"])
        else:
            own = [k for k in arrays if k.rpartition("/")[0] == name]
            found[name] = [arrays[f"{name}/{i}"] for i in range(len(own))]
    return found


def written(cases: Mapping[str, Case]) -> dict[str, np.ndarray]:
    """Runs cases, named "section/name", on the backend of this process; returns arrays for a file."""
    import keras

    arrays: dict[str, np.ndarray] = {}
    for name, case in cases.items():
        keras.utils.set_random_seed(0)
        keras.utils.clear_session(free_memory=False)
        if keras.backend.backend() in case.refused:
            try:
                case.run()
            except (ValueError, NotImplementedError, RuntimeError) as error:
                arrays[f"{name}/refused"] = np.array(str(error))
                continue
            raise AssertionError(f"{name} is not refused on {keras.backend.backend()}.")
        try:
            values = case.run()
        except Exception as error:
            error.add_note(f"in the case {name}")
            raise
        arrays |= {f"{name}/{i}": np.asarray(x, "float64") for i, x in enumerate(values)}
    return arrays


def compared(cases: Mapping[str, Case], expected: Found, found: Found) -> dict[str, float | str]:
    """Returns, by "section/name", the difference from TensorFlow, or the words of the error that refused a case."""
    return {name: x if isinstance(x, str) else cases[name].difference(x, expected[name]) for name, x in found.items()}


def on(backend: str, cases: Mapping[str, Case]) -> list[str]:
    """Returns the names of the cases that are for a backend."""
    return [name for name, case in cases.items() if backend == REFERENCE or backend in case.only]

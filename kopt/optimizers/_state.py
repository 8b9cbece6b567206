"""State in files: named variables and a manifest, where Keras keeps "0", "1", ... and skips what does not fit."""

import json
from typing import Any

import keras
import numpy as np

from kopt.optimizers._records import OptimizerParts

MANIFEST = "manifest"
BESIDE = ("residual", "average", "averaged_at", "accumulator", "read")
"""What a parameter may have beside its slots."""


class StateFile(OptimizerParts):
    """Saves and restores the variables of an optimizer by name.

    Weights are told apart by their order: their paths change when a model is loaded again. The manifest keeps name,
    shape and dtype of every entry and the path of its weight, for the message when something differs.
    """

    _pending: dict[str, Any] | None = None

    def _state(self) -> dict[str, Any]:
        """Returns every variable worth saving, by name."""
        state = {"iteration": self._iterations}
        if isinstance(self._learning_rate, keras.Variable):
            state["learning_rate"] = self._learning_rate
        if not self.built:
            return state
        for name in ("nonfinite_steps", "clipped_steps", "gradient_norm"):
            state[name] = getattr(self, name)
        state |= {f"shared.{k}": v for k, v in self._shared.items()}
        for i, p in enumerate(self._parameters):
            parts = {f"{name}.{part}": v for name, slot in p.slots.items() for part, v in slot.items()}
            parts |= {name: getattr(p, name) for name in BESIDE}
            state |= {f"{i}.{k}": v for k, v in parts.items() if v is not None}
        return state

    def _manifest(self) -> dict[str, Any]:
        entries = {name: [list(v.shape), keras.backend.standardize_dtype(v.dtype)] for name, v in self._state().items()}
        paths = [p.path for p in self._parameters] if self.built else []
        return {"format": 1, "optimizer": type(self).__name__, "built": self.built, "paths": paths, "entries": entries}

    def save_own_variables(self, store: Any) -> None:
        """Writes state and manifest into a Keras store."""
        for name, variable in self._state().items():
            store[name] = variable.numpy()
        store[MANIFEST] = np.frombuffer(json.dumps(self._manifest()).encode(), dtype=np.uint8)

    def load_own_variables(self, store: Any) -> None:
        """Restores the state; an optimizer that is not built yet keeps it until it is.

        Raises:
            ValueError: the state is of another optimizer, of other weights, or of other options; nothing is changed.
        """
        if MANIFEST not in store.keys():  # noqa: SIM118 (the store of Keras has no __contains__ in every format)
            raise ValueError(
                f"The saved optimizer state has no manifest, so kopt.{type(self).__name__} did not write it. "
                "Load the model with compile=False and compile it with a new optimizer."
            )
        manifest = json.loads(np.asarray(store[MANIFEST]).tobytes())
        arrays = {name: np.asarray(store[name]) for name in manifest["entries"]}
        self._pending = {"manifest": manifest, "arrays": arrays}
        if self.built:
            self._restore_pending()

    def _restore_pending(self) -> None:
        if self._pending is None:
            return
        manifest, arrays = self._pending["manifest"], self._pending["arrays"]
        self._pending = None
        state = self._state()
        if not manifest["built"]:  # saved before the first step: counter and rate are all there is
            state = {k: v for k, v in state.items() if k in ("iteration", "learning_rate")}
        self._compare(manifest, {k: v for k, v in self._manifest()["entries"].items() if k in state})
        for name, variable in state.items():
            variable.assign(arrays[name])

    def _compare(self, manifest: dict[str, Any], expected: dict[str, Any]) -> None:
        saved, name = manifest["entries"], type(self).__name__
        faults = [f"it was written by kopt.{manifest['optimizer']}"] if manifest["optimizer"] != name else []
        faults += [f"{self._describe(k, manifest)} is missing" for k in expected if k not in saved]
        faults += [f"{self._describe(k, manifest)} is unknown here" for k in saved if k not in expected]
        faults += [
            f"{self._describe(k, manifest)} is {saved[k][1]}{saved[k][0]}, not {v[1]}{v[0]}"
            for k, v in expected.items()
            if k in saved and saved[k] != v
        ]
        if faults:
            more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise ValueError(
                f"The saved optimizer state does not fit this {name}: {'; '.join(faults[:5])}{more}. "
                "Create the optimizer with the options and the weights it was saved with."
            )

    def _describe(self, key: str, manifest: dict[str, Any]) -> str:
        index, _, slot = key.partition(".")
        if not index.isdigit():
            return repr(key)
        paths = [p.path for p in self._parameters] if int(index) < len(self._parameters) else manifest["paths"]
        return f"slot {slot!r} of weight {index} ({paths[int(index)]})"

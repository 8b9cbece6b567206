"""State in files: named variables and a manifest, where Keras keeps "0", "1", ... and skips what does not fit."""

import dataclasses
import json
import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from kopt.declare.digest import Digest, digest_of
from kopt.optimizers.engine.contract import Options, Rule
from kopt.optimizers.engine.setup import Setup
from kopt.optimizers.engine.state.slots import Slot

FORMAT = 1
MANIFEST = "manifest"
SEAL = "sha256"
"""Entry of the manifest: the hash of all that is saved. States of older versions have none."""
BESIDE = ("residual", "average", "averaged_at", "accumulator", "read")
"""What a parameter may have beside its slots."""
ALWAYS = ("iteration", "learning_rate")
"""What an optimizer has before its first step."""
STORED: dict[str, set[str]] = {"float32": set(), "bfloat16": {"bfloat16"}, "int8": {"int8", "scale"}}
"""Parts of a slot beside those in full precision, by `state_dtype`."""
MAY_BE_NAN = ("gradient_norm", "shared.loss")
"""What may be NaN: it is a measurement of the last batch."""

State = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Expected:
    """What an optimizer will have when it is built.

    Attributes:
        slots: those of its rules, each with its name.
        shared: names of the shared values.
        options: what surrounds the rules.
    """

    slots: Sequence[tuple[str, Slot]]
    shared: Collection[str]
    options: Options

    @classmethod
    def of(cls, rules: Mapping[str, Rule], options: Options, needs_loss: bool) -> Self:
        """Returns it for rules by key."""
        slots = [(name, slot) for rule in rules.values() for name, slot in rule.slots.items()]
        shared = {key + k for key, rule in rules.items() for k in rule.shared}
        return cls(slots, shared | ({"loss"} if needs_loss else set()), options)


class _Call:
    """The call of Keras that loads a state, as far as the state of an optimizer depends on it."""

    def __init__(self, name: str, skips_mismatch: bool) -> None:
        self.name, self.skips_mismatch = name, skips_mismatch

    @classmethod
    def now(cls) -> "_Call":
        """Finds it among the callers: Keras tells `load_own_variables` nothing of it."""
        frame, skips = sys._getframe(1), False
        while frame is not None:
            skips = skips or frame.f_locals.get("skip_mismatch") is True
            if frame.f_code.co_name in ("load_weights", "load_model"):
                return cls(frame.f_code.co_name, skips)
            frame = frame.f_back  # type: ignore[assignment]
        return cls("", skips)

    def advice(self, owner: str) -> str:
        """Returns what to do about a state that does not fit."""
        return {
            "load_weights": "The weights of the model are loaded; the optimizer stays as it was and training works. To "
            "load weights alone, call load_weights before compile.",
            "load_model": "Load the model with compile=False and compile it with a new optimizer.",
        }.get(self.name, f"Create the {owner} with the options and the weights it was saved with.")


class StateFile:
    """Writes and reads the state of one optimizer, a dictionary of variables by name.

    Weights are told apart by their order: their paths change when a model is loaded again. The manifest keeps name,
    shape and dtype of every entry and the path of its weight, for the message when something differs, and the SHA-256
    of all of it.

    What is restored before the first step waits for `build`, because there are no slots yet; counter and rate are set
    at once. It is compared as far as it can be when it is loaded, and with the weights in `build`.

    Attributes:
        owner: name of the optimizer's class.
        waiting: manifest and arrays that were loaded before there were slots.
    """

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.waiting: tuple[State, State] | None = None
        self._waits_for = _Call("", False)

    def write(self, store: Any, state: State, paths: Sequence[str] | None) -> None:
        """Writes state and manifest into a Keras store; state that still waits for `build`, as it was loaded.

        Args:
            store: of Keras.
            state: every variable, by name.
            paths: those of the weights; None before `build`.
        """
        manifest, arrays = self.waiting or (self._manifest(state, paths), {})
        digest = Digest(_covered(manifest))
        for name in sorted(manifest["entries"]):
            waits = name in arrays and name not in ALWAYS
            array = arrays[name] if waits else _array(state[name])
            digest.add(name, array)
            store[name] = array
        manifest = manifest | {SEAL: digest.hexdigest()}
        store[MANIFEST] = np.frombuffer(json.dumps(manifest).encode(), dtype=np.uint8)

    def read(
        self,
        store: Any,
        state: State,
        paths: Sequence[str] | None,
        expected: Expected,
        reset: Callable[[], None],
    ) -> None:
        """Restores the state; what was saved before the first step puts everything back to the start.

        Args:
            store: of Keras.
            state: every variable, by name.
            paths: those of the weights; None before `build`.
            expected: what the optimizer will have when it is built.
            reset: puts everything back to the start.

        Raises:
            ValueError: the state is of another optimizer, of other weights, or of other options, it is damaged, or has
                NaN in it; nothing of the optimizer is changed.
        """
        call = _Call.now()
        try:
            manifest, arrays = self._checked(store, paths)
            if paths is not None:
                self._compare(manifest, state, paths)
            elif manifest["built"]:
                self._compare_options(manifest["entries"], state, expected)
        except ValueError as error:
            if call.skips_mismatch:
                reset()
            raise ValueError(f"{error} {call.advice(self.owner)}") from None
        if not manifest["built"]:
            reset()
        for name in state if paths is not None and manifest["built"] else ALWAYS:
            if name in state and name in arrays:
                state[name].assign(arrays[name])
        self.waiting = None if paths is not None or not manifest["built"] else (manifest, arrays)
        self._waits_for = call

    def restore_waiting(self, state: State, paths: Sequence[str], reset: Callable[[], None]) -> None:
        """Puts in place, at the end of `build`, what was loaded before there were slots; arguments as of `read`."""
        if self.waiting is None:
            return
        (manifest, arrays), self.waiting = self.waiting, None
        try:
            self._compare(manifest, state, paths)
        except ValueError as error:
            reset()
            if not self._waits_for.skips_mismatch:
                raise ValueError(f"{error} It is dropped: the next step begins with fresh slots.") from None
            warnings.warn(f"{error} The slots begin anew.", stacklevel=2)
            return
        for name, variable in state.items():
            if name not in ALWAYS:  # these were restored at once, and may have been set since
                variable.assign(arrays[name])

    def _manifest(self, state: State, paths: Sequence[str] | None) -> State:
        built = paths is not None
        head = {"format": FORMAT, "optimizer": self.owner, "built": built, "paths": list(paths or ())}
        return head | {"entries": _entries(state)}

    def _checked(self, store: Any, paths: Sequence[str] | None) -> tuple[State, State]:
        """Returns manifest and arrays, or raises `ValueError` saying what is wrong with them."""
        name = self.owner
        if MANIFEST not in store.keys():  # noqa: SIM118 (the store of Keras has no __contains__ in every format)
            raise ValueError(_of_another_kind(name, store))
        try:
            manifest = json.loads(np.asarray(store[MANIFEST]).tobytes())
            version, entries = manifest["format"], manifest["entries"]
            if version == FORMAT and not _is_whole(manifest):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise ValueError("The manifest of the saved optimizer state cannot be read: the file is damaged.") from None
        if version != FORMAT:
            raise ValueError(f"The saved optimizer state has format {version}; this kopt reads format {FORMAT}.")
        if manifest["optimizer"] != name:
            raise ValueError(
                f"The saved optimizer state does not fit this {name}: it was written by kopt.{manifest['optimizer']}."
            )
        missing = [k for k in entries if k not in store.keys()]  # noqa: SIM118
        if missing:
            raise ValueError(f"The saved optimizer state lacks {missing[0]!r}, which its manifest names.")
        arrays = {k: np.asarray(store[k]) for k in entries}
        for k, array in arrays.items():
            if [list(array.shape), str(array.dtype)] != entries[k]:
                found = f"{array.shape} of {array.dtype}" if list(array.shape) == entries[k][0] else f"{array.shape}"
                raise ValueError(f"The saved {_describe(k, manifest, paths)} is {found}, not as its manifest says.")
            if fault := _fault(k, array):
                raise ValueError(f"The saved {_describe(k, manifest, paths)} {fault}.")
        if SEAL in manifest and manifest[SEAL] != digest_of(arrays, _covered(manifest)):
            raise ValueError(
                "The saved optimizer state is damaged or was changed: it has not the SHA-256 that it was saved with."
            )
        return manifest, arrays

    def _compare(self, manifest: State, state: State, paths: Sequence[str]) -> None:
        """Raises `ValueError` naming the entries that differ from those of the state."""
        saved, expected = manifest["entries"], _entries(state)
        if not manifest["built"]:
            expected = {k: v for k, v in expected.items() if k in ALWAYS}
        faults = [f"{_describe(k, manifest, paths)} is missing" for k in expected if k not in saved]
        faults += [f"{_describe(k, manifest, paths)} is unknown here" for k in saved if k not in expected]
        faults += [
            f"{_describe(k, manifest, paths)} is {saved[k][1]}{saved[k][0]}, not {v[1]}{v[0]}"
            for k, v in expected.items()
            if k in saved and not _fits(k, saved[k], v)
        ]
        if faults:
            more = f" and {len(faults) - 5} more" if len(faults) > 5 else ""
            raise ValueError(
                f"The saved optimizer state does not fit this {self.owner}: {'; '.join(faults[:5])}{more}."
            )

    def _compare_options(self, entries: State, state: State, expected: Expected) -> None:
        """Raises `ValueError` if other slots or shared values were saved than this optimizer will have."""
        parts = [k.split(".") for k in entries if k[0].isdigit()]
        kept = {part[1] for part in parts if len(part) == 2}  # what stands beside the slots
        saved = {f"slot {part[1]!r}" for part in parts if len(part) == 3}
        saved |= {f"shared value {k[7:]!r}" for k in entries if k[0] == "s"}
        here = {f"slot {k!r}" for k, _ in expected.slots} | {f"shared value {k!r}" for k in expected.shared}
        saved |= {"'learning_rate'"} if "learning_rate" in entries else set()
        here |= {"'learning_rate'"} if "learning_rate" in state else set()
        stored, dtype = {part[2] for part in parts if len(part) == 3} - {"value"}, expected.options.state_dtype
        exact = all(slot.exact for _, slot in expected.slots)
        if (stored and stored != STORED[dtype]) or (dtype == "bfloat16" and not stored and not exact):
            saved |= {f"state_dtype with {', '.join(sorted(stored)) or 'float32'}"}
            here |= {f"state_dtype={dtype!r}"}
        around = expected.options
        options = {
            "average": ("use_ema", around.use_ema),
            "accumulator": ("gradient accumulation", around.gradient_accumulation_steps),
        }
        for key, (option, given) in options.items():
            saved |= {option} if key in kept else set()
            here |= {option} if given else set()
        if saved != here:
            faults = [f"{k} is missing" for k in sorted(here - saved)]
            faults += [f"{k} is unknown" for k in sorted(saved - here)]
            raise ValueError(f"The saved optimizer state does not fit this {self.owner}: {'; '.join(faults)}.")


def name_variables(iterations: Any, learning_rate: Any, setup: Setup | None) -> State:
    """Returns every variable worth saving, by name; without a `Setup` those that there are before `build`."""
    state = {"iteration": iterations}
    if isinstance(learning_rate, keras.Variable):
        state["learning_rate"] = learning_rate
    if setup is None:
        return state
    for name in ("nonfinite_steps", "clipped_steps", "gradient_norm"):
        state[name] = getattr(setup, name)
    if setup.averages_at is not None:
        state["averages_at"] = setup.averages_at
    state |= {f"shared.{k}": v for k, v in setup.shared.items()}
    for i, p in enumerate(setup.parameters):
        parts = {f"{name}.{part}": v for name, slot in p.slots.items() for part, v in slot.items()}
        parts |= {name: getattr(p, name) for name in BESIDE}
        state |= {f"{i}.{k}": v for k, v in parts.items() if v is not None}
    return state


def _covered(manifest: State) -> str:
    """Returns what the hash covers of the manifest: all but itself."""
    return json.dumps({k: v for k, v in manifest.items() if k != SEAL}, sort_keys=True)


def _entries(state: State) -> State:
    return {name: [list(v.shape), keras.backend.standardize_dtype(v.dtype)] for name, v in state.items()}


def _array(variable: Any) -> Any:
    """Returns the value of a variable in its own type: torch has some in wider ones, or has no arrays of them."""
    return np.asarray(ops.convert_to_numpy(variable)).astype(keras.backend.standardize_dtype(variable.dtype))


def _fits(key: str, saved: list[Any], here: list[Any]) -> bool:
    """Whether an entry can be restored from another one; [shape, type] both.

    What is no slot may be wider on one backend than on another: counters, and sums over all weights.
    """
    if key[0].isdigit():
        return saved == here
    kinds = [np.dtype(dtype).kind for _, dtype in (saved, here)]
    return saved[0] == here[0] and kinds[0] == kinds[1]


def _of_another_kind(name: str, store: Any) -> str:
    """Returns why a store without a manifest cannot be read."""
    around = "LossScaleOptimizer, which compile() puts around an optimizer in mixed float16"
    policy = "Set keras.config.set_dtype_policy as it was when the model was compiled, then load it."
    keys = list(store.keys())
    if not keys:
        return f"The saved optimizer state is that of kopt.{name} without the {around}. {policy}"
    if "2" in keys and np.asarray(store["2"]).dtype.kind == "i":  # counts steps; of an optimizer alone it is a slot
        return f"The saved optimizer state is that of an optimizer inside of the {around}. {policy}"
    return f"The saved optimizer state has no manifest, so kopt.{name} did not write it."


def _describe(key: str, manifest: State, paths: Sequence[str] | None) -> str:
    index, _, slot = key.partition(".")
    if not index.isdigit():
        return repr(key)
    known = paths if paths is not None and int(index) < len(paths) else manifest["paths"]
    return f"slot {slot!r} of weight {index} ({known[int(index)]})"


def _fault(key: str, array: Any) -> str:
    """Returns what no state can have been."""
    if key in MAY_BE_NAN:
        return ""
    if key.endswith(".bfloat16"):
        array = (array.astype("uint32") << 16).view("float32")
    if array.dtype.kind in "iu" and key.partition(".")[2] != "int8" and not key.endswith(".int8"):
        return "is negative" if (array < 0).any() else ""
    if array.dtype.kind in "iub":
        return ""
    numbers = array.astype("float64")
    if key == "learning_rate":
        return "is negative" if (numbers < 0).any() else "" if np.isfinite(numbers).all() else "is not finite"
    # A search for a step may remember an infinite loss.
    sound = np.isfinite(numbers) if key[0].isdigit() else ~np.isnan(numbers)
    return "" if sound.all() else "is not finite: training had diverged"


def _is_whole(manifest: State) -> bool:
    """Whether a manifest has all that is read of it."""
    paths, entries = manifest["paths"], manifest["entries"]
    return (
        isinstance(manifest["optimizer"], str)
        and isinstance(manifest["built"], bool)
        and isinstance(paths, list)
        and isinstance(entries, dict)
        and all(isinstance(x, list) and len(x) == 2 and isinstance(x[0], list) for x in entries.values())
        and all(int(k.partition(".")[0]) < len(paths) for k in entries if k[:1].isdigit())
    )

"""What is compared between the backends of Keras, by section and name; as a script, the runs of one backend.

    KERAS_BACKEND=jax python tests/support/backend_cases.py FILE.npz SECTION/NAME ...

`python docs/generate.py --measure SECTION` writes the differences into docs/backends.json and docs/backends.md.
"""

import dataclasses
import sys
from collections.abc import Mapping

import backend_adapters
import backend_callbacks
import backend_devices
import backend_optimizers
import backend_uses
import numpy as np
from backend_runs import Case, written


def _by_array(cases: Mapping[str, Case]) -> dict[str, Case]:
    """Returns cases whose arrays are of different kinds: each is compared with its own largest number."""
    return {name: dataclasses.replace(case, by_array=True) for name, case in cases.items()}


SECTIONS: dict[str, Mapping[str, Case]] = {
    "gradients": backend_optimizers.GRADIENTS,
    "fit": backend_optimizers.FIT,
    "uses": backend_uses.USES,
    "devices": backend_devices.DEVICES,
    "callbacks": _by_array(backend_callbacks.CALLBACKS),
    "adapters": _by_array(backend_adapters.ADAPTERS),
}
HEADINGS = {
    "gradients": "Optimizers, given the same gradients",
    "fit": "Optimizers in `fit`",
    "uses": "What is done with optimizers",
    "devices": "Optimizers in `fit` on two devices, with `keras.distribution.DataParallel`",
    "callbacks": "Callbacks",
    "adapters": "Adapters",
}
CASES = {f"{section}/{name}": case for section, cases in SECTIONS.items() for name, case in cases.items()}
"""All of them, by "section/name"."""

if __name__ == "__main__":
    file, *names = sys.argv[1:]
    np.savez(file, **written({name: CASES[name] for name in names}))

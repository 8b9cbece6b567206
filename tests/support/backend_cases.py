"""What is compared between the backends of Keras, by section and name; as a script, the runs of one backend.

    KERAS_BACKEND=jax python tests/support/backend_cases.py FILE.npz SECTION/NAME ...

`python docs/generate.py --measure SECTION` writes the differences into docs/backends.json and docs/backends.md.
"""

import sys
from collections.abc import Mapping

import backend_adapters
import backend_callbacks
import backend_optimizers
import numpy as np
from backend_runs import Case, written

SECTIONS: dict[str, Mapping[str, Case]] = {
    "gradients": backend_optimizers.GRADIENTS,
    "fit": backend_optimizers.FIT,
    "callbacks": backend_callbacks.CALLBACKS,
    "adapters": backend_adapters.ADAPTERS,
}
HEADINGS = {
    "gradients": "Optimizers, given the same gradients",
    "fit": "Optimizers in `fit`",
    "callbacks": "Callbacks",
    "adapters": "Adapters",
}
CASES = {f"{section}/{name}": case for section, cases in SECTIONS.items() for name, case in cases.items()}
"""All of them, by "section/name"."""

if __name__ == "__main__":
    file, *names = sys.argv[1:]
    np.savez(file, **written({name: CASES[name] for name in names}))

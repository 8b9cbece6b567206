"""Runs both columns of the pages docs/from-*.md beside each other.

    pip install torch==2.13.0 pytorch-optimizer==4.1.0 optax==0.2.8
    python -m benchmarks.names [LIBRARY ...]     # writes docs/names/measured.json
    python docs/generate.py                      # writes the pages

Optimizers take the 20 gradients of `benchmarks.parity` in float64; schedules are asked for the rates of 20 steps. The
difference is the largest one, relative to the largest weight or rate.
"""

import json
import os
import pathlib
import sys
import types
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from benchmarks.parity import STEPS, distance, gradients, ours
from benchmarks.peers import on_matrices, on_optax, on_torch

sys.path.append(str(pathlib.Path(__file__).parents[1] / "docs"))

import name_pages


def namespace(library: str) -> dict[str, Any]:
    """Returns what the expressions of a library may name."""
    if library == "optax":
        import optax

        return {"optax": optax}
    import torch

    if library == "torch":
        return {"torch": torch, **vars(torch.optim.lr_scheduler)}
    import pytorch_optimizer

    return {"torch": torch, "po": pytorch_optimizer}


def apart(library: str, row: name_pages.Row) -> float:
    """Returns how far the two optimizers of a row are apart."""
    there, expression = namespace(library), row["peer"]
    weights, steps = gradients()
    if library == "optax":
        run = on_optax(lambda _: eval(expression, there))
    else:

        def make(params: Any, decay: float) -> Any:
            return eval(expression, there | {"params": params})

        run = on_matrices(make, vectors=make) if row.get("matrices") else on_torch(make, last_first=True)
    mine = ours(lambda _: name_pages.made(row["kopt"]), weights, steps, 0.0)
    return distance(mine, run(weights, steps, 0.0))


def rates_apart(library: str, row: name_pages.Row) -> float:
    """Returns how far the two schedules of a row are apart."""
    there, expression = namespace(library), row["schedule"]
    schedule = name_pages.made(row["kopt"])
    mine = np.array([float(schedule(tf.constant(float(t)))) for t in range(STEPS)])
    if library == "optax":
        other = eval(expression, there)
        theirs = np.array([float(other(t)) for t in range(STEPS)])
    else:
        import torch

        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        other, found = eval(expression, there | {"optimizer": optimizer}), []
        for _ in range(STEPS):
            found.append(float(optimizer.param_groups[0]["lr"]))
            optimizer.step()
            other.step()
        theirs = np.array(found)
    return float(np.abs(mine - theirs).max() / np.abs(theirs).max())


def difference(library: str, name: str) -> float:
    """Returns how far the two columns of a row are apart."""
    row = dict(name_pages.rows(library))[name]
    tf.config.run_functions_eagerly(True)
    try:
        return apart(library, row) if "peer" in row else rates_apart(library, row)
    finally:
        tf.config.run_functions_eagerly(False)


def compared(library: str) -> list[str]:
    """Returns the names that have two columns."""
    return [name for name, row in name_pages.rows(library) if "peer" in row or "schedule" in row]


def public(library: str) -> set[str]:
    """Returns the names that the page of a library must have: those of the version that is installed."""
    if library == "optax":
        import optax

        both = vars(optax) | vars(optax.contrib)
        kinds = (type, types.ModuleType)
        found = {k for k, v in both.items() if callable(v) and not k.startswith("_") and not isinstance(v, kinds)}
        aliases = {"MaskOrFn", "OptState", "Params", "ScalarOrSchedule", "Schedule", "Updates"}
        return (found | {"MultiSteps"}) - aliases
    import torch

    if library == "torch":
        modules = (torch.optim, torch.optim.lr_scheduler, torch.optim.swa_utils)
        return {name for module in modules for name in module.__all__} - {"lr_scheduler", "swa_utils"}
    import pytorch_optimizer.optimizer

    return {cls.__name__ for cls in pytorch_optimizer.optimizer.OPTIMIZER_LIST}


def main() -> None:
    """Runs all and writes the differences."""
    found = name_pages.measured()
    for library in sys.argv[1:] or name_pages.LIBRARIES:
        print(library, "without a row:", sorted(public(library) - {*name_pages.names(library)}), flush=True)
        found[library] = {}
        for name in compared(library):
            found[library][name] = difference(library, name)
            print(library, name, f"{found[library][name]:.1e}", flush=True)
    text = json.dumps(found, indent=1) + "\n"
    name_pages.MEASURED.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

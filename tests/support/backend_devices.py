"""Optimizers in `fit` on two devices of JAX, which should come to what one device of TensorFlow does."""

import keras
import numpy as np
from backend_optimizers import FIT
from backend_runs import Case


def on_two(case: Case) -> list[np.ndarray]:
    """Runs a case on two devices, where the backend is JAX."""
    if keras.backend.backend() == "tensorflow":
        return list(case.run())
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=["cpu:0", "cpu:1"]))
    try:
        return list(case.run())
    finally:
        keras.distribution.set_distribution(None)


DEVICES = {
    name: Case(lambda case=case: on_two(case), case.bound, case.counted, only=("jax",))
    for name, case in FIT.items()
    if not case.refused
}

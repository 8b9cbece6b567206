"""Models with the state of their optimizers, as files from one backend for another; as a script, what one backend does.

    KERAS_BACKEND=jax python tests/support/backend_files.py FOLDER OTHER ...

loads the files of OTHER backends and trains on; then it writes its own, and trains on. What the state was and where
training came to is left in FOLDER/BACKEND-from-OTHER.npz.
"""

import pathlib
import sys

import keras
import numpy as np
from backend_optimizers import EXACT, OPTIONS, examples, network, numbers

import kopt

WHOLE = ("precise",)
"""What takes all examples at once."""
MAKERS = {
    "options": OPTIONS["all of these"],
    "scaled": OPTIONS["kopt.LossScaleOptimizer"],
    "precise": kopt.LBFGS,
    "routes": lambda: kopt.Route([("kernel", kopt.Prodigy()), ("", "momentum")], **EXACT),
    "wrapped": lambda: kopt.Lookahead(kopt.Mechanic("adam", **EXACT), k=3),
    "bfloat16": lambda: kopt.AdamW(**EXACT, state_dtype="bfloat16"),
    "int8": lambda: kopt.AdamW(**EXACT, state_dtype="int8"),
    "short": lambda: kopt.AdamW(**EXACT),
}


def train(name, model):
    """Trains for ten epochs of one step, or two of five."""
    size, epochs = (40, 10) if name in WHOLE else (8, 2)
    model.fit(*examples(), batch_size=size, epochs=epochs, shuffle=False, verbose=0)


def state_and_weights(name, model):
    """Returns the state as it is, and the weights after further training."""
    state = numbers(model.optimizer.variables)
    train(name, model)
    short = name == "short"  # in 16 bits the model itself differs
    return {f"{name}/{i}": x for i, x in enumerate([*state, *(() if short else numbers(model.weights))])}


def loaded(folder, name):
    """Returns a model from its file, built and with the state that waited for that."""
    model = keras.models.load_model(folder / f"{name}.keras")
    model.optimizer.build(model.trainable_variables)
    return model


def written(folder, name, make):
    """Returns a model that has trained, and is in a file."""
    keras.config.set_dtype_policy("bfloat16" if name == "short" else "float32")
    model = network(make())
    keras.config.set_dtype_policy("float32")
    train(name, model)
    model.save(folder / f"{name}.keras")
    return model


if __name__ == "__main__":
    room, here = pathlib.Path(sys.argv[1]), keras.backend.backend()
    for other in sys.argv[2:]:
        found = [state_and_weights(name, loaded(room / other, name)) for name in MAKERS]
        np.savez(room / f"{here}-from-{other}.npz", **{k: x for each in found for k, x in each.items()})
    (room / here).mkdir()
    found = [state_and_weights(name, written(room / here, name, make)) for name, make in MAKERS.items()]
    np.savez(room / f"{here}-from-{here}.npz", **{k: x for each in found for k, x in each.items()})

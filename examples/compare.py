"""Compare: three optimizers on one task, each at the better of two rates, judged on other seeds.

`kopt compare` does this with more: a declared budget, plots, z-tests, TensorBoard, and runs that go on.
"""

import keras
import numpy as np
from sklearn.datasets import load_digits

import kopt

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype("float32")
train, valid, test = slice(0, 1000), slice(1000, 1400), slice(1400, None)
DEFAULTS = {"adamw": 1e-3, "momentum": 1e-2, "lion": 1e-4}


def fitted(name, rate, seed):
    """Returns a model after six epochs."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(kopt.get(name, learning_rate=rate), loss, metrics=["accuracy"])
    model.fit(images[train], labels[train], batch_size=50, epochs=6, verbose=0)
    return model


print(f"{'optimizer':<10} {'rate':>7} {'test loss':>10} {'accuracy':>9} {'bytes/parameter':>16}")
for name, default in DEFAULTS.items():
    rates = [default, 10 * default]
    losses = [fitted(name, rate, seed=0).evaluate(images[valid], labels[valid], verbose=0)[0] for rate in rates]
    best = rates[int(np.argmin(losses))]
    models = [fitted(name, best, seed) for seed in (1, 2)]
    loss, accuracy = np.mean([model.evaluate(images[test], labels[test], verbose=0) for model in models], axis=0)
    state = kopt.state_bytes(kopt.get(name), models[0]) / models[0].count_params()
    print(f"{name:<10} {best:>7.0e} {loss:>10.3f} {accuracy:>9.3f} {state:>16.1f}")

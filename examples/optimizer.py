"""An optimizer: AdaBound learns handwritten digits, is saved in the middle, and goes on where it stopped.

The second half begins with the moments and the counters of the first: training on after loading is the training that
was never interrupted, bit for bit.
"""

import keras
import numpy as np
from sklearn.datasets import load_digits

import kopt

keras.utils.set_random_seed(0)
images, labels = load_digits(return_X_y=True)
images = (images / 16).astype("float32")
train, test = slice(0, 1400), slice(1400, None)


def fit(model, epochs):
    """Trains on the same batches in every epoch, so that the two trainings below can be compared."""
    model.fit(images[train], labels[train], batch_size=50, epochs=epochs, shuffle=False, verbose=0)


layers = [keras.layers.Dense(64, "relu"), keras.layers.Dense(10)]
model = keras.Sequential([keras.Input((64,)), *layers])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
schedule = kopt.schedules.WarmupCosine(1e-2, steps=28 * 10, warmup=28)
model.compile(kopt.AdaBound(schedule, global_clipnorm=1.0), loss, metrics=["accuracy"])

fit(model, 5)
model.save("digits.keras")
fit(model, 5)
loaded = keras.saving.load_model("digits.keras")
print(f"loaded after update {int(loaded.optimizer.iterations)}: {loaded.optimizer}")
fit(loaded, 5)

same = all(np.array_equal(a, b) for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True))
_, accuracy = model.evaluate(images[test], labels[test], verbose=0)
print(f"test accuracy {accuracy:.3f} after 10 epochs; the same weights with a pause in the middle: {same}")

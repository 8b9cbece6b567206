"""LoRA: a classifier of upright digits learns turned ones by a few weights, and stays what it was without them."""

import keras
import numpy as np
from sklearn.datasets import load_digits

import kopt
from kopt import peft

keras.utils.set_random_seed(0)
images, labels = load_digits(return_X_y=True)
upright = (images / 16).astype("float32")
turned = np.rot90(upright.reshape(-1, 8, 8), axes=(1, 2)).reshape(-1, 64)
train, test = slice(0, 1400), slice(1400, None)


def accuracy(x):
    """Returns the accuracy on the test images, upright or turned."""
    return model.evaluate(x[test], labels[test], verbose=0)[1]


loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
hidden = [keras.layers.Dense(256, "relu", name=f"hidden_{i}") for i in range(2)]
model = keras.Sequential([keras.Input((64,)), *hidden, keras.layers.Dense(10, name="head")])
model.compile(kopt.AdamW(1e-3), loss, metrics=["accuracy"])
model.fit(upright[train], labels[train], epochs=12, verbose=0)
print(f"the base:             upright {accuracy(upright):.3f}, turned {accuracy(turned):.3f}")
before = model.predict(upright, verbose=0)

peft.get_peft_model(model, peft.LoRA(r=8, lora_alpha=16, target_modules="all-linear"))
peft.print_trainable_parameters(model)
model.compile(kopt.AdamW(5e-3, multipliers=peft.lora_plus(4)), loss, metrics=["accuracy"])
model.fit(turned[train], labels[train], epochs=20, verbose=0)
print(f"with the adapter on:  turned {accuracy(turned):.3f}")

with peft.disable_adapter(model):
    same = np.array_equal(model.predict(upright, verbose=0), before)
print(f"the base is as it was, bit for bit: {same}")
peft.save_pretrained(model, "turned")  # a folder with the two files that Hugging Face peft reads

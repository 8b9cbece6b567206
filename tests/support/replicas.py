"""One device and two replicas that train the same: every rule, wrapper and adapter, in `fit` and in a loop.

PYTHONPATH=.:tests/support python tests/support/replicas.py                # all cases
PYTHONPATH=.:tests/support python tests/support/replicas.py --sample 12    # some, as the tests draw them

Prints the cases whose weights differ by more than 1e-6, and the largest difference.
"""

import argparse
import functools
import random
import sys
import warnings

import keras
import numpy as np
import tensorflow as tf
from problems import flat, network, regression, rules
from small_adapters import fitting

import kopt
from kopt import peft

OPTIONS = {"global_clipnorm": 0.3, "gradient_accumulation_steps": 2, "use_ema": True, "ema_overwrite_frequency": 3}
"""What stands around every rule."""
BOUND = 1e-6
READ = np.array([3, 7, 3, 11, 30, 7, 3, 11], np.int32)
"""Ids of a batch: some rows are read by both replicas, and more than once."""


def cases():
    """Returns the function of a strategy that gives the weights after a training, by name."""
    found = {}
    for name, cls in rules().items():
        if hasattr(cls(), "observe"):
            continue  # `Curvature` refuses several replicas
        found[f"{name}, fit"] = functools.partial(fitted, cls)
        found[f"{name}, loop"] = functools.partial(looped, cls)
        if cls().row_wise and not cls().needs_loss:
            found[f"{name}, rows"] = functools.partial(looked_up, cls)
    for cls in (kopt.SAM, kopt.ASAM):
        found[f"{cls.__name__}, fit"] = functools.partial(sharpened, cls)
    for name, cls in peft.adapters().items():
        if cls.__module__.startswith("kopt.") and cls().gated:
            found[f"{name}, fit"] = functools.partial(adapted, cls)
    return found


def fitted(cls, strategy):
    with strategy.scope():
        model = network(cls(**OPTIONS))
    model.fit(regression(), shuffle=False, epochs=4, verbose=0)
    return flat(model)


def looped(cls, strategy):
    with strategy.scope():
        model = network(cls(**OPTIONS))
        model.optimizer.build(model.trainable_variables)
    replicas = strategy.num_replicas_in_sync

    def train(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y)) / replicas
            scaled = model.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [v.value for v in model.trainable_variables])
        model.optimizer.apply(gradients, model.trainable_variables)

    step = tf.function(lambda batch: strategy.run(train, args=batch), reduce_retracing=True)
    for batch in strategy.experimental_distribute_dataset(regression().repeat(4)):
        step(batch)
    model.optimizer.finalize_variable_values(model.trainable_variables)
    return flat(model)


def looked_up(cls, strategy):
    with strategy.scope():
        inputs = keras.Input((), dtype="int32")
        model = keras.Model(inputs, keras.layers.Embedding(40, 3, "ones")(inputs))
        model.compile(cls(**OPTIONS), "mse")
    targets = np.random.default_rng(0).normal(size=(6, len(READ), 3)).astype("float32").reshape(-1, 3)
    data = tf.data.Dataset.from_tensor_slices((np.tile(READ, 6), targets)).batch(len(READ))
    model.fit(data, shuffle=False, verbose=0)
    return flat(model)


def sharpened(cls, strategy):
    with strategy.scope():
        plain = network(kopt.SGD())
        model = cls.of(plain, whole_batch=True)
        model.compile(kopt.Adam(0.01, **OPTIONS), "mse")
    model.fit(regression(), shuffle=False, epochs=4, verbose=0)
    return flat(model)


def adapted(cls, strategy):
    with strategy.scope():
        keras.utils.set_random_seed(1)
        layers = [keras.layers.Embedding(9, 4), keras.layers.LayerNormalization(), keras.layers.Flatten()]
        layers += [keras.layers.Dense(8, "tanh"), keras.layers.Dense(4)]
        model = keras.Sequential([keras.Input((3,), dtype="int32"), *layers])
        peft.get_peft_model(model, cls(target_modules=".*", **fitting(cls)))
        options, callbacks = dict(OPTIONS), []
        if cls is peft.AdaLoRA:
            options.pop("gradient_accumulation_steps")  # which the callback refuses
            callbacks.append(peft.AllocateRanks())
        model.compile(kopt.AdamW(0.01, **options), "mse")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, (64, 3)).astype("int32"), rng.normal(size=(64, 4)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "AdaLoRA is at step")  # of the 1,000 of its default
        model.fit(data, shuffle=False, epochs=2, verbose=0, callbacks=callbacks)
    return flat(model)


def difference(case, two_devices):
    """Returns the largest difference of a weight between one device and two replicas, in units of the larger one and 1.

    Raises:
        ValueError: nothing was trained, or the weights are not finite.
    """
    one, two = case(tf.distribute.get_strategy()), case(two_devices)
    if not np.isfinite(one).all():
        raise ValueError("weights that are not finite")
    return float((np.abs(one - two) / np.maximum(np.abs(one), 1)).max())


def sample(count, seed=0):
    """Returns the names of some cases."""
    return sorted(random.Random(seed).sample(sorted(cases()), count))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of the name of a case")
    given = parser.parse_args()
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    two_devices = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    found = cases()
    names = [name for name in sample(given.sample or len(found), given.seed) if given.only in name]
    largest, different = 0.0, 0
    for name in names:
        keras.utils.set_random_seed(0)
        try:
            off = difference(found[name], two_devices)
        except Exception as error:
            off = np.inf
            print(f"{name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
        if off > BOUND:
            different += 1
            print(f"{name}: {off:.1e}", flush=True)
        largest = max(largest, off)
        keras.utils.clear_session(free_memory=False)
    print(f"{len(names)} cases, {different} differ by more than {BOUND:g}; the largest difference is {largest:.1e}")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())

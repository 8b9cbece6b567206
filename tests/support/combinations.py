"""Pairs of what is seldom used together, a rule and a way to train, each against what must be equal.

    python tests/support/combinations.py --count 60 --seed 0 [--only SOAP] [--checks resume reset]
    python tests/support/combinations.py --backend jax --count 20

    resume      two epochs, saving, loading and two more are four epochs, bit for bit
    file        so are weights and state in a file, loaded into a fresh model
    reset       what was reset trains as if for the first time
    thawed      layers that were frozen train on after another compile, and everything stays finite
    replicas    two replicas are one
    backend     another backend of Keras comes to the same predictions

A difference is printed with the pair, which `--only RULE --ways WAY` plays again.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

import kopt

RATE = 0.01
HERE = pathlib.Path(__file__).parents[2]


def _adamw():
    return kopt.AdamW(RATE, weight_decay=0.05)


RULES = {
    "Hyperball": lambda **how: kopt.Hyperball(_adamw(), **how),
    "UpdateFloor": lambda **how: kopt.UpdateFloor(kopt.Momentum(RATE), floor=0.01, by="output", **how),
    "CautiousDecay": lambda **how: kopt.CautiousDecay(_adamw(), **how),
    "EMANesterov": lambda **how: kopt.EMANesterov(kopt.Hyperball(kopt.Muon(RATE)), **how),
    "GaLore": lambda **how: kopt.GaLore(_adamw(), rank=2, every=3, **how),
    "APOLLO": lambda **how: kopt.APOLLO(_adamw(), rank=2, every=3, **how),
    "Orthogonalized": lambda **how: kopt.Orthogonalized(kopt.SOAP(RATE, every=2), **how),
    "Scion": lambda **how: kopt.Scion(**how),
    "KLSOAP": lambda **how: kopt.KLSOAP(RATE, every=2, **how),
    "SOAP": lambda **how: kopt.SOAP(RATE, every=2, **how),
    "Shampoo": lambda **how: kopt.Shampoo(RATE, every=2, damping=1e-2, **how),
    "PSGDKron": lambda **how: kopt.PSGDKron(RATE, **how),
    "Muon": lambda **how: kopt.Muon(RATE, **how),
    "NorMuon": lambda **how: kopt.NorMuon(RATE, **how),
    "Adafactor": lambda **how: kopt.Adafactor(RATE, beta_1=0.9, **how),
    "CAME": lambda **how: kopt.CAME(RATE, **how),
    "SM3": lambda **how: kopt.SM3(RATE, **how),
    "AdamMini": lambda **how: kopt.AdamMini(RATE, **how),
    "RowwiseAdaGrad": lambda **how: kopt.RowwiseAdaGrad(RATE, **how),
    "SophiaG": lambda **how: kopt.SophiaG(1e-3, every=2, **how),
    "SophiaH": lambda **how: kopt.SophiaH(1e-3, every=2, **how),
    "AdaHessian": lambda **how: kopt.AdaHessian(RATE, **how),
    "Switch": lambda **how: kopt.Switch(kopt.Muon(RATE), second=kopt.SOAP(RATE, every=2), after=5, **how),
    "Route": lambda **how: kopt.Route([("kernel$", kopt.Hyperball(kopt.PSGDKron(RATE))), ("", kopt.SM3(RATE))], **how),
    "Lookahead": lambda **how: kopt.Lookahead(kopt.CAME(RATE), k=3, **how),
    "Cautious": lambda **how: kopt.Cautious(kopt.KLSOAP(RATE, every=2), **how),
    "Mechanic": lambda **how: kopt.Mechanic(kopt.AdamMini(1.0), start=1e-3, **how),
}
BY_CURVATURE = ("SophiaG", "SophiaH", "AdaHessian")
WAYS = {
    "plainly": {},
    "in 8 bits": {"state_dtype": "int8"},
    "in 16 bits": {"state_dtype": "bfloat16"},
    "with averages": {"use_ema": True, "ema_momentum": 0.8},
    "to averages": {"use_ema": True, "ema_momentum": 0.8, "ema_overwrite_frequency": 3},
    "accumulating": {"gradient_accumulation_steps": 2},
    "skipping": {"on_nonfinite": "skip"},
    "clipped": {"global_clipnorm": 0.5},
    "all at once": {"state_dtype": "int8", "gradient_accumulation_steps": 2, "use_ema": True, "on_nonfinite": "skip"},
    "mixed_bfloat16": {},
    "bfloat16": {},
    "float64": {},
    "frozen": {},
    "LoRA": {},
    "remat": {},
    "XLA": {},
}
CHECKS = ("resume", "file", "reset", "thawed", "replicas")
X = np.random.default_rng(0).integers(0, 9, (16, 6)).astype("int32")
Y = np.sin(X.sum(1, keepdims=True)).astype("float32")


def network(way):
    """Returns a model with a weight of every kind."""
    keras.utils.set_random_seed(0)
    short = way in ("mixed_bfloat16", "bfloat16")
    keras.config.set_floatx("float64" if way == "float64" else "float32")
    keras.config.set_dtype_policy(way if short or way == "float64" else "float32")
    layers = keras.layers
    x = keras.Input((6,), dtype="int32")
    h = layers.Embedding(9, 16, name="table")(x)
    h = layers.MultiHeadAttention(2, 8, name="attention")(h, h)
    h = layers.Conv1D(8, 3, name="conv")(layers.LayerNormalization(name="norm")(h))
    h = layers.Dense(16, activation="tanh", name="middle")(layers.Flatten()(h))
    model = keras.Model(x, layers.Dense(1, name="head", dtype="float32" if short else None)(h))
    if way == "LoRA":
        model = kopt.peft.get_peft_model(
            model, kopt.peft.LoRA(r=3, target_modules=["query", "value", "middle", "table"])
        )
    if way == "remat":
        kopt.remat(model)
    return model


def compiled(rule, way, how=None):
    """Returns a model to be trained with a rule in a way."""
    model, options = network(way), {**WAYS[way], **(how or {})}
    for layer in model.layers:
        layer.trainable = layer.trainable and not (way == "frozen" and layer.name in ("table", "conv", "head"))
    model = kopt.Curvature.of(model) if rule in BY_CURVATURE else model
    model.compile(RULES[rule](**options), "mse", jit_compile=way == "XLA")
    return model


def fit(model, epochs=2):
    model.fit(X, Y, batch_size=4, epochs=epochs, shuffle=False, verbose=0)
    return model


def flat(model):
    """Returns all weights as float64 in one array."""
    return np.concatenate(
        [np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(w, "float64"))).ravel() for w in model.weights]
    )


def apart(one, other):
    """Returns the largest difference of the weights of two models; both must be finite."""
    both = [flat(model) for model in (one, other)]
    if not all(np.isfinite(each).all() for each in both):
        raise AssertionError("weights are not finite")
    return np.abs(both[0] - both[1]).max()


class Pair:
    """A rule and a way; the checks return how far apart is what must be equal, and how far it may be."""

    def __init__(self, rule, way, folder):
        self.rule, self.way, self.folder = rule, way, pathlib.Path(folder)

    def resume(self):
        model = fit(compiled(self.rule, self.way))
        model.save(self.folder / "m.keras")
        other = keras.saving.load_model(self.folder / "m.keras")
        if self.way == "remat":
            kopt.remat(getattr(other, "model", other))
        return apart(fit(model), fit(other)), 0.0

    def file(self):
        model = fit(compiled(self.rule, self.way))
        model.save_weights(self.folder / "m.weights.h5")
        other = compiled(self.rule, self.way)
        other.load_weights(self.folder / "m.weights.h5")
        return apart(fit(model), fit(other)), 0.0

    def reset(self):
        model, other = compiled(self.rule, self.way), fit(compiled(self.rule, self.way))
        first = model.get_weights()
        fit(model)
        model.set_weights(first)
        model.optimizer.reset()
        return apart(fit(model), other), 0.0

    def thawed(self):
        model = fit(compiled(self.rule, "frozen", WAYS[self.way]), 1)
        for layer in getattr(model, "model", model).layers:
            layer.trainable = True
        model.compile(RULES[self.rule](**WAYS[self.way]), "mse")
        return apart(fit(model, 1), model), 0.0

    def replicas(self):
        import tensorflow as tf

        model = fit(compiled(self.rule, self.way))
        with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
            other = compiled(self.rule, self.way)
        return apart(model, fit(other)), 1e-5


def possible(rule, way, check):
    """Whether a check makes sense for a pair."""
    if rule in BY_CURVATURE and (check == "replicas" or way in ("accumulating", "all at once")):
        return False
    return check != "thawed" or way in [way for way, how in WAYS.items() if how or way == "plainly"]


def chosen(given):
    """Returns triples of rule, way and check in random order."""
    triples = [
        (rule, way, check)
        for rule in given.only or RULES
        for way in given.ways or WAYS
        for check in given.checks
        if possible(rule, way, check)
    ]
    order = np.random.default_rng(given.seed).permutation(len(triples))
    return [triples[i] for i in order[: given.count]]


def try_one(rule, way, check):
    """Returns what is wrong, or nothing."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            off, most = getattr(Pair(rule, way, folder), check)()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        finally:
            keras.utils.clear_session()
    return "" if off <= most else f"off by {off:.1e}"


def beside(backend, given):
    """Prints how far predictions of another backend are from those of this one, for pairs in one process each.

    Weights would tell nothing: the bias of keys in an attention has a gradient of nothing but rounding, of which rules
    that divide by its size make steps.
    """
    given.checks = ["resume"]  # any one: it is the pairs that count
    names = [
        f"{rule}/{way}"
        for rule, way, _ in chosen(given)
        if rule not in BY_CURVATURE and way not in ("remat", "float64")
    ]
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for each in ("tensorflow", backend):
            file = pathlib.Path(folder, f"{each}.npz")
            command = [sys.executable, __file__, "--write", str(file), *names]
            subprocess.run(command, env={**os.environ, "KERAS_BACKEND": each}, check=True, cwd=HERE)
            found.append(dict(np.load(file)))
    wrong = 0
    for name in names:
        off = np.abs(found[0][name] - found[1][name]).max()
        most = 0.1 if name.endswith(("bfloat16", "bits")) else 2e-3
        wrong += not off < most
        print(f"{'ok  ' if off < most else 'FAIL'} {name}: {off:.1e}", flush=True)
    return wrong


def write(file, names):
    """Trains here, and writes the predictions of each pair into a file."""
    found = {}
    for name in names:
        model = network(name.partition("/")[2])
        rng = np.random.default_rng(1)
        model.set_weights([rng.normal(0, 0.2, w.shape).astype(w.dtype) for w in model.get_weights()])
        rule, _, way = name.partition("/")
        model.compile(RULES[rule](**WAYS[way], sparse="exact"), "mse", jit_compile=way == "XLA")
        found[name] = fit(model).predict(X, verbose=0).astype("float64")
    np.savez(file, **found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no other pair after so many")
    parser.add_argument("--only", nargs="+", choices=RULES)
    parser.add_argument("--ways", nargs="+", choices=WAYS)
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=CHECKS[:4])
    parser.add_argument("--backend", choices=("jax", "torch"))
    parser.add_argument("--write", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        return write(given.write[0], given.write[1:])
    if given.backend:
        return beside(given.backend, given)
    wrong, start = 0, time.monotonic()
    for rule, way, check in chosen(given):
        if time.monotonic() - start > given.seconds:
            break
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            tf.config.run_functions_eagerly(way != "XLA" and check != "replicas")
        fault = try_one(rule, way, check)
        wrong += bool(fault)
        print(f"{'FAIL' if fault else 'ok  '} {rule}, {way}, {check} {fault[:300]}", flush=True)
    return wrong


if __name__ == "__main__":
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        device = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
    sys.exit(bool(main()))

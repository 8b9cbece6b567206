"""Random sequences of what is done to a model with adapters, each of them against a plain account of what should hold.

    python tests/support/adapter_sequences.py --count 200 --seed 0

After every verb the outputs are those that NumPy computes from the base and the adapters, the bits of the base are
those that it had, the trainable weights are those of the active adapters, no other weight has moved, and the optimizer
has made as many steps as it should have for the weights that are trained now. `--pairs` plays every ordered pair.
"""

import argparse
import contextlib
import copy
import os
import pathlib
import pickle
import sys
import tempfile
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import kopt
from kopt import peft

X = np.random.default_rng(5).normal(size=(6, 4)).astype("float32")
Y = np.ones((6, 2), "float32")
METHODS = {
    "p": lambda: peft.LoRA(r=2, lora_alpha=4.0, target_modules=["a"], init_lora_weights=False),
    "q": lambda: peft.LoRA(r=1, lora_alpha=1.0, target_modules=["a", "b"], bias="lora_only", init_lora_weights=False),
    "r": lambda: peft.IA3(target_modules=["b"], feedforward_modules=[]),
    "s": lambda: peft.LoRA(r=1, lora_alpha=1.0, target_modules=["b"], modules_to_save=["head"]),
}
HOSTS = {"p": {"a"}, "q": {"a", "b"}, "r": {"b"}, "s": {"b", "head"}}
OPTIMIZERS = (lambda: kopt.AdamW(0.01, weight_decay=0.1), lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1))
UNBUILT = "Skipping variable loading for optimizer"
"""What Keras warns of when it loads a compiled model that was not trained, with adapters or without."""


class DifferenceError(AssertionError):
    """The model is not what it should be."""


def network():
    inner = keras.Sequential(
        [keras.Input((4,)), keras.layers.BatchNormalization(name="norm"), keras.layers.Dense(3, name="b")], name="inner"
    )
    inputs = keras.Input((4,))
    x = keras.layers.Dense(4, "tanh", name="a")(inputs)
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(inner(x)))


def base_of(model):
    """Returns the values of the base by the tail of their paths."""
    return {"/".join(v.path.split("/")[-2:]): v.numpy().copy() for v in model.weights if "/adapters/" not in v.path}


class Account:
    """What should hold, and how often each set of weights was trained."""

    def __init__(self, base):
        self.base, self.values, self.active, self.merged = base, {}, [], []
        self.disabled, self.frozen, self.base_frozen = 0, set(), False
        self.steps, self.key = {}, ("base",)

    def trained(self):
        """Returns (adapter, host) of what is trainable."""
        if not self.values:
            return set() if self.base_frozen else {("base", "base")}
        pairs = {(n, h) for n in self.active for h in HOSTS[n]}
        return set() if "model" in self.frozen else {(n, h) for n, h in pairs if h not in self.frozen}

    def outputs(self):
        """Returns what the model gives, in float64."""
        w = {k: v.astype("float64") for k, v in self.base.items()}
        on = [] if self.disabled else [n for n in self.values if n in self.active]
        for n in on:  # trained copies first, as they are what kernels are changed from
            for host in HOSTS[n]:
                for part in ("kernel", "bias"):
                    if f"{host}.{part}" in self.short(n):
                        w[f"{host}/{part}"] = self.short(n)[f"{host}.{part}"]
        for n in on:
            values, scale = self.short(n), 2.0 if n == "p" else 1.0
            for host in HOSTS[n]:
                if f"{host}.lora_A" in values:
                    w[f"{host}/kernel"] = (
                        w[f"{host}/kernel"] + scale * values[f"{host}.lora_A"] @ values[f"{host}.lora_B"]
                    )
                if f"{host}.ia3_l" in values:
                    w[f"{host}/kernel"] = w[f"{host}/kernel"] * values[f"{host}.ia3_l"]
                    w[f"{host}/bias"] = w[f"{host}/bias"] * values[f"{host}.ia3_l"][0]
        x = np.tanh(X @ w["a/kernel"] + w["a/bias"])
        x = (x - w["norm/moving_mean"]) / np.sqrt(w["norm/moving_variance"] + 1e-3)
        x = (x * w["norm/gamma"] + w["norm/beta"]) @ w["b/kernel"] + w["b/bias"]
        return x @ w["head/kernel"] + w["head/bias"]

    def short(self, name):
        return {k.removeprefix("inner."): v.astype("float64") for k, v in self.values[name].items()}


class Sequence:
    """A model and its account."""

    def __init__(self, seed, directory):
        self.rng, self.directory, self.story = np.random.default_rng(seed), pathlib.Path(directory), []
        keras.utils.set_random_seed(seed)
        tf.config.run_functions_eagerly(True)
        self.model = network()
        for v in self.model.weights:
            v.assign(v.numpy() + self.rng.uniform(0.1, 0.3, v.shape))
        self.account, self.blocks, self.saved = Account(base_of(self.model)), [], None
        self.optimizer = OPTIMIZERS[seed % 2]
        self.compile()

    def play(self, verbs):
        for verb in verbs:
            self.story.append(verb)
            getattr(self, verb)()
            self.check()

    def compile(self):
        self.model.compile(self.optimizer(), "mse", run_eagerly=True)
        self.account.steps = {}

    def choose(self, options):
        options = [*options]
        return options[self.rng.integers(len(options))]

    def refused(self, call, words):
        try:
            call()
        except ValueError as error:
            if words not in str(error):
                raise
            return
        raise DifferenceError(f"not refused: {words}")

    def same(self, what, found, wanted):
        if found != wanted:
            raise DifferenceError(f"{what}: {found}, want {wanted}")

    def moved(self):
        """Takes note of the set of weights that is trained now."""
        a = self.account
        if a.values and a.active and not a.trained():
            return  # frozen: the optimizer stays
        key = tuple(sorted(a.trained()))
        if key != a.key:
            a.steps.setdefault(key, 0)
            a.key = key

    def check(self):
        a, model = self.account, self.model
        np.testing.assert_allclose(model(X, training=False), a.outputs(), atol=2e-4, rtol=1e-4)
        if not (a.merged and not a.disabled):
            now = base_of(model)
            self.same("names of the base", sorted(now), sorted(a.base))
            self.same("bits of the base", [k for k in now if not np.array_equal(now[k], a.base[k])], [])
        found = {tuple(v.path.split("/")[-3::2]) for v in model.trainable_variables if "/adapters/" in v.path}
        found = {(part.partition("_")[0], host) for host, part in found}
        plain = any("/adapters/" not in v.path for v in model.trainable_variables)
        self.same("trainable", found | ({("base", "base")} if plain else set()), a.trained())
        self.same("plain", type(model) is type(network()), not a.values)
        for name, values in a.values.items():
            state = peft.get_adapter_state(model, name)
            self.same(name, [k for k in state if not np.array_equal(state[k], values[k])], [])
        if model.optimizer.built or a.steps.get(a.key, 0):
            self.same("steps", int(model.optimizer.iterations.numpy()), a.steps.get(a.key, 0))

    # ----------------------------------------------------------------------------------------------------- verbs

    def add(self):
        a = self.account
        if not (left := [n for n in METHODS if n not in a.values]):
            return
        name = self.choose(left)
        if not a.values:
            a.steps, a.frozen = {}, set()
        peft.get_peft_model(self.model, METHODS[name](), name)
        a.values[name] = peft.get_adapter_state(self.model, name)
        a.active, a.merged = [name], []
        a.frozen -= HOSTS[name] | {"model"}
        self.moved()

    def set(self):
        a = self.account
        if a.values:
            names = [n for n in a.values if self.rng.random() < 0.6] or [self.choose(a.values)]
            peft.set_adapter(self.model, names[::-1])
            kept = [n for n in a.merged if n in names]
            a.active, a.merged = names, peft.get_model_status(self.model).merged_adapters
            if not set(a.merged) <= set(kept):
                raise DifferenceError("set_adapter merges")
            self.moved()

    def disable(self):
        """Enters a block, or leaves one, perhaps by an exception."""
        a = self.account
        if self.blocks and self.rng.random() < 0.6:
            a.disabled -= 1
            block = self.blocks.pop()
            if self.rng.random() < 0.5:
                block.__exit__(None, None, None)
            else:
                error = KeyError()
                with contextlib.suppress(KeyError):
                    block.__exit__(KeyError, error, None)
        elif a.values:
            self.blocks.append(peft.disable_adapter(self.model))
            self.blocks[-1].__enter__()
            a.disabled += 1

    def merge(self):
        a = self.account
        if not a.values:
            return
        if idle := [n for n in a.values if n not in a.active]:
            self.refused(lambda: peft.merge_adapter(self.model, idle[:1]), "is not active")
        if a.disabled and a.active and not a.merged:
            self.refused(lambda: peft.merge_adapter(self.model), "are disabled")
        elif a.merged:
            self.refused(lambda: peft.merge_adapter(self.model), "merged already")
        elif not a.disabled:
            peft.merge_adapter(self.model)
            a.merged = list(a.active)

    def unmerge(self):
        if self.account.values:
            peft.unmerge_adapter(self.model)
            self.account.merged = []

    def delete(self):
        a = self.account
        if not a.values:
            return
        name = self.choose(a.values)
        if name in a.merged:
            return self.refused(lambda: peft.delete_adapter(self.model, name), "unmerge_adapter")
        peft.delete_adapter(self.model, name)
        del a.values[name]
        a.active = [n for n in a.active if n != name]
        a.steps = {k: v for k, v in a.steps.items() if all(n != name for n, *_ in k)}
        for host in {"a", "b", "head"}.difference(*(HOSTS[n] for n in a.values)):
            a.frozen.discard(host)
        if not a.values:
            a.steps = {}
        a.key = None if a.values else a.key
        self.moved()

    def unload(self):
        a = self.account
        if a.values:
            peft.unload(self.model)
            a.values, a.active, a.merged, a.steps = {}, [], [], {}
            self.moved()

    def fit(self):
        a = self.account
        if a.values and a.active and (a.disabled or a.merged):
            words = "are disabled" if a.disabled else "are merged"
            return self.refused(self.train, words)
        if not a.trained():
            return None
        self.train()
        a.key = tuple(sorted(a.trained()))
        a.steps[a.key] = a.steps.get(a.key, 0) + 2
        if not a.values:
            a.base = base_of(self.model)
        for name in a.values:
            now = peft.get_adapter_state(self.model, name)
            hosts = {h for n, h in a.trained() if n == name}
            same = {k for k in now if np.array_equal(now[k], a.values[name][k])}
            self.same(f"{name} learns", same, {k for k in now if k.split(".")[-2] not in hosts})
            a.values[name] = now

    def train(self):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not apply to tf.data")
            self.model.fit(X, Y, batch_size=3, verbose=0)

    def recompile(self):
        self.compile()
        self.moved()

    def freeze(self):
        a, self.model.trainable = self.account, False
        if a.values:
            a.frozen |= {"model", *(h for n in a.values for h in HOSTS[n])}
        else:
            a.base_frozen = True
        self.compile()

    def thaw(self):
        a, self.model.trainable = self.account, True
        if a.values:
            a.frozen = set()
        else:
            a.base_frozen = False
        self.compile()
        self.moved()

    def save(self):
        a, path = self.account, self.directory / "model.keras"
        if a.merged and not a.disabled:
            return self.refused(lambda: self.model.save(path), "are merged")
        self.model.save(path)
        self.saved = path, self.copied()

    def copied(self):
        new = copy.deepcopy(self.account)
        if new.values and new.active and not new.trained():
            new.steps = {}  # files do not tell that adapters are frozen, so that their optimizer is one of no steps
        new.steps = {new.key: new.steps.get(new.key, 0)}
        new.merged, new.disabled, new.frozen = [], 0, set()
        return new

    def load(self):
        if self.saved is None:
            return
        self.leave()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=UNBUILT)
            self.model = keras.saving.load_model(self.saved[0])
        self.account = copy.deepcopy(self.saved[1])
        self.loaded()

    def loaded(self):
        a = self.account
        a.key = tuple(sorted(a.trained()))
        a.steps = {a.key: a.steps.get(a.key, 0)}

    def pickle(self):
        a = self.account
        make = self.choose((lambda m: pickle.loads(pickle.dumps(m)), copy.deepcopy))
        if a.merged and not a.disabled:
            return self.refused(lambda: make(self.model), "are merged")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=UNBUILT)
            new, account = make(self.model), self.copied()
        self.leave()
        self.model, self.account = new, account
        self.loaded()

    def leave(self):
        while self.blocks:
            self.blocks.pop().__exit__(None, None, None)


VERBS = ["add", "set", "disable", "merge", "unmerge", "delete", "unload", "save", "load", "pickle"]
VERBS += ["freeze", "thaw", "fit", "recompile"]


def play(seed, directory, verbs=None):
    """Plays a sequence: random verbs by default."""
    sequence = Sequence(seed, directory)
    begin = ["fit", "add", "fit", "add", "fit"] if verbs else ["add"]
    verbs = verbs or sequence.rng.choice([*VERBS, "add", "set", "fit"], size=12)
    try:
        sequence.play([*begin, *verbs])
    except Exception as error:
        error.add_note(f"Sequence of seed {seed}: {' '.join(sequence.story)}")
        raise
    finally:
        sequence.leave()
        tf.config.run_functions_eagerly(False)
        keras.utils.clear_session(free_memory=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="sequences")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first one")
    parser.add_argument("--pairs", action="store_true", help="every ordered pair of verbs instead")
    options, begin = parser.parse_args(), time.perf_counter()
    pairs = [[one, two] for one in VERBS for two in VERBS]
    plays = enumerate(pairs) if options.pairs else [(options.seed + i, None) for i in range(options.count)]
    number = 0
    for seed, verbs in plays:
        with tempfile.TemporaryDirectory() as directory:
            play(seed, directory, verbs)
        number += 1
    print(f"{number} sequences, no difference, {time.perf_counter() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

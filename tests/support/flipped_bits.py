"""Flips single bits in files that kopt writes, loads them, and tells whether the damage was noticed.

    python tests/support/flipped_bits.py --count 400

A flip is *refused* if loading raises, and *equal* if everything that was loaded has the values that were saved: not
every bit of a container means something. Anything else would be *silent*, and is a fault. In files of whole models the
values of the model's own weights are left out: Keras writes those, without a hash.
"""

import argparse
import collections
import json
import os
import pathlib
import shutil
import tempfile
import warnings
import zipfile

import h5py
import keras
import numpy as np

import kopt
from kopt import peft

SEED = 7


def small_model():
    """Returns a model that has few weights of its own beside the state of its optimizer."""
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(6, name="query"), keras.layers.Dense(2, name="out")]
    )
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
    return model


X = np.random.default_rng(1).normal(size=(8, 4)).astype("float32")
Y = np.random.default_rng(2).normal(size=(8, 2)).astype("float32")


def trained(adapter=False):
    """Returns a model after two steps, all of it or its adapter."""
    model = small_model()
    if adapter:
        peft.get_peft_model(model, peft.LoRA(r=2, target_modules=["query"], modules_to_save=["out"]))
    model.compile(optimizer=kopt.AdamW(0.01, multipliers=[("bias$", 0.5)]), loss="mse", jit_compile=False)
    model.fit(X, Y, epochs=2, batch_size=8, verbose=0)
    return model


def facts(model):
    """Returns all that a loaded model computes and trains with."""
    values = {f"w{i}": w.numpy() for i, w in enumerate(model.weights)}
    values["y"] = np.asarray(model(X))
    values["trainable"] = np.array([v.trainable for v in model.weights])
    if getattr(model, "optimizer", None) is not None:
        values |= {f"o{i}": v.numpy() for i, v in enumerate(model.optimizer.variables)}
        values["config"] = np.array(json.dumps(model.optimizer.get_config(), sort_keys=True))
        values["loss"] = np.array(str(model.loss))
    return values


class Kind:
    """One kind of file: how it is written and read again."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.write()
        self.expected = self.read()

    def outcome(self, data, byte, bit):
        """Returns what becomes of one flip."""
        changed = bytearray(data)
        changed[byte] ^= 1 << bit
        self.path.write_bytes(changed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = self.read()
        except Exception:  # whatever a reader of Keras, of zip or of HDF5 raises
            return "refused"
        finally:
            self.path.write_bytes(data)
        same = found.keys() == self.expected.keys() and all(np.array_equal(found[k], self.expected[k]) for k in found)
        return "equal" if same else "silent"

    def own(self):
        """Returns the bytes that are not kopt's."""
        return set()


class Adapter(Kind):
    """A folder of an adapter; the file whose bits are flipped is the class attribute `file`."""

    def write(self):
        peft.save_pretrained(trained(adapter=True), self.folder)
        self.path = self.folder / self.file

    def read(self):
        return facts(peft.load_adapter(small_model(), self.folder))


class Tensors(Adapter):
    file = "adapter_model.safetensors"


class Configuration(Adapter):
    file = "adapter_config.json"


def weights_in(path, group, start=0):
    """Returns the bytes of a file of HDF5 that are values of the model's own weights."""
    found = set()

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and not name.startswith("optimizer") and "/adapters/" not in name:
            begin = item.id.get_offset()
            assert begin is not None
            found.update(range(start + begin, start + begin + item.id.get_storage_size()))

    with h5py.File(group) as file:
        file.visititems(visit)
    return found


class Weights(Kind):
    """The weights of a model and the state of its optimizer."""

    def write(self):
        self.path = self.folder / "model.weights.h5"
        model = trained()
        model.save_weights(self.path)
        self.model, self.fresh = trained(), None
        self.start = [w.numpy() for w in (*self.model.weights, *self.model.optimizer.variables)]

    def read(self):
        for variable, value in zip((*self.model.weights, *self.model.optimizer.variables), self.start, strict=True):
            variable.assign(np.zeros_like(value))
        self.model.load_weights(self.path)
        return facts(self.model)

    def own(self):
        return weights_in(self.path, self.path)


class Whole(Kind):
    """A model with its optimizer, or with adapters and their optimizer."""

    adapter = False

    def write(self):
        self.path = self.folder / "model.keras"
        trained(self.adapter).save(self.path)

    def read(self):
        return facts(keras.saving.load_model(self.path))

    def own(self):
        with zipfile.ZipFile(self.path) as archive:
            entry = archive.getinfo("model.weights.h5")
            assert entry.compress_type == zipfile.ZIP_STORED
            archive.extract(entry, self.folder)
        data = self.path.read_bytes()[entry.header_offset :]
        start = entry.header_offset + 30 + int.from_bytes(data[26:28], "little") + int.from_bytes(data[28:30], "little")
        return weights_in(self.path, self.folder / "model.weights.h5", start)


class WholeWithAdapter(Whole):
    adapter = True


class Checkpoint(Kind):
    """A `tf.train.Checkpoint` of a model and its optimizer: the file of its values."""

    def write(self):
        import tensorflow as tf

        model = trained()
        self.model = model
        self.checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
        self.prefix = self.checkpoint.write(str(self.folder / "checkpoint"))
        self.path = self.folder / "checkpoint.data-00000-of-00001"

    def read(self):
        for variable in (*self.model.weights, *self.model.optimizer.variables):
            variable.assign(np.zeros_like(variable.numpy()))
        self.checkpoint.read(self.prefix).assert_consumed()
        return facts(self.model)


KINDS = {
    "adapter_model.safetensors": Tensors,
    "adapter_config.json": Configuration,
    ".keras": Whole,
    ".keras with adapters": WholeWithAdapter,
    ".weights.h5": Weights,
    "tf.train.Checkpoint": Checkpoint,
}


def flip(name, count, seed=SEED):
    """Returns how many flips of a kind had each outcome, and the places of the silent ones."""
    folder = tempfile.mkdtemp()
    try:
        keras.utils.set_random_seed(seed)
        kind = KINDS[name](folder)
        data, own = kind.path.read_bytes(), kind.own()
        places = np.array([i for i in range(len(data)) if i not in own])
        rng, outcomes, silent = np.random.default_rng(seed), collections.Counter(), []
        for place, bit in zip(rng.choice(places, count), rng.integers(0, 8, count), strict=True):
            outcome = kind.outcome(data, int(place), int(bit))
            outcomes[outcome] += 1
            if outcome == "silent":
                silent.append((int(place), int(bit)))
        return outcomes, silent, len(places), len(own)
    finally:
        shutil.rmtree(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=400, help="flips over all kinds of file")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    share, failed = -(-options.count // len(KINDS)), 0
    print(f"{'file':28}{'bytes':>8}{'left out':>10}{'flips':>7}{'refused':>9}{'equal':>7}{'silent':>8}")
    for name in KINDS:
        outcomes, silent, length, own = flip(name, share, options.seed)
        counts = "".join(f"{outcomes[k]:>{w}}" for k, w in (("refused", 9), ("equal", 7), ("silent", 8)))
        print(f"{name:28}{length:>8}{own:>10}{share:>7}{counts}", *silent, flush=True)
        failed += len(silent)
    return int(failed > 0)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    raise SystemExit(main())

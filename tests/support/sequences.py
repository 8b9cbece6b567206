"""Random sequences of what is done to a model, each of them against a twin that is only trained.

    python tests/support/sequences.py --count 300 --seed 0

After every verb weights, state of the optimizer, counters and random generators are those of the twin, bit for bit. A
difference is printed with its seed: `--seed S --count 1` plays it again.
"""

import argparse
import collections
import copy
import os
import pathlib
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import plain
import tensorflow as tf
import twins
from twins import VALIDATION, X_VAL, Y_VAL, Averager, DifferenceError, InterruptionError, leaves, same, trained, values

NETWORKS = ("plain", "nested", "shared", "norm")
LEAST, MOST = 8, 11
"""Verbs in a sequence."""
TRACED = 20
"""One sequence of so many runs in graphs, as Keras does; in others operations run one by one, which starts faster."""


class Sequence:
    """A model, its twin, and what was done to both."""

    def __init__(self, seed, directory, traced=None, kind=None):
        self.rng, self.directory, self.story = np.random.default_rng(seed), pathlib.Path(directory), []
        keras.utils.set_random_seed(seed)
        self.eager = bool(self.rng.integers(TRACED)) if traced is None else not traced
        tf.config.run_functions_eagerly(self.eager)
        self.name = self.choose(NETWORKS)
        self.model, self.twin = twins.network(self.name), twins.Twin(self.name, self.eager)
        self.twin.assign(values(self.model.weights))
        self.compile(kind or self.choose(twins.OPTIMIZERS))
        names = self.rng.choice([*twins.AVERAGES], size=self.rng.integers(3), replace=False)
        self.averagers = [Averager(str(name), self.chance(0.25)) for name in names]
        self.saved, self.lingers = [], False
        self.tell(f"{self.name} {'in eager mode' if self.eager else 'in graphs'}, {self.twin.kind}, {self.averagers}")

    def choose(self, options):
        options = [*options]
        return options[self.rng.integers(len(options))]

    def chance(self, share):
        return bool(self.rng.random() < share)

    def tell(self, line):
        self.story.append(line)

    def usable(self):
        """Returns the averages that the optimizer can do."""
        return [x for x in self.averagers if x.plain is not None or self.twin.kind in twins.AVERAGING]

    def compile(self, kind):
        self.twin.compile(kind)
        self.model.compile(twins.OPTIMIZERS[kind](self.model), "mse", run_eagerly=self.eager)

    def play(self, verbs):
        """Does so many random things."""
        verb = ""
        for _ in range(verbs):
            verb = FOLLOWING[verb] if verb in FOLLOWING and self.chance(0.5) else self.choose(VERBS)
            verb = "save" if verb == "load" and not self.saved else verb
            self.tell(verb)
            getattr(self, verb)()
            self.check()
            yield verb

    def check(self):
        """Compares the model with its twin."""
        if self.lingers and self.chance(0.5):
            return  # an evaluation outside of `fit` was interrupted: the next call of the model settles that
        self.settle()
        twin, optimizer = self.twin.model, self.model.optimizer
        if optimizer.built and not twin.optimizer.built:
            twin.optimizer.build(twin.trainable_variables)
        same("get_weights", self.model.get_weights(), self.twin.weights())
        same("weights", values(self.model.weights), self.twin.weights())
        same("state of random generators", values(twins.seeds(self.model)), values(twins.seeds(twin)))
        same("what is trained", [trained(self.model)], [trained(twin)])
        count = self.twin.batches // (optimizer.gradient_accumulation_steps or 1)
        same("iterations", [optimizer.iterations.numpy()], [count])
        if optimizer.built:
            same("nonfinite_steps", [optimizer.nonfinite_steps.numpy()], [self.twin.skipped])
            same("slots", values(optimizer.variables), values(twin.optimizer.variables))

    def settle(self):
        """Calls the model."""
        calls = (
            lambda model: model.get_weights(),
            lambda model: model.predict_on_batch(X_VAL),
            lambda model: model.test_on_batch(X_VAL, Y_VAL),
            lambda model: model.evaluate(VALIDATION, verbose=0),
        )
        if self.lingers:
            self.choose(calls)(self.model)
        self.lingers = False

    def outputs(self, what, model, weights):
        same(what, [model.predict_on_batch(X_VAL)], [plain.output(self.name, weights, X_VAL)], exact=False)

    # ----------------------------------------------------------------------------------------------------- verbs

    def fit(self, raiser=None):
        """Trains, with averages and perhaps with callbacks that watch what they evaluate."""
        epochs, validates = (2, True) if raiser else (int(self.rng.integers(1, 3)), self.chance(0.6))
        callbacks, path = self.usable(), self.file(self.choose((".keras", ".weights.h5")))
        if validates and self.chance(0.5):
            whole = path.suffix == ".keras"
            keeper = keras.callbacks.ModelCheckpoint(path, "val_loss", save_best_only=True, save_weights_only=not whole)
            callbacks.insert(self.rng.integers(len(callbacks) + 1), keeper)
        if validates and self.chance(0.4):
            place = self.rng.integers(len(callbacks) + 1) if not any(x.keep for x in self.usable()) else 0
            stopper = keras.callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
            callbacks.insert(place, stopper)
        log, place = twins.Log(), int(self.rng.integers(len(callbacks) + 1))
        has_nan = self.twin.kind == "skipping" and self.chance(0.4)
        self.tell(f"  {epochs=}, {validates=}, {[self.title(x) for x in callbacks]}, {has_nan=}, raiser at {place}")
        called = [getattr(x, "callback", x) for x in callbacks]
        called[place:place] = [raiser] if raiser else []
        options = {"validation_data": VALIDATION} if validates else {}
        data, self.lingers = twins.TRAIN_NAN if has_nan else twins.TRAIN, False
        stopped = self.stops(
            raiser,
            lambda: self.model.fit(data, epochs=epochs, shuffle=False, verbose=0, callbacks=[log, *called], **options),
        )
        before = [getattr(x, "callback", x) for x in callbacks[:place]]
        best, left, kept = self.twin.replay(
            log.events, callbacks, lambda x: not stopped or getattr(x, "callback", x) in before, has_nan
        )
        self.twin.follow(values(self.model.weights), left, kept)
        for x in callbacks:
            if isinstance(x, keras.callbacks.ModelCheckpoint) and best[id(x)] is not None:
                same("the kept file is what was evaluated", self.read(path), best[id(x)])

    def title(self, callback):
        return callback if isinstance(callback, Averager) else type(callback).__name__

    def stops(self, raiser, call):
        """Returns whether a call was interrupted."""
        try:
            call()
        except (KeyboardInterrupt, InterruptionError):
            return True
        if raiser:
            raise DifferenceError("no interruption came")
        return False

    def read(self, path):
        """Returns the weights in a file."""
        if path.suffix == ".keras":
            return values(keras.saving.load_model(path, compile=False).weights)
        model = twins.network(self.name)
        model.load_weights(path)
        return values(model.weights)

    def file(self, suffix):
        self.directory.mkdir(exist_ok=True)
        return self.directory / f"{len(self.story)}{suffix}"

    def evaluate(self):
        """Outside of `fit`: at the weights, or with the callbacks at the first average."""
        self.evaluation(self.usable() * self.chance(0.7))

    def evaluation(self, averagers, raiser=None):
        log, place = twins.Log(), int(self.rng.integers(len(averagers) + 1))
        self.tell(f"  {averagers}, raiser at {place}")
        called = [x.callback for x in averagers]
        called[place:place] = [raiser] if raiser else []
        losses = []
        stopped = self.stops(
            raiser,
            lambda: losses.append(self.model.evaluate(VALIDATION, verbose=0, callbacks=[log, *called])),
        )
        self.lingers = stopped
        shown = self.twin.first_average(averagers, self.twin.weights(), log.events[0].z)
        expected = self.twin.weights() if shown is None else shown
        for event in log.events[1:]:
            same("evaluation is done at the average", event.weights, expected, exact=shown is None)
        for loss in losses:
            same("loss", [loss], [plain.loss(self.name, expected, X_VAL, Y_VAL)], exact=False)

    def interrupt(self):
        """Something is raised by a callback in `fit`, or in an evaluation."""
        error = self.choose((KeyboardInterrupt, InterruptionError))
        counts = self.choose((twins.COUNTS, twins.COUNTS, twins.TESTS))
        kind = self.choose(counts)
        count = int(self.rng.integers(1, counts[kind] + 1))
        self.tell(f"  {error.__name__} at {kind} {count} of {'fit' if counts is twins.COUNTS else 'evaluate'}")
        raiser = twins.Raiser(kind, count, error)
        if counts is twins.COUNTS:
            self.fit(raiser)
        else:
            self.evaluation(self.usable(), raiser)

    def save(self):
        """Model, or weights and state of the optimizer."""
        path = self.file(self.choose((".keras", ".weights.h5")))
        self.tell(f"  {path.name}")
        if self.twin.kind == "excluding":  # before its first step it is saved by paths, which do not tell weights apart
            for model in (self.model, self.twin.model):
                self.settle()
                model.optimizer.build(model.trainable_variables)
        (self.model.save if path.suffix == ".keras" else self.model.save_weights)(path)
        self.lingers = False
        self.saved.append((path, self.twin.snapshot()))

    def load(self):
        """As a model, into a fresh one, or into the same; a state that this one cannot take is refused."""
        path, snapshot = self.saved[-1] if self.chance(0.5) else self.choose(self.saved)
        kind, flags = snapshot[0]["kind"], snapshot[1]
        way = self.choose((*["model", "model"] * (path.suffix == ".keras"), "fresh", "fresh", "same", "same"))
        trains_alike = flags == [x.trainable for x in leaves(self.model)]
        fits = trains_alike and kind == self.twin.kind
        way = "fresh" if way == "same" and not fits and not self.is_other(kind) else way
        self.tell(f"  {path.name} {way}")
        if way == "same":
            self.lingers = False
            return self.load_into_same(path, snapshot, fits)
        old, averages = self.model, [x for x in self.usable() if x.plain is not None]
        states = [x.callback.get_state() if x.callback._model is old and trains_alike else None for x in averages]
        if way == "model":
            self.model = keras.saving.load_model(path)
        else:
            self.model = twins.network(self.name)
            for layer, flag in zip(leaves(self.model), flags, strict=True):
                layer.trainable = flag
            self.model.compile(twins.OPTIMIZERS[kind](self.model), "mse", run_eagerly=self.eager)
            self.model.load_weights(path)
        self.lingers = False
        self.twin.restore(snapshot)
        for v, value in zip(twins.seeds(self.twin.model), values(twins.seeds(self.model)), strict=True):
            v.assign(value)  # files do not have them
        self.outputs("outputs after loading", self.model, snapshot[2])
        for x, state in zip(averages, states, strict=True):
            self.carry(x, state)

    def carry(self, averager, state):
        """Gives the averages of a model to the next one, or lets them begin anew."""
        if state is None or self.chance(0.5):
            averager.plain.begin()
            return
        averager.callback = averager.make(keep=averager.keep)
        averager.callback.set_state(state)
        averager.callback.set_model(self.model)
        averager.plain.kept = {i: averager.plain.kept[i] for i in trained(self.model) if i in averager.plain.kept}

    def is_other(self, kind):
        """Whether the optimizer is of another class than that of a file."""
        return type(twins.OPTIMIZERS[kind](self.model)) is not type(self.model.optimizer)

    def load_into_same(self, path, snapshot, fits):
        if fits:
            self.model.load_weights(path)
            kept = values(twins.seeds(self.twin.model))
            self.twin.restore(snapshot)
            for v, value in zip(twins.seeds(self.twin.model), kept, strict=True):
                v.assign(value)
            return
        try:
            self.model.load_weights(path)
        except ValueError as error:
            if "The weights of the model are loaded" in str(error):
                self.twin.assign(snapshot[2])
                return
        raise DifferenceError("the state of another optimizer was not refused")

    def reset(self):
        """Puts the optimizer back to its start."""
        self.settle()
        rate = None if self.twin.kind == "scheduled" else float(self.model.optimizer.learning_rate.numpy())
        self.model.optimizer.reset()
        self.twin.reset(rate)

    def freeze(self):
        """Freezes a layer or thaws it; some other one is trained."""
        place = self.choose(range(len(leaves(self.model))))
        flags = [x.trainable for x in leaves(self.model)]
        flags[place] = not flags[place] or not any(flags[:place] + flags[place + 1 :])
        self.tell(f"  {flags}")
        for model in (self.model, self.twin.model):
            leaves(model)[place].trainable = flags[place]
        self.compile(self.twin.kind if self.chance(0.5) else self.choose(twins.OPTIMIZERS))
        self.tell(f"  {self.twin.kind}")

    def recompile(self):
        """With another optimizer, or with the same object."""
        if self.chance(0.3):
            for model in (self.model, self.twin.model):
                model.compile(model.optimizer, "mse", run_eagerly=self.eager)
            return
        self.compile(self.choose(twins.OPTIMIZERS))
        self.tell(f"  {self.twin.kind}")

    def swap(self):
        """`with callback.weights():` for each average."""
        for x in self.usable():
            x.callback.set_model(self.model)
            shown = self.twin.average(x, self.twin.weights(), twins.slot(self.model, "z"))
            expected = self.twin.weights() if shown is None else shown
            path = self.file(".keras")
            try:
                with x.callback.weights():
                    same(f"weights of {x}", values(self.model.weights), expected, exact=shown is None)
                    self.outputs("outputs at the average", self.model, expected)
                    loss = self.model.evaluate(VALIDATION, verbose=0)
                    same("loss in the block", [loss], [plain.loss(self.name, expected, X_VAL, Y_VAL)], exact=False)
                    self.model.save(path)
                    if self.chance(0.3):
                        raise InterruptionError
                    if shown is not None and self.chance(0.3):
                        self.refuses_changes()
            except InterruptionError:
                self.tell("  interrupted")
            same("a file saved in the block", self.read(path), expected, exact=shown is None)
            if not self.lingers:
                same("raw weights after the block", values(self.model.weights), self.twin.weights())

    def refuses_changes(self):
        change = self.choose(
            (lambda: self.model.set_weights(self.twin.weights()), lambda: self.model.train_on_batch(X_VAL, Y_VAL))
        )
        try:
            change()
        except RuntimeError:
            return
        raise DifferenceError("the weights could be changed within the block")

    def set_weights(self):
        """From outside."""
        weights = [w + self.rng.normal(size=w.shape).astype("float32") / 10 for w in self.twin.weights()]
        if self.name == "norm":
            weights[plain.STATISTICS[1]] = np.abs(weights[plain.STATISTICS[1]])
        self.model.set_weights(copy.deepcopy(weights))
        self.lingers = False
        self.twin.assign(weights)

    def rate(self):
        """Sets the learning rate."""
        if self.twin.kind != "scheduled":
            value = float(self.rng.uniform(0.01, 0.03))
            for model in (self.model, self.twin.model):
                model.optimizer.learning_rate = value


VERBS = ["fit", "interrupt", "load"] * 2 + ["save", "evaluate", "reset", "freeze", "recompile"]
VERBS += ["swap", "set_weights", "rate"]
FOLLOWING = {"load": "save", "save": "load"}


def play(seed, directory, traced=None, kind=None):
    """Plays the sequence of a seed; returns how often each verb came."""
    story = ["the beginning"]
    try:
        sequence = Sequence(seed, directory, traced, kind)
        story = sequence.story
        return collections.Counter(sequence.play(int(sequence.rng.integers(LEAST, MOST + 1))))
    except Exception as error:
        error.add_note("\n".join([f"Sequence of seed {seed}:", *story]))
        raise
    finally:
        tf.config.run_functions_eagerly(False)
        keras.utils.clear_session(free_memory=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=300, help="sequences")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first one")
    options = parser.parse_args()
    counts, begin = collections.Counter(), time.perf_counter()
    for seed in range(options.seed, options.seed + options.count):
        with tempfile.TemporaryDirectory() as directory:
            try:
                counts += play(seed, directory)
            except Exception as error:
                print(f"{type(error).__name__}: {error}", *error.__notes__, sep="\n")
                print(f"Again: python tests/support/sequences.py --seed {seed} --count 1")
                if not isinstance(error, DifferenceError):
                    raise
                return 1
    print(", ".join(f"{verb} {count}" for verb, count in counts.most_common()))
    print(f"{options.count} sequences, no difference, {time.perf_counter() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())

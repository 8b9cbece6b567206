"""A twin that only trains, batch by batch, and says what a model should hold to which more was done.

There are no callbacks, files or interruptions. Both models make the same computation, so what
they hold is equal bit for bit; averages are those of `plain`, in float64.
"""

import copy
import dataclasses

import keras
import numpy as np
import plain
import tensorflow as tf

import kopt

RATE, MOMENTUM, BATCH, BETA = 0.02, 0.7, 3, 0.9
_RNG = np.random.default_rng(7)
X, X_VAL = (_RNG.normal(size=(rows, 5)).astype("float32") for rows in (9, 6))
Y, Y_VAL = (np.tanh(x @ np.float32([[1], [-2], [0.5], [0], [1]])) for x in (X, X_VAL))
Y_NAN = np.where(np.arange(9)[:, None] == 4, np.float32(np.nan), Y)  # in the second of three batches
TRAIN, TRAIN_NAN, VALIDATION = (
    tf.data.Dataset.from_tensor_slices(pair).batch(BATCH, drop_remainder=True)
    for pair in ((X, Y), (X, Y_NAN), (X_VAL, Y_VAL))
)
STATISTICS = [X[:4], X[4:]]


def layers(name):
    dense = keras.layers.Dense
    if name == "norm":
        normalization = keras.layers.BatchNormalization(momentum=0.8)
        return [dense(4), normalization, keras.layers.Dropout(0.3, seed=3), dense(1)]
    if name == "nested":  # three kernels of the same path
        blocks = [keras.Sequential([keras.Input((n,)), dense(4, "tanh", name="dense")]) for n in (5, 4)]
        return [*blocks, dense(1, name="dense")]
    return [dense(4, "tanh"), dense(1)]


def network(name):
    if name == "shared":
        x, twice = keras.Input((5,)), keras.layers.Dense(5, "tanh")
        return keras.Model(x, keras.layers.Dense(1)(twice(twice(x))))
    return keras.Sequential([keras.Input((5,)), *layers(name)])


def excluding(model):
    optimizer = kopt.AdamW(RATE, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_list=[model.weights[2]])
    return optimizer


OPTIMIZERS = {
    "SGD": lambda _: kopt.SGD(RATE),
    "Adam": lambda _: kopt.Adam(RATE),
    "use_ema": lambda _: kopt.AdamW(RATE, use_ema=True, ema_momentum=MOMENTUM),
    "excluding": excluding,
    "ScheduleFreeAdamW": lambda _: kopt.ScheduleFreeAdamW(RATE, beta_1=BETA),
    "Lookahead": lambda _: kopt.Lookahead(kopt.Adam(RATE), k=2),
    "DoG": lambda _: kopt.DoG(),
    "MADGRAD": lambda _: kopt.MADGRAD(RATE),
    "accumulating": lambda _: kopt.Momentum(RATE, gradient_accumulation_steps=2),
    "skipping": lambda _: kopt.Adam(RATE, on_nonfinite="skip"),
    "scheduled": lambda _: kopt.Adam(keras.optimizers.schedules.CosineDecay(0.05, 40)),
}
AVERAGING = ("use_ema", "ScheduleFreeAdamW")
FROM_WEIGHTS = {"Lookahead": "slow", "ScheduleFreeAdamW": "z", "MADGRAD": "x0"}  # slots that remember weights

AVERAGES = {
    "SWA": (kopt.SWA, plain.Mean),
    "SWA(start=2)": (lambda **options: kopt.SWA(2, **options), lambda: plain.Mean(start=2)),
    "SWA(batches)": (lambda **options: kopt.SWA(batches=STATISTICS, **options), plain.Mean),
    "EMA": (lambda **options: kopt.EMA(0.8, every=2, **options), lambda: plain.Exponential(0.8, every=2)),
    "AveragedWeights": (kopt.AveragedWeights, None),
}

COUNTS = {  # how often an event comes in two epochs of three batches, validated with two
    "epoch_begin": 2,
    "train_batch_begin": 6,
    "train_batch_end": 6,
    "test_begin": 2,
    "test_batch_end": 4,
    "test_end": 2,
    "epoch_end": 2,
    "train_end": 1,
}
TESTS = {"test_begin": 1, "test_batch_end": 2, "test_end": 1}
"""The same in one evaluation."""


class DifferenceError(AssertionError):
    """Something is not as it should be."""


def same(what, found, expected, exact=True):
    """Raises `DifferenceError` unless the arrays are equal: bit for bit, or as float32 is to float64."""
    if len(found) != len(expected):
        raise DifferenceError(f"{what}: there are {len(found)}, not {len(expected)}")
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        if not (np.array_equal(a, b) if exact else np.allclose(a, b, rtol=1e-4, atol=1e-5)):
            raise DifferenceError(f"{what}: number {i} is off by up to {np.max(np.abs(np.subtract(a, b))):.3g}")


def leaves(model):
    """Returns the layers that have weights of their own."""
    return [x for x in model._flatten_layers() if x.weights and not isinstance(x, keras.Model)]


def values(variables):
    return [v.numpy() for v in variables]


def trained(model):
    """Returns the places of the trainable weights."""
    chosen = {id(v) for v in model.trainable_weights}
    return [i for i, v in enumerate(model.weights) if id(v) in chosen]


def seeds(model):
    weights = {id(v) for v in model.weights}
    return [v for v in model.variables if id(v) not in weights and "seed" in v.path]


def slot(model, name):
    """Returns a slot of each trainable weight, by its place."""
    found = [v.numpy() for v in model.optimizer.variables if f"_{name}_" in v.name]
    return dict(zip(trained(model), found, strict=False))


@dataclasses.dataclass
class Event:
    """A call of the callbacks, and what the model held then."""

    kind: str
    number: int
    logs: dict
    weights: list
    z: dict


class InterruptionError(Exception):
    """What somebody's callback raises."""


class Noting(keras.callbacks.Callback):
    """Base of callbacks that treat all events alike."""


def _hook(kind):
    def call(self, *args, **logs):
        *number, logs = *args, *logs.values()
        self.note(kind, number[0] if number else 0, dict(logs or {}))

    return call


for _kind in COUNTS:
    setattr(Noting, f"on_{_kind}", _hook(_kind))


class Log(Noting):
    """Writes down what happens; the first of all callbacks."""

    def __init__(self):
        super().__init__()
        self.events = []

    def note(self, kind, number, logs):
        z = slot(self.model, "z") if self.model.optimizer.built else {}
        self.events.append(Event(kind, number, logs, values(self.model.weights), z))


class Raiser(Noting):
    """Raises an error at the n-th event of a kind."""

    def __init__(self, kind, count, error):
        super().__init__()
        self.kind, self.count, self.error = kind, count, error

    def note(self, kind, number, logs):
        self.count -= kind == self.kind
        if not self.count and kind == self.kind:
            raise self.error


class Averager:
    """A callback that averages, and what it should have."""

    def __init__(self, name, keep):
        self.name, self.keep = name, keep
        self.make, expected = AVERAGES[name]
        self.callback, self.plain = self.make(keep=keep), expected and expected()

    def __repr__(self):
        return self.name + (" kept" if self.keep else "")


class Twin:
    """The twin of a model, with the same optimizer."""

    def __init__(self, name, eager):
        self.name, self.eager, self.model = name, eager, network(name)

    def compile(self, kind):
        self.kind, self.batches, self.skipped, self.ema = kind, 0, 0, plain.Exponential(MOMENTUM)
        self.model.compile(OPTIMIZERS[kind](self.model), "mse", run_eagerly=self.eager)

    def weights(self):
        return values(self.model.weights)

    def assign(self, weights):
        for v, value in zip(self.model.weights, weights, strict=True):
            v.assign(value)

    def reset(self, rate):
        """A fresh optimizer, built on the weights as they are."""
        built = self.model.optimizer.built
        self.compile(self.kind)
        if rate is not None:
            self.model.optimizer.learning_rate = rate
        if built:
            self.model.optimizer.build(self.model.trainable_variables)

    # ----------------------------------------------------------------------------------------------------- files

    def snapshot(self):
        state = {k: copy.deepcopy(vars(self)[k]) for k in ("kind", "batches", "skipped", "ema")}
        optimizer = self.model.optimizer
        flags = [layer.trainable for layer in leaves(self.model)]
        return state, flags, self.weights(), values(optimizer.variables), optimizer.built

    def restore(self, snapshot):
        state, flags, weights, variables, built = snapshot
        for layer, flag in zip(leaves(self.model), flags, strict=True):
            layer.trainable = flag
        self.compile(state["kind"])
        vars(self).update(copy.deepcopy(state))
        self.assign(weights)
        if built:
            self.model.optimizer.build(self.model.trainable_variables)
        for v, value in zip(self.model.optimizer.variables, variables, strict=True):
            v.assign(value)

    # -------------------------------------------------------------------------------------------------- averages

    def average(self, averager, weights, z):
        """Returns the weights that a callback should show, or None."""
        places = trained(self.model)
        if averager.plain is not None:
            found = averager.plain.values(places)
        elif self.kind == "use_ema":
            found = self.ema.values(places)
        else:
            found = {i: z[i] + (weights[i] - z[i]) / BETA for i in places} if self.batches else {}
        if not found:
            return None
        shown = [found.get(i, w) for i, w in enumerate(weights)]
        learns = averager.name == "SWA(batches)" and self.name == "norm" and 2 in places
        return plain.with_statistics(shown, STATISTICS) if learns else shown

    def first_average(self, averagers, weights, z):
        return next((a for x in averagers if (a := self.average(x, weights, z)) is not None), None)

    # ---------------------------------------------------------------------------------------------------- replay

    def replay(self, events, callbacks, reached, has_nan=False):
        """Goes through what happened to the model during `fit`, and compares all that it held.

        Args:
            events: what happened.
            callbacks: `Averager`s, and callbacks of Keras that watch val_loss, in their order.
            reached: whether the last event came to one of them before it was interrupted.
            has_nan: whether the second batch of an epoch is NaN.

        Returns:
            What each callback of Keras has seen at its best evaluation, by its id; the weights that the end of `fit`
            leaves in the model if it is not these; whether an average was kept.
        """
        averagers = [x for x in callbacks if isinstance(x, Averager)]
        best = {id(x): (np.inf, None) for x in callbacks if x not in averagers}
        still = [i for i in range(len(self.weights())) if i not in self.moving()]
        frozen, left, kept = [self.weights()[i] for i in still], None, False
        for event in events:
            come = [x for x in callbacks if event is not events[-1] or reached(x)]
            looking = [x.plain for x in come if isinstance(x, Averager) and x.plain is not None]
            same("frozen weights stay", [event.weights[i] for i in still], frozen)
            if event.kind == "train_batch_end":
                self.train(event.number, has_nan)
                for average in looking:
                    average.after_batch(self.weights(), trained(self.model))
            if event.kind == "train_end":
                left, kept = self.end(event, come, best)
                continue
            if event.kind == "test_begin":
                shown = self.first_average(averagers, self.weights(), event.z)
                seen = self.weights() if shown is None else shown
                continue
            if event.kind in ("test_batch_end", "test_end"):
                same("validation is done at the average", event.weights, seen, exact=shown is None)
                seen = event.weights
                continue
            same("raw weights while training", event.weights, self.weights())
            if event.kind == "epoch_end":
                for average in looking:
                    average.after_epoch(event.number, self.weights(), trained(self.model))
                loss = event.logs.get("val_loss")
                if loss is not None:
                    expected = plain.loss(self.name, seen if shown is None else shown, X_VAL, Y_VAL)
                    same("val_loss is that of the average", [loss], [expected], exact=False)
                for x in come:
                    if id(x) in best and loss < best[id(x)][0]:
                        best[id(x)] = loss, seen
        return {key: weights for key, (_, weights) in best.items()}, left, kept

    def moving(self):
        """Returns the places of the weights that training moves."""
        places = trained(self.model)
        return [*places, *plain.STATISTICS] if self.name == "norm" and 2 in places else places

    def train(self, number, has_nan):
        rows, bad = slice(number * BATCH, (number + 1) * BATCH), has_nan and number == 1
        optimizer = self.model.optimizer
        optimizer.build(self.model.trainable_variables)
        before = [(v, v.numpy()) for v in [*optimizer.variables, *self.model.trainable_variables]]
        self.model.train_on_batch(X[rows], (Y_NAN if has_nan else Y)[rows])
        self.batches, self.skipped = self.batches + (not bad), self.skipped + bad
        if bad:  # a step that is skipped has changed statistics and random generators, and is counted
            for v, value in before:
                v.assign(value)
            optimizer.nonfinite_steps.assign(self.skipped)
        if self.kind == "use_ema":
            self.ema.look(self.weights(), trained(self.model))

    def end(self, event, callbacks, best):
        """Returns what callbacks leave in the weights at the end of `fit`, after Keras' average of use_ema."""
        if self.kind == "use_ema" and self.batches:
            averages = self.ema.values(trained(self.model))
            expected = [averages.get(i, w) for i, w in enumerate(self.weights())]
            same("use_ema ends fit with its average", event.weights, expected, exact=False)
            self.assign(event.weights)
        same("raw weights at the end of fit", event.weights, self.weights())
        weights, z, kept = event.weights, dict(event.z), False
        for x in callbacks:
            if isinstance(x, keras.callbacks.EarlyStopping):
                weights = best[id(x)][1]
            elif isinstance(x, Averager) and x.keep and (average := self.average(x, weights, z)) is not None:
                weights, z, kept = average, {i: average[i] for i in z}, True
        return weights, kept

    def follow(self, weights, left, kept):
        """Takes over what the end of `fit` has left in the model."""
        if left is None:
            return
        same("what the end of fit leaves in the model", weights, left, exact=not kept)
        self.assign(weights)
        if kept:
            self.model.optimizer.anchor()
            for name in {FROM_WEIGHTS[self.kind]} if self.kind in FROM_WEIGHTS else ():
                places = trained(self.model)
                same(f"slot {name} follows", list(slot(self.model, name).values()), [weights[i] for i in places])

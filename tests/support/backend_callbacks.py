"""Callbacks, averages, schedules and groups of weights as cases for every backend."""

import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping

import keras
import numpy as np
from backend_adapters import scramble
from backend_models import dense
from backend_optimizers import examples, network
from backend_runs import Case
from keras import layers, ops

import kopt
from kopt import peft, schedules
from kopt.tensorboard import AdapterStats, OptimizerStats


def adamw(**options):
    """Returns the optimizer of most cases; with this epsilon what it divides by is more than the noise of gradients."""
    return kopt.AdamW(**{"learning_rate": 0.01, "weight_decay": 0.05, "epsilon": 1e-4, "sparse": "exact"} | options)


def fitted(model, *callbacks, epochs: int = 4, batch_size: int = 8, data=None) -> dict[str, list[float]]:
    """Fits for 20 steps with validation, and returns the history."""
    x, y = data or examples()
    options = {"shuffle": False, "verbose": 0, "validation_data": (x[:16], y[:16])}
    return model.fit(x, y, batch_size=batch_size, epochs=epochs, callbacks=[*callbacks], **options).history


def normalized():
    """Returns a compiled model with batch normalization, inputs and targets."""
    inputs = keras.Input((4,))
    x = layers.Dense(5, use_bias=False)(inputs)
    model = keras.Model(inputs, layers.Dense(1)(layers.BatchNormalization(momentum=0.8)(x)))
    rng = np.random.default_rng(6)
    model.layers[1].set_weights([rng.normal(size=(4, 5))])
    model.layers[-1].set_weights([rng.normal(size=(5, 1)), rng.normal(size=1)])
    model.compile(adamw(), "mse")
    x = rng.normal(1.0, 2.0, (40, 4)).astype("float32")
    return model, x, x.sum(1, keepdims=True)


def averaged(make: Callable, optimizer: Callable = adamw) -> Iterator[np.ndarray]:
    """Validates at an average, keeps the best of it, stores and restores it, and ends with it where asked for."""
    callback, model = make(), network(optimizer())
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "best.weights.h5")
        best = keras.callbacks.ModelCheckpoint(file, monitor="val_loss", save_best_only=True, save_weights_only=True)
        history = fitted(model, callback, best)
        yield from (np.array(history["loss"]), np.array(history["val_loss"]))
        yield from model.get_weights()
        raw = model.get_weights()
        if callback.average() is not None:
            with callback.weights():
                yield from model.get_weights()
        x, y = examples()
        yield np.array(model.evaluate(x, y, verbose=0, callbacks=[callback]))
        assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), raw, strict=True))
        model.load_weights(file)
        yield from model.get_weights()
    kept, model = make(), network(optimizer())
    kept.keep = True
    fitted(model, kept)
    yield from model.get_weights()
    fitted(model, kept, epochs=1)
    yield from model.get_weights()


def restored() -> Iterator[np.ndarray]:
    """Goes on with a stored average."""
    model, first = network(adamw()), kopt.EMA(0.8)
    fitted(model, first, epochs=2)
    second = kopt.EMA(0.8)
    second.set_state(first.get_state())
    fitted(model, second, epochs=2)
    yield from (ops.convert_to_numpy(value) for value in second.average())


def learned_statistics() -> Iterator[np.ndarray]:
    """Learns the statistics of batch normalization anew for an average."""
    model, x, y = normalized()
    swa = kopt.SWA(batches=[(x[:20], y[:20]), (x[20:], y[20:])])
    yield np.array(fitted(model, swa, data=(x, y))["val_loss"])
    with swa.weights():
        yield from model.get_weights()
    yield from model.get_weights()


def scalars(folder: str) -> list[np.ndarray]:
    """Returns the steps and values of each tag of event files, but for times, in the order of the tags' names."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(folder, size_guidance={"scalars": 0}).Reload()
    tags = sorted(tag for tag in events.Tags()["scalars"] if not tag.startswith("throughput/"))
    return [np.array([(e.step, e.value) for e in events.Scalars(tag)]) for tag in tags]


def written(optimizer: Callable, every: int = 2) -> Iterator[np.ndarray]:
    """Writes what an optimizer did, with validation and an average beside it."""
    with tempfile.TemporaryDirectory() as folder:
        model, stats = network(optimizer()), OptimizerStats(folder, every, hparams={"a": 1})
        fitted(model, stats, kopt.EMA(0.9), epochs=2)
        stats.finish({"loss": 1.0})
        yield from scalars(folder)
        yield from model.get_weights()


def written_of_adapters() -> Iterator[np.ndarray]:
    """Writes what adapters did."""
    model, x = dense()
    peft.get_peft_model(model, peft.DoRA(r=2, target_modules=["host"], modules_to_save=["head"]))
    scramble(model)
    model.compile(adamw(), "mse")
    with tempfile.TemporaryDirectory() as folder:
        fitted(model, AdapterStats(folder, 2), data=(x, x[:, :3]), epochs=2)
        yield from scalars(folder)


def scheduled(schedule: Callable) -> Iterator[np.ndarray]:
    """Trains with a schedule, alone and read at each step."""
    yield np.array([float(ops.convert_to_numpy(schedule()(ops.convert_to_tensor(t)))) for t in range(25)])
    model = network(kopt.Momentum(schedule(), sparse="exact"))
    fitted(model)
    yield from model.get_weights()


def grouped(multipliers: Callable, model: Callable) -> Iterator[np.ndarray]:
    """Trains with rates that differ by weight."""
    own, x, y = model()
    own.compile(adamw(multipliers=multipliers(own)), "mse")
    fitted(own, data=(x, y))
    yield from (v.numpy() for v in own.trainable_variables)


def sharpened(name: str) -> list[np.ndarray]:
    """Trains with two gradients a step."""
    model, x = dense()
    model = getattr(kopt, name).of(model)
    model.compile(kopt.SophiaH(0.01) if name == "Curvature" else adamw(), "mse")
    fitted(model, data=(x, x[:, :3]))
    return model.get_weights()


def _adapted():
    model, x = dense()
    peft.get_peft_model(model, peft.LoRA(r=2, target_modules=["host"]))
    scramble(model)
    return model, x, x[:, :3]


def _plain():
    x, y = examples()
    return network(adamw()), x, y


RULES: Mapping[str, Callable] = {
    "AdaBound": lambda: kopt.AdaBound(0.01, sparse="exact"),
    "AdamW, clipped": lambda: adamw(global_clipnorm=0.1, on_nonfinite="skip"),
    "AdamW, accumulated": lambda: adamw(gradient_accumulation_steps=2),
    "kopt.LossScaleOptimizer": lambda: kopt.LossScaleOptimizer(adamw(), initial_scale=256.0),
    "keras.optimizers.LossScaleOptimizer": lambda: keras.optimizers.LossScaleOptimizer(adamw(), initial_scale=256.0),
}
SCHEDULES: Mapping[str, Callable] = {
    "OneCycle": lambda: schedules.OneCycle(0.01, steps=18),
    "Cyclical": lambda: schedules.Cyclical(0.01, steps=7, mode="exponential"),
    "WarmupLinear": lambda: schedules.WarmupLinear(0.01, steps=18, warmup=4),
    "WarmupCosine": lambda: schedules.WarmupCosine(0.01, steps=18, warmup=4),
    "WarmupPolynomial": lambda: schedules.WarmupPolynomial(0.01, steps=18, warmup=4),
    "REX": lambda: schedules.REX(0.01, steps=18, warmup=4),
    "PowerCooldown": lambda: schedules.PowerCooldown(0.01, steps=18, warmup=4, decay=9),
    "join": lambda: schedules.join([schedules.REX(0.01, steps=8), 0.002, schedules.REX(0.01, steps=5)], [8, 11]),
    "WarmupStableDecay": lambda: schedules.WarmupStableDecay(0.01, steps=18, warmup=4, decay=6),
}


def swept() -> Iterator[np.ndarray]:
    """Sweeps over rates in the middle of a training, which goes on as if it had not."""
    model, finder = network(adamw()), kopt.LearningRateFinder(lowest=1e-4, highest=1.0, steps=30)
    fitted(model, epochs=2)
    before = [*model.get_weights(), *map(ops.convert_to_numpy, model.optimizer.variables)]
    suggestion = finder.find(model, *examples(), batch_size=8)
    after = [*model.get_weights(), *map(ops.convert_to_numpy, model.optimizer.variables)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert suggestion == finder.suggestion
    yield from (np.array(finder.losses[:20]), np.array(finder.rates[:20]))
    fitted(model, epochs=2)
    yield from model.get_weights()


SHARPENED = ("SAM", "ASAM", "LookSAM", "Curvature")
OTHERS = ("jax", "torch")

CALLBACKS = {
    name: Case(lambda run=run: list(run()))
    for name, run in {
        "SWA": lambda: averaged(lambda: kopt.SWA(start=2)),
        "EMA": lambda: averaged(lambda: kopt.EMA(0.8, every=2)),
        "TailAverage": lambda: averaged(lambda: kopt.TailAverage(0.5, every=2)),
        "AveragedWeights, use_ema": lambda: averaged(
            kopt.AveragedWeights, lambda: adamw(use_ema=True, ema_momentum=0.8)
        ),
        "AveragedWeights, ScheduleFreeAdamW": lambda: averaged(
            kopt.AveragedWeights, lambda: kopt.ScheduleFreeAdamW(0.01, sparse="exact")
        ),
        "EMA, stored and restored": restored,
        "SWA, batches": learned_statistics,
        "AdapterStats": written_of_adapters,
        "LearningRateFinder": swept,
        **{f"schedules.{name}": lambda make=make: scheduled(make) for name, make in SCHEDULES.items()},
        "layerwise_decay": lambda: grouped(lambda model: kopt.layerwise_decay(model, 0.7), _plain),
        "peft.lora_plus": lambda: grouped(lambda model: peft.lora_plus(4.0), _adapted),
    }.items()
}
CALLBACKS |= {
    f"OptimizerStats, {name}": Case(
        lambda make=make: list(written(make)), 5e-6, remark="rates of elements with small gradients differ most"
    )
    for name, make in RULES.items()
}
CALLBACKS |= {name: Case(lambda name=name: sharpened(name), refused=OTHERS) for name in SHARPENED}

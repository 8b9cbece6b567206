"""Training that is ended anywhere and goes on equals training that never ended, bit for bit."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from numpy.testing import assert_array_equal

import kopt
from kopt.checkpoint import Checkpoint, ShuffledBatches

RNG = np.random.default_rng(0)
X = RNG.normal(size=(70, 6)).astype("float32")
Y = (X @ RNG.normal(size=(6, 3))).argmax(axis=1)
SCHEDULE = keras.optimizers.schedules.CosineDecay(0.01, 30)

CASES = {  # optimizer, callbacks, and what else is special
    "schedule": (lambda: kopt.Adam(SCHEDULE), list, {}),
    "average": (lambda: kopt.AdamW(0.01, use_ema=True, ema_overwrite_frequency=7), list, {}),
    "accumulation": (lambda: kopt.Adam(0.01, gradient_accumulation_steps=4), list, {}),
    "lookahead": (lambda: kopt.Lookahead(kopt.Momentum(0.01)), list, {}),
    "schedule-free": (lambda: kopt.ScheduleFreeAdamW(0.01), lambda: [kopt.AveragedWeights()], {}),
    "int8": (lambda: kopt.Adam(0.01, state_dtype="int8"), list, {}),
    "kahan": (lambda: kopt.Adam(0.01), list, {"policy": "bfloat16"}),
    "lbfgs": (lambda: kopt.LBFGS(examples=70, batch_size=16), list, {}),
    "bgd": (lambda: kopt.BGD(0.1, examples=70, batch_size=16), list, {}),
    "mixed": (lambda: kopt.LossScaleOptimizer(kopt.Adam(0.01)), list, {"policy": "mixed_float16"}),
    "lora": (lambda: kopt.Adam(0.01), list, {"adapted": True}),
    "swa": (lambda: kopt.Adam(0.01), lambda: [kopt.SWA()], {}),
    "ema": (lambda: kopt.Adam(0.01), lambda: [kopt.EMA(0.9)], {}),
    "tail": (lambda: kopt.Adam(0.01), lambda: [kopt.TailAverage(0.6, every=2)], {}),
    "swap": (lambda: kopt.Adam(0.01, use_ema=True), lambda: [keras.callbacks.SwapEMAWeights(swap_on_epoch=True)], {}),
    "early": (
        lambda: kopt.Adam(0.03),
        lambda: [keras.callbacks.EarlyStopping(patience=1, min_delta=0.01)],
        {},
    ),
    "plateau": (lambda: kopt.Adam(0.1), lambda: [keras.callbacks.ReduceLROnPlateau(patience=1, min_delta=0.1)], {}),
    "keras": (lambda: keras.optimizers.Adam(SCHEDULE, use_ema=True), list, {}),
    "sharpness": (lambda: kopt.Adam(0.01), list, {"around": kopt.LookSAM.of}),
}
PLACES = {"epoch": (1, (3, 2)), "middle": ("3s", (3, 3)), "begin": ("4s", (2, 1))}
"""How often a checkpoint is written, and the epoch and batch at which the training ends."""


class End(keras.callbacks.Callback):
    """Ends the training before a batch."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.at = (epoch, batch)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise KeyboardInterrupt


def make(optimizer, policy="float32", adapted=False, around=lambda model: model):
    keras.utils.set_random_seed(1)
    hidden = keras.layers.Dense(32, "tanh", name="hidden", dtype=policy)
    more = [keras.layers.Dropout(0.3, dtype=policy), keras.layers.BatchNormalization(dtype=policy)]
    model = keras.Sequential([keras.Input((6,)), hidden, *more, keras.layers.Dense(3, dtype="float32")])
    if adapted:
        kopt.peft.get_peft_model(model, kopt.peft.LoRA(r=2, lora_dropout=0.2, target_modules=["hidden"]))
    model = around(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer(), loss, metrics=["accuracy"])
    return model


def train(case, folder=None, every=1, end=None, epochs=6):
    """Returns the model and the rows of its history; None if the training ended before."""
    optimizer, callbacks, special = CASES[case]
    model, data, chosen, begin = (
        make(optimizer, **special),
        ShuffledBatches(X, Y, batch_size=16),
        callbacks(),
        0,
    )
    if folder is None:
        last = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: data.set_epoch(epoch))
    else:
        last = Checkpoint(folder, every=every, callbacks=chosen, data=data)
        begin = last.restore(model)
    ends = [] if end is None else [End(*end)]
    try:
        history = model.fit(
            data,
            epochs=epochs,
            initial_epoch=begin,
            validation_data=(X, Y),
            callbacks=[*chosen, last, *ends],
            verbose=0,
        )
    except KeyboardInterrupt:
        return None
    return model, history.history


def values(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [np.asarray(keras.ops.convert_to_numpy(v)).astype("float64") for v in variables]


def check(case, place, folder):
    every, end = PLACES[place]
    model, rows = train(case)
    assert train(case, folder, every, end) is None
    resumed, later = train(case, folder, every)
    for ours, theirs in zip(values(resumed), values(model), strict=True):
        assert_array_equal(ours, theirs)
    count = len(later["loss"])
    assert 0 < count < len(rows["loss"])
    assert later == {name: row[-count:] for name, row in rows.items()}


def test_a_training_goes_on(tmp_path):
    check("average", "middle", tmp_path / "checkpoints")


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("case", CASES)
def test_every_training_goes_on(case, place, tmp_path):
    check(case, place, tmp_path / "checkpoints")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_training_goes_on_elsewhere(backend):
    pytest.importorskip(backend)
    own = {"KERAS_BACKEND": backend, "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    chosen = "every_training and (schedule or lora or swa) and middle and not free"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "slow", "-k", chosen, __file__]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=False)
    assert "4 passed" in done.stdout, done.stdout[-3000:]

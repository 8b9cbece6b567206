"""Programs for the tests of several workers: `train` as a process, and what starts the processes.

python tests/support/workers.py train ADDRESSES INDEX FOLDER [what to do ...]
python tests/support/workers.py compare 3    # all cases by three workers, beside one process
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def addresses(count):
    """Returns addresses on this machine that nobody listens at."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{each.getsockname()[1]}" for each in found]


def environment(**more):
    """Returns that of a process of kopt, quiet and without a GPU."""
    quiet = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }
    return os.environ | quiet | more


def start(program, workers, index, *arguments):
    """Starts one worker."""
    command = [sys.executable, "-W", "ignore", __file__, program, ",".join(workers), str(index), *map(str, arguments)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(processes, timeout=120):
    """Returns (exit code, stdout, stderr) of each; none of them stays."""
    end = time.monotonic() + timeout
    try:
        ends = [p.communicate(timeout=max(1, end - time.monotonic())) for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [(p.returncode, *texts) for p, texts in zip(processes, ends, strict=True)]


SIZES = {"rows": 71, "batch": 12}
"""The last batch has 11 rows, which no number of workers divides."""
CASES = {
    "adamw": lambda k: k.AdamW(1e-2, global_clipnorm=0.5),
    "accumulating": lambda k: k.AdaBound(1e-2, gradient_accumulation_steps=2, use_ema=True, ema_momentum=0.9),
    "lamb": lambda k: k.LAMB(1e-2, on_nonfinite="skip"),
    "prodigy": lambda k: k.Prodigy(),
}
SPOILT = "nan"
"""The case of a batch of which one row is not a number."""


def problem(case):
    """Returns a compiled model with synchronized statistics and a penalty, and its data."""
    import keras
    import numpy as np

    import kopt

    rng = np.random.default_rng(0)
    x = rng.normal(size=(SIZES["rows"], 5)).astype("float32")
    y = (x @ rng.normal(size=(5, 1)) + 1).astype("float32")
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(8, use_bias=False, kernel_regularizer="l2")]
    if case == SPOILT:  # which would spoil the statistics of normalization too
        x[5, 2] = np.nan
    else:
        layers.append(keras.layers.BatchNormalization(synchronized=True, momentum=0.5))
    model = keras.Sequential([keras.Input((5,)), *layers, keras.layers.ReLU(), keras.layers.Dense(1)])
    model.compile(CASES.get(case, CASES["lamb"])(kopt), "mse", metrics=["mae"])
    return model, kopt.checkpoint.ShuffledBatches(x, y, batch_size=SIZES["batch"], seed=3), (x, y)


def fit(strategy, case, epochs=3):
    """Trains; returns the weights and the history."""
    import numpy as np

    from kopt import distribution

    with strategy.scope():
        model, data, (x, y) = problem(case)
    distribution.share_loss(model)
    batches = distribution.shard(data, strategy)
    held = distribution.shard(_batches(x, y), strategy)
    history = model.fit(batches, epochs=epochs, shuffle=False, verbose=0, validation_data=held).history
    weights = np.concatenate([np.ravel(w) for w in model.get_weights()])
    return model, weights, history


def _batches(x, y):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices((x, y)).batch(16)


def train(workers, index, folder, *cases):
    """Fits every case, and writes weights and history."""
    import numpy as np

    from kopt import distribution

    strategy = distribution.strategy("multiworker", workers=workers, index=index, timeout=60)
    found = {}
    with distribution.together(strategy):
        for case in cases:
            model, weights, history = fit(strategy, case)
            skipped = int(model.optimizer.nonfinite_steps.numpy())
            found[case] = {"weights": weights.tolist(), "history": history, "skipped": skipped}
        sent = distribution.from_chief(strategy, b"\xff\x00\x80 of the chief" if index == 0 else b"")
    Path(folder, f"{index}.json").write_text(json.dumps(found | {"sent": sent.hex()}))
    distribution.detach(model)
    if index == 0:  # alone: the others are gone
        time.sleep(1)
        model.predict(np.ones((3, 5)), verbose=0)
        model.save(Path(folder, "model.keras"))


def local(workers, index, folder):
    """Trains by itself; the weights become their mean after three batches, and at the end of an epoch."""
    import keras
    import numpy as np

    import kopt
    from kopt import distribution

    strategy = distribution.strategy("multiworker", workers=workers, index=index, timeout=60)
    results = {}

    def training(epochs, place):
        model, data, _ = problem(SPOILT)
        model.layers[0].kernel.assign_add(keras.ops.ones_like(model.layers[0].kernel) * index)  # the chief's count
        mean = distribution.LocalSGD(strategy, sync_every=3)
        checkpoint = kopt.checkpoint.Checkpoint(Path(folder, place), callbacks=[mean], data=data)
        first = checkpoint.restore(model)
        options = {"initial_epoch": first, "shuffle": False, "verbose": 0, "callbacks": [mean, checkpoint]}
        model.fit(mean.shard(data), epochs=epochs, **options)
        return np.concatenate([np.ravel(w) for w in model.get_weights()]).tolist()

    with distribution.together(strategy):
        results["whole"] = training(3, "whole")
        training(2, "halves")
        results["halves"] = training(3, "halves")
    Path(folder, f"{index}.json").write_text(json.dumps(results))


def endless(workers, index, folder):
    """Trains until it is killed, or another one is."""
    from kopt import distribution

    strategy = distribution.strategy("multiworker", workers=workers, index=index, timeout=60)
    try:
        with distribution.together(strategy):
            with strategy.scope():
                model, data, _ = problem("adamw")
            batches = distribution.shard(data, strategy)
            for epoch in range(10**6):
                model.fit(batches, initial_epoch=epoch, epochs=epoch + 1, shuffle=False, verbose=0)
                Path(folder, f"{index}.{os.getpid()}").write_text(str(epoch))
    except distribution.WorkerLostError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(5)


def compare(count):
    """Prints the largest difference of a weight between several workers and one process, for each case."""
    import tempfile

    import numpy as np
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        places = addresses(count)
        ends = finish([start("train", places, i, folder, *CASES) for i in range(count)], 900)
        assert not any(code for code, _, _ in ends), ends
        found = json.loads(Path(folder, "0.json").read_text())
    for case in CASES:
        _, weights, _ = fit(tf.distribute.get_strategy(), case)
        print(f"{case}: {np.abs(weights - np.array(found[case]['weights'])).max():.1e}")


if __name__ == "__main__":
    if sys.argv[1] == "compare":
        sys.exit(compare(int(sys.argv[2])))
    program, workers, index, *arguments = sys.argv[1:]
    globals()[program](workers.split(","), int(index), *arguments)

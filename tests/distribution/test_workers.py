"""Processes that train together on this machine."""

import json
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from workers import SPOILT, addresses, finish, fit, problem, start

pytestmark = pytest.mark.slow
CASES = ("adamw", "accumulating", SPOILT)


def test_two_workers_are_one_process(tmp_path):
    places = addresses(2)
    ends = finish([start("train", places, i, tmp_path, *CASES) for i in range(2)], 300)
    assert [code for code, _, _ in ends] == [0, 0], ends
    found = [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2)]
    for case in CASES:
        _, weights, history = fit(tf.distribute.get_strategy(), case)
        for worker in found:
            assert np.isfinite(weights).all()
            np.testing.assert_allclose(worker[case]["weights"], weights, rtol=0, atol=1e-5, err_msg=case)
            assert worker[case]["skipped"] == (3 if case == SPOILT else 0)
            for name, values in history.items():
                np.testing.assert_allclose(worker[case]["history"][name], values, rtol=1e-5, err_msg=(case, name))
    assert {worker["sent"] for worker in found} == {b"\xff\x00\x80 of the chief".hex()}
    assert keras.models.load_model(tmp_path / "model.keras").count_params() > 0


def alone():
    """Returns the weights of two workers that train by themselves and meet after three and after six of six batches.

    The first batch that one of them cannot use moves the weights of the other alone.
    """
    models = [problem(SPOILT) for _ in range(2)]
    for epoch in range(3):
        for batch in range(6):
            for i, (model, data, _) in enumerate(models):
                data.set_epoch(epoch)
                x, y = data[batch]
                part = slice(i * len(x) // 2, (i + 1) * len(x) // 2)
                model.train_on_batch(x[part], y[part])
            if batch % 3 == 2:
                kept = [[*model.variables, *model.optimizer.variables] for model, _, _ in models]
                for pair in zip(*kept, strict=True):
                    values = [np.asarray(v) for v in pair]
                    met = sum(values) / 2 if values[0].dtype == np.float32 else np.maximum(*values)
                    for v in pair:
                        v.assign(met)
    return np.concatenate([np.ravel(w) for w in models[0][0].get_weights()])


def test_workers_that_train_by_themselves_meet(tmp_path):
    places = addresses(2)
    ends = finish([start("local", places, i, tmp_path) for i in range(2)], 300)
    assert [code for code, _, _ in ends] == [0, 0], ends
    first, second = (json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2))
    assert first == second
    assert first["whole"] == first["halves"]
    np.testing.assert_allclose(first["whole"], alone(), rtol=0, atol=1e-6)


def test_a_worker_that_dies_ends_the_others(tmp_path):
    places = addresses(2)
    both = [start("endless", places, i, tmp_path) for i in range(2)]
    while len(list(tmp_path.iterdir())) < 2 and all(p.poll() is None for p in both):
        time.sleep(0.2)
    began = time.monotonic()
    both[1].kill()
    (code, _, said), _ = finish(both, 60)
    assert code == 5
    assert f"error: worker 1 ({places[1]}) is gone" in said
    assert time.monotonic() - began < 30

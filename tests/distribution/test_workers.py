"""Processes that train together on this machine."""

import json
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from workers import addresses, finish, fit, start

pytestmark = pytest.mark.slow
CASES = ("adamw", "accumulating")


def test_two_workers_are_one_process(tmp_path):
    places = addresses(2)
    ends = finish([start("train", places, i, tmp_path, *CASES) for i in range(2)], 300)
    assert [code for code, _, _ in ends] == [0, 0], ends
    found = [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2)]
    for case in CASES:
        _, weights, history = fit(tf.distribute.get_strategy(), case)
        for worker in found:
            np.testing.assert_allclose(worker[case]["weights"], weights, rtol=0, atol=1e-5, err_msg=case)
            for name, values in history.items():
                np.testing.assert_allclose(worker[case]["history"][name], values, rtol=1e-5, err_msg=(case, name))
    assert {worker["sent"] for worker in found} == {b"\xff\x00\x80 of the chief".hex()}
    assert keras.models.load_model(tmp_path / "model.keras").count_params() > 0


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

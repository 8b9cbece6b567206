"""What `kopt.state_bytes` says is what an optimizer keeps."""

import keras
import numpy as np
import pytest

import kopt
from kopt.optimizers.memory import update_bytes

KERNEL = (1024, 4096)


@pytest.mark.parametrize(
    ("optimizer", "shape", "most"),
    [
        (kopt.Adam(), KERNEL, 8),
        (kopt.Adam(state_dtype="bfloat16"), KERNEL, 4),
        (kopt.Adam(state_dtype="int8"), KERNEL, 2.05),
        (kopt.Muon(), KERNEL, 4 + 1e-6),
        (kopt.Muon(state_dtype="int8"), KERNEL, 1.05),
        (kopt.NorMuon(), KERNEL, 4.01),
        (kopt.Adafactor(), KERNEL, 0.00489),
        (kopt.Adafactor(beta_1=0.9, state_dtype="int8"), KERNEL, 1.05),
        (kopt.CAME(), KERNEL, 4.01),
        (kopt.CAME(state_dtype="int8"), KERNEL, 1.03),
        (kopt.SM3(), KERNEL, 4.005),
        (kopt.SM3(momentum=0.0), KERNEL, 0.00489),
        (kopt.SM3(momentum=0.0, state_dtype="bfloat16"), KERNEL, 0.00245),
        (kopt.AdamMini(), KERNEL, 4.1),
        (kopt.AdamMini(state_dtype="int8"), KERNEL, 1.05),
        (kopt.GaLore(rank=128), KERNEL, 4 * (1024 + 2 * 4096) * 128 / 2**22),
        (kopt.GaLore("lion", rank=128, state_dtype="int8"), KERNEL, (4 * 1024 + 1.016 * 4096) * 128 / 2**22),
        (kopt.APOLLO(rank=256), KERNEL, 8 * 4096 * 256 / 2**22 + 1e-6),
        (kopt.APOLLO(rank=1), KERNEL, 8 * 4096 / 2**22 + 1e-6),
        (kopt.RowwiseAdaGrad(), (10_000, 64), 4 / 64),
    ],
    ids=str,
)
def test_bytes_a_parameter(optimizer, shape, most):
    assert 0.95 * most < kopt.state_bytes(optimizer, [shape]) / np.prod(shape) <= most


def test_as_much_as_there_is():
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(32), keras.layers.Dense(3)])
    given = (kopt.Adam(use_ema=True, gradient_accumulation_steps=2), kopt.Muon(state_dtype="int8"), kopt.Adafactor())
    for optimizer in (*given, kopt.AdamMini(state_dtype="bfloat16"), kopt.GaLore(rank=2), kopt.APOLLO(rank=2)):
        planned = kopt.state_bytes(optimizer, model)
        optimizer.build(model.trainable_variables)
        kept = [
            v
            for p in optimizer.setup.parameters
            for v in (
                p.average,
                p.averaged_at,
                p.accumulator,
                p.read,
                *(v for x in p.slots.values() for v in x.values()),
            )
            if v is not None
        ]
        there = sum(int(np.prod(v.shape)) * np.dtype(keras.backend.standardize_dtype(v.dtype)).itemsize for v in kept)
        assert planned == kopt.state_bytes(optimizer) == there


def test_rules_for_matrices_need_room_for_what_lies_between_their_products():
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(32), keras.layers.Dense(3)])
    made = {kopt.Muon(): 9, kopt.Lookahead(kopt.Muon()): 9, kopt.Orthogonalized("adamw"): 9, kopt.SOAP(): 3}
    for optimizer, arrays in made.items():
        assert update_bytes(optimizer, model) - kopt.state_bytes(optimizer, model) == 4 * arrays * 20 * 32
    switch = kopt.Switch(kopt.Muon(), second="sgd")
    assert update_bytes(switch, model) - kopt.state_bytes(switch, model) == 4 * 9 * 20 * 32


def test_what_it_takes():
    with pytest.raises(ValueError, match="optimizer of kopt"):
        kopt.state_bytes(keras.optimizers.Adam(), [KERNEL])
    with pytest.raises(ValueError, match="not built"):
        kopt.state_bytes(kopt.Adam())

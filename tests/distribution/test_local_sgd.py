"""What LocalSGD refuses, and what it does alone; `test_workers.py` has two workers."""

import numpy as np
import pytest
from problems import flat, network, regression

import kopt
from kopt.distribution import LocalSGD

ALONE = object()
"""A strategy without other workers."""


def test_alone_it_does_nothing():
    plain, model = network(kopt.SGD(0.1)), network(kopt.SGD(0.1))
    plain.fit(regression(), shuffle=False, verbose=0)
    local = LocalSGD(ALONE, sync_every=2)
    model.fit(local.shard(regression()), shuffle=False, verbose=0, callbacks=[local])
    np.testing.assert_array_equal(flat(model), flat(plain))


def test_what_cannot_be_averaged(two_devices):
    with two_devices.scope():
        model = network(kopt.SGD(0.1))
    with pytest.raises(ValueError, match="was made in the scope of the strategy"):
        model.fit(regression(), shuffle=False, verbose=0, callbacks=[LocalSGD(two_devices)])
    model = network(kopt.Adam(0.1, state_dtype="bfloat16"))
    with pytest.raises(ValueError, match=r"stored as u?int\d+, of which there is no mean. Give slots=False"):
        model.fit(regression(), shuffle=False, verbose=0, callbacks=[LocalSGD(ALONE)])
    model.fit(regression(), shuffle=False, verbose=0, callbacks=[LocalSGD(ALONE, slots=False)])
    with pytest.raises(ValueError, match="sync_every"):
        LocalSGD(ALONE, sync_every=0)

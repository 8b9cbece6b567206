"""One device and two replicas that train the same: a sample; `python tests/support/replicas.py` has all."""

import pytest
from replicas import BOUND, cases, difference, sample


@pytest.mark.slow
@pytest.mark.parametrize("name", sample(10))
def test_two_replicas_are_one(name, two_devices):
    assert difference(cases()[name], two_devices) < BOUND

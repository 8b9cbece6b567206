"""One device and two replicas that train the same: a sample; `python tests/support/replicas.py` has all."""

import pytest
from replicas import BOUND, cases, difference, sample


@pytest.mark.slow
@pytest.mark.parametrize("name", sample(10))
def test_two_replicas_are_one(name, two_devices):
    assert difference(cases()[name], two_devices) < BOUND


@pytest.mark.slow
def test_ranks_are_allocated_by_the_gradient_of_all_replicas(two_devices):
    assert difference(cases()["adalora, fit"], two_devices) < BOUND  # its notes of gradients are among the weights

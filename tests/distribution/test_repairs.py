"""The repairs of Keras' `fit` for several workers: where they are needed, and where they do not fit."""

import keras
import pytest

from kopt.distribution import keras_internals
from kopt.distribution.keras_internals import REPLACEMENTS, Fault, faults, is_there, repair

trainer = keras.src.backend.tensorflow.trainer


@pytest.fixture
def unrepaired(monkeypatch):
    """Takes back what a test before has repaired, and what this one does."""
    for fault in faults():
        found = getattr(fault.owner, fault.name)
        monkeypatch.setattr(fault.owner, fault.name, getattr(found, "repaired_by_kopt", found))


def test_the_faults_are_there_and_are_repaired_once(unrepaired):
    before = [getattr(fault.owner, fault.name) for fault in faults()]
    assert repair() == list(REPLACEMENTS), f"Keras {keras.__version__} has changed"
    assert repair() == []
    assert all(getattr(f.owner, f.name) is not old for f, old in zip(faults(), before, strict=True))


@pytest.mark.slow
def test_one_machine_is_not_touched_by_a_repair(unrepaired, two_devices):
    repair()
    with two_devices.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse", metrics=["mae"])
    logs = model.fit(keras.ops.ones((8, 3)), keras.ops.ones((8, 1)), verbose=0, batch_size=4).history
    assert {"loss", "mae"} == set(logs)


class Upstream:
    """What Keras could become."""

    def mended(self, values, strategy, reduction):
        return values

    def reduce_per_replica(self, values, strategy, reduction, axis):
        return strategy.reduce("MEAN", v, axis=0)  # noqa: F821


def fault(name, arguments=("self", "values", "strategy", "reduction")):
    return Fault(Upstream, name, keras_internals.REDUCES, arguments)


def test_a_repair_that_keras_no_longer_needs_is_left_out():
    assert not is_there(fault("mended"))


@pytest.mark.parametrize("name", ["reduce_per_replica", "gone"])
def test_a_repair_that_does_not_fit_is_an_error(name):
    with pytest.raises(RuntimeError, match=rf"Keras {keras.__version__} has no {name}\(self, .*newer kopt"):
        is_there(fault(name))


def test_a_repair_that_is_relied_on_is_never_left_out():
    with pytest.raises(RuntimeError, match="has no mended"):
        is_there(fault("mended")._replace(relied_on=True))


def test_each_fault_has_a_repair():
    assert {fault.name for fault in faults()} == set(REPLACEMENTS)

"""Two logical CPU devices, fixed seeds, Keras' global settings put back after each test, samples of slow cases."""

import collections
import os
import random

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


def pytest_addoption(parser):
    """Adds --sample, which the CI script gives."""
    parser.addoption(
        "--sample",
        type=int,
        default=1,
        metavar="K",
        help="run one in K of the slow cases of each test that has more than K of them, the same ones every time",
    )


@pytest.hookimpl(trylast=True)  # after the markers have chosen
def pytest_collection_modifyitems(config, items):
    """Leaves out the slow cases that are not in the sample.

    Raises:
        UsageError: the name of a test has an address, so that two workers do not call it the same.
    """
    if unstable := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"Give these cases names without an address, such as ids=...: {unstable}")
    share = config.getoption("sample")
    cases = collections.defaultdict(list)
    for item in items:
        if item.get_closest_marker("slow"):
            cases[item.nodeid.partition("[")[0]].append(item)
    left_out = set()
    for test, several in cases.items():
        if len(several) > share:
            kept = random.Random(test).sample(several, -(-len(several) // share))
            left_out |= set(several).difference(kept)
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(autouse=True)
def _fresh_keras():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_floatx("float32")
    tf.config.experimental.enable_tensor_float_32_execution(True)
    keras.utils.clear_session(free_memory=False)


@pytest.fixture(scope="session")
def two_devices():
    """One strategy for the whole run: TensorFlow mixes up the collectives of two of them in one process."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

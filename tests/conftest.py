"""Two logical CPU devices, fixed seeds, Keras' global settings put back after each test, samples of cases."""

import collections
import gc
import os
import random
import signal
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup has ignored: the recipes then leave it so

GARBAGE = 5.0
"""Seconds after which garbage is collected.

TensorFlow may wait for the thread of an iterator that was left unread as long as that iterator lived: up to a minute.
"""


def pytest_addoption(parser):
    """Adds --sample, which the CI script gives."""
    parser.addoption(
        "--sample",
        type=int,
        default=1,
        metavar="K",
        help="run one in K of the slow cases of each test that has more than K of them, the same ones every time",
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Makes slow cases of those that are not among the few; leaves out the slow ones that are not in the sample.

    Raises:
        UsageError: the name of a test has an address, so that two workers do not call it the same.
    """
    if unstable := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"Give these cases names without an address, such as ids=...: {unstable}")
    quick = [item for item in items if not item.get_closest_marker("slow")]
    for several in by_test(item for item in quick if item.get_closest_marker("few")):
        for item in not_among(several, several[0].get_closest_marker("few").args[0]):
            item.add_marker(pytest.mark.slow)
    result = yield  # the markers choose
    share = config.getoption("sample")
    slow = by_test(item for item in items if item.get_closest_marker("slow"))
    left_out = {
        item for several in slow if len(several) > share for item in not_among(several, -(-len(several) // share))
    }
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]
    return result


def by_test(items):
    """Returns the cases of each test."""
    cases = collections.defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    return cases.values()


def not_among(cases, count):
    """Returns the cases of a test without so many of them, the same ones every time."""
    kept = random.Random(cases[0].nodeid.partition("[")[0]).sample(cases, min(count, len(cases)))
    return [case for case in cases if case not in kept]


@pytest.fixture(scope="session")
def collected():
    """Returns when garbage was last looked for, among what is new and among all; the tests bring it up to date."""
    gc.collect()
    gc.freeze()
    return dict.fromkeys(("new", "all"), time.monotonic())


@pytest.fixture(autouse=True)
def _fresh_keras(collected):
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.config.set_floatx("float32")
    tf.config.experimental.enable_tensor_float_32_execution(True)
    keras.utils.clear_session(free_memory=False)
    now = time.monotonic()
    if now - collected["new"] > GARBAGE:
        if now - collected["all"] > 12 * GARBAGE:
            gc.unfreeze()
            collected["all"] = now
        gc.collect()
        gc.freeze()  # what is left is not looked at again until it is unfrozen
        collected["new"] = time.monotonic()


@pytest.fixture(scope="session")
def two_devices():
    """One strategy for the whole run: TensorFlow mixes up the collectives of two of them in one process."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

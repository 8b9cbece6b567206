"""Two logical CPU devices, fixed seeds, and Keras' global settings put back after each test."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


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

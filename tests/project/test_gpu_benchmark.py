"""The benchmark for a GPU runs on a CPU, small, and with JAX or torch alone: TensorFlow need not be there."""

import importlib.util
import os
import subprocess
import sys

import pytest
from sources import ROOT

WITHOUT_TENSORFLOW = """
import runpy, sys
sys.modules["tensorflow"] = None
sys.argv = ["gpu", "--rounds", "1"]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""
TRAINING = """
import sys
sys.modules["tensorflow"] = None
import keras, numpy as np, kopt
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
kopt.peft.get_peft_model(model, kopt.peft.LoRA(r=2, target_modules="all-linear"))
model.compile(kopt.AdaBound(0.01), "mse")
stats = kopt.tensorboard.OptimizerStats("logs", every=1, hparams={"a": 1})
model.fit(np.ones((8, 4)), np.ones((8, 3)), verbose=0, callbacks=[stats, kopt.EMA(0.9)])
stats.finish({"loss": 1.0})
model.save("model.keras")
copy = keras.models.load_model("model.keras")
print(np.abs(copy.predict(np.ones((8, 4)), verbose=0) - model.predict(np.ones((8, 4)), verbose=0)).max())
"""


def printed(backend, program, folder):
    """Returns what a program prints on a backend, on the CPU."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    own = {"KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **own}, cwd=folder, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_on_a_cpu_it_runs_small_and_says_so(backend, tmp_path):
    lines = printed(backend, WITHOUT_TENSORFLOW, tmp_path).splitlines()
    assert lines[0] == "Run small on a CPU: this says that it runs, and nothing about a GPU."
    assert sum(line.startswith(("| kopt.", "| keras.")) for line in lines) == 9
    assert lines[-1].startswith(f"1 rounds, the backend {backend}; Keras")
    assert lines[-1].endswith("no GPU.")
    assert all(float(line.split("|")[2]) > 0 for line in lines if line.startswith("| kopt."))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_without_tensorflow(backend, tmp_path):
    assert float(printed(backend, TRAINING, tmp_path)) == 0.0
    written = b"".join(file.read_bytes() for file in (tmp_path / "logs").iterdir())
    assert b"_hparams_/session_end_info" in written and b"Loss/train" in written
